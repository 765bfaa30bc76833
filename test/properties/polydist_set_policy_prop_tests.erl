%%% Properties of polydist:policy/0, set_policy/1 and check_policy/1 where polydist runs.
-module(polydist_set_policy_prop_tests).

-include_lib("proper/include/proper.hrl").

-export([properties_test_/0]).

-import(polydist_properties, [for_all/2]).

properties_test_() ->
    {setup, fun start/0, fun stop/1, polydist_properties:tests(?MODULE)}.

start() ->
    {ok, Supervisor} = polydist_sup:start_link(),
    Supervisor.

stop(Supervisor) ->
    Monitor = monitor(process, Supervisor),
    unlink(Supervisor),
    exit(Supervisor, shutdown),
    receive
        {'DOWN', Monitor, process, Supervisor, shutdown} -> ok
    end.

prop_the_policy_in_force_is_the_last_one_without_a_mistake() ->
    for_all(?SIZED(Size, resize(Size div 4, list(oneof([polydist_policy_gen:rules(), mistaken()])))), fun(Policies) ->
        Before = polydist:policy(),
        Told = [{Rules, polydist:check_policy(Rules), polydist:set_policy(Rules)} || Rules <- Policies],
        conjunction([
            {as_checked, equals([], [Each || {_, Checked, Set} = Each <- Told, Checked =/= Set])},
            {in_force, equals(lists:last([Before | [Rules || {Rules, ok, ok} <- Told]]), polydist:policy())}
        ])
    end).

mistaken() ->
    ?LET({Rules, Wrong}, {polydist_policy_gen:some_rules(), polydist_policy_gen:wrong_rule()}, Rules ++ [Wrong]).
