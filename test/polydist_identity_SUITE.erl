%%% Who is let in: certificates that are not valid, and those that are not for the node that shows them. Every refusal is a
%%% sentence in the logs of both sides, and in what polydist:explain/1 says of the one that dialled.
-module(polydist_identity_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4]).

-define(ELSEWHERE, "elsewhere.example").
-define(AUTHORITY, "the authority of the tests").

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        a_certificate_that_has_expired,
        a_certificate_that_is_not_valid_yet,
        a_certificate_of_another_authority,
        a_certificate_of_an_authority_of_the_same_name,
        a_certificate_for_another_use,
        a_certificate_that_was_revoked,
        a_certificate_for_another_host,
        no_certificate,
        names_that_are_taken,
        names_that_are_refused,
        names_of_every_form,
        a_name_that_is_yet_to_be_given,
        a_refused_peer_gets_no_challenge,
        identity_can_be_left_to_others,
        identity_keeps_plain_peers_out
    ].

init_per_suite(Config0) ->
    Config = polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config0)),
    [{authority, polydist_certificates:authority(?AUTHORITY)} | Config].

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%%
%% Certificates that are not valid, whichever side dials and whichever version of TLS the bad one has
%%

a_certificate_that_has_expired(Config) ->
    doc("Both sides say that it has expired"),
    refused_both_ways(Config, issue(Config, #{hosts => ["localhost"], valid => expired}),
        "the peer's certificate has expired", "this node's certificate has expired").

a_certificate_that_is_not_valid_yet(Config) ->
    doc("The alert is the same as of one that has expired, and yet both sides say which it is"),
    refused_both_ways(Config, issue(Config, #{hosts => ["localhost"], valid => not_yet}),
        "the peer's certificate is not valid yet", "this node's certificate is not valid yet").

a_certificate_of_another_authority(Config) ->
    doc("It trusts the one of the cluster, and the cluster does not trust its own"),
    Identity = polydist_certificates:issue(polydist_certificates:authority("another authority"), #{hosts => ["localhost"]}),
    refused_both_ways(Config, Identity, "an authority that is not in cacertfile", "does not trust the authority").

a_certificate_of_an_authority_of_the_same_name(Config) ->
    doc("The name is right and the signature is not: somebody else's, or the authority was made anew"),
    Identity = polydist_certificates:issue(polydist_certificates:authority(?AUTHORITY), #{hosts => ["localhost"]}),
    refused_both_ways(Config, Identity, "not signed by the authority in cacertfile", "two authorities of one name").

a_certificate_for_another_use(Config) ->
    doc("The extended key usage has neither serverAuth nor clientAuth"),
    refused_both_ways(Config, issue(Config, #{hosts => ["localhost"], usage => [signing]}),
        "the peer's certificate may not be used for this", "this node's certificate may not be used for this").

a_certificate_that_was_revoked(Config) ->
    doc("By a list that the good one has"),
    #{directory := Directory} = lab(Config),
    Pki = polydist_pki:new(filename:join(Directory, "revoking")),
    [Good, Bad] = [polydist_pki:issue(Pki, Name, #{}) || Name <- ["good", "revoked"]],
    Crl = polydist_pki:revoke(Pki, filename:join(Directory, "revoked"), [Bad]),
    refused_both_ways(
        polydist_certificates:write_options(filename:join(Directory, "good.conf"), [{crlfile, Crl} | options(Pki, Good)]),
        fun(More) -> polydist_certificates:write_options(filename:join(Directory, "revoked.conf"), More ++ options(Pki, Bad)) end,
        Config, "the peer's certificate has been revoked", "this node's certificate has been revoked").

options(#{cacertfile := CaFile}, #{certfile := CertFile, keyfile := KeyFile}) ->
    [{certfile, CertFile}, {keyfile, KeyFile}, {cacertfile, CaFile}, {verify, verify_peer}].

refused_both_ways(Config, Identity, OfPeer, OfOwn) ->
    refused_both_ways(optfile(Config), fun(More) -> written(Config, Identity, More) end, Config, OfPeer, OfOwn).

refused_both_ways(GoodOptfile, BadOptfile, Config, OfPeer, OfOwn) ->
    [Good12, Good13, Bad12, Bad13] = polydist_node:start_all(lab(Config), [tls(#{optfile => Optfile}) || Optfile <- [
        GoodOptfile, GoodOptfile, BadOptfile([{versions, ['tlsv1.2']}]), BadOptfile([{versions, ['tlsv1.3']}])
    ]]),
    [pair_refused_both_ways(Good, Bad, OfPeer, OfOwn) || {Good, Bad} <- [{Good12, Bad12}, {Good13, Bad13}]],
    ok.

pair_refused_both_ways(Good, Bad, OfPeer, OfOwn) ->
    fails(Bad, Good, tls, OfOwn),
    polydist_node:await_console(Good, OfPeer),
    fails(Good, Bad, tls, OfPeer),
    polydist_node:await_console(Bad, ["(?s)", OfOwn, ".*", OfOwn]).

%% A dial that fails by an error of this kind, which the node logs and explains.
fails(From, #{node := Node}, Kind, Pattern) ->
    false = call(From, net_kernel, connect_node, [Node]),
    #{last := #{outcome := failed, reason := {Kind, Sentence}}} = call(From, polydist, explain, [Node]),
    {match, _} = re:run(Sentence, Pattern),
    polydist_node:await_console(From, Pattern).

a_certificate_for_another_host(Config) ->
    doc("Whom one dials has the host of its name in its certificate"),
    [Good, Bad] = polydist_node:start_all(lab(Config), [
        tls(#{optfile => optfile(Config)}), tls(#{optfile => optfile(Config, #{hosts => [?ELSEWHERE]})})
    ]),
    fails(Good, Bad, tls, "the peer's certificate is for another host"),
    polydist_node:await_console(Bad, ["this node's certificate, which is for ", ?ELSEWHERE]).

no_certificate(Config) ->
    doc("Of the one that dials, which has one to be dialled"),
    Optfile = optfile(Config),
    {ok, [Sides]} = file:consult(Optfile),
    {client, Client} = lists:keyfind(client, 1, Sides),
    Without = [Option || {Key, _} = Option <- Client, Key =/= certfile, Key =/= keyfile],
    Bare = filename:join(maps:get(directory, lab(Config)), "bare.conf"),
    ok = file:write_file(Bare, io_lib:format("~p.~n", [lists:keyreplace(client, 1, Sides, {client, Without})])),
    [Good, Bad] = polydist_node:start_all(lab(Config), [tls(#{optfile => Each}) || Each <- [Optfile, Bare]]),
    fails(Bad, Good, tls, "it wants a certificate from this node"),
    polydist_node:await_console(Good, "the peer has no certificate"),
    polydist_node:connect(Good, Bad).

%%
%% Certificates that are for the node, or not
%%

names_that_are_taken(Config) ->
    doc("The host in any of its forms, or the node itself, whatever its host"),
    connect_all(Config, #{}, fun(Node) ->
        [
            #{hosts => ["localhost"]},
            #{hosts => [?ELSEWHERE, "localhost"]},
            #{hosts => [?ELSEWHERE], nodes => [Node]},
            #{nodes => ["somebody@" ?ELSEWHERE, Node]},
            #{name => "localhost"}
        ]
    end).

names_that_are_refused(Config) ->
    doc("The acceptor's log has the name that was claimed and those of the certificate"),
    Acceptor = polydist_node:start(lab(Config), tls(#{optfile => optfile(Config)})),
    Table = [
        {#{hosts => [?ELSEWHERE]}, ?ELSEWHERE},
        {#{hosts => ["localhost." ?ELSEWHERE]}, "localhost." ?ELSEWHERE},
        {#{nodes => ["somebody@localhost"]}, "somebody@localhost"},
        {#{hosts => [?ELSEWHERE], name => "localhost"}, ?ELSEWHERE},
        {#{name => "nobody"}, "nobody"}
    ],
    Diallers = polydist_node:start_all(lab(Config), [tls(#{optfile => optfile(Config, Options)}) || {Options, _} <- Table]),
    [is_not_taken(Dialler, Acceptor, Names) || {Dialler, {_, Names}} <- lists:zip(Diallers, Table)],
    [] = call(Acceptor, erlang, nodes, [connected]).

is_not_taken(#{node := Node} = Dialler, Acceptor, Names) ->
    fails(Dialler, Acceptor, not_allowed, "does not allow this node"),
    Claimed = atom_to_list(Node),
    polydist_node:await_console(Acceptor, ["it says that it is ", Claimed, ", but its certificate is for [^;]*", Names]).

connect_all(Config, Accepting, Certificates) ->
    Acceptor = polydist_node:start(lab(Config), tls(maps:merge(#{optfile => optfile(Config)}, Accepting))),
    Count = length(Certificates("a node")),
    Names = [polydist_ct:unique("i") || _ <- lists:seq(1, Count)],
    Diallers = polydist_node:start_all(lab(Config), [
        tls(#{name => {exactly, Name}, optfile => optfile(Config, lists:nth(N, Certificates(Name ++ "@localhost")))})
     || {N, Name} <- lists:zip(lists:seq(1, Count), Names)
    ]),
    [polydist_node:connect(Dialler, Acceptor) || Dialler <- Diallers],
    Count = length([tls || Dialler <- Diallers, #{transport := tls} <- [polydist_node:connection(Acceptor, Dialler)]]).

names_of_every_form(Config) ->
    doc("Addresses, wildcards, and names that are the same or not"),
    {_, Port} = acceptor(Config),
    V6 = {16#fd00, 0, 0, 0, 0, 0, 0, 16#a},
    Table = [
        {<<"n@192.0.2.1">>, #{ips => [{192, 0, 2, 1}]}, ok},
        {<<"n@192.0.2.1">>, #{ips => [{192, 0, 2, 2}]}, not_allowed},
        {<<"n@192.0.2.1">>, #{hosts => ["*.0.2.1"]}, not_allowed},
        {<<"n@fd00::a">>, #{ips => [V6]}, ok},
        {<<"n@fd00:0:0::000A">>, #{ips => [V6]}, ok},
        {<<"n@fd00::b">>, #{ips => [V6]}, not_allowed},
        {<<"n@one.host.example">>, #{hosts => ["*.host.example"]}, ok},
        {<<"n@host.example">>, #{hosts => ["*.host.example"]}, not_allowed},
        {<<"n@of.one.host.example">>, #{hosts => ["*.host.example"]}, not_allowed},
        {<<"n@One.Host.Example">>, #{hosts => ["one.host.example"]}, ok},
        {<<"n@one.host.example">>, #{nodes => ["n@one.host.example"]}, ok},
        {<<"n@one.host.example">>, #{nodes => ["n2@one.host.example"]}, not_allowed},
        {<<"n2@one.host.example">>, #{nodes => ["n@one.host.example"]}, not_allowed},
        {<<"N@one.host.example">>, #{nodes => ["n@one.host.example"]}, not_allowed},
        {<<"n@one.host.example">>, #{nodes => ["*@one.host.example"]}, not_allowed}
    ],
    [{Name, Options, Expected} = {Name, Options, heard(Config, Port, Name, Options)} || {Name, Options, Expected} <- Table],
    ok.

a_name_that_is_yet_to_be_given(Config) ->
    doc("-sname undefined: the peer says its host alone, which is this machine's name or localhost, as the release has it"),
    {ok, Host} = inet:gethostname(),
    [Acceptor, Right, Wrong] = polydist_node:start_all(lab(Config), [
        tls(#{optfile => optfile(Config)})
        | [tls(#{name => dynamic, optfile => optfile(Config, #{hosts => Hosts})}) || Hosts <- [[Host, "localhost"], [?ELSEWHERE]]]
    ]),
    #{node := Node} = Acceptor,
    true = call(Right, net_kernel, connect_node, [Node]),
    [_, Own] = string:split(atom_to_list(call(Right, erlang, node, [])), "@"),
    false = call(Wrong, net_kernel, connect_node, [Node]),
    polydist_node:await_console(Acceptor, ["it says that it is ", Own, ", but its certificate is for [^;]*", ?ELSEWHERE]).

a_refused_peer_gets_no_challenge(Config) ->
    doc("Whoever has the cookie or not: the answer to a name that is not its own is the last that it hears"),
    {Acceptor, Port} = acceptor(Config),
    Socket = tls_client(Config, Port, #{nodes => ["itself@localhost"]}),
    ok = ssl:send(Socket, first_message(<<"another@localhost">>)),
    {ok, <<"snot_allowed">>} = ssl:recv(Socket, 0, 5000),
    {error, closed} = ssl:recv(Socket, 0, 5000),
    polydist_node:await_console(Acceptor, "it says that it is another@localhost, but its certificate is for [^;]*itself@localhost"),
    Itself = tls_client(Config, Port, #{nodes => ["itself@localhost"]}),
    ok = ssl:send(Itself, first_message(<<"itself@localhost">>)),
    {ok, <<"sok">>} = ssl:recv(Itself, 0, 5000),
    {ok, <<$N, _/binary>>} = ssl:recv(Itself, 0, 5000),
    ok = ssl:close(Itself).

acceptor(Config) ->
    #{node := Node} = Acceptor = polydist_node:start(lab(Config), tls(#{optfile => optfile(Config)})),
    [Name, _] = string:split(atom_to_list(Node), "@"),
    #{port := Port} = polydist_ct:epmd_lookup(maps:get(epmd, lab(Config)), Name),
    {ok, _} = application:ensure_all_started(ssl),
    {Acceptor, Port}.

heard(Config, Port, Name, Options) ->
    Socket = tls_client(Config, Port, Options),
    ok = ssl:send(Socket, first_message(Name)),
    {ok, <<"s", Status/binary>>} = ssl:recv(Socket, 0, 5000),
    ok = ssl:close(Socket),
    binary_to_atom(Status).

tls_client(Config, Port, Options) ->
    {ok, [Sides]} = file:consult(optfile(Config, Options)),
    {client, Client} = lists:keyfind(client, 1, Sides),
    {ok, Socket} = ssl:connect("localhost", Port, [binary, {active, false}, {packet, 4}, inet | Client], 5000),
    Socket.

first_message(Name) ->
    <<$N, 16#d07df7fbd:64, 1:32, (byte_size(Name)):16, Name/binary>>.

identity_can_be_left_to_others(Config) ->
    doc("identity => false, on the listener or in a rule of the policy"),
    Elsewhere = fun(_) -> [#{hosts => [?ELSEWHERE]}] end,
    connect_all(Config, #{config => #{listen => #{tls => #{identity => false}}}}, Elsewhere),
    connect_all(Config, #{policy => [{any, #{transports => [tls], identity => false}}]}, Elsewhere).

identity_keeps_plain_peers_out(Config) ->
    doc("identity => true: nothing shows who a plain TCP peer is; the kernel does for a Unix socket, and a certificate over TLS"),
    Optfile = optfile(Config),
    [Acceptor, Plain, Local, Secure] = polydist_node:start_all(lab(Config), [
        #{optfile => Optfile, policy => [{any, #{transports => [uds, tls, tcp], identity => true}}]}
        | [#{optfile => Optfile, force => [Transport]} || Transport <- [tcp, uds, tls]]
    ]),
    #{node := Claimed} = Plain,
    fails(Plain, Acceptor, not_allowed, "does not allow this node"),
    polydist_node:await_console(Acceptor, [atom_to_list(Claimed), ", but nothing shows that: it must connect by TLS"]),
    [polydist_node:connect(Node, Acceptor) || Node <- [Local, Secure]],
    2 = length(call(Acceptor, polydist, connections, [])).

%%
%% Nodes that have no other transport, and their certificates
%%

tls(Options) ->
    maps:merge(#{carriers => [tls]}, Options).

optfile(Config) ->
    optfile(Config, #{hosts => ["localhost"]}).

optfile(Config, Options) ->
    written(Config, issue(Config, Options), []).

issue(Config, Options) ->
    polydist_certificates:issue(proplists:get_value(authority, Config), Options).

written(Config, Identity, More) ->
    #{directory := Directory} = lab(Config),
    Authority = proplists:get_value(authority, Config),
    polydist_certificates:write(Directory, {polydist_ct:unique("identity"), Identity}, [Authority], More).
