-module(polydist_policy_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ALL, [tcp, tcp6, tls, uds]).
-define(PATH, <<"/run/polydist/a@h">>).

%% A peer with every transport, on this host or another.
peer(SameHost) ->
    #{
        node => 'db1@far.example',
        ip4 => [{192, 0, 2, 1}],
        ip6 => [{16#2001, 16#db8, 0, 0, 0, 0, 0, 1}],
        same_host => SameHost,
        registered => {record, [
            {tcp, {any4, 1001}}, {tcp6, {any6, 1002}}, {tls, {any4, 1003}}, {tls, {any6, 1003}}, {uds, {local, ?PATH}}
        ]}
    }.

stock(SameHost) ->
    (peer(SameHost))#{registered := {port, 4000}}.

transports(Policy, Carriers, Peer) ->
    {Candidates, _} = polydist_policy:candidates(Policy, Carriers, Peer),
    lists:foldl(fun(#{transport := T}, Seen) -> Seen ++ [T || not lists:member(T, Seen)] end, [], Candidates).

compiled(Policy) ->
    {ok, Compiled} = polydist_policy:compile(Policy),
    Compiled.

without_a_policy_this_host_is_dialled_by_uds_tls_tcp6_tcp_test() ->
    ?assertEqual([uds, tls, tcp6, tcp], transports(polydist_policy:default(?ALL), ?ALL, peer(true))).

without_a_policy_another_host_is_dialled_by_tls_only_where_tls_is_on_test() ->
    ?assertEqual([tls], transports(polydist_policy:default(?ALL), ?ALL, peer(false))).

without_a_policy_and_without_tls_another_host_is_dialled_by_tcp6_then_tcp_test() ->
    Carriers = [tcp, tcp6, uds],
    ?assertEqual([tcp6, tcp], transports(polydist_policy:default(Carriers), Carriers, peer(false))).

the_first_rule_that_matches_decides_test() ->
    Policy = compiled([{"db*@*", #{transports => [tls]}}, {same_host, #{transports => [uds]}}, {any, #{transports => [tcp]}}]),
    ?assertEqual([tls], transports(Policy, ?ALL, peer(true))),
    ?assertEqual([uds], transports(Policy, ?ALL, (peer(true))#{node := 'web@far.example'})),
    ?assertEqual([tcp], transports(Policy, ?ALL, (peer(false))#{node := 'web@far.example'})).

the_rule_orders_the_candidates_test() ->
    Policy = compiled([{any, #{transports => [tcp, uds, tls]}}]),
    ?assertEqual([tcp, uds, tls], transports(Policy, ?ALL, peer(true))).

a_peer_no_rule_fits_gets_the_default_test() ->
    ?assertEqual([tls], transports(compiled([{"other@*", #{transports => [tcp]}}]), ?ALL, peer(false))).

only_transports_this_node_runs_are_dialled_and_the_others_are_explained_test() ->
    {Candidates, Skipped} = polydist_policy:candidates(polydist_policy:default([tcp]), [tcp], peer(true)),
    ?assertMatch([#{transport := tcp, address := {{192, 0, 2, 1}, 1001}, why := _}], Candidates),
    ?assertEqual([uds, tls, tcp6], [T || {T, Why} <- Skipped, is_binary(Why)]).

a_transport_the_peer_did_not_register_is_skipped_test() ->
    Peer = (peer(true))#{registered := {record, [{tcp, {any4, 1001}}]}},
    ?assertEqual([tcp], transports(polydist_policy:default(?ALL), ?ALL, Peer)).

a_socket_on_another_host_is_no_candidate_test() ->
    ?assertEqual([], transports(compiled([{any, #{transports => [uds]}}]), ?ALL, peer(false))).

a_loopback_address_of_another_host_is_no_candidate_test() ->
    Peer = (peer(false))#{registered := {record, [{tcp, {{127, 0, 0, 1}, 1001}}]}},
    ?assertEqual([], transports(compiled([{any, #{transports => [tcp]}}]), ?ALL, Peer)).

tls_is_dialled_at_both_families_test() ->
    {Candidates, _} = polydist_policy:candidates(compiled([{any, #{transports => [tls]}}]), ?ALL, peer(false)),
    ?assertEqual(
        [{{192, 0, 2, 1}, 1003}, {{16#2001, 16#db8, 0, 0, 0, 0, 0, 1}, 1003}],
        lists:sort([Address || #{address := Address} <- Candidates])
    ).

a_name_without_an_address_on_this_host_is_dialled_at_the_loopback_test() ->
    Peer = (peer(true))#{ip4 := [], ip6 := []},
    {Candidates, _} = polydist_policy:candidates(compiled([{any, #{transports => [tcp6, tcp]}}]), ?ALL, Peer),
    ?assertEqual([{{0, 0, 0, 0, 0, 0, 0, 1}, 1002}, {{127, 0, 0, 1}, 1001}], [Address || #{address := Address} <- Candidates]).

a_stock_peer_is_dialled_at_its_port_in_the_clear_where_the_rule_allows_test() ->
    ?assertEqual([tcp6, tcp], transports(polydist_policy:default(?ALL), ?ALL, stock(true))),
    ?assertEqual([], transports(polydist_policy:default(?ALL), ?ALL, stock(false))),
    ?assertEqual([tcp], transports(compiled([{any, #{transports => [tls, tcp]}}]), ?ALL, stock(false))).

a_peer_without_any_port_is_not_dialled_test() ->
    Peer = (peer(true))#{registered := {port, 0}},
    ?assertEqual([], transports(polydist_policy:default(?ALL), ?ALL, Peer)).

no_transports_forbid_the_peer_by_its_name_alone_test() ->
    Policy = compiled([{"bad@*", #{transports => []}}, {any, #{transports => [tcp]}}]),
    ?assertNot(polydist_policy:may_connect(Policy, 'bad@host')),
    ?assert(polydist_policy:may_connect(Policy, 'good@host')).

a_rule_for_this_host_alone_cannot_forbid_by_name_test() ->
    ?assert(polydist_policy:may_connect(compiled([{same_host, #{transports => []}}]), 'any@host')).

%% {Glob, Text that fits, Text that does not}
globs_test_() ->
    [
        {Glob, [?_assert(polydist_policy:matches(Glob, Fits)), ?_assertNot(polydist_policy:matches(Glob, Misses))]}
     || {Glob, Fits, Misses} <- [
            {"a@b", "a@b", "a@bc"},
            {"db*@*", "db12@host", "adb@host"},
            {"db?@h", "db1@h", "db@h"},
            {"*a*b*", "xxaxxbxx", "xxbxxaxx"},
            {"*@*.example", "n@a.b.example", "n@a.b.example.org"},
            {"a*", "a", "b"},
            {"n*d@é?", "nœud@éa", "nœud@ea"},
            {"a.c@h", "a.c@h", "abc@h"}
        ]
    ] ++ [?_assert(polydist_policy:matches("*", ""))].

a_glob_that_could_be_tried_in_a_million_ways_is_fast_test() ->
    Text = lists:duplicate(2000, $a),
    ?assertNot(polydist_policy:matches("*a*a*a*a*a*a*a*a*b", Text)).

%% What is wrong is said with the rule's number and with what was expected.
mistakes_are_sentences_test_() ->
    [
        ?_assertMatch({error, <<_, _/binary>>}, says(Part, polydist_policy:compile(Policy)))
     || {Policy, Part} <- [
            {nonsense, "nonsense"},
            {[oops], "rule 1"},
            {[{any, #{transports => [tcp]}}, {any, #{transports => [carrier_pigeon]}}], "carrier_pigeon"},
            {[{any, #{transports => [tcp]}}, {any, #{}}], "rule 2"},
            {[{any, #{transports => tcp}}], "list"},
            {[{any, #{transport => [tcp]}}], "transport"},
            {[{17, #{transports => [tcp]}}], "17"},
            {[{any, [tcp]}], "rule 1"},
            {[{any, #{transports => [tcp]}} | tail], "list"}
        ]
    ].

says(Part, {error, Sentence} = Error) ->
    {Part, true} = {Part, string:find(Sentence, Part) =/= nomatch},
    Error.
