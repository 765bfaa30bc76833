-module(polydist_tls_config_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-define(FILES, [{certfile, "c.pem"}, {keyfile, "k.pem"}, {cacertfile, "ca.pem"}]).
-define(SECRET, "tell nobody").

%% What is made of options

both_sides_prove_who_they_are_by_default_test() ->
    {ok, #{server := Server, client := Client, notices := []}} = parse([{server, ?FILES}, {client, ?FILES}]),
    [
        ?assertMatch(
            #{
                identities := [#{cert := {file, "c.pem"}, key := {file, "k.pem"}}],
                roots := {file, "ca.pem"},
                verify := verify_peer,
                versions := ['tlsv1.3', 'tlsv1.2'],
                ktls := false
            },
            Each
        )
     || Each <- [Server, Client]
    ],
    ?assertMatch(#{fail_if_no_peer_cert := true}, Server),
    ?assertMatch(#{sni := true}, Client).

of_two_lists_an_absent_one_is_like_the_other_test() ->
    Options = [{versions, ['tlsv1.3']}, {depth, 2}, {crlfile, "r.pem"}, {crl_check, peer}, {ciphers, "TLS_AES_128_GCM_SHA256"}],
    {ok, #{server := Server, client := Client}} = parse([{server, Options ++ ?FILES}]),
    Same = [identities, roots, versions, depth, crls, ciphers],
    ?assertEqual(maps:with(Same, Server), maps:with(Same, Client)),
    ?assertEqual(lists:sort(Same), lists:sort(maps:keys(maps:with(Same, Client)))).

an_absent_list_takes_the_others_files_and_nothing_weaker_test() ->
    {ok, #{client := Client, notices := [_, Notice]}} =
        parse([{server, [{verify, verify_none}, {verify_fun, {m, f, s}} | ?FILES]}]),
    ?assertMatch(#{verify := verify_peer, identities := [#{cert := {file, "c.pem"}}]}, Client),
    ?assertNot(is_map_key(verify_fun, Client)),
    says(Notice, ["verify_fun", "client"]).

one_side_need_not_be_in_a_list_test() ->
    ?assertEqual(parse([{server, ?FILES}]), parse({server, ?FILES})).

the_key_may_be_in_the_certificates_file_test() ->
    Made = server(lists:keydelete(keyfile, 1, ?FILES)),
    ?assertMatch(#{identities := [#{cert := {file, "c.pem"}, key := {file, "c.pem"}}]}, Made).

of_an_option_given_twice_the_later_one_counts_test() ->
    ?assertMatch(#{depth := 2}, server([{depth, 1}, {depth, 2} | ?FILES])).

%% {Options, what becomes of them}
honoured_test_() ->
    Der = fun(N) -> <<N>> end,
    [
        {lists:flatten(io_lib:format("~0P", [Options, 12])), fun() ->
            Made = side(Role, Options ++ ?FILES),
            ?assertEqual(Wanted, maps:with(maps:keys(Wanted), Made))
        end}
     || {Role, Options, Wanted} <- [
            {server, [{versions, ['tlsv1.3']}], #{versions => ['tlsv1.3']}},
            {server, [{versions, ['tlsv1.2', 'tlsv1.1', tlsv1]}], #{versions => ['tlsv1.2']}},
            {server, [{depth, 0}], #{depth => 0}},
            {server, [ktls], #{ktls => true}},
            {server, [{ktls, undefined}], #{ktls => false}},
            {server, [{fail_if_no_peer_cert, false}], #{fail_if_no_peer_cert => false}},
            {server, [{verify, verify_none}], #{verify => verify_none, fail_if_no_peer_cert => false}},
            {server, [{password, "p"}], #{
                identities => [#{cert => {file, "c.pem"}, key => {file, "k.pem"}, password => "p"}]
            }},
            {server, [{cert, Der(1)}, {key, {'PrivateKeyInfo', Der(2)}}], #{
                identities => [#{cert => {der, [Der(1)]}, key => {der, [Der(2)]}}]
            }},
            {server, [{cert, [Der(1), Der(3)]}, {key, {'ECPrivateKey', Der(2)}}], #{
                identities => [#{cert => {der, [Der(1), Der(3)]}, key => {der, [Der(2)]}}]
            }},
            {server, [{key, {'RSAPrivateKey', Der(2)}}], #{
                identities => [#{cert => {file, "c.pem"}, key => {der, [Der(2)]}}]
            }},
            {server, [{cacerts, [Der(1), #cert{der = Der(2), otp = decoded}]}], #{roots => {der, [Der(1), Der(2)]}}},
            {server, [{certs_keys, [#{certfile => "a", keyfile => "b", password => <<"p">>}, #{certfile => "c"}]}], #{
                identities => [
                    #{cert => {file, "a"}, key => {file, "b"}, password => <<"p">>}, #{cert => {file, "c"}, key => {file, "c"}}
                ]
            }},
            {server, [{ciphers, "ECDHE-RSA-AES256-GCM-SHA384:TLS_AES_128_GCM_SHA256"}], #{
                ciphers => [<<"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384">>, <<"TLS_AES_128_GCM_SHA256">>],
                versions => ['tlsv1.3', 'tlsv1.2']
            }},
            {server, [{ciphers, ["TLS_AES_256_GCM_SHA384", <<"ECDHE-ECDSA-CHACHA20-POLY1305">>]}], #{
                ciphers => [<<"TLS_AES_256_GCM_SHA384">>, <<"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256">>]
            }},
            {server, [{ciphers, [#{key_exchange => ecdhe_rsa, cipher => aes_128_gcm, mac => aead, prf => sha256}]}], #{
                ciphers => [<<"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256">>], versions => ['tlsv1.2']
            }},
            {server, [{ciphers, [{ecdhe_ecdsa, aes_256_gcm, null, sha384}, {any, aes_128_gcm, aead, sha256}]}], #{
                ciphers => [<<"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384">>, <<"TLS_AES_128_GCM_SHA256">>]
            }},
            {server, [{ciphers, [<<16#13, 16#03>>]}], #{ciphers => [<<"TLS_CHACHA20_POLY1305_SHA256">>], versions => ['tlsv1.3']}},
            {server, [{ciphers, ["AES128-SHA:ECDHE-RSA-AES128-GCM-SHA256"]}], #{
                ciphers => [<<"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256">>]
            }},
            {server, [{supported_groups, [x25519, x448, secp384r1]}], #{groups => [<<"x25519">>, <<"secp384r1">>]}},
            {server, [{eccs, [secp521r1, secp256r1]}], #{groups => [<<"secp256r1">>]}},
            {client, [{server_name_indication, disable}], #{sni => false}},
            {client, [{server_name_indication, "other"}], #{sni => true, server_name => "other"}},
            {server, [{crlfile, "r"}], #{crls => #{check => chain, unknown => deny, from => [{file, "r"}]}}},
            {server, [{crl_check, peer}, {crlfiles, ["r", <<"s">>]}], #{
                crls => #{check => peer, unknown => deny, from => [{file, "r"}, {file, <<"s">>}]}
            }},
            {server, [{crl_check, best_effort}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, "d"}]}}}], #{
                crls => #{check => chain, unknown => allow, from => [{dir, "d"}]}
            }},
            {server, [{verify_fun, {m, f, s}}], #{verify_fun => {fun m:f/3, s}}},
            {server, [{verify_fun, {fun m:f/4, s}}], #{verify_fun => {fun m:f/4, s}}}
        ]
    ].

what_there_is_not_here_is_left_out_and_named_once_test() ->
    notice([{versions, ['tlsv1.3', 'tlsv1.2', 'tlsv1.1']}], ["versions", "tlsv1.1"]),
    Ciphers = ["TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-SHA"],
    notice([{ciphers, Ciphers}], ["ciphers", "DHE-RSA-AES256-SHA"]),
    notice([{ciphers, "TLS_AES_128_GCM_SHA256"}], ["versions", "tlsv1.2"]),
    notice([{supported_groups, [x25519, ffdhe2048]}], ["supported_groups", "ffdhe2048"]).

what_has_nothing_to_do_here_is_named_in_one_notice_test() ->
    Moot = [
        {client_renegotiation, false}, {reuse_sessions, true}, {hibernate_after, 5}, {honor_cipher_order, true},
        {session_tickets, stateless}, {log_level, none}, {padding_check, true}, {beast_mitigation, disabled}, {fallback, false},
        {middlebox_comp_mode, false}, {key_update_at, 1}, {max_handshake_size, 1}, {dhfile, "dh.pem"}, {sender_spawn_opts, []}
    ],
    {ok, #{notices := [Notice]}} = parse([{server, Moot ++ ?FILES}, {client, ?FILES}]),
    says(Notice, [atom_to_list(Key) || {Key, _} <- Moot]).

what_is_always_so_gives_no_notice_test() ->
    Options = [{secure_renegotiate, true}, {protocol, tls}, {erl_dist, true}, {ocsp_stapling, false} | ?FILES],
    ?assertMatch({ok, #{notices := []}}, parse([{server, Options}, {client, Options}])).

what_another_option_overrides_is_named_test() ->
    notice([{cert, <<1>>}], ["cert", "certfile"]),
    notice([{cacerts, [<<1>>]}], ["cacerts", "cacertfile"]),
    notice([{certs_keys, [#{certfile => "a"}]}], ["certs_keys", "certfile", "keyfile"]).

what_is_never_called_is_named_test() ->
    notice([{verify, verify_none}, {verify_fun, {m, f, s}}], ["verify_fun", "verify_none"]),
    notice([{crl_check, best_effort}], ["crl_check", "crlfile"]),
    notice([{crl_cache, {ssl_crl_hash_dir, {internal, [{dir, "d"}]}}}], ["crl_check"]).

nobody_need_be_verified_if_one_says_so_test() ->
    {ok, #{server := Server}} = parse([{server, [{certfile, "c.pem"}, {verify, verify_none}]}, {client, [{verify, verify_none}]}]),
    ?assertMatch(#{verify := verify_none, fail_if_no_peer_cert := false}, Server).

a_verify_fun_may_do_without_authorities_test() ->
    ?assertMatch(#{verify_fun := _}, server([{verify_fun, {m, f, s}} | lists:keydelete(cacertfile, 1, ?FILES)])).

%% {Terms of the file, what the sentence names}
mistakes_are_sentences_test_() ->
    [
        {lists:flatten(io_lib:format("~0P", [Terms, 12])), fun() ->
            {error, Sentence} = parse(Terms),
            says(Sentence, Parts)
        end}
     || {Terms, Parts} <- [
            {[], ["server"]},
            {nonsense, ["nonsense"]},
            {[{servers, ?FILES}], ["servers"]},
            {[{server, [{password, ?SECRET} | improper]}], ["server"]},
            {[{server, ?FILES} | improper], ["server"]}
        ] ++ [
            {[{server, [Option | ?FILES]}, {client, ?FILES}], ["server" | Parts]}
         || {Option, Parts} <- [
                {{psk_identity, "me"}, ["psk_identity", "certfile"]},
                {{srp_identity, {"me", ?SECRET}}, ["srp_identity"]},
                {{user_lookup_fun, {fun(_, _, _) -> error end, ?SECRET}}, ["user_lookup_fun"]},
                {{sni_hosts, [{"a", []}]}, ["sni_hosts", "certs_keys"]},
                {{sni_fun, fun(_) -> [] end}, ["sni_fun"]},
                {{stapling, staple}, ["stapling", "crlfile"]},
                {{ocsp_stapling, true}, ["ocsp_stapling"]},
                {{signature_algs, [{sha512, rsa}]}, ["signature_algs"]},
                {{signature_algs_cert, []}, ["signature_algs_cert"]},
                {{certificate_authorities, false}, ["certificate_authorities"]},
                {{alpn_preferred_protocols, [<<"h2">>]}, ["alpn_preferred_protocols"]},
                {{cert_policy_opts, [{explicit_policy, true}]}, ["cert_policy_opts", "verify_fun"]},
                {{protocol, dtls}, ["protocol", "tls"]},
                {{handshake, hello}, ["handshake"]},
                {{nodelay, true}, ["nodelay", "inet_dist_listen_options"]},
                {{server_name_indication, "a"}, ["server_name_indication", "client"]},
                {{customize_hostname_check, []}, ["customize_hostname_check", "client"]},
                {{no_such_option, 1}, ["no_such_option", "doc/tls.md"]},
                {{no_such_option, undefined}, ["no_such_option"]},
                {oops, ["oops"]},
                {17, ["{Name, Value}"]},
                {{certfile, 17}, ["certfile"]},
                {{certfile, ""}, ["certfile"]},
                {{verify, sometimes}, ["sometimes"]},
                {{verify, verify_peer, now}, ["verify"]},
                {{fail_if_no_peer_cert, 1}, ["fail_if_no_peer_cert"]},
                {{depth, 256}, ["depth", "256"]},
                {{versions, ['tlsv1']}, ["versions", "tlsv1.2"]},
                {{versions, ['tlsv1.4']}, ["versions", "tlsv1.4"]},
                {{versions, []}, ["versions"]},
                {{ciphers, ["AES128-SHA"]}, ["ciphers"]},
                {{ciphers, ["TLS_AES_128_GCM_SHA256", "no cipher"]}, ["ciphers", "no cipher"]},
                {{ciphers, [#{key_exchange => rsa, cipher => rot13, mac => sha, prf => sha}]}, ["ciphers", "rot13"]},
                {{ciphers, strong}, ["ciphers", "strong"]},
                {{supported_groups, [secp521r1]}, ["supported_groups"]},
                {{supported_groups, [roundish]}, ["supported_groups", "roundish"]},
                {{crl_check, true}, ["crl_check", "crlfile"]},
                {{crl_cache, {ssl_crl_cache, {internal, [{http, 5000}]}}}, ["crl_cache", "HTTP", "crlfile"]},
                {{crl_cache, {my_cache, {x, []}}}, ["crl_cache", "crlfile"]},
                {{verify_fun, fun() -> ok end}, ["verify_fun"]},
                {{password, [?SECRET, fun() -> ok end]}, ["password"]},
                {{key, {'DSAPrivateKey', <<?SECRET>>}}, ["key", "ECDSA"]},
                {{key, #{algorithm => rsa, engine => e, key_id => ?SECRET}}, ["key", "keyfile"]},
                {{key, <<?SECRET>>}, ["key", "PrivateKeyInfo"]},
                {{cert, ?SECRET}, ["cert", "DER"]},
                {{cacerts, [?SECRET]}, ["cacerts", "DER"]},
                {{certs_keys, [#{certfile => "c", secret => ?SECRET}]}, ["certs_keys", "password"]},
                {{certs_keys, [#{keyfile => "c"}]}, ["certificate"]}
            ]
        ] ++ [
            {[{server, Options}], Parts}
         || {Options, Parts} <- [
                {lists:keydelete(certfile, 1, ?FILES), ["certfile"]},
                {lists:keydelete(cacertfile, 1, ?FILES), ["cacertfile"]},
                {[{cert, <<1>>}, {cacertfile, "ca"}], ["keyfile"]},
                {[{verify, verify_none}, {fail_if_no_peer_cert, true} | ?FILES], ["fail_if_no_peer_cert"]},
                {[{versions, ['tlsv1.2']}, {ciphers, "TLS_AES_128_GCM_SHA256"} | ?FILES], ["ciphers", "tlsv1.2"]}
            ]
        ] ++ [
            {[{server, ?FILES}, {client, [{customize_hostname_check, [{match_fun, 1}]} | ?FILES]}], ["customize_hostname_check"]},
            {[{server, ?FILES}, {client, [{server_name_indication, 1} | ?FILES]}], ["server_name_indication"]}
        ]
    ].

%% Files. The command line's options are tested with nodes, for a test runner has none.

the_files_are_read_test() ->
    in_directory(fun(Name) ->
        {ok, Read} = read(Name, [{password, fun() -> <<?SECRET>> end}, {crlfile, Name("r.pem")}]),
        #{server := Server, client := Client, files := Files, mutual := true, deferred := Deferred} = Read,
        ?assertEqual(#{}, Deferred),
        ?assertEqual(
            #{
                identities => [#{cert => {pem, <<"c.pem">>}, key => {pem, <<"k.pem">>}, password => <<?SECRET>>}],
                roots => {pem, <<"ca.pem">>},
                verify => verify_peer,
                check_host => false,
                fail_if_no_peer_cert => true,
                crls => #{files => [<<"r.pem">>], check => chain, unknown => deny},
                versions => ['tlsv1.3', 'tlsv1.2'],
                sni => true,
                ktls => false
            },
            Server
        ),
        ?assertMatch(#{check_host := true}, Client),
        ?assertEqual(lists:sort([Name(File) || File <- ["c.pem", "k.pem", "ca.pem", "r.pem"]]), lists:sort(Files))
    end).

a_directory_of_lists_is_read_but_for_what_else_lies_there_test() ->
    in_directory(fun(Name) ->
        Dir = Name("crls"),
        Cache = {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Dir}]}}},
        ok = file:make_dir(Dir),
        {error, None} = read(Name, [{crl_check, true}, Cache]),
        says(None, [Dir]),
        List = <<"text\n-----BEGIN X509 CRL-----\n">>,
        [
            ok = file:write_file(filename:join(Dir, File), Contents)
         || {File, Contents} <- [{"1.r0", List}, {"2.r0", <<16#30, 1>>}, {"1.0", <<"-----BEGIN CERTIFICATE-----">>}, {".3", List}]
        ],
        {ok, #{server := Server, files := Files}} = read(Name, [{crl_check, true}, Cache]),
        ?assertMatch(#{crls := #{files := [List, <<16#30, 1>>]}}, Server),
        [?assert(lists:member(File, Files)) || File <- [Dir, filename:join(Dir, "1.r0"), filename:join(Dir, "2.r0")]],
        {error, Missing} = read(Name, [{crl_check, true}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Name("no")}]}}}]),
        says(Missing, [Name("no")])
    end).

what_cannot_be_read_is_named_test() ->
    in_directory(fun(Name) ->
        {error, Sentence} = read(Name, [{certfile, Name("missing.pem")}]),
        says(Sentence, [Name("missing.pem"), "certfile", "server"]),
        {error, Password} = read(Name, [{password, fun() -> error(?SECRET) end}]),
        says(Password, ["password"])
    end).

%% What needs Erlang, and what does not
deferred_test_() ->
    Fun = {verify_fun, {fun(_, _, S) -> {valid, S} end, s}},
    Customized = {customize_hostname_check, [{match_fun, fun(_, _) -> true end}]},
    [
        {lists:flatten(io_lib:format("~0p ~0P", [Role, Options, 12])), fun() ->
            in_directory(fun(Name) ->
                Files = [{Key, Name(File)} || {Key, File} <- ?FILES],
                Other = case Role of server -> client; client -> server end,
                {ok, Read} = polydist_tls_config:read([{Role, Options ++ Files}, {Other, Files}]),
                #{Role := #{verify := Is, check_host := CheckHost}, Other := #{verify := verify_peer}, deferred := Deferred} = Read,
                ?assertEqual(Verify, Is),
                ?assertEqual([Role || Verify =:= deferred], maps:keys(Deferred)),
                ?assert(not CheckHost orelse Verify =:= verify_peer)
            end)
        end}
     || {Role, Options, Verify} <- [
            {server, [Fun], deferred},
            {server, [Fun, {verify, verify_none}], verify_none},
            {server, [{partial_chain, fun(_) -> unknown_ca end}], deferred},
            {client, [Fun], deferred},
            {client, [Fun, {verify, verify_none}], deferred},
            {client, [Customized], deferred},
            {client, [Customized, {server_name_indication, disable}], verify_peer},
            {client, [Customized, {verify, verify_none}], verify_none},
            {client, [{server_name_indication, disable}], verify_peer}
        ]
    ].

no_terms_at_all_are_a_sentence_with_the_cure_test() ->
    {error, Sentence} = polydist_tls_config:read(undefined),
    says(Sentence, ["-ssl_dist_optfile"]).

parse(Terms) ->
    polydist_tls_options:parse(Terms).

server(Options) ->
    side(server, Options).

side(Role, Options) ->
    {ok, #{Role := Side}} = parse([{Role, Options}, {case Role of server -> client; client -> server end, ?FILES}]),
    Side.

notice(Options, Parts) ->
    {ok, #{notices := [Notice]}} = parse([{server, Options ++ ?FILES}, {client, ?FILES}]),
    says(Notice, Parts).

says(Sentence, Parts) ->
    [?assertMatch({_, Found} when Found =/= nomatch, {{Sentence, Part}, string:find(Sentence, Part)}) || Part <- Parts],
    ?assertEqual(nomatch, string:find(Sentence, ?SECRET)).

read(Name, Options) ->
    polydist_tls_config:read([{server, [{Key, Name(File)} || {Key, File} <- ?FILES] ++ Options}]).

in_directory(Test) ->
    Directory = filename:join("/tmp", lists:concat(["pdtls", os:getpid(), "-", erlang:unique_integer([positive])])),
    ok = file:make_dir(Directory),
    try
        Name = fun(File) -> filename:join(Directory, File) end,
        [ok = file:write_file(Name(File), File) || File <- ["c.pem", "k.pem", "ca.pem", "r.pem"]],
        Test(Name)
    after
        file:del_dir_r(Directory)
    end.
