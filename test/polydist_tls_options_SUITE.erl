%%% One option file on both ends: a node of ours and an unpatched one with stock inet_tls, of three releases, in both directions.
-module(polydist_tls_options_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, Group} || Group <- [otp25, otp27, otp29, alone]].

groups() ->
    [{Group, [], [
        an_encrypted_key,
        certificates_and_key_as_terms,
        several_certificates,
        the_versions_that_both_have,
        the_cipher_that_is_chosen,
        the_group_that_is_chosen,
        the_options_of_the_command_line,
        as_many_authorities_as_depth_allows,
        a_certificate_for_another_host,
        another_host_by_name,
        a_host_name_check_of_ones_own,
        a_fun_is_asked_what_stock_asks_it,
        a_fun_refuses,
        stocks_own_fun,
        a_revoked_peer_is_refused,
        we_are_refused_when_revoked
    ]} || Group <- [otp25, otp27, otp29]] ++
    [{alone, [], [
        a_fun_at_boot,
        nothing_secret_is_kept,
        notices_and_errors_name_the_option
    ]}].

init_per_suite(Config) ->
    Opened = polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)),
    [{pki, polydist_pki:new(filename:join(maps:get(directory, lab(Opened)), "pki"))} | Opened].

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(alone, Config) -> Config;
init_per_group(Group, Config) -> polydist_ct:put_release(Group, Config).

end_per_group(_, _) -> ok.

an_encrypted_key(Config) ->
    doc("password"),
    #{encrypted := Key, password := Password} = Issued = issue(Config, #{}),
    connected(Config, [{password, Password}, {keyfile, Key} | without([keyfile], files(Config, Issued))]).

certificates_and_key_as_terms(Config) ->
    doc("cert, key and cacerts in DER"),
    #{cert := Cert, key := Key} = issue(Config, #{intermediates => 1}),
    connected(Config, [{cert, Cert}, {key, Key}, {cacerts, [root(Config)]}]).

several_certificates(Config) ->
    doc("certs_keys, with the first for nobody: the second is shown"),
    #{encrypted := Key, password := Password} = Issued = issue(Config, #{}),
    Identity = (maps:with([certfile], Issued))#{keyfile => Key, password => Password},
    connected(Config, [{certs_keys, [Identity]}, {cacerts, [root(Config)]}]).

