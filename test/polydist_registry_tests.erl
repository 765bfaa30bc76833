-module(polydist_registry_tests).

-include_lib("eunit/include/eunit.hrl").

%% A registry without any callback but the one that it must have; another that is none.
-export([lookup/2]).

lookup(_, crash) -> error(told_to);
lookup(_, {exit, Reason}) -> exit(Reason);
lookup(_, {throw, Answer}) -> throw(Answer);
lookup(_, Answer) -> Answer.

query() -> #{node => a@b, name => "a", host => "b", timeout => 100}.

names(Registries) -> [Name || #{name := Name} <- Registries].

configured(Specs) ->
    {ok, Registries} = polydist_registry:configure(Specs),
    Registries.

%%
%% Configuration
%%

the_default_is_epmd_test() ->
    {ok, #{registries := [#{name := epmd, module := polydist_registry_epmd, register := true}]}} = polydist_config:parse([], []).

registries_are_named_by_their_kind_or_by_a_name_of_their_own_test() ->
    Specs = [epmd, {static, "/f"}, dns, {dir, "/d"}, {site, epmd, #{port => 1}}, {?MODULE, anything}, {mine, ?MODULE, []}],
    Registries = configured(Specs),
    ?assertEqual([epmd, static, dns, dir, site, ?MODULE, mine], names(Registries)).

who_cannot_register_is_not_asked_to_test() ->
    Registries = configured([epmd, {static, []}, dns, {dir, "/d"}, ?MODULE]),
    ?assertEqual([true, false, false, true, false], [Register || #{register := Register} <- Registries]).

options_of_every_registry_test() ->
    ?assertMatch(
        [#{timeout := 50, register := false, options := #{port := 7}}],
        configured([{epmd, #{timeout => 50, register => false, port => 7}}])
    ),
    ?assertMatch([#{timeout := 2000, register := true, options := <<"/d">>}], configured([{dir, #{dir => "/d"}}])),
    ?assertMatch([#{timeout := 9, options := #{mine := 1}}], configured([{?MODULE, #{timeout => 9, mine => 1}}])),
    ?assertMatch([#{options := [not_a_map]}], configured([{?MODULE, [not_a_map]}])).

none_at_all_is_a_configuration_test() ->
    ?assertEqual([], configured([])).

a_flag_and_the_environment_test() ->
    {ok, #{registries := [#{name := dir}]}} = polydist_config:parse([["registries", "[{dir,\"/d\"}]"]], [{registries, [epmd]}]),
    {ok, #{registries := [#{name := dns}]}} = polydist_config:parse([], [{registries, [dns]}]).

rules_name_registries_that_are_configured_test() ->
    Rules = fun(Names) -> [{any, #{transports => [tcp], registries => Names}}] end,
    {ok, #{policy := Policy}} = polydist_config:parse([], [{registries, [dns, {dir, "/d"}]}, {policy, Rules([dir])}]),
    ?assertEqual([dir], polydist_policy:registries(Policy, a@b)),
    {error, Sentence} = polydist_config:parse([], [{registries, [dns]}, {policy, Rules([epmd])}]),
    ?assertNotEqual(nomatch, string:find(Sentence, "epmd")).

static_places_test() ->
    Checked = fun(Given) -> [#{options := Options}] = configured([{static, Given}]), Options end,
    ?assertEqual([{"a@b", [{tls, 1}]}], Checked(#{"a@b" => [{tls, 1}]})),
    ?assertEqual([{"é@b", [{tcp, "h", 1}, {tcp6, {0, 0, 0, 0, 0, 0, 0, 1}, 2}]}, {"*", []}],
        Checked([{<<"é@b"/utf8>>, [{tcp, <<"h">>, 1}, {tcp6, {0, 0, 0, 0, 0, 0, 0, 1}, 2}]}, {"*", []}])),
    ?assertEqual([{"a@b", [{uds, <<"/s">>}]}], Checked([{"a@b", [{uds, "/s"}]}])),
    ?assertEqual({file, "/f"}, Checked(<<"/f">>)).

%% {What is given for the key, what the sentence names}
mistakes_are_sentences_test_() ->
    [
        {lists:flatten(io_lib:format("~0tp", [Given])), fun() ->
            {error, Sentence} = polydist_config:parse([], [{registries, Given}]),
            ?assert(is_binary(Sentence)),
            ?assertNotEqual({nomatch, Sentence}, {string:find(Sentence, "registries"), Sentence}),
            ?assertNotEqual({nomatch, Sentence}, {string:find(Sentence, Named), Sentence}),
            %% One line of text.
            ?assert(is_list(unicode:characters_to_list(Sentence))),
            ?assertEqual(nomatch, string:find(Sentence, "\n"))
        end}
     || {Given, Named} <- [
        {epmd, "must be a list such as [epmd"},
        {[epmd | dns], "must be a list"},
        {#{epmd => []}, "must be a list"},
        {["epmd"], "write epmd, dns"},
        {[{epmd, a, b, c}], "write epmd, dns"},
        {[{"site", epmd, #{}}], "write epmd, dns"},
        {[epmd, epmd], "epmd twice"},
        {[{dir, "/a"}, {dir, "/b"}], "give one a name of its own"},
        {[etcd], "etcd is not"},
        {[{lists, []}], "it is no registry"},
        {[{epmd, #{timeout => 0}}], "timeout => 0"},
        {[{epmd, #{timeout => infinity}}], "whole number of milliseconds"},
        {[{epmd, #{register => yes}}], "true or false"},
        {[{epmd, #{prot => 1}}], "there are port and host"},
        {[{epmd, #{port => 70000}}], "port number"},
        {[{epmd, #{host => "here"}}], "give it a name of its own"},
        {[{site, epmd, #{host => here}}], "host's name"},
        {[{epmd, [{port, 1}]}], "map"},
        {[static], "there is no endpoint"},
        {[{static, "nodes"}], "\"nodes\" is not the absolute path of a file"},
        {[{static, #{"a@b" => {tls, 1}}}], "[Endpoint]"},
        {[{static, #{a@b => [{tls, 1}]}}], "a@b"},
        {[{static, #{"a@b" => [{tls, 0}]}}], "{tls,0}"},
        {[{static, #{"a@b" => [{ssl, 1}]}}], "{ssl,1}"},
        {[{static, #{"a@b" => [{tls, here, 1}]}}], "here"},
        {[{static, #{"a@b" => [{uds, "relative"}]}}], "absolute path"},
        {[{static, #{"a@b" => [{uds, relative}]}}], "a@b"},
        {[{static, #{"a@b" => [{tls, 1} | x]}}], "static"},
        {[{static, #{"" => []}}], "static"},
        {[{static, <<"/", 255>>}], "static"},
        {[{dns, #{domian => "x"}}], "domian is not known"},
        {[{dns, #{domain => x}}], "domain"},
        {[{dns, #{services => [{uds, "_x._tcp"}]}}], "services"},
        {[{dns, #{ports => [4370]}}], "[{tls, 4370}]"},
        {[{dns, #{ports => [{tls, 4370} | x]}}], "ports"},
        {[{dns, #{nameservers => [{"127.0.0.1", 53}]}}], "[{{127, 0, 0, 1}, 53}]"},
        {[{dns, "nodes.example"}], "no map"},
        {[dir], "absolute path"},
        {[{dir, "run/app"}], "absolute path"},
        {[{dir, <<255>>}], "absolute path"},
        {[{dir, #{dir => "/d", mode => 8#700}}], "absolute path"},
        {[{polydist_scripted_registry, crash}], "crashed on its options"},
        {[{polydist_scripted_registry, wrong}], "wants a map"},
        {[{polydist_scripted_registry, {say, ok}}], "answered ok to check/1"},
        {[{polydist_scripted_registry, {say, {error, {no, <<255>>}}}}], "{no,"},
        {[{polydist_scripted_registry, {say, {error, ["no", -1]}}}], "no"}
    ]].

any_term_is_a_configuration_or_a_sentence_test() ->
    Terms = [x, 1, 1.5, "", "text", <<>>, <<255>>, #{}, [], {}, {epmd}, {epmd, 1}, [[]], [{}], [<<255>>], self(), fun() -> ok end,
        make_ref(), [x | y]],
    Wrapped = Terms ++ [[Term] || Term <- Terms]
        ++ [[{Kind, Term}] || Kind <- [epmd, static, dns, dir], Term <- Terms]
        ++ [[{name, Kind, Term}] || Kind <- [epmd, static, dns, dir], Term <- Terms]
        ++ [[{static, #{"a@b" => Term}}] || Term <- Terms] ++ [[{static, #{"a@b" => [Term]}}] || Term <- Terms]
        ++ [[{static, [{Term, []}]}] || Term <- Terms] ++ [[{static, #{"a@b" => [{uds, Term}]}}] || Term <- Terms]
        ++ [[{static, #{"a@b" => [{tls, Term, 1}]}}] || Term <- Terms]
        ++ [[{static, #{"a@b" => [{tls, "h", Term}]}}] || Term <- Terms]
        ++ [[{dns, #{Key => Term}}] || Key <- [services, domain, ports, nameservers], Term <- Terms]
        ++ [[{dns, #{Key => [Term]}}] || Key <- [services, domain, ports, nameservers], Term <- Terms]
        ++ [[{epmd, #{Key => Term}}] || Key <- [host, port, timeout, register], Term <- Terms],
    [case polydist_registry:configure(Each) of
        {ok, Registries} when is_list(Registries) -> ok;
        {error, Sentence} when is_binary(Sentence) -> ok;
        Other -> error({Each, Other})
     end || Each <- Wrapped].

%%
%% Answers
%%

what_a_registry_does_wrong_is_an_error_that_names_it_test_() ->
    [Registry] = configured([{mine, ?MODULE, []}]),
    [?_test(begin
        {error, {Kind, Sentence}} = polydist_registry:lookup(Registry#{options := Option}, query()),
        ?assertNotEqual(nomatch, string:find(Sentence, "mine"))
     end) || {Option, Kind} <- [
        {crash, crashed}, {{exit, normal}, crashed}, {{exit, kill}, crashed}, {{throw, {ok, #{}}}, crashed}, {ok, bad_answer},
        {{error, nothing}, bad_answer}, {{error, {"kind", <<"text">>}}, bad_answer}, {{error, {kind, "text"}}, bad_answer}
    ]].

what_it_does_right_is_left_as_it_is_test() ->
    [Registry] = configured([{mine, ?MODULE, []}]),
    ?assertEqual({ok, #{port => 1}}, polydist_registry:lookup(Registry#{options := {ok, #{port => 1}}}, query())),
    ?assertEqual({error, {no, <<"no">>}}, polydist_registry:lookup(Registry#{options := {error, {no, <<"no">>}}}, query())).

answers_keep_what_is_an_endpoint_test_() ->
    ok = polydist_native:load(),
    Good = [{tcp, {any4, 1}}, {tcp6, {any6, 2}}, {tls, {{10, 0, 0, 1}, 3}}, {uds, {local, <<"/s">>}}],
    Bad = [x, {}, {tcp}, {tcp, 1}, {smoke, {any4, 1}}, {tcp, {any5, 1}}, {tcp, {any4, -1}}, {tcp, {any4, 65536}},
        {tcp, {{1, 2, 3}, 4}}, {uds, {local, "/list"}}, {tcp, {any4, 1, 2}}],
    [
        ?_assertEqual({ok, {record, Good}, #{}}, polydist_registry:answer(#{endpoints => Bad ++ Good ++ Bad})),
        ?_assertEqual({ok, {port, 7}, #{}}, polydist_registry:answer(#{port => 7})),
        ?_assertMatch({ok, {record, []}, #{addresses := [{1, 2, 3, 4}], trusted_paths := true}},
            polydist_registry:answer(#{endpoints => [], addresses => [{1, 2, 3, 4}], trusted_paths => true, host => <<"x">>})),
        ?_assertEqual({ok, {port, 7}, #{}}, polydist_registry:answer(#{record => <<"no record">>, port => 7}))
    ].

addresses_beyond_a_number_are_left_out_test() ->
    Addresses = [{10, 0, A, B} || A <- lists:seq(0, 255), B <- lists:seq(0, 255)],
    {ok, _, #{addresses := Kept}} = polydist_registry:answer(#{endpoints => [], addresses => Addresses}),
    ?assertEqual(lists:sublist(Addresses, 64), Kept).

a_record_is_read_test() ->
    ok = polydist_native:load(),
    Record = polydist_epmd:record([#{transport => T, flags => 0, address => {any4, 7}} || T <- [<<"tcp">>, <<"smoke">>]]),
    Host = polydist_native:host_identity(),
    ?assertMatch({ok, {record, [{tcp, {any4, 7}}]}, #{host := Host}}, polydist_registry:answer(#{record => Record})).

answers_that_are_none_test_() ->
    ok = polydist_native:load(),
    [?_assertMatch({error, {_, <<_/binary>>}}, polydist_registry:answer(Found)) || Found <- [
        x, [], #{}, #{port => x}, #{port => -1}, #{port => 65536}, #{port => 1.0}, #{endpoints => x}, #{endpoints => [a | b]},
        #{endpoints => lists:duplicate(100000, {tcp, {any4, 1}})}, #{record => x}, #{record => <<>>},
        #{record => <<"PLYD", 1, 2>>},
        #{record => binary:copy(<<"PLYD">>, 20000)},
        #{record => <<"x">>, port => x}, #{record => <<"x">>, port => 70000}, #{record => <<"x">>, port => 0},
        #{endpoints => [], addresses => x}, #{endpoints => [], addresses => [{1, 2, 3, 4} | x]}
    ]].
