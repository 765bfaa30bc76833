%%% The drop-in for inet_tls: unpatched nodes of three releases over TLS in both directions, by every version and kind of key, and
%%% the one port that serves peers of every stock carrier.
-module(polydist_interop_tls_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4, eval/3]).

%% Bytes of the big messages.
-define(BIG, 4 * 1048576).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, Group} || Group <- [otp25, otp27, otp29, raw]].

groups() ->
    [{Group, [], [
        every_version_and_key,
        one_port_serves_every_stock_carrier,
        every_stock_carrier_is_dialled,
        who_is_killed_is_down
    ]} || Group <- [otp25, otp27, otp29]] ++
        [{raw, [], [
            a_port_of_tls_answers_nothing_to_plain_bytes,
            a_port_of_tcp_answers_nothing_to_tls,
            a_shared_port_answers_both
        ]}].

%% What a disconnect leaves of global would connect anew.
init_per_suite(Config0) ->
    Config = polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config0)),
    [{authority, polydist_certificates:authority("the authority of the tests")} | Config].

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(raw, Config) ->
    Config;
init_per_group(Group, Config) -> polydist_ct:put_release(Group, Config).

end_per_group(_, _) -> ok.

%%
%% Versions, keys, directions
%%

every_version_and_key(Config) ->
    doc("Big messages over connections that either side opened; OTP's ssl takes Ed25519 in TLS 1.3 only"),
    Keys = [ecdsa, rsa, ed25519],
    Theirs = [{ecdsa, 'tlsv1.2'}, {ecdsa, 'tlsv1.3'}, {rsa, 'tlsv1.2'}, {rsa, 'tlsv1.3'}, {ed25519, 'tlsv1.3'}],
    Nodes = polydist_node:start_all(lab(Config),
        [ours(#{optfile => optfile(Config, Key, [])}) || Key <- Keys] ++
            [stock(Config, "inet_tls", optfile(Config, Key, [{versions, [Version]}])) || {Key, Version} <- Theirs]),
    {Us, Stock} = lists:split(length(Keys), Nodes),
    [connects_both_ways(Our, Their, Version) ||
        {Their, {TheirKey, Version}} <- lists:zip(Stock, Theirs), {Our, OurKey} <- lists:zip(Us, Keys),
        Version =:= 'tlsv1.3' orelse OurKey =/= ed25519, OurKey =:= TheirKey orelse OurKey =:= ecdsa],
    ok.

connects_both_ways(Us, Stock, Version) ->
    polydist_node:connect(Us, Stock),
    #{transport := tls, direction := out, tls := #{version := Version, cipher := Cipher}} = polydist_node:connection(Us, Stock),
    big_messages(Us, Stock),
    polydist_node:disconnect(Us, Stock),
    polydist_node:connect(Stock, Us),
    #{transport := tls, direction := in, tls := #{version := Version}} = polydist_node:connection(Us, Stock),
    ct:log("~p ~s", [Version, Cipher]),
    big_messages(Us, Stock).

ours(Options) ->
    maps:merge(#{config => #{legacy => tls}, policy => [{any, #{transports => [tls], legacy => tls}}]}, Options).

stock(Config, Proto, Optfile) ->
    #{stock => proplists:get_value(release, Config), proto_dist => Proto, args => ["-ssl_dist_optfile", Optfile]}.

optfile(Config, Key, More) ->
    #{directory := Directory} = lab(Config),
    Authority = proplists:get_value(authority, Config),
    Identity = polydist_certificates:issue(Authority, #{key => Key, hosts => ["localhost", "localhost6"]}),
    polydist_certificates:write(Directory, {polydist_ct:unique("tls"), Identity}, [Authority], More).

big_messages(#{node := A} = Us, #{node := B} = Stock) ->
    ok = polydist_node:run(Us, fun() ->
        Payload = polydist_traffic:payload(?BIG),
        true = erlang:md5(Payload) =:= rpc:call(B, erlang, md5, [Payload]),
        Payload = rpc:call(B, erlang, hd, [[Payload]]),
        ok
    end),
    true = eval(Stock, "
        Payload = term_to_binary(lists:seq(1, Size div 5)),
        erlang:md5(Payload) =:= rpc:call(A, erlang, md5, [Payload]) andalso Payload =:= rpc:call(A, erlang, hd, [[Payload]])",
        #{'A' => A, 'Size' => ?BIG}).

%%
%% One port
%%

shared() ->
    #{config => #{listen => #{tcp => #{shared => [tcp, tls]}, tcp6 => #{shared => [tcp6, tls]}}}}.

one_port_serves_every_stock_carrier(Config) ->
    doc("epmd has room for one number, and a stock node of any kind dials that"),
    Optfile = optfile(Config, ecdsa, []),
    Carriers = [{"inet_tcp", tcp}, {"inet6_tcp", tcp6}, {"inet_tls", tls}, {"inet6_tls", tls}],
    [#{node := A} = Us | Stock] = polydist_node:start_all(lab(Config), [
        (shared())#{optfile => Optfile} | [stock(Config, Proto, Optfile) || {Proto, _} <- Carriers]
    ]),
    Port = registered_port(Config, Us),
    _ = [dials_the_port(Node, Us, Port, Carrier) || {Node, Carrier} <- lists:zip(Stock, Carriers)],
    4 = length(call(Us, erlang, nodes, [])),
    [A = call(Node, rpc, call, [A, erlang, node, []]) || Node <- Stock],
    ok.

dials_the_port(Stock, Us, Port, {Proto, Transport}) ->
    polydist_node:connect(Stock, Us),
    #{transport := Transport, direction := in, local := {Ip, Port}} = polydist_node:connection(Us, Stock),
    {Proto, true} = {Proto, tuple_size(Ip) =:= case Proto of "inet6" ++ _ -> 8; _ -> 4 end}.

registered_port(Config, #{node := Node}) ->
    [Name, _] = string:split(atom_to_list(Node), "@"),
    #{port := Port} = polydist_ct:epmd_lookup(maps:get(epmd, lab(Config)), Name),
    Port.

every_stock_carrier_is_dialled(Config) ->
    doc("Their one port speaks what the rule for their names says, and is at one address of the host only"),
    Optfile = optfile(Config, ecdsa, []),
    {V4, V6} = {{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}},
    Carriers = [{"plain", "inet_tcp", tcp, V4}, {"plain", "inet6_tcp", tcp6, V6}, {"secure", "inet_tls", tls, V4},
                {"secure", "inet6_tls", tls, V6}],
    [Us | Stock] = polydist_node:start_all(lab(Config), [
        #{optfile => Optfile, policy => [
            {"secure*@*", #{transports => [tls], legacy => tls}},
            {"plain*@*", #{transports => [tcp6, tcp], legacy => tcp}}
        ]}
        | [at(Ip, (stock(Config, Proto, Optfile))#{name => Name}) || {Name, Proto, _, Ip} <- Carriers]
    ]),
    [is_dialled(Us, Node, Transport, Ip) || {Node, {_, _, Transport, Ip}} <- lists:zip(Stock, Carriers)],
    ok.

at(Ip, #{args := Args} = Options) ->
    Options#{args := Args ++ ["-kernel", "inet_dist_use_interface", lists:flatten(io_lib:format("~0p", [Ip]))]}.

is_dialled(Us, #{node := B} = Stock, Transport, Ip) ->
    polydist_node:connect(Us, Stock),
    #{transport := Transport, direction := out, peer := {Ip, _}} = polydist_node:connection(Us, Stock),
    B = call(Us, rpc, call, [B, erlang, node, []]).

%%
%% kill -9
%%

who_is_killed_is_down(Config) ->
    doc("Whichever of the two it is, and whoever dialled; the reason that stock gives is its own"),
    Optfile = optfile(Config, ecdsa, []),
    Pair = [ours(#{optfile => Optfile}), stock(Config, "inet_tls", Optfile)],
    [Us, Stock, Us2, Stock2] = polydist_node:start_all(lab(Config), Pair ++ Pair),
    polydist_node:connect(Us, Stock),
    #{transport := tls, direction := out} = polydist_node:connection(Us, Stock),
    sees_killed(Us, Stock),
    polydist_node:connect(Stock2, Us2),
    #{transport := tls, direction := in} = polydist_node:connection(Us2, Stock2),
    stock_sees_killed(Stock2, Us2),
    ok.

sees_killed(Us, #{node := Node, os_pid := OsPid}) ->
    connection_closed = polydist_node:run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        _ = os:cmd("kill -9 " ++ OsPid),
        polydist_traffic:await_nodedown(Node)
    end).

stock_sees_killed(Stock, #{node := Node, os_pid := OsPid}) ->
    {down, Reason} = eval(Stock, "
        ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
        _ = os:cmd(\"kill -9 \" ++ OsPid),
        receive {nodedown, Node, [{nodedown_reason, Reason}]} -> {down, Reason} after 10000 -> no_nodedown end",
        #{'Node' => Node, 'OsPid' => OsPid}),
    ct:log("~p", [Reason]).

%%
%% What other clients hear
%%

a_port_of_tls_answers_nothing_to_plain_bytes(Config) ->
    doc("Not one byte, whatever begins otherwise than TLS"),
    Us = polydist_node:start(lab(Config), ours(#{carriers => [tls]})),
    Port = registered_port(Config, Us),
    [{First, <<>>} = {First, heard(Port, First)} || First <- plain_bytes()],
    polydist_node:await_console(Us, "not TLS").

a_port_of_tcp_answers_nothing_to_tls(Config) ->
    doc("A client of TLS hears nothing, and gives up"),
    Us = polydist_node:start(lab(Config), #{carriers => [tcp]}),
    Port = registered_port(Config, Us),
    <<>> = heard(Port, client_hello()),
    {error, _} = ssl:connect({127, 0, 0, 1}, Port, [{verify, verify_none}], 5000).

a_shared_port_answers_both(Config) ->
    doc("The clients above are answered in the language that they speak"),
    Us = polydist_node:start(lab(Config), (shared())#{carriers => [tcp, tls]}),
    Port = registered_port(Config, Us),
    <<Length:16, "sok", _:(Length - 3)/binary, _/binary>> = heard_first(Port, first_message()),
    <<22, 3, _/binary>> = heard_first(Port, client_hello()).

plain_bytes() ->
    [first_message(), <<"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n">>, binary:copy(<<0>>, 100), binary:copy(<<255>>, 100)].

%% As a stock node of another name would begin.
first_message() ->
    Name = <<"somebody@localhost">>,
    Flags = erts_internal:get_dflags(),
    Frame = <<$N, (element(2, Flags)):64, 1:32, (byte_size(Name)):16, Name/binary>>,
    <<(byte_size(Frame)):16, Frame/binary>>.

%% What OTP's client sends first.
client_hello() ->
    {ok, _} = application:ensure_all_started(ssl),
    {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listener),
    Client = spawn_link(fun() -> ssl:connect({127, 0, 0, 1}, Port, [{verify, verify_none}]) end),
    {ok, Socket} = gen_tcp:accept(Listener, 5000),
    {ok, <<22, _, _, Length:16>> = Header} = gen_tcp:recv(Socket, 5, 5000),
    {ok, Rest} = gen_tcp:recv(Socket, Length, 5000),
    unlink(Client),
    exit(Client, kill),
    ok = gen_tcp:close(Socket),
    ok = gen_tcp:close(Listener),
    <<Header/binary, Rest/binary>>.

send_first(Port, Bytes) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Socket, Bytes),
    Socket.

%% All that comes until the node closes.
heard(Port, Bytes) ->
    heard_until_closed(send_first(Port, Bytes), <<>>).

heard_until_closed(Socket, Heard) ->
    case gen_tcp:recv(Socket, 0, 20000) of
        {ok, More} -> heard_until_closed(Socket, <<Heard/binary, More/binary>>);
        {error, Closed} when Closed =:= closed; Closed =:= econnreset -> Heard
    end.

heard_first(Port, Bytes) ->
    Socket = send_first(Port, Bytes),
    {ok, Heard} = gen_tcp:recv(Socket, 0, 5000),
    ok = gen_tcp:close(Socket),
    Heard.
