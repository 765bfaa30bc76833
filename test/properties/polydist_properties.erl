%%% PropEr under eunit: every function prop_.../0 of a module is a test of its own, named by what it says.
-module(polydist_properties).

-include_lib("proper/include/proper.hrl").

-export([tests/1, for_all/2, anything/0]).

%% POLYDIST_CASES=20000 searches for longer.
-define(CASES, 500).

%% @doc The tests of a module: its properties.
-spec tests(module()) -> [term()].
tests(Module) ->
    [
        {timeout, 3600, {title(Sentence), fun() -> holds(Module, Property) end}}
     || {Property, 0} <- lists:sort(Module:module_info(exports)), "prop_" ++ Sentence <- [atom_to_list(Property)]
    ].

title(Sentence) ->
    lists:flatten(io_lib:format("~ts (~b cases)", [string:replace(Sentence, "_", " ", all), cases()])).

cases() ->
    case os:getenv("POLYDIST_CASES") of
        false -> ?CASES;
        Cases -> list_to_integer(Cases)
    end.

holds(Module, Property) ->
    case proper:quickcheck(Module:Property(), [quiet, long_result, {numtests, cases()}]) of
        true -> ok;
        Counterexample -> erlang:error({Property, Counterexample})
    end.

%% @doc A property: Body comes to true, or to what PropEr takes for it, for whatever Generator makes.
-spec for_all(Generator :: term(), fun((term()) -> proper:test())) -> proper:test().
for_all(Generator, Body) ->
    ?FORALL(Value, Generator, guarded(Body, Value)).

%% PropEr would see to a body that raises, but 1.2 asks erlang:get_stacktrace/0 what happened.
guarded(Body, Value) ->
    try
        Body(Value)
    catch
        Class:Reason:Stack ->
            ?WHENFAIL(io:format("~p: ~p~n~p~n", [Class, Reason, lists:sublist(Stack, 5)]), false)
    end.

%% @doc Any term. Not PropEr's any(), which makes atoms until the table is full.
-spec anything() -> proper_types:type().
anything() ->
    ?SIZED(Size, anything(min(Size, 20))).

anything(0) ->
    oneof([integer(), float(), word(), binary(), bitstring(), string(), [], {}, #{}, self(), make_ref(), fun() -> ok end]);
anything(Size) ->
    Smaller = ?LAZY(anything(Size div 5)),
    Some = resize(3, list(Smaller)),
    oneof([
        anything(0), Some, ?LET(List, Some, list_to_tuple(List)), {word(), Smaller}, {word(), Some},
        ?LET(Pairs, resize(3, list({oneof([word(), Smaller]), Smaller})), maps:from_list(Pairs)),
        ?LET({First, Rest, Tail}, {Smaller, Some, Smaller}, [First | Rest] ++ Tail)
    ]).

word() ->
    oneof([
        any, all, 'not', net, host, same_host, transports, ticktime, legacy, socket, tcp, tcp6, tls, uds, sctp, none, ms, epmd, ip,
        port, dir, mode, true, undefined, '', 'two words'
    ]).
