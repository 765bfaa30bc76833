-module(polydist_config_tests).

-include_lib("eunit/include/eunit.hrl").

parsed(Flags, Environment) ->
    {ok, Config} = polydist_config:parse(Flags, Environment),
    Config.

nothing_given_is_a_configuration_test() ->
    {ok, Policy} = polydist_policy:compile([]),
    {ok, Registries} = polydist_registry:configure([epmd]),
    ?assertEqual(
        #{policy => Policy, registries => Registries, listen => #{}, uds_dirs => [], legacy => undefined, tls_watch => 5000,
            log_level => warning},
        parsed([], [])
    ).

the_environment_is_read_test() ->
    ?assertMatch(#{legacy := tls, log_level := debug}, parsed([], [{legacy, tls}, {log_level, debug}])).

a_flag_wins_over_the_environment_test() ->
    ?assertMatch(#{legacy := tcp6}, parsed([["legacy", "tcp6"]], [{legacy, tls}])).

of_two_flags_the_later_wins_test() ->
    ?assertMatch(#{legacy := tcp}, parsed([["legacy", "tls"], ["legacy", "tcp"]], [])).

a_term_that_the_shell_cut_in_words_is_one_term_test() ->
    ?assertEqual(
        #{tcp => #{ports => {9100, 9100}}},
        maps:get(listen, parsed([["listen", "#{tcp", "=>", "#{port", "=>", "9100}}"]], []))
    ).

addresses_may_be_text_test() ->
    Listen = #{tcp => #{ip => "127.0.0.1"}, tcp6 => #{ip => <<"::1">>}, tls => #{ip => "::1"}},
    ?assertEqual(
        #{tcp => #{ip => {127, 0, 0, 1}}, tcp6 => #{ip => {0, 0, 0, 0, 0, 0, 0, 1}}, tls => #{ip => {0, 0, 0, 0, 0, 0, 0, 1}}},
        maps:get(listen, parsed([], [{listen, Listen}]))
    ).

a_port_is_a_range_of_one_test() ->
    #{listen := #{tcp := #{ports := {9, 9}}, tls := #{ports := {1, 5}}, uds := #{dir := "/d", mode := 8#660}}} =
        parsed([], [{listen, #{tcp => #{port => 9}, tls => #{ports => {1, 5}}, uds => #{dir => <<"/d">>, mode => 8#660}}}]).

a_policy_is_compiled_test() ->
    #{policy := Policy} = parsed([["policy", "[{any,#{transports=>[]}}]"]], []),
    ?assertNot(polydist_policy:may_connect(Policy, a@b)),
    ?assertEqual([{any, #{transports => []}}], polydist_policy:source(Policy)).

how_often_the_files_of_tls_are_looked_at_test() ->
    ?assertMatch(#{tls_watch := 200}, parsed([["tls_watch", "0.2"]], [])),
    ?assertMatch(#{tls_watch := false}, parsed([], [{tls_watch, false}])).

what_tls_says_is_not_kept_test() ->
    ?assertNot(is_map_key(tls, parsed([], [{tls, [{server, [{password, "secret"}]}]}]))).

directories_of_sockets_are_absolute_paths_as_text_test() ->
    ?assertMatch(#{uds_dirs := [<<"/run">>, <<"/srv/é"/utf8>>]}, parsed([], [{uds_dirs, ["/run", <<"/srv/é"/utf8>>]}])),
    ?assertMatch(#{uds_dirs := [<<"/a b">>]}, parsed([["uds_dirs", "[\"/a", "b\"]"]], [{uds_dirs, ["/other"]}])),
    ?assertMatch(#{uds_dirs := []}, parsed([], [{uds_dirs, []}])).

what_an_application_always_has_in_its_environment_is_passed_over_test() ->
    ?assertMatch(#{legacy := tcp}, parsed([], [{included_applications, []}, {legacy, tcp}])).

%% {Flags, Environment, what the sentence names}
mistakes_are_sentences_test_() ->
    [
        {Part, fun() ->
            {error, Sentence} = polydist_config:parse(Flags, Environment),
            ?assert(is_binary(Sentence)),
            ?assertMatch({_, Found} when Found =/= nomatch, {Sentence, string:find(Sentence, Part)})
        end}
     || {Flags, Environment, Part} <- [
            {[["polcy", "[]"]], [], "polcy"},
            {[], [{polcy, []}], "polcy"},
            {[["legacy"]], [], "legacy"},
            {[[]], [], "-polydist"},
            {[["legacy", "{tls"]], [], "{tls"},
            {[["legacy", "uds"]], [], "uds"},
            {[], [{log_level, loud}], "loud"},
            {[], [{tls_watch, 0}], "tls_watch"},
            {[], [{tls_watch, true}], "tls_watch"},
            {[], [{listen, [tcp]}], "map"},
            {[], [{listen, #{dccp => #{}}}], "dccp"},
            {[], [{listen, #{tcp => #{port => 70000}}}], "70000"},
            {[], [{listen, #{tcp => #{ports => {9, 3}}}}], "{9,3}"},
            {[], [{listen, #{tcp => #{ip => "::1"}}}], "IPv4"},
            {[], [{listen, #{tcp6 => #{ip => {127, 0, 0, 1}}}}], "IPv6"},
            {[], [{listen, #{tcp => #{ip => "localhost"}}}], "localhost"},
            {[], [{listen, #{tcp => #{dir => "/d"}}}], "dir"},
            {[], [{listen, #{uds => #{port => 1}}}], "port"},
            {[], [{listen, #{uds => #{mode => 8#1777}}}], "mode"},
            {[], [{uds_dirs, "/run/shared"}], "list of absolute paths"},
            {[], [{uds_dirs, ["run/shared"]}], "run/shared"},
            {[], [{uds_dirs, ["/run/shared" | "/tmp"]}], "uds_dirs"},
            {[], [{uds_dirs, [<<"/run/", 255>>]}], "uds_dirs"},
            {[], [{policy, nonsense}], "policy"},
            {[["policy", "[{any,#{}}]"]], [], "rule 1"}
        ]
    ].

socket_options_we_know_are_told_from_the_others_test() ->
    ?assertEqual(
        {#{nodelay => true, keepalive => true, sndbuf => 1000, tos => 0}, [{linger, {true, 1}}, inet6, {sndbuf, -1}]},
        polydist_config:pick_socket_options([
            {nodelay, true}, {linger, {true, 1}}, {keepalive, true}, inet6,
            {sndbuf, 1000}, {reuseaddr, true}, {tos, 0}, {sndbuf, -1}
        ])
    ).

something_else_than_a_list_of_socket_options_is_passed_over_test() ->
    ?assertEqual({#{}, [nonsense]}, polydist_config:pick_socket_options(nonsense)),
    ?assertEqual({#{nodelay => true}, [nonsense]}, polydist_config:pick_socket_options([{nodelay, true} | nonsense])).

of_two_values_of_a_socket_option_the_later_counts_test() ->
    ?assertEqual(
        {#{user_timeout => 2, tos => 0}, [{sndbuf, 16#80000000}]},
        polydist_config:pick_socket_options([{user_timeout, 1}, {tos, 0}, {user_timeout, 2}, {sndbuf, 16#80000000}])
    ).

%% {Environment of the kernel, what it comes to}
setup_time_is_read_as_net_kernel_reads_it_test_() ->
    [
        {lists:flatten(io_lib:format("net_setuptime ~p", [Given])), fun() ->
            with_kernel(net_setuptime, Given, fun() -> ?assertEqual(Milliseconds, polydist_config:setup_time()) end)
        end}
     || {Given, Milliseconds} <- [{undefined, 7000}, {2, 2000}, {0.5, 500}, {1000, 120000}, {-1, 7000}, {x, 7000}]
    ].

the_port_range_is_the_kernels_test() ->
    with_kernel(inet_dist_listen_min, 9100, fun() ->
        ?assertEqual({9100, 9100}, polydist_config:port_range()),
        with_kernel(inet_dist_listen_max, 9105, fun() -> ?assertEqual({9100, 9105}, polydist_config:port_range()) end)
    end),
    ?assertEqual({0, 0}, polydist_config:port_range()).

an_interface_that_is_no_address_is_told_test() ->
    with_kernel(inet_dist_use_interface, {127, 0, 0, 1}, fun() -> ?assertEqual({127, 0, 0, 1}, polydist_config:interface()) end),
    with_kernel(inet_dist_use_interface, "eth0", fun() -> ?assertEqual({invalid, "eth0"}, polydist_config:interface()) end),
    ?assertEqual(any, polydist_config:interface()).

dist_nodelay_wins_over_the_options_test() ->
    ?assertMatch({#{nodelay := true}, []}, polydist_config:socket_options(connect)),
    with_kernel(dist_nodelay, false, fun() ->
        ?assertMatch({#{nodelay := false}, []}, polydist_config:socket_options(listen))
    end).

with_kernel(Key, undefined, Test) ->
    with_kernel_env(Key, application:get_env(kernel, Key), fun() -> application:unset_env(kernel, Key), Test() end);
with_kernel(Key, Value, Test) ->
    with_kernel_env(Key, application:get_env(kernel, Key), fun() -> application:set_env(kernel, Key, Value), Test() end).

with_kernel_env(Key, Before, Test) ->
    try Test()
    after
        case Before of
            {ok, Value} -> application:set_env(kernel, Key, Value);
            undefined -> application:unset_env(kernel, Key)
        end
    end.
