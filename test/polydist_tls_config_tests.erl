-module(polydist_tls_config_tests).

-include_lib("eunit/include/eunit.hrl").

-define(FILES, [{certfile, "c.pem"}, {keyfile, "k.pem"}, {cacertfile, "ca.pem"}]).

both_sides_prove_who_they_are_by_default_test() ->
    {ok, #{server := Server, client := Client}} = polydist_tls_config:parse([{server, ?FILES}, {client, ?FILES}]),
    [
        ?assertMatch(#{certfile := "c.pem", keyfile := "k.pem", cacertfile := "ca.pem", verify := verify_peer}, Each)
     || Each <- [Server, Client]
    ],
    ?assertMatch(#{fail_if_no_peer_cert := true, versions := ['tlsv1.3', 'tlsv1.2']}, Server).

of_two_lists_an_absent_one_is_like_the_other_test() ->
    {ok, #{server := Server, client := Client}} = polydist_tls_config:parse([{server, ?FILES}]),
    ?assertEqual(maps:with([certfile, keyfile, cacertfile], Server), maps:with([certfile, keyfile, cacertfile], Client)).

an_absent_list_takes_the_others_files_and_nothing_weaker_test() ->
    {ok, #{client := Client}} = polydist_tls_config:parse([{server, [{verify, verify_none} | ?FILES]}]),
    ?assertMatch(#{verify := verify_peer, certfile := "c.pem"}, Client).

the_key_may_be_in_the_certificates_file_test() ->
    {ok, #{server := Server}} = polydist_tls_config:parse([{server, lists:keydelete(keyfile, 1, ?FILES)}]),
    ?assertMatch(#{certfile := "c.pem", keyfile := "c.pem"}, Server).

the_versions_can_be_chosen_test() ->
    {ok, #{server := Server}} = polydist_tls_config:parse([{server, [{versions, ['tlsv1.3']} | ?FILES]}]),
    ?assertMatch(#{versions := ['tlsv1.3']}, Server).

what_stocks_own_example_contains_is_accepted_test() ->
    Options = [{secure_renegotiate, true} | ?FILES],
    ?assertMatch({ok, _}, polydist_tls_config:parse([{server, Options}, {client, Options}])).

nobody_need_be_verified_if_one_says_so_test() ->
    {ok, #{server := Server}} = polydist_tls_config:parse([
        {server, [{certfile, "c.pem"}, {verify, verify_none}]}, {client, [{verify, verify_none}]}
    ]),
    ?assertMatch(#{verify := verify_none, fail_if_no_peer_cert := false}, Server).

%% {Terms of the file, what the sentence names}
mistakes_are_sentences_test_() ->
    [
        {Part, fun() ->
            {error, Sentence} = polydist_tls_config:parse(Terms),
            ?assertMatch({_, Found} when Found =/= nomatch, {Sentence, string:find(Sentence, Part)})
        end}
     || {Terms, Part} <- [
            {[], "server"},
            {nonsense, "nonsense"},
            {[{servers, ?FILES}], "servers"},
            {[{server, [{psk_identity, "me"} | ?FILES]}], "psk_identity"},
            {[{server, [{ciphers, []} | ?FILES]}], "ciphers"},
            {[{server, [{verify_fun, {m, f, s}} | ?FILES]}], "verify_fun"},
            {[{server, [{certfile, 17}]}], "certfile"},
            {[{server, [{certfile, ""}]}], "certfile"},
            {[{server, [{verify, sometimes} | ?FILES]}], "sometimes"},
            {[{server, [{fail_if_no_peer_cert, 1} | ?FILES]}], "fail_if_no_peer_cert"},
            {[{server, [{versions, ['tlsv1']} | ?FILES]}], "tlsv1"},
            {[{server, [{versions, []} | ?FILES]}], "versions"},
            {[{server, lists:keydelete(certfile, 1, ?FILES)}], "certfile"},
            {[{server, lists:keydelete(cacertfile, 1, ?FILES)}], "cacertfile"},
            {[{server, [{verify, verify_none}, {fail_if_no_peer_cert, true} | ?FILES]}], "fail_if_no_peer_cert"},
            {[{server, [oops | ?FILES]}], "oops"}
        ]
    ].

%% read/1 takes the file's name from the command line, which a test runner's has not.
the_terms_may_come_from_the_configuration_test() ->
    Directory = filename:join("/tmp", lists:concat(["pdtls", os:getpid()])),
    ok = file:make_dir(Directory),
    try
        Name = fun(File) -> filename:join(Directory, File) end,
        Files = [{Key, Name(File)} || {Key, File} <- ?FILES],
        [ok = file:write_file(Name(File), File) || {_, File} <- ?FILES],
        {ok, #{server := Server}} = polydist_tls_config:read([{server, Files}]),
        ?assertMatch(#{identities := [#{cert := {pem, <<"c.pem">>}, key := {pem, <<"k.pem">>}}], roots := {pem, <<"ca.pem">>}}, Server),
        Missing = Name("missing.pem"),
        {error, Sentence} = polydist_tls_config:read([{server, lists:keyreplace(certfile, 1, Files, {certfile, Missing})}]),
        ?assertNotEqual(nomatch, string:find(Sentence, Missing))
    after
        file:del_dir_r(Directory)
    end.

no_terms_at_all_are_a_sentence_with_the_cure_test() ->
    {error, Sentence} = polydist_tls_config:read(undefined),
    ?assertNotEqual(nomatch, string:find(Sentence, "-ssl_dist_optfile")).
