%%% Unpatched nodes of three releases, in both directions, with nothing of ours on their side.
-module(polydist_interop_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4, eval/3]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, Group} || Group <- [otp25, otp27, otp29]].

groups() ->
    [{Group, [], [
        stock_inet_tcp_dials_us,
        we_dial_stock_inet_tcp,
        stock_inet6_tcp_dials_us,
        we_dial_stock_inet6_tcp,
        stock_inet_tls_dials_our_tls_port,
        messages_pass_both_ways,
        big_messages_pass_both_ways,
        a_policy_of_tls_only_dials_no_stock_node,
        a_stock_node_that_is_killed_is_down
    ]} || Group <- [otp25, otp27, otp29]].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(Group, Config) -> polydist_ct:put_release(Group, Config).

end_per_group(_, _) -> ok.

pair(Config, Proto) -> pair(Config, Proto, #{}, []).

pair(Config, Proto, Ours, Args) ->
    Release = proplists:get_value(release, Config),
    [Us, Stock] = polydist_node:start_all(lab(Config), [Ours, #{stock => Release, proto_dist => Proto, args => Args}]),
    Number = integer_to_list(Release),
    Number = call(Stock, erlang, system_info, [otp_release]),
    {Us, Stock}.

stock_inet_tcp_dials_us(Config) ->
    doc("By the port that epmd names, over plain TCP"),
    {#{node := A} = Us, Stock} = pair(Config, "inet_tcp"),
    pong = call(Stock, net_adm, ping, [A]),
    #{transport := tcp, direction := in} = polydist_node:connection(Us, Stock),
    A = call(Stock, rpc, call, [A, erlang, node, []]).

we_dial_stock_inet_tcp(Config) ->
    doc("A node without a record is dialled at its port by the plain transports"),
    {Us, #{node := B} = Stock} = pair(Config, "inet_tcp"),
    pong = call(Us, net_adm, ping, [B]),
    #{transport := tcp, direction := out} = polydist_node:connection(Us, Stock),
    B = call(Us, rpc, call, [B, erlang, node, []]).

stock_inet6_tcp_dials_us(Config) ->
    doc("The one registered number is our port over IPv6 too"),
    {#{node := A} = Us, Stock} = pair(Config, "inet6_tcp"),
    pong = call(Stock, net_adm, ping, [A]),
    #{transport := tcp6, direction := in} = polydist_node:connection(Us, Stock).

we_dial_stock_inet6_tcp(Config) ->
    doc("Its port is tried over IPv6"),
    {Us, #{node := B} = Stock} = pair(Config, "inet6_tcp"),
    pong = call(Us, net_adm, ping, [B]),
    #{transport := tcp6, direction := out} = polydist_node:connection(Us, Stock).

stock_inet_tls_dials_our_tls_port(Config) ->
    doc("legacy => tls: a stock node with certificates of the same authority, mutual authentication"),
    #{optfile := Optfile} = lab(Config),
    {#{node := A} = Us, Stock} = pair(Config, "inet_tls", #{config => #{legacy => tls}}, ["-ssl_dist_optfile", Optfile]),
    pong = call(Stock, net_adm, ping, [A]),
    #{transport := tls, direction := in, tls := #{version := Version}} = polydist_node:connection(Us, Stock),
    ct:comment("~p", [Version]),
    A = call(Stock, rpc, call, [A, erlang, node, []]).

messages_pass_both_ways(Config) ->
    doc("Links, monitors, names, calls with terms of many kinds"),
    {#{node := A} = Us, #{node := B} = Stock} = pair(Config, "inet_tcp"),
    pong = call(Us, net_adm, ping, [B]),
    Terms = [T || T <- polydist_traffic:payloads(), not is_function(T), not is_pid(T), not is_reference(T)],
    [Term = call(Us, rpc, call, [B, erlang, hd, [[Term]]]) || Term <- lists:sublist(Terms, 9)],
    ok = eval(Stock, "
        P = spawn(A, erlang, apply, [fun erlang:exit/1, [gone]]),
        R = monitor(process, P),
        receive {'DOWN', R, process, P, W} when W =:= gone; W =:= noproc -> ok after 5000 -> no_down end", #{'A' => A}),
    ok = eval(Stock, "
        F = fun(_, 0) -> ok; (G, N) -> N = rpc:call(A, erlang, abs, [-N]), G(G, N - 1) end,
        F(F, 1000)", #{'A' => A}).

big_messages_pass_both_ways(Config) ->
    doc("16 MiB each way, by content"),
    {#{node := A} = Us, #{node := B} = Stock} = pair(Config, "inet_tcp"),
    pong = call(Us, net_adm, ping, [B]),
    ok = polydist_node:run(Us, fun() ->
        Payload = polydist_traffic:payload(16 * 1048576),
        true = erlang:md5(Payload) =:= rpc:call(B, erlang, md5, [Payload]),
        Payload = rpc:call(B, erlang, hd, [[Payload]]),
        ok
    end),
    true = eval(Stock, "
        Payload = binary:copy(list_to_binary(lists:seq(0, 255)), 65536),
        Payload =:= rpc:call(A, erlang, hd, [[Payload]])", #{'A' => A}).

a_policy_of_tls_only_dials_no_stock_node(Config) ->
    doc("Never weaker by accident: what has no record is not dialled in the clear where the policy says tls"),
    {Us, #{node := B}} = pair(Config, "inet_tcp", #{force => [tls]}, []),
    pang = call(Us, net_adm, ping, [B]),
    [] = call(Us, polydist, connections, []).

a_stock_node_that_is_killed_is_down(Config) ->
    doc("kill -9 of the stock node: connection_closed"),
    {Us, #{node := B, os_pid := OsPid}} = pair(Config, "inet_tcp"),
    pong = call(Us, net_adm, ping, [B]),
    connection_closed = polydist_node:run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        _ = os:cmd("kill -9 " ++ OsPid),
        polydist_traffic:await_nodedown(B)
    end).
