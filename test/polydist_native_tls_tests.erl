%%% Unit tests of what the native library takes and tells of TLS.
-module(polydist_native_tls_tests).

-include_lib("eunit/include/eunit.hrl").

%% What both ends are told of the connection between them and of each other's certificates.
info_has_both_certificates_test_() ->
    {timeout, 60, fun info_has_both_certificates/0}.

info_has_both_certificates() ->
    ok = polydist_native:load(),
    #{server := Server, client := Client} = certificates(),
    {ok, Listening} = polydist_native:tls_config(server, options(Server)),
    {ok, Dialling} = polydist_native:tls_config(client, options(Client)),
    [#{hosts := Hosts} = Served] = polydist_native:tls_certificates(Listening),
    ?assertEqual([<<"node.example">>], Hosts),
    [#{subject := Subject, not_before := From, not_after := Until} = Shown] = polydist_native:tls_certificates(Dialling),
    ?assertEqual(<<"CN=a node">>, Subject),
    Now = os:system_time(second),
    ?assert(From =< Now andalso Now < Until),
    {ok, Listener, Address} = polydist_native:listen(tls, {{127, 0, 0, 1}, 0}, #{tls => Listening}),
    ok = polydist_native:accept(Listener),
    Ref = make_ref(),
    {ok, Conn} = polydist_native:dial(tls, Address, #{tls => Dialling, server_name => <<"node.example">>}, Ref),
    {connected, #{tls := Ours}} = polydist_native:await(Ref, 10000),
    {Accepted, #{tls := Theirs}} = receive {polydist, Listener, {accepted, C, I}} -> {C, I} end,
    ?assertMatch(#{version := 'tlsv1.3', cipher := <<"TLS_", _/binary>>, resumed := false, ktls := false,
                   peer := Served, own := Shown}, Ours),
    ?assertMatch(#{peer := Shown, own := Served}, Theirs),
    #{chain := [Der | _]} = Ours,
    ?assertEqual(maps:get(cert, Server), Der),
    ?assert(polydist_native:certificate_is_for(Der, <<"a@node.example">>)),
    ?assertNot(polydist_native:certificate_is_for(Der, <<"a@other.example">>)),
    ?assertNot(polydist_native:certificate_is_for(<<"no certificate">>, <<"a@node.example">>)),
    ok = polydist_native:close(Conn),
    ok = polydist_native:close(Accepted),
    ok = polydist_native:close_listener(Listener).

anything_but_the_options_is_a_badarg_test_() ->
    #{client := Client} = certificates(),
    ok = polydist_native:load(),
    Good = options(Client),
    {ok, _} = polydist_native:tls_config(client, Good),
    [?_assertError(badarg, polydist_native:tls_config(Role, Bad))
     || {Role, Bad} <- [{peer, Good}, {client, []}, {client, #{}}, {client, Good#{verify => maybe_later}},
                        {client, Good#{versions => ['tlsv1.1']}}, {client, Good#{roots => <<"a file">>}},
                        {client, Good#{identities => [#{key => {pem, <<>>}}]}}, {client, Good#{depth => -1}},
                        {client, Good#{crls => #{files => [], check => all, unknown => deny}}},
                        {client, Good#{sni => 1}} | [{client, maps:remove(Key, Good)} || Key <- [check_host, versions, ktls]]]].

ciphers_go_by_their_names_test() ->
    ok = polydist_native:load(),
    #{client := Client} = certificates(),
    Options = options(Client),
    Ciphers = [<<"TLS_CHACHA20_POLY1305_SHA256">>],
    {ok, _} = polydist_native:tls_config(client, Options#{ciphers => Ciphers, groups => [<<"secp256r1">>, <<"x25519">>]}),
    {error, {tls, NoCipher}} = polydist_native:tls_config(client, Options#{ciphers => [<<"TLS_RSA_WITH_RC4_128_MD5">>]}),
    ?assertMatch({_, _}, binary:match(NoCipher, <<"TLS_RSA_WITH_RC4_128_MD5">>)),
    {error, {tls, NoGroup}} = polydist_native:tls_config(client, Options#{groups => [<<"sect571r1">>]}),
    ?assertMatch({_, _}, binary:match(NoGroup, <<"sect571r1">>)).

%% As a user of OTP has them: cert, key and cacerts in DER.
options(#{cert := Cert, key := Key, authority := Authority}) ->
    {_, KeyDer, not_encrypted} = public_key:pem_entry_encode('PrivateKeyInfo', Key),
    #{identities => [#{cert => {der, [Cert]}, key => {der, [KeyDer]}}], roots => {der, [Authority]}, verify => verify_peer,
      check_host => true, fail_if_no_peer_cert => true, versions => ['tlsv1.3', 'tlsv1.2'], sni => true, ktls => false}.

certificates() ->
    #{cert := Cert} = Authority = polydist_certificates:authority("an authority"),
    Issue = fun(Options) -> (polydist_certificates:issue(Authority, Options))#{authority => Cert} end,
    #{server => Issue(#{hosts => ["node.example"]}), client => Issue(#{name => "a node"})}.
