-module(polydist_policy_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ALL, [tcp, tcp6, tls, uds]).
-define(IP4, {192, 0, 2, 1}).
-define(IP6, {16#2001, 16#db8, 0, 0, 0, 0, 0, 1}).
-define(PATH, <<"/run/polydist/a@h">>).

%% A peer with every transport, on this host or another.
peer(SameHost) ->
    record(SameHost, [
        {tcp, {any4, 1001}}, {tcp6, {any6, 1002}}, {tls, {any4, 1003}}, {tls, {any6, 1003}}, {uds, {local, ?PATH}}
    ]).

%% A peer that registered these endpoints.
record(SameHost, Endpoints) ->
    #{
        node => 'db1@far.example',
        ip4 => [?IP4],
        ip6 => [?IP6],
        same_host => SameHost,
        same_machine => SameHost,
        uds_dirs => [<<"/run/polydist">>],
        registered => [{epmd, {record, Endpoints}}]
    }.

stock(SameHost) ->
    (peer(SameHost))#{registered := [{epmd, {port, 4000}}]}.

candidates(Rules, Peer) when is_list(Rules) -> candidates(compiled(Rules), Peer);
candidates(Policy, Peer) -> element(1, polydist_policy:candidates(Policy, ?ALL, Peer)).

compiled(Rules) ->
    {ok, Policy} = polydist_policy:compile(Rules),
    Policy.

%% In order, each once.
transports(Policy, Peer) ->
    lists:uniq([T || #{transport := T} <- candidates(Policy, Peer)]).

addresses(Policy, Peer) ->
    [{T, Address} || #{transport := T, address := Address} <- candidates(Policy, Peer)].

%% Why there is no candidate of a transport.
skipped(Transport, Policy, Carriers, Peer) ->
    {Candidates, Skipped} = polydist_policy:candidates(Policy, Carriers, Peer),
    [] = [C || #{transport := T} = C <- Candidates, T =:= Transport],
    {Transport, Why} = lists:keyfind(Transport, 1, Skipped),
    Why.

%% Without a policy

without_a_policy_this_host_is_dialled_by_uds_tls_tcp6_tcp_test() ->
    ?assertEqual([uds, tls, tcp6, tcp], transports(polydist_policy:default(?ALL), peer(true))).

without_a_policy_another_host_is_dialled_by_tls_only_where_tls_is_on_test() ->
    ?assertEqual([tls], transports(polydist_policy:default(?ALL), peer(false))).

without_a_policy_and_without_tls_another_host_is_dialled_by_tcp6_then_tcp_test() ->
    Carriers = [tcp, tcp6, uds],
    {Candidates, _} = polydist_policy:candidates(polydist_policy:default(Carriers), Carriers, peer(false)),
    ?assertEqual([tcp6, tcp], [T || #{transport := T} <- Candidates]).

sctp_comes_last_without_a_policy_and_never_beyond_this_host_where_tls_is_on_test() ->
    Carriers = [sctp | ?ALL],
    Dialled = fun(Carried, SameHost) ->
        Peer = record(SameHost, [{sctp, {any4, 1004}}, {sctp, {any6, 1004}}, {tcp, {any4, 1001}}]),
        {Candidates, _} = polydist_policy:candidates(polydist_policy:default(Carried), Carried, Peer),
        [{T, Address} || #{transport := T, address := Address} <- Candidates]
    end,
    Both = [{tcp, {?IP4, 1001}}, {sctp, {?IP4, 1004}}, {sctp, {?IP6, 1004}}],
    ?assertEqual(Both, Dialled(Carriers, true)),
    ?assertEqual([], Dialled(Carriers, false)),
    ?assertEqual(Both, Dialled([sctp, tcp], false)),
    ?assertEqual(tl(Both), Dialled([sctp], false)).

every_address_of_an_endpoint_of_sctp_is_a_candidate_test() ->
    Peer = record(false, [{sctp, {?IP4, 7}}, {sctp, {{192, 0, 2, 2}, 7}}, {sctp, {?IP6, 7}}, {sctp, {local, ?PATH}}]),
    {Candidates, _} = polydist_policy:candidates(compiled([{any, #{transports => [sctp]}}]), [sctp], Peer),
    ?assertEqual([{?IP4, 7}, {{192, 0, 2, 2}, 7}, {?IP6, 7}], [A || #{address := A} <- Candidates]).

options_of_sctp_are_taken_as_written_test() ->
    Sctp = #{heartbeat => 500, path_max_retrans => 2, max_retrans => 65535, rto_initial => 300, rto_min => 100, rto_max => 100},
    {ok, Policy} = polydist_policy:compile([{any, #{transports => [sctp], socket => #{sctp => Sctp}}}]),
    {Candidates, _} = polydist_policy:candidates(Policy, [sctp], record(false, [{sctp, {?IP4, 7}}])),
    [#{settings := #{socket := Socket}}] = Candidates,
    ?assertEqual(#{sctp => Sctp}, Socket).

a_peer_no_rule_fits_gets_the_default_test() ->
    ?assertEqual([tls], transports([{"other@*", #{transports => [tcp]}}], peer(false))).

%% Which rule decides

the_first_rule_that_matches_decides_test() ->
    Rules = [{"db*@*", #{transports => [tls]}}, {same_host, #{transports => [uds]}}, {any, #{transports => [tcp]}}],
    ?assertEqual([tls], transports(Rules, peer(true))),
    ?assertEqual([uds], transports(Rules, (peer(true))#{node := 'web@far.example'})),
    ?assertEqual([tcp], transports(Rules, (peer(false))#{node := 'web@far.example'})).

each_address_has_a_rule_of_its_own_test() ->
    Rules = [
        {{net, "10.0.0.0/8"}, #{transports => [tcp]}},
        {{net, "2001:db8::/32"}, #{transports => [tcp6, tls]}},
        {any, #{transports => [tls]}}
    ],
    Peer = (peer(false))#{ip4 := [?IP4, {10, 1, 2, 3}]},
    ?assertEqual(
        [{tcp, {{10, 1, 2, 3}, 1001}}, {tcp6, {?IP6, 1002}}, {tls, {?IP6, 1003}}, {tls, {?IP4, 1003}}],
        addresses(Rules, Peer)
    ),
    ?assertEqual(
        [<<"policy rule 1 ({net,\"10.0.0.0/8\"})">>, <<"policy rule 2 ({net,\"2001:db8::/32\"})">>, <<"policy rule 3 (any)">>],
        lists:uniq([Why || #{why := Why} <- candidates(Rules, Peer)])
    ).

%% {Match, whether it fits db1@far.example at 192.0.2.1 on another host}
matches_test_() ->
    Fits = fun(Match) ->
        Rules = [{Match, #{transports => [tcp]}}, {same_host, #{transports => [uds]}}, {any, #{transports => []}}],
        transports(Rules, record(false, [{tcp, {any4, 1}}])) =:= [tcp]
    end,
    [
        {lists:flatten(io_lib:format("~0p", [Match])), ?_assertEqual(Expected, Fits(Match))}
     || {Match, Expected} <- [
            {"db?@far.*", true},
            {<<"db?@far.*">>, true},
            {"far.example", false},
            {{host, "far.example"}, true},
            {{host, <<"*.example">>}, true},
            {{host, "db1@*"}, false},
            {{net, "192.0.2.1"}, true},
            {{net, <<"192.0.2.0/24">>}, true},
            {{net, "192.0.2.128/25"}, false},
            {{net, "0.0.0.0/0"}, true},
            {{net, "::/0"}, false},
            {same_host, false},
            {{'not', same_host}, true},
            {{all, [{host, "far*"}, {net, "192.0.0.0/8"}, any]}, true},
            {{all, [{host, "far*"}, same_host]}, false},
            {{'not', {all, [{host, "far*"}, {net, "10.0.0.0/8"}]}}, true}
        ]
    ].

a_unix_socket_has_no_address_and_is_on_this_host_test() ->
    Elsewhere = (peer(false))#{same_machine := true}, % in another network namespace of this machine
    Socket = {uds, {local, ?PATH}},
    Fits = fun(Match) ->
        lists:member(Socket, addresses([{Match, #{transports => [uds]}}, {any, #{transports => []}}], Elsewhere))
    end,
    ?assert(Fits(same_host)),
    ?assert(Fits({'not', {net, "0.0.0.0/0"}})),
    ?assertNot(Fits({net, "0.0.0.0/0"})),
    ?assertNot(Fits({net, "::/0"})),
    ?assertNot(Fits({'not', same_host})).

%% Order, and what is left out

candidates_are_in_the_order_of_rules_then_transports_then_registrations_test() ->
    Rules = [{{net, "2001:db8::/32"}, #{transports => [tls, tcp6]}}, {any, #{transports => [tcp, uds, tls]}}],
    ?assertEqual(
        [{tls, {?IP6, 1003}}, {tcp6, {?IP6, 1002}}, {tcp, {?IP4, 1001}}, {uds, {local, ?PATH}}, {tls, {?IP4, 1003}}],
        addresses(Rules, peer(true))
    ).

an_address_registered_twice_is_dialled_once_test() ->
    Peer = record(false, [{tcp, {any4, 1}}, {tcp, {?IP4, 1}}, {tcp, {?IP4, 2}}]),
    ?assertEqual([{tcp, {?IP4, 1}}, {tcp, {?IP4, 2}}], addresses([{any, #{transports => [tcp]}}], Peer)).

only_transports_this_node_runs_are_dialled_and_the_others_are_explained_test() ->
    {Candidates, Skipped} = polydist_policy:candidates(polydist_policy:default([tcp]), [tcp], peer(true)),
    ?assertMatch([#{transport := tcp, address := {?IP4, 1001}, why := _, registry := epmd}], Candidates),
    ?assertEqual([tcp6, tls, uds], lists:sort([T || {T, Why} <- Skipped, is_binary(Why)])).

a_transport_the_peer_did_not_register_is_explained_test() ->
    Peer = record(true, [{tcp, {any4, 1001}}]),
    ?assertEqual([tcp], transports(polydist_policy:default(?ALL), Peer)),
    ?assertEqual(<<"the peer did not register it">>, skipped(uds, polydist_policy:default(?ALL), ?ALL, Peer)).

a_transport_the_rule_does_not_name_is_explained_by_the_rule_test() ->
    Why = fun(Transports) -> skipped(tcp, compiled([{any, #{transports => Transports}}]), ?ALL, peer(false)) end,
    ?assertEqual(<<"policy rule 1 (any) does not allow it">>, Why([tls])),
    ?assertEqual(<<"policy rule 1 (any) allows no transport">>, Why([])).

%% Addresses

tls_is_dialled_at_both_families_test() ->
    ?assertEqual([{tls, {?IP4, 1003}}, {tls, {?IP6, 1003}}], addresses([{any, #{transports => [tls]}}], peer(false))).

a_name_without_an_address_on_this_host_is_dialled_at_the_loopback_test() ->
    Peer = (peer(true))#{ip4 := [], ip6 := []},
    ?assertEqual(
        [{tcp6, {{0, 0, 0, 0, 0, 0, 0, 1}, 1002}}, {tcp, {{127, 0, 0, 1}, 1001}}],
        addresses([{any, #{transports => [tcp6, tcp]}}], Peer)
    ).

%% A record is what somebody else says: {Whether that is this host, Transport, Where, whether it is dialled}
a_record_that_lies_is_not_believed_test_() ->
    [
        {lists:flatten(io_lib:format("~0p at ~0p", [Transport, Where])), fun() ->
            Rules = [{any, #{transports => [Transport]}}],
            Peer = record(SameHost, [{Transport, Where}]),
            ?assertEqual(Dialled, addresses(Rules, Peer) =/= []),
            Dialled orelse ?assert(byte_size(skipped(Transport, compiled(Rules), ?ALL, Peer)) > 10)
        end}
     || {SameHost, Transport, Where, Dialled} <- [
            {false, tcp, {{203, 0, 113, 1}, 1}, true},
            {false, tcp, {{203, 0, 113, 1}, 0}, false},
            {false, tcp, {any4, 0}, false},
            {false, tcp, {{0, 0, 0, 0}, 1}, false},
            {false, tcp, {{224, 0, 0, 1}, 1}, false},
            {false, tcp, {{255, 255, 255, 255}, 1}, false},
            {false, tcp, {{127, 0, 0, 1}, 1}, false},
            {true, tcp, {{127, 0, 0, 1}, 1}, true},
            {false, tcp6, {{0, 0, 0, 0, 0, 0, 0, 1}, 1}, false},
            {true, tcp6, {{0, 0, 0, 0, 0, 0, 0, 1}, 1}, true},
            {false, tcp6, {{0, 0, 0, 0, 0, 0, 0, 0}, 1}, false},
            {false, tcp6, {{0, 0, 0, 0, 0, 16#ffff, 16#7f00, 1}, 1}, false},
            {false, tcp6, {{16#fe80, 0, 0, 0, 0, 0, 0, 1}, 1}, false},
            {false, tcp6, {{16#ff02, 0, 0, 0, 0, 0, 0, 1}, 1}, false},
            {false, tls, {opaque, <<"?">>}, false},
            {false, tcp, {any6, 1}, false},
            {false, tcp6, {?IP4, 1}, false},
            {false, uds, {?IP4, 1}, false},
            {true, tls, {local, ?PATH}, false},
            {true, uds, {local, ?PATH}, true},
            {false, uds, {local, ?PATH}, false},
            {true, uds, {local, <<"/run/polydist">>}, false},
            {true, uds, {local, <<"/run/polydistant/a@h">>}, false},
            {true, uds, {local, <<"/run/polydist/../a@h">>}, false},
            {true, uds, {local, <<"run/polydist/a@h">>}, false},
            {true, uds, {local, <<"/run/polydist/a", 0, "h">>}, false},
            {true, uds, {local, <<"/tmp/a@h">>}, false},
            {true, uds, {local, <<"/run/polydist/", (binary:copy(<<"a">>, 93))/binary>>}, true},
            {true, uds, {local, <<"/run/polydist/", (binary:copy(<<"a">>, 94))/binary>>}, false}
        ]
    ].

a_socket_in_another_directory_is_dialled_if_that_is_told_test() ->
    Peer = (record(true, [{uds, {local, <<"/run/shared/a@h">>}}]))#{uds_dirs := [<<"/run/polydist">>, <<"/run/shared/">>]},
    ?assertEqual([{uds, {local, <<"/run/shared/a@h">>}}], addresses([{any, #{transports => [uds]}}], Peer)).

%% Stock peers

a_stock_peer_is_dialled_at_its_port_in_the_clear_where_the_rule_allows_test() ->
    ?assertEqual([tcp6, tcp], transports(polydist_policy:default(?ALL), stock(true))),
    ?assertEqual([], transports(polydist_policy:default(?ALL), stock(false))),
    ?assertEqual([{tcp, {?IP4, 4000}}], addresses([{any, #{transports => [tls, tcp]}}], stock(false))).

a_stock_peer_is_dialled_by_tls_alone_where_its_port_speaks_that_test() ->
    Rules = [{any, #{transports => [tcp, tls, tcp6], legacy => tls}}],
    ?assertEqual([{tls, {?IP4, 4000}}, {tls, {?IP6, 4000}}], addresses(Rules, stock(false))).

a_stock_peer_is_not_dialled_where_the_rule_wants_none_test() ->
    ?assertEqual([], candidates([{any, #{transports => [tcp, tls], legacy => none}}], stock(false))),
    ?assertEqual([tcp, tls], transports([{any, #{transports => [tcp, tls], legacy => none}}], peer(false))).

each_address_of_a_stock_peer_has_a_rule_of_its_own_test() ->
    Rules = [{{net, "192.0.2.0/24"}, #{transports => [tls], legacy => tls}}, {any, #{transports => [tcp6, tcp]}}],
    ?assertEqual([{tls, {?IP4, 4000}}, {tcp6, {?IP6, 4000}}], addresses(Rules, stock(false))).

a_peer_without_any_port_is_not_dialled_test() ->
    ?assertEqual([], candidates(polydist_policy:default(?ALL), (peer(true))#{registered := [{epmd, {port, 0}}]})).

a_peer_that_is_registered_nowhere_is_not_dialled_test() ->
    ?assertEqual([], candidates(polydist_policy:default(?ALL), (peer(true))#{registered := []})).

%% By name alone

no_transports_forbid_the_peer_by_its_name_alone_test() ->
    Policy = compiled([{"bad@*", #{transports => []}}, {{host, "*.bad"}, #{transports => []}}, {any, #{transports => [tcp]}}]),
    ?assertNot(polydist_policy:may_connect(Policy, 'bad@host')),
    ?assertNot(polydist_policy:may_connect(Policy, 'good@host.bad')),
    ?assert(polydist_policy:may_connect(Policy, 'good@host')).

what_depends_on_the_address_cannot_be_forbidden_by_name_test_() ->
    [
        ?_assert(polydist_policy:may_connect(compiled([{Match, #{transports => []}}]), 'any@host'))
     || Match <- [same_host, {net, "10.0.0.0/8"}, {'not', same_host}, {all, ["any@*", same_host]}]
    ].

whatever_the_address_all_that_may_fit_is_forbidden_test() ->
    Policy = compiled([{same_host, #{transports => []}}, {{net, "10.0.0.0/8"}, #{transports => []}}, {any, #{transports => []}}]),
    ?assertNot(polydist_policy:may_connect(Policy, 'any@host')).

every_registry_is_asked_unless_the_rule_wants_none_test() ->
    Policy = compiled([{"alone@*", #{transports => [tcp], registries => []}}, {any, #{transports => [tcp]}}]),
    ?assertEqual([], polydist_policy:registries(Policy, 'alone@host')),
    ?assertEqual([epmd], polydist_policy:registries(Policy, 'other@host')),
    ?assertEqual([epmd], polydist_policy:registries(polydist_policy:default(?ALL), 'other@host')).

what_a_rule_did_not_ask_is_no_candidate_of_it_test() ->
    Rules = [{{net, "192.0.2.0/24"}, #{transports => [tcp], registries => []}}, {any, #{transports => [tcp6]}}],
    ?assertEqual([{tcp6, {?IP6, 1002}}], addresses(Rules, peer(false))).

%% What a rule says of connections

settings_are_those_of_the_rule_of_the_address_test() ->
    Rules = [
        {{net, "192.0.2.0/24"}, #{
            transports => [tcp],
            ticktime => 0.5,
            connect_timeout => 900,
            stagger => 0,
            socket => [{keepalive, true}, {user_timeout, 3000}]
        }},
        {any, #{transports => [tcp6], ticktime => {1200, ms}, socket => #{nodelay => false}}}
    ],
    Narrow = #{
        rule => <<"policy rule 1 ({net,\"192.0.2.0/24\"})">>,
        ticktime => 500,
        connect_timeout => 900,
        stagger => 0,
        socket => #{keepalive => true, user_timeout => 3000}
    },
    Wide = #{rule => <<"policy rule 2 (any)">>, ticktime => 1200, stagger => 250, socket => #{nodelay => false}},
    ?assertEqual([Narrow, Wide], [Settings || #{settings := Settings} <- candidates(Rules, peer(false))]),
    Accepted = fun(Ip) -> polydist_policy:settings(compiled(Rules), ?ALL, #{node => a@h, ip => Ip, same_host => true}) end,
    ?assertEqual([Narrow, Wide, Wide], [Accepted(Ip) || Ip <- [?IP4, ?IP6, none]]).

without_a_rule_nothing_is_said_but_its_name_test() ->
    Said = fun(SameHost) ->
        polydist_policy:settings(compiled([]), ?ALL, #{node => a@h, ip => ?IP4, same_host => SameHost})
    end,
    ?assertEqual(#{rule => <<"the default for this host">>, stagger => 250, socket => #{}}, Said(true)),
    ?assertEqual(#{rule => <<"the default for other hosts">>, stagger => 250, socket => #{}}, Said(false)).

%% {Glob, Text that fits, Text that does not}
globs_test_() ->
    [
        {Glob, [?_assert(polydist_rule:matches(Glob, Fits)), ?_assertNot(polydist_rule:matches(Glob, Misses))]}
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
    ] ++ [?_assert(polydist_rule:matches("*", ""))].

a_glob_that_could_be_tried_in_a_million_ways_is_fast_test() ->
    Text = lists:duplicate(2000, $a),
    ?assertNot(polydist_rule:matches("*a*a*a*a*a*a*a*a*b", Text)).

%% Mistakes

a_policy_is_kept_as_written_test() ->
    Rules = [{<<"db*">>, #{transports => [tls], ticktime => 0.25, socket => [{nodelay, true}]}}, {any, #{transports => []}}],
    ?assertEqual(Rules, polydist_policy:source(compiled(Rules))),
    ?assertEqual([], polydist_policy:source(compiled([]))).

%% {Policy, what its sentence names}
mistakes_are_sentences_test_() ->
    [
        {lists:flatten(io_lib:format("~0tp", [Policy])), fun() ->
            {error, Sentence} = polydist_policy:compile(Policy),
            ?assert(is_binary(Sentence)),
            [?assertMatch({_, Found} when Found =/= nomatch, {Sentence, string:find(Sentence, Part)}) || Part <- Parts]
        end}
     || {Policy, Parts} <- [
            {nonsense, ["nonsense", "{Match, #{transports => [..]}}"]},
            {[{any, #{transports => [tcp]}} | tail], ["list"]},
            {[oops], ["rule 1", "oops"]},
            {[{any, [tcp]}], ["rule 1"]},
            {[{"a@*", #{transports => [tcp]}}, {any, #{}}], ["rule 2", "transports"]},
            {[{any, #{transports => [tcp]}}, {"a@*", #{transports => [tcp]}}], ["rule 2", "rule 1"]},
            {[{"*", #{transports => [tcp]}}, {"a@*", #{transports => [tcp]}}], ["rule 2", "rule 1"]},
            {[{any, #{transport => [tcp]}}], ["option", "transport"]},
            {[{any, #{transports => tcp}}], ["list"]},
            {[{any, #{transports => [tcp | tls]}}], ["list"]},
            {[{any, #{transports => [carrier_pigeon]}}], ["carrier_pigeon", "tcp, tcp6, tls, uds"]},
            {[{any, #{transports => [tcp, tls, tcp]}}], ["tcp", "twice"]}
        ] ++ [
            {[{Match, #{transports => [tcp]}}], ["rule 1" | Parts]}
         || {Match, Parts} <- [
                {17, ["17"]},
                {"", ["empty"]},
                {{net, "10.0.0.0/33"}, ["10.0.0.0/33", "10.0.0.0/8"]},
                {{net, "10.1.2.3/8"}, ["10.1.2.3/8", "10.0.0.0/8"]},
                {{net, "far.example"}, ["far.example"]},
                {{net, {10, 0, 0, 0}}, ["{10,0,0,0}"]},
                {{host, 5}, ["5"]},
                {{all, []}, ["all"]},
                {{'not', {net, "x"}}, ["\"x\""]},
                {{'not', any}, ["never"]}
            ]
        ] ++ [
            {[{any, Options#{transports => Transports}}], ["rule 1" | Parts]}
         || {Transports, Options, Parts} <- [
                {[tls], #{ticktime => 0}, ["ticktime"]},
                {[tls], #{ticktime => {99, ms}}, ["99", "100 ms"]},
                {[tls], #{ticktime => fast}, ["fast", "{500, ms}"]},
                {[tls], #{max_age => 0.5}, ["500", "max_age"]},
                {[tls], #{max_age => never}, ["never", "{5000, ms}"]},
                {[tcp], #{legacy => tls}, ["legacy => tls", "none"]},
                {[tls], #{legacy => tcp}, ["legacy => tcp", "none"]},
                {[uds], #{legacy => uds}, ["uds", "tcp, tls or none"]},
                {[tls], #{connect_timeout => 0}, ["connect_timeout", "milliseconds"]},
                {[tls], #{stagger => -1}, ["stagger", "milliseconds"]},
                {[tls], #{registries => [dns]}, ["dns", "epmd"]},
                {[tls], #{registries => epmd}, ["epmd"]},
                {[tls], #{socket => #{linger => true}}, ["linger", "nodelay"]},
                {[tls], #{socket => [{nodelay, true} | x]}, ["socket"]},
                {[tls], #{socket => #{backlog => 5}}, ["backlog"]},
                {[sctp], #{socket => #{sctp => #{heartbeat => 0}}}, ["heartbeat => 0", "milliseconds"]},
                {[sctp], #{socket => #{sctp => #{path_max_retrans => 65536}}}, ["65536", "65535"]},
                {[sctp], #{socket => #{sctp => #{rto_min => 200, rto_max => 100}}}, ["rto_min no more than rto_max"]},
                {[sctp], #{socket => #{sctp => #{rto => 200}}}, ["rto => 200", "rto_initial"]},
                {[sctp], #{socket => [{sctp, 500}]}, ["500", "map"]}
            ]
        ]
    ].

what_is_right_though_it_looks_odd_is_taken_test_() ->
    [
        ?_assertMatch({ok, _}, polydist_policy:compile([{any, Options}]))
     || Options <- [
            #{transports => []},
            #{transports => [tls]}, % legacy is tcp unless told, and then there is nothing to dial a stock peer by
            #{transports => [tcp6], legacy => tcp},
            #{transports => [uds], legacy => none},
            #{transports => [tcp], registries => [], socket => [], stagger => 0},
            #{transports => [tcp], ticktime => 0.1},
            #{transports => [tcp], ticktime => {100, ms}},
            #{transports => [tcp], max_age => 86400},
            #{transports => [tcp], max_age => {1000, ms}}
        ]
    ].