the_versions_that_both_have(Config) ->
    doc("versions: one each, and one that there is not here beside it"),
    Files = files(Config, issue(Config, #{})),
    [
        #{version := Version} = connected(Config, [{versions, Versions} | Files])
     || {Versions, Version} <- [{['tlsv1.3'], 'tlsv1.3'}, {['tlsv1.2'], 'tlsv1.2'}]
    ].

the_cipher_that_is_chosen(Config) ->
    doc("ciphers: by both spellings"),
    Files = files(Config, issue(Config, #{})),
    [
        #{ciphers := [Cipher]} = connected(Config, [{versions, ['tlsv1.2']}, {ciphers, Ciphers} | Files])
     || {Ciphers, Cipher} <- [
            {["ECDHE-ECDSA-AES128-GCM-SHA256"], <<"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256">>},
            {"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", <<"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384">>},
            {[#{key_exchange => ecdhe_ecdsa, cipher => chacha20_poly1305, mac => aead, prf => sha256}],
             <<"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256">>}
        ]
    ].

the_group_that_is_chosen(Config) ->
    doc("supported_groups: one that both have, and then none"),
    Files = [{versions, ['tlsv1.3']} | files(Config, issue(Config, #{}))],
    connected(Config, [{supported_groups, [secp384r1]} | Files]),
    refused(Config, [{supported_groups, [secp384r1]} | Files], [{supported_groups, [x25519]} | Files]).

the_options_of_the_command_line(Config) ->
    doc("-ssl_dist_opt instead of a file, several times"),
    #{cacertfile := Ca} = proplists:get_value(pki, Config),
    #{certfile := Cert, encrypted := Key, password := Password} = issue(Config, #{}),
    Args = lists:append([
        ["-ssl_dist_opt", Side ++ Name, Value]
     || Side <- ["server_", "client_"],
        {Name, Value} <- [
            {"certfile", Cert}, {"keyfile", Key}, {"password", Password}, {"cacertfile", Ca}, {"verify", "verify_peer"},
            {"depth", "1"}, {"secure_renegotiate", "true"}
        ]
    ]) ++ ["-ssl_dist_opt", "server_fail_if_no_peer_cert", "true"],
    connected(pair(Config, #{optfile => false, args => Args}, Args)).

as_many_authorities_as_depth_allows(Config) ->
    doc("depth: two authorities between are one too many for us, and for stock"),
    Two = files(Config, issue(Config, #{intermediates => 2})),
    connected(Config, [{depth, 2} | Two]),
    refused(Config, [{depth, 1} | Two], [{depth, 2} | Two]).

a_certificate_for_another_host(Config) ->
    doc("Refused, unless server_name_indication is disable"),
    Files = files(Config, issue(Config, #{hosts => ["elsewhere.example"]})),
    refused(Config, {Files, Files}, {Files, Files}),
    named(Config, Files, [{server_name_indication, disable} | Files]).

another_host_by_name(Config) ->
    doc("server_name_indication: the name that is sent and checked instead of the host dialled"),
    Files = files(Config, issue(Config, #{hosts => ["elsewhere.example"]})),
    named(Config, Files, [{server_name_indication, "elsewhere.example"} | Files]).

%% Stock of OTP 25 pays no heed to the option: a bug, it checks the host nevertheless. The name of who connects is no matter here.
named(Config, OfServer, OfClient) ->
    File = write(Config, {OfServer, OfClient}),
    {Us, Stock} = Pair = any_name(Config, File, File),
    case proplists:get_value(release, Config) of
        25 -> ping(pong, Us, Stock);
        _ -> connected(Pair)
    end.

any_name(Config, Ours, Theirs) ->
    Policy = [{any, #{transports => [tls], legacy => tls, identity => false}}],
    pair(Config, #{optfile => Ours, policy => Policy}, ["-ssl_dist_optfile", Theirs]).

a_host_name_check_of_ones_own(Config) ->
    doc("customize_hostname_check: a wildcard, by the fun of OTP for that, and one that matches nothing"),
    Check = "{customize_hostname_check, [{match_fun, fun({dns_id, \"localhost\"}, {dNSName, \"elsewhere.\" ++ _}) -> ~p end}]}",
    Files = files(Config, issue(Config, #{hosts => ["elsewhere.example"]})),
    Always = write(Config, {Files, [{text, io_lib:format(Check, [true])} | Files]}),
    connected(any_name(Config, Always, Always)),
    Never = {Files, [{text, io_lib:format(Check, [false])} | Files]},
    refused(Config, Never, Never).

a_fun_is_asked_what_stock_asks_it(Config) ->
    doc("verify_fun: both sides of both nodes have the same certificates, and note what the fun is asked"),
    Files = files(Config, issue(Config, #{intermediates => 1})),
    Options = {[noting("server") | Files], [noting("client") | Files]},
    {Ours, Theirs} = {notes(Config, "ours"), notes(Config, "theirs")},
    {Us, Stock} = pair(Config, #{optfile => write(Config, Options), env => [{"NOTES", Ours}]},
                       #{args => ["-ssl_dist_optfile", write(Config, Options)], env => [{"NOTES", Theirs}]}),
    connected({Us, Stock}),
    {ok, Asked} = file:consult(Ours),
    {ok, AskedByStock} = file:consult(Theirs),
    [_ | _] = [Each || {_, valid_peer} = Each <- Asked],
    %% The two sides of a node write into one file, in whatever order; the calls of a side are in theirs.
    [
        ?assertEqual({Role, of_role(Role, AskedByStock)}, {Role, of_role(Role, Asked)})
     || Role <- [server, client]
    ].

of_role(Role, Asked) ->
    [What || {Each, What} <- Asked, Each =:= Role].

noting(Role) ->
    {text, ["{verify_fun, {fun(_, Event, State) ->
        What = case Event of {extension, Extension} -> {extension, element(2, Extension)}; _ -> Event end,
        ok = file:write_file(os:getenv(\"NOTES\"), io_lib:format(\"~0p.~n\", [{", Role, ", What}]), [append]),
        case Event of
            {bad_cert, _} -> {fail, Event};
            {extension, _} -> {unknown, State};
            _ -> {valid, State}
        end end, none}}"]}.

notes(Config, Name) ->
    filename:join(maps:get(directory, lab(Config)), polydist_ct:unique(Name)).

a_fun_refuses(Config) ->
    doc("verify_fun that refuses the peer, on our side only, with a sentence; then one that fails"),
    Files = files(Config, issue(Config, #{})),
    Refuses = {text, "{verify_fun, {fun(_, valid_peer, _) -> {fail, on_principle}; (_, _, State) -> {unknown, State} end, none}}"},
    {Us, _} = refused(Config, [Refuses | Files], Files),
    polydist_node:await_console(Us, "on_principle"),
    Fails = {text, "{verify_fun, {fun(_, _, State) -> error({badmatch, State}) end, \"the state\"}}"},
    {Failing, _} = refused(Config, [Fails | Files], Files),
    Printed = polydist_node:await_console(Failing, "verify_fun .* failed: error badmatch"),
    nomatch = string:find(Printed, "the state").

stocks_own_fun(Config) ->
    doc("inet_tls_dist:verify_client/3 with net_kernel:allow/1"),
    Files = files(Config, issue(Config, #{})),
    Fun = {text, "{verify_fun, {fun inet_tls_dist:verify_client/3, none}}"},
    {Us, Stock} = pair(Config, #{optfile => write(Config, {[Fun | Files], Files})}, ["-ssl_dist_optfile", write(Config, Files)]),
    connected({Us, Stock}),
    disconnect(Us, Stock),
    ok = call(Us, net_kernel, allow, [['x@elsewhere.example']]),
    ping(pang, Stock, Us).

a_revoked_peer_is_refused(Config) ->
    doc("crl_check with a file and with a directory, on our side"),
    #{directory := Directory} = Pki = proplists:get_value(pki, Config),
    Good = files(Config, issue(Config, #{})),
    Revoked = issue(Config, #{}),
    Bad = files(Config, Revoked),
    Dir = filename:join(Directory, polydist_ct:unique("crls")),
    File = polydist_pki:revoke(Pki, Dir, [Revoked]),
    Cache = {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Dir}]}}},
    Checks = [{crl_check, true}, Cache | Good],
    connected(pair(Config, #{optfile => write(Config, Checks)}, ["-ssl_dist_optfile", write(Config, Good)])),
    refused(Config, Checks, Bad),
    refused(Config, [{crlfile, File} | Good], Bad).

we_are_refused_when_revoked(Config) ->
    doc("The same directory on stock's side"),
    #{directory := Directory} = Pki = proplists:get_value(pki, Config),
    Good = files(Config, issue(Config, #{})),
    Revoked = issue(Config, #{}),
    Bad = files(Config, Revoked),
    Dir = filename:join(Directory, polydist_ct:unique("crls")),
    _ = polydist_pki:revoke(Pki, Dir, [Revoked]),
    Cache = {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Dir}]}}},
    Checks = [{crl_check, true}, Cache | Good],
    connected(Config, Checks),
    refused(Config, Bad, Checks).

%% Nodes of ours only

a_fun_at_boot(Config) ->
    doc("A connection that the kernel waits for as it starts, before any other application: the fun needs none"),
    Files = files(Config, issue(Config, #{intermediates => 1})),
    Fun = {text, "{verify_fun, {fun(_, {extension, _}, State) -> {unknown, State}; (_, {bad_cert, _} = Bad, _) -> {fail, Bad};
                                    (_, _, State) -> {valid, State} end, none}}"},
    Optfile = write(Config, [Fun | Files]),
    #{node := First} = One = polydist_node:start(lab(Config), #{optfile => Optfile, force => [tls]}),
    Sync = ["-kernel", "sync_nodes_mandatory", lists:flatten(io_lib:format("~0p", [[First]])), "sync_nodes_timeout", "10000"],
    Two = polydist_node:start(lab(Config), #{optfile => Optfile, force => [tls], args => Sync}),
    #{transport := tls} = polydist_node:connection(Two, One).

nothing_secret_is_kept(Config) ->
    doc("Neither the password nor the key is in what the node stores"),
    #{encrypted := Key, password := Password, key := {_, Der}} = Issued = issue(Config, #{}),
    Files = [{password, Password}, {keyfile, Key} | without([keyfile], files(Config, Issued))],
    Fun = {text, "{verify_fun, {fun(_, _, State) -> {valid, State} end, none}}"},
    Node = polydist_node:start(lab(Config), #{optfile => write(Config, [Fun | Files]), force => [tls]}),
    Stored = polydist_node:run(Node, fun() ->
        term_to_binary([ets:tab2list(Table) || Table <- ets:all(), ets:info(Table, owner) =:= whereis(polydist_sup)])
    end),
    true = byte_size(Stored) > 100,
    [nomatch = binary:match(Stored, Secret) || Secret <- [list_to_binary(Password), Der]].

notices_and_errors_name_the_option(Config) ->
    doc("What is left out makes a notice; what cannot be is an error that stops the carrier"),
    Files = files(Config, issue(Config, #{})),
    Node = polydist_node:start(lab(Config), #{optfile => write(Config, [{hibernate_after, 1000} | Files])}),
    {ok, #{notices := [Notice]}} = call(Node, polydist_tls_config, load, [undefined]),
    match = re:run(Notice, "without effect: hibernate_after \\(client\\), hibernate_after \\(server\\)", [{capture, none}]),
    Wrong = polydist_node:start(lab(Config), #{optfile => write(Config, [{psk_identity, "me"} | Files])}),
    polydist_node:await_console(Wrong, "psk_identity of the server is not supported").

%% Options of both sides, or {OfServer, OfClient}; {text, Expression} among them is written as it is.
connected(Config, Options) ->
    File = write(Config, Options),
    connected(pair(Config, #{optfile => File}, ["-ssl_dist_optfile", File])).

%% First stock dials, then we do. What both connections have in common is shown.
connected({Us, Stock}) ->
    ping(pong, Stock, Us),
    #{transport := tls, direction := in, tls := #{version := Version, cipher := Cipher}} = polydist_node:connection(Us, Stock),
    disconnect(Us, Stock),
    ping(pong, Us, Stock),
    #{transport := tls, direction := out, tls := #{version := Version} = Tls} = polydist_node:connection(Us, Stock),
    #{version => Version, ciphers => lists:usort([Cipher, maps:get(cipher, Tls)])}.

ping(Answer, From, #{node := To} = Other) ->
    case call(From, net_adm, ping, [To]) of
        Answer -> ok;
        _ -> error({pinging, To, should_answer, Answer, polydist_node:console(From), polydist_node:console(Other)})
    end.

disconnect(Us, Stock) ->
    polydist_node:disconnect(Us, Stock).

%% In both directions.
refused(Config, Ours, Theirs) ->
    {Us, Stock} = pair(Config, #{optfile => write(Config, Ours)}, ["-ssl_dist_optfile", write(Config, Theirs)]),
    ping(pang, Stock, Us),
    ping(pang, Us, Stock),
    {Us, Stock}.

pair(Config, Ours, Args) when Args =:= []; is_list(hd(Args)) ->
    pair(Config, Ours, #{args => Args});
pair(Config, Ours, Theirs) ->
    Legacy = #{carriers => [tls], config => #{legacy => tls}, policy => [{any, #{transports => [tls], legacy => tls}}]},
    Args = maps:get(args, Theirs, []) ++ ["-connect_all", "false"],
    Stock = Theirs#{stock => proplists:get_value(release, Config), proto_dist => "inet_tls", args => Args},
    [Us, Them] = polydist_node:start_all(lab(Config), [maps:merge(Legacy, Ours), Stock]),
    {Us, Them}.

issue(Config, Options) ->
    polydist_pki:issue(proplists:get_value(pki, Config), polydist_ct:unique("c"), Options).

root(Config) ->
    #{root := #{cert := Der}} = proplists:get_value(pki, Config),
    Der.

files(Config, #{certfile := Cert, keyfile := Key}) ->
    #{cacertfile := Ca} = proplists:get_value(pki, Config),
    [{certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {verify, verify_peer}].

without(Keys, Options) ->
    [Option || {Key, _} = Option <- Options, not lists:member(Key, Keys)].

write(Config, {OfServer, OfClient}) ->
    File = filename:join(maps:get(directory, lab(Config)), polydist_ct:unique("options")),
    ok = file:write_file(File, ["[{server, [", text([{verify, verify_peer}, {fail_if_no_peer_cert, true} | OfServer]), "]},\n",
                                " {client, [", text([{verify, verify_peer} | OfClient]), "]}].\n"]),
    File;
write(Config, Options) ->
    write(Config, {Options, Options}).

text(Options) ->
    lists:join(",\n    ", [case Option of
                               {text, Text} -> Text;
                               _ -> io_lib:format("~0p", [Option])
                           end || Option <- Options]).
