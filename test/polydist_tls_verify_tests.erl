%%% The verification in Erlang against OTP's ssl: for the same certificates and the same options a fun of the user must be asked
%%% the same questions in the same order, with the same end.
-module(polydist_tls_verify_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-define(HOST, "localhost").

%% A fun is asked as by ssl. {certificates' differences from good ones, our options}
the_fun_is_asked_what_ssl_asks_test_() ->
    {setup, fun() -> {ok, Started} = application:ensure_all_started(ssl), Started end,
     fun(Started) -> [ok = application:stop(Each) || Each <- lists:reverse(Started)] end,
     [
         {Name, {timeout, 60, fun() -> [same(Role, Case) || Role <- [client, server]] end}}
      || {Name, Case} <- [
             {"good certificates", #{}},
             {"certificates that the fun accepts", #{answer => accept}},
             {"without an intermediate authority", #{intermediates => []}},
             {"two intermediate authorities", #{intermediates => [[], []]}},
             {"a fun of four arguments", #{arity => 4}},
             {"an expired certificate", #{peer => [{validity, {{2001, 1, 1}, {2002, 1, 1}}}]}},
             {"an expired certificate that the fun accepts",
              #{peer => [{validity, {{2001, 1, 1}, {2002, 1, 1}}}], answer => accept}},
             {"an expired intermediate authority", #{intermediates => [[{validity, {{2001, 1, 1}, {2002, 1, 1}}}]]}},
             {"an expired root", #{root => [{validity, {{2001, 1, 1}, {2002, 1, 1}}}]}},
             {"for another host", #{host => "elsewhere.example"}},
             {"for another host, which the fun accepts", #{host => "elsewhere.example", answer => accept}},
             {"not for this use", #{peer => [{extensions, [usage([?'id-kp-codeSigning'])]}]}},
             {"not for this use, which the fun accepts",
              #{peer => [{extensions, [usage([?'id-kp-codeSigning'])]}], answer => accept}},
             {"an unknown critical extension", #{peer => [{extensions, [unknown(true)]}]}},
             {"an unknown critical extension that the fun accepts", #{peer => [{extensions, [unknown(true)]}], answer => accept}},
             {"an unknown extension", #{peer => [{extensions, [unknown(false)]}]}},
             {"an unknown authority", #{roots => none}},
             {"an unknown authority that the fun accepts", #{roots => none, answer => accept}},
             {"an authority too many", #{depth => 0}},
             {"an authority too many, which the fun accepts", #{depth => 0, answer => accept}},
             {"refused at the peer", #{answer => {refuse, valid_peer}}},
             {"refused at an authority", #{answer => {refuse, valid}}}
         ]
     ]}.

%% Without a fun, the native library judges alone unless another option needs Erlang.
hostname_test_() ->
    Data = data(#{}),
    Elsewhere = data(#{host => "elsewhere.example"}),
    Match = fun(Result) -> [{match_fun, fun(_, _) -> Result end}] end,
    [
        ?_assertEqual(ok, verify(client, Data, ?HOST, #{})),
        ?_assertMatch({error, {tls, _}}, verify(client, Elsewhere, ?HOST, #{})),
        ?_assertEqual(ok, verify(client, Elsewhere, ?HOST, #{hostname => Match(true)})),
        ?_assertMatch({error, {tls, _}}, verify(client, Data, ?HOST, #{hostname => Match(false)})),
        ?_assertEqual(ok, verify(client, Data, ?HOST, #{hostname => Match(default)})),
        ?_assertEqual(ok, verify(client, Elsewhere, ?HOST, #{host => unchecked})),
        ?_assertEqual(ok, verify(client, Elsewhere, ?HOST, #{host => {name, "elsewhere.example"}})),
        ?_assertEqual(ok, verify(server, Elsewhere, undefined, #{})),
        ?_test(says(verify(client, Data, ?HOST, #{hostname => [{match_fun, fun(_, _) -> error(secret) end}]}),
                    ["customize_hostname_check"]))
    ].

a_fun_that_fails_refuses_and_shows_nothing_test_() ->
    Data = data(#{}),
    Unknown = data(#{roots => none}),
    [
        ?_test(begin
            Answer = verify(server, Each, undefined, #{verify_fun => {Fun, "the state"}}),
            says(Answer, [Part, "verify_fun", "polydist_tls_verify_tests"]),
            {error, {tls, Sentence}} = Answer,
            ?assertEqual(nomatch, string:find(Sentence, "the state"))
        end)
     || Each <- [Data, Unknown],
        {Fun, Part} <- [
            {fun(_, _, State) -> error({badmatch, State}) end, "badmatch"},
            {fun(_, _, State) -> throw(State) end, ": throw"},
            {fun(_, _, State) -> exit(State) end, ": exit"},
            {fun(_, _, State) -> State end, "answered"}
        ]
    ].

reasons_are_sentences_test_() ->
    [
        {Part, fun() -> says(verify(Role, data(Case), ?HOST, #{}), [Part]) end}
     || {Role, Case, Part} <- [
            {client, #{host => "elsewhere.example"}, "host"},
            {client, #{roots => none}, "not among the CA certificates"},
            {server, #{peer => [{validity, {{2001, 1, 1}, {2002, 1, 1}}}]}, "expired"},
            {server, #{peer => [{extensions, [usage([?'id-kp-codeSigning'])]}]}, "extended key usage"},
            {server, #{peer => [{extensions, [unknown(true)]}]}, "critical extension"},
            {server, #{peer => [{digest, sha}]}, "SHA-1"}
        ]
    ].

what_is_no_certificate_is_refused_test() ->
    says(polydist_tls_verify:verify(server, [<<"nonsense">>], undefined, check(data(#{}), #{})), ["cannot be verified"]).

no_certificate_is_nobodys_business_test() ->
    Check = check(data(#{}), #{verify_fun => {fun(_, _, _) -> no end, s}}),
    ?assertEqual(ok, polydist_tls_verify:verify(server, [], undefined, Check)).

a_chain_may_come_in_any_order_and_with_strangers_test() ->
    #{chain := [Peer, Top, Low]} = Data = data(#{intermediates => [[], []]}),
    #{chain := [_, Stranger | _]} = data(#{}),
    [
        ?assertEqual(ok, verify(client, Data#{chain := Chain}, ?HOST, #{}))
     || Chain <- [[Peer, Low, Top], [Peer, Top, Low], [Peer, Stranger, Top, Low], [Peer, Low, Low, Stranger, Top]]
    ],
    says(verify(client, Data#{chain := [Peer]}, ?HOST, #{}), ["CA certificates"]).

a_fun_may_trust_what_stands_further_down_test() ->
    #{chain := [_, Intermediate]} = Data = data(#{roots => none}),
    Trust = fun([Top | _]) when Top =:= Intermediate -> {trusted_ca, Intermediate} end,
    ?assertEqual(ok, verify(client, Data, ?HOST, #{partial_chain => Trust})),
    says(verify(client, Data, ?HOST, #{partial_chain => fun(_) -> unknown_ca end}), ["CA certificates"]),
    says(verify(client, Data, ?HOST, #{partial_chain => fun(_) -> error(no) end}), ["CA certificates"]).

%% Lists of revoked certificates; ssl gets the same ones.
revoked_certificates_test_() ->
    {timeout, 60, fun() ->
        Directory = filename:join("/tmp", lists:concat(["pdtls", os:getpid(), "-", erlang:unique_integer([positive])])),
        try
            revoked_certificates(polydist_pki:new(Directory))
        after
            file:del_dir_r(Directory)
        end
    end}.

revoked_certificates(#{directory := Directory, root := #{cert := Root}} = Pki) ->
    #{cert := [Good]} = polydist_pki:issue(Pki, "good", #{}),
    #{cert := [Bad]} = Revoked = polydist_pki:issue(Pki, "bad", #{}),
    #{cert := [Deep | Above]} = polydist_pki:issue(Pki, "deep", #{intermediates => 1}),
    List = fun(Days) -> contents(polydist_pki:revoke(Pki, filename:join(Directory, "crls"), [Revoked], Days)) end,
    Now = List({-1, 1}),
    Accept = {fun(_, {bad_cert, {revoked, _}} = Reason, _) -> {fail, Reason}; (_, {extension, _}, S) -> {unknown, S};
                 (_, {bad_cert, _} = Reason, _) -> {fail, Reason}; (_, _, S) -> {valid, S} end, s},
    [
        ?assertEqual({Line, Wanted}, {Line, polydist_tls_verify:verify(server, Chain, undefined, Check)})
     || More <- [#{}, #{verify_fun => Accept}],
        {Line, Chain, Crls, Wanted} <- [
            {1, [Good], crls(chain, deny, [Now]), ok},
            {2, [Bad], crls(chain, deny, [Now]), revoked()},
            {3, [Bad], crls(peer, allow, [Now]), revoked()},
            {4, [Good], crls(chain, deny, []), undetermined()},
            {5, [Good], crls(chain, allow, []), ok},
            {6, [Good], crls(chain, deny, [List({-3, -1})]), undetermined()},
            %% Of the authority between nobody knows.
            {7, [Deep | Above], crls(chain, deny, [Now]), undetermined()},
            {8, [Deep | Above], crls(chain, allow, [Now]), ok}
        ],
        Check <- [maps:merge(#{roots => [Root], depth => 10, host => given, hostname => [], crls => Crls}, More)]
    ].

crls(Check, Unknown, Lists) ->
    #{check => Check, unknown => Unknown, lists => Lists}.

revoked() -> {error, {tls, <<"the certificate of the client is not accepted: it has been revoked (unspecified)">>}}.

undetermined() ->
    {error, {tls, <<"the certificate of the client is not accepted: no list of revoked certificates that is valid now tells of it; "
                    "see crl_check">>}}.

contents(File) ->
    {ok, Pem} = file:read_file(File),
    [{'CertificateList', Der, not_encrypted}] = public_key:pem_decode(Pem),
    Der.

%% One side's certificates against ssl

same(Role, Case) ->
    Data = data(Case),
    Stock = recorded(Case, fun(Fun) -> stock(Role, Data, Case, Fun) end),
    Ours = recorded(Case, fun(Fun) -> ours(Role, Data, Case, Fun) end),
    {_, [_ | _]} = Stock,
    ?assertEqual({Role, Stock}, {Role, Ours}).

recorded(Case, Verify) ->
    Caller = self(),
    Ref = make_ref(),
    Judge = fun(Otp, Event, N) ->
        Caller ! {Ref, {N, public_key:pkix_subject_id(Otp), plain(Event)}},
        answer(maps:get(answer, Case, strict), Event, N + 1)
    end,
    Fun = case Case of
        #{arity := 4} ->
            fun(Otp, Der, Event, N) ->
                Otp = public_key:pkix_decode_cert(Der, otp),
                Judge(Otp, Event, N)
            end;
        #{} -> Judge
    end,
    {Verify({Fun, 0}), calls(Ref)}.

calls(Ref) ->
    receive
        {Ref, Call} -> [Call | calls(Ref)]
    after 0 -> []
    end.

%% ssl of OTP 27 and 29 takes the peer's own certificate for an authority's when a fun is asked of its use.
plain({extension, #'Extension'{extnID = Id}}) -> {extension, Id};
plain({bad_cert, {ca_invalid_ext_keyusage, Uses}}) -> {bad_cert, {invalid_ext_keyusage, Uses}};
plain(Event) -> Event.

answer({refuse, Event}, Event, _) -> {fail, on_principle};
answer(strict, {bad_cert, _} = Reason, _) -> {fail, Reason};
answer(_, {extension, #'Extension'{critical = false}}, N) -> {unknown, N};
answer(strict, {extension, _}, N) -> {unknown, N};
answer({refuse, _}, {extension, _}, N) -> {unknown, N};
answer(_, _, N) -> {valid, N}.

ours(Role, Data, Case, VerifyFun) ->
    case verify(Role, Data, ?HOST, maps:merge(#{verify_fun => VerifyFun}, maps:with([depth], Case))) of
        ok -> ok;
        {error, {tls, _}} -> refused
    end.

stock(Role, #{chain := Chain, key := Key, roots := Roots}, Case, VerifyFun) ->
    Verifies = [{verify, verify_peer}, {verify_fun, VerifyFun}, {cacerts, Roots}, {depth, maps:get(depth, Case, 10)},
                {log_level, none}, {active, false}],
    Shows = [{cert, Chain}, {key, Key}, {log_level, none}, {active, false}],
    #{chain := Other, key := OtherKey} = data(#{}),
    {ServerOptions, ClientOptions} = case Role of
        client -> {Shows, [{server_name_indication, ?HOST} | Verifies]};
        %% Clients do not show what they are told that nobody knows.
        server -> {[{cert, Other}, {key, OtherKey}, {fail_if_no_peer_cert, true}, {certificate_authorities, false} | Verifies],
                   [{verify, verify_none} | Shows]}
    end,
    {ok, Listen} = ssl:listen(0, [{versions, ['tlsv1.3']}, {reuseaddr, true}, {ip, {127, 0, 0, 1}} | ServerOptions]),
    {ok, {_, Port}} = ssl:sockname(Listen),
    Tester = self(),
    Client = spawn_link(fun() ->
        Tester ! {self(), ended(ssl:connect({127, 0, 0, 1}, Port, ClientOptions, 10000))},
        receive close -> ok end
    end),
    {ok, Accepted} = ssl:transport_accept(Listen),
    OfServer = ended(ssl:handshake(Accepted, 10000)),
    OfClient = receive {Client, Ended} -> Ended end,
    Client ! close,
    _ = ssl:close(Listen),
    case Role of
        server -> OfServer;
        client -> OfClient
    end.

ended({ok, _}) -> ok;
ended({error, _}) -> refused.

%% A chain as a peer sends it, its key, and the authorities that are trusted
data(Case) ->
    San = #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{dNSName, maps:get(host, Case, ?HOST)}], critical = false},
    New = fun(More) -> [{key, {namedCurve, secp256r1}} | [{digest, sha256} || not lists:keymember(digest, 1, More)]] ++ More end,
    Own = maps:get(peer, Case, []),
    Extensions = {extensions, [San | proplists:get_value(extensions, Own, [])]},
    Chain = #{root => New(maps:get(root, Case, [])), intermediates => [New(Each) || Each <- maps:get(intermediates, Case, [[]])],
              peer => New([Extensions | proplists:delete(extensions, Own)])},
    Another = #{root => New([]), intermediates => [], peer => New([])},
    #{server_config := Server, client_config := Client} =
        public_key:pkix_test_data(#{server_chain => Chain, client_chain => Another}),
    Cert = proplists:get_value(cert, Server),
    Known = proplists:get_value(cacerts, Server) ++ proplists:get_value(cacerts, Client),
    {Intermediates, Root} = above(Cert, Known),
    #{chain => [Cert | Intermediates], key => proplists:get_value(key, Server),
      roots => case Case of
                   #{roots := none} -> [element(2, above(proplists:get_value(cert, Client), Known))];
                   #{} -> [Root]
               end}.

above(Cert, Known) ->
    [Issuer | _] = [Each || Each <- Known, public_key:pkix_is_issuer(Cert, Each)],
    case public_key:pkix_is_self_signed(Issuer) of
        true -> {[], Issuer};
        false ->
            {More, Root} = above(Issuer, Known),
            {[Issuer | More], Root}
    end.

usage(Uses) ->
    #'Extension'{extnID = ?'id-ce-extKeyUsage', extnValue = Uses, critical = false}.

unknown(Critical) ->
    #'Extension'{extnID = {1, 3, 6, 1, 4, 1, 99999, 1}, extnValue = <<5, 0>>, critical = Critical}.

verify(Role, #{chain := Chain} = Data, Host, More) ->
    polydist_tls_verify:verify(Role, Chain, Host, check(Data, More)).

check(#{roots := Roots}, More) ->
    maps:merge(#{roots => Roots, depth => 10, host => given, hostname => []}, More).

says({error, {tls, Sentence}}, Parts) ->
    [?assertMatch({_, Found} when Found =/= nomatch, {{Sentence, Part}, string:find(Sentence, Part)}) || Part <- Parts].
