%%% Unit tests of polydist_place: what may be said of a listener, and how mistakes are told.
-module(polydist_place_tests).

-include_lib("eunit/include/eunit.hrl").

options_are_taken_as_written_test_() ->
    [?_assertEqual({ok, Transport, Place}, polydist_place:listener(Options#{transport => Transport})) || {Transport, Options, Place} <- [
        {tcp, #{}, #{}},
        {tcp, #{ip => any, port => 9100}, #{ip => any, ports => {9100, 9100}}},
        {tcp6, #{ip => <<"::1">>, ports => {1, 5}, name => inner}, #{ip => {0, 0, 0, 0, 0, 0, 0, 1}, ports => {1, 5}, name => inner}},
        {tls, #{ip => {127, 0, 0, 1}}, #{ip => {127, 0, 0, 1}}},
        {sctp, #{ip => any, port => 5}, #{ip => any, ports => {5, 5}}},
        {sctp, #{ip => "192.0.2.1"}, #{ip => {192, 0, 2, 1}}},
        {sctp, #{ip => {192, 0, 2, 1}}, #{ip => {192, 0, 2, 1}}},
        {sctp, #{ip => ["192.0.2.1", <<"::1">>, {192, 0, 2, 2}]},
         #{ip => [{192, 0, 2, 1}, {0, 0, 0, 0, 0, 0, 0, 1}, {192, 0, 2, 2}]}},
        {sctp, #{ip => ["192.0.2.1"], allow => ["::1"]},
         #{ip => [{192, 0, 2, 1}], allow => [{{0, 0, 0, 0, 0, 0, 0, 1}, 128}]}},
        {uds, #{dir => <<"/d">>, mode => 8#660, allow => [0, 1000]}, #{dir => "/d", mode => 8#660, allow => [0, 1000]}},
        {uds, #{allow => any, max_handshakes => 9}, #{allow => any, max_handshakes => 9}},
        {tls, #{ip => loopback, identity => false}, #{ip => loopback, identity => false}},
        {tcp, #{interface => <<"lo">>, shared => [tls, tcp]}, #{interface => "lo", shared => true}},
        {tcp6, #{shared => [tcp6, tls], max_handshakes_per_source => 1}, #{shared => true, max_handshakes_per_source => 1}},
        {uds, #{path => "/run/ä"}, #{path => <<"/run/ä"/utf8>>}}
    ]].

networks_are_an_address_and_its_bits_test_() ->
    [?_assertEqual({ok, tls, #{allow => [Net]}}, polydist_place:listener(#{transport => tls, allow => [Text]})) || {Text, Net} <- [
        {"10.0.0.0/8", {{10, 0, 0, 0}, 8}},
        {<<"192.0.2.7">>, {{192, 0, 2, 7}, 32}},
        {{192, 0, 2, 7}, {{192, 0, 2, 7}, 32}},
        {"192.0.2.128/25", {{192, 0, 2, 128}, 25}},
        {"0.0.0.0/0", {{0, 0, 0, 0}, 0}},
        {"fd00::/8", {{16#fd00, 0, 0, 0, 0, 0, 0, 0}, 8}},
        {"2001:db8::/33", {{16#2001, 16#db8, 0, 0, 0, 0, 0, 0}, 33}},
        {"::1", {{0, 0, 0, 0, 0, 0, 0, 1}, 128}},
        {"::/0", {{0, 0, 0, 0, 0, 0, 0, 0}, 0}}
    ]].

allow_is_shown_as_one_writes_it_test() ->
    Written = [<<"10.0.0.0/8">>, <<"192.0.2.7">>, <<"fd00::/8">>, <<"2001:db8::1">>],
    {ok, tls, #{allow := Allow}} = polydist_place:listener(#{transport => tls, allow => Written}),
    ?assertEqual(Written, polydist_place:allow_text(Allow)),
    ?assertEqual([0, 1000], polydist_place:allow_text([0, 1000])).

the_key_listen_has_a_map_or_a_list_of_maps_for_each_test() ->
    Listen = polydist_place:parse(#{tcp => [#{name => inner, port => 1}, #{ip => "192.0.2.1"}], uds => #{dir => "/d"}}),
    Inner = #{name => inner, ports => {1, 1}},
    ?assertEqual(#{tcp => [Inner, #{ip => {192, 0, 2, 1}}], uds => #{dir => "/d"}}, Listen),
    ?assertEqual([[Inner, #{ip => {192, 0, 2, 1}}], [#{dir => "/d"}], [#{}]],
                 [polydist_place:of_transport(Transport, Listen) || Transport <- [tcp, uds, tls]]).

mistakes_in_the_key_listen_are_named_test_() ->
    [?_assertThrow({invalid, _}, polydist_place:parse(Listen)) || Listen <- [
        [], none, #{dccp => #{}}, #{tcp => none}, #{tcp => []}, #{tcp => [#{} | none]}, #{tcp => [none]}, #{1 => #{}},
        #{tcp => [#{name => a}, #{name => a}]}, #{tcp => #{name => a}, uds => #{name => a}}
    ]].

%% What a listener is told to do wrong, and a word of the sentence.
mistakes_are_named_test_() ->
    [{lists:flatten(io_lib:format("~0tp", [Options])), ?_assertNotEqual(nomatch, string:find(sentence(Options), Part))}
     || {Options, Part} <- [
        {none, "map"},
        {#{}, "transport"},
        {#{transport => "tcp"}, "tcp"},
        {#{transport => tcp, ports => {9, 3}}, "{9,3}"},
        {#{transport => tcp, ports => 9}, "ports"},
        {#{transport => tcp, dir => "/d"}, "dir"},
        {#{transport => tcp, ip => [300]}, "IP"},
        {#{transport => tcp, ip => "127.1"}, "127.1"},
        {#{transport => sctp, ip => ["192.0.2.1", "192.0.2.1"]}, "192.0.2.1 twice"},
        {#{transport => sctp, ip => ["192.0.2.1", "0.0.0.0"]}, "ip => any"},
        {#{transport => sctp, ip => ["192.0.2.1", "x"]}, "not an IP address"},
        {#{transport => sctp, ip => ["192.0.2.1" | x]}, "improper"},
        {#{transport => sctp, ip => []}, "not an IP address"},
        {#{transport => sctp, path => "/s"}, "a list of them"},
        {#{transport => tcp, name => undefined}, "atom"},
        {#{transport => tcp, allow => none}, "networks"},
        {#{transport => tcp, allow => [none]}, "networks"},
        {#{transport => tcp, allow => ["10.0.0.0/"]}, "networks"},
        {#{transport => tcp, allow => ["10.0.0.0/-1"]}, "networks"},
        {#{transport => tcp, allow => ["10.0.0.0/8x"]}, "networks"},
        {#{transport => tcp, allow => ["10.0.0.0/8/8"]}, "networks"},
        {#{transport => tcp, allow => [{1, 2, 3}]}, "networks"},
        {#{transport => tcp, allow => [<<255>>]}, "networks"},
        {#{transport => tcp, allow => ["192.0.2.129/25"]}, "192.0.2.128/25"},
        {#{transport => tcp6, allow => ["2001:db8:8000::/32"]}, "2001:db8::/32"},
        {#{transport => tcp6, allow => ["10.0.0.0/8"]}, "fd00::/8"},
        {#{transport => uds, allow => []}, "leave it out"},
        {#{transport => uds, allow => [0 | 1]}, "user ids"},
        {#{transport => uds, allow => [16#ffffffff]}, "user ids"},
        {#{transport => tcp, ip => loopback, interface => "lo"}, "both"},
        {#{transport => tcp, interface => ""}, "eth0"},
        {#{transport => tcp, shared => [tcp]}, "both of [tcp, tls]"},
        {#{transport => tcp, shared => true}, "both of [tcp, tls]"},
        {#{transport => sctp, shared => [tcp, tls]}, "sctp knows"},
        {#{transport => uds, shared => [tcp, tls]}, "uds knows"},
        {#{transport => tls, identity => yes}, "identity"},
        {#{transport => tls, max_handshakes => 0}, "from 1 to 65535"},
        {#{transport => uds, max_handshakes_per_source => 70000}, "from 1 to 65535"},
        {#{transport => uds, path => ""}, "absolute"},
        {#{transport => uds, path => none}, "path"},
        {#{transport => uds, dir => ""}, "dir"}
    ]].

sentence(Options) ->
    {error, Sentence} = polydist_place:listener(Options),
    Sentence.
