%%% What polydist-cert makes, in nodes: stock ones and ours.
-module(polydist_cert_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() ->
    [{group, otp25}, {group, otp27}, {group, otp29},
     a_renewed_certificate_is_shown_to_the_next_peer,
     a_revoked_certificate_lets_nobody_in].

groups() ->
    [{Group, [], [stock_nodes_connect_with_a_key_of_each_kind, stock_nodes_connect_with_an_encrypted_key]}
     || Group <- [otp25, otp27, otp29]].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(Group, Config) -> polydist_ct:put_release(Group, Config).

end_per_group(_, _) -> ok.

init_per_testcase(Case, Config) ->
    #{directory := Lab} = lab(Config),
    Directory = filename:join(Lab, polydist_ct:unique(atom_to_list(Case))),
    ok = polydist_ct:cert(["ca", filename:join(Directory, "ca")]),
    [{directory, Directory} | Config].

end_per_testcase(_, _) -> ok.

stock_nodes_connect_with_a_key_of_each_kind(Config) ->
    doc("Each with a certificate of its own, by inet_tls with the option file as it was written"),
    [A, B] = stock(Config, [issue(Config, "a", ["--key", "ecdsa"]), issue(Config, "b", ["--key", "rsa"])]),
    ok = polydist_node:connect(A, B),
    ok = polydist_node:disconnect(A, B),
    ok = polydist_node:connect(B, A).

stock_nodes_connect_with_an_encrypted_key(Config) ->
    doc("With the password added to the option file; stock nodes decrypt the key for each connection"),
    [A, B] = stock(Config, [encrypted(Config, "a"), encrypted(Config, "b")]),
    ok = polydist_node:connect(A, B),
    ok = polydist_node:disconnect(A, B),
    ok = polydist_node:connect(B, A).

a_renewed_certificate_is_shown_to_the_next_peer(Config) ->
    doc("The node runs on, and who connects next sees the new certificate, with the names of the old one"),
    A = ours(Config, issue(Config, "a", [])),
    #{node := Name} = B = ours(Config, issue(Config, "b", [])),
    ok = polydist_node:connect(A, B),
    #{tls := #{peer := #{serial := Old, hosts := Hosts, nodes := Nodes}}} = polydist_node:connection(A, B),
    ok = polydist_ct:cert(["renew", path(Config, "b"), "--ca", path(Config, "ca")]),
    ok = call(B, polydist_tls, reload, []),
    ok = polydist_node:disconnect(A, B),
    ok = polydist_node:connect(A, B),
    #{tls := #{peer := #{serial := New, hosts := Hosts, nodes := Nodes}}} = polydist_node:connection(A, B),
    ct:comment("~ts: ~ts, then ~ts", [Name, Old, New]),
    true = Old =/= New.

a_revoked_certificate_lets_nobody_in(Config) ->
    doc("crl.pem, named by crlfile in the options of the other node"),
    Optfile = issue(Config, "a", []),
    B = ours(Config, issue(Config, "b", [])),
    C = ours(Config, issue(Config, "c", [])),
    ok = polydist_ct:cert(["crl", path(Config, "ca"), "--revoke", path(Config, "b")]),
    ok = add(Optfile, {crlfile, filename:join(path(Config, "ca"), "crl.pem")}),
    ok = add(Optfile, {crl_check, peer}),
    #{node := Name} = A = ours(Config, Optfile),
    pang = call(B, net_adm, ping, [Name]),
    pong = call(C, net_adm, ping, [Name]),
    none = polydist_node:connection(A, B).

ours(Config, Optfile) ->
    polydist_node:start(lab(Config), #{carriers => [tls], force => [tls], optfile => Optfile}).

stock(Config, Optfiles) ->
    Release = proplists:get_value(release, Config),
    polydist_node:start_all(lab(Config), [#{stock => Release, proto_dist => "inet_tls", args => ["-ssl_dist_optfile", File]}
                                          || File <- Optfiles]).

path(Config, Name) -> filename:join(proplists:get_value(directory, Config), Name).

%% The option file of a new certificate.
issue(Config, Name, More) ->
    Directory = path(Config, Name),
    ok = polydist_ct:cert(["node", Directory, Name ++ "@localhost", "--ca", path(Config, "ca") | More]),
    filename:join(Directory, "dist_tls.conf").

encrypted(Config, Name) ->
    Word = path(Config, "passphrase"),
    ok = file:write_file(Word, "open sesame\n"),
    Optfile = issue(Config, Name, ["--passphrase-file", Word]),
    ok = add(Optfile, {password, "open sesame"}),
    Optfile.

%% One option more for both sides.
add(Optfile, Option) ->
    {ok, [Roles]} = file:consult(Optfile),
    file:write_file(Optfile, io_lib:format("~p.~n", [[{Role, [Option | Options]} || {Role, Options} <- Roles]])).
