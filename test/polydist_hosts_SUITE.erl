%%% Three hosts with IPv4 and IPv6 between them: which transport goes where, what happens when a path is cut, silently or not,
%%% and that plain TCP leaves no host whose policy says TLS.
-module(polydist_hosts_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, never/0, wait_until/1]).
-import(polydist_node, [call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, transports}, {group, cuts}, {group, trust}].

groups() ->
    [
        {transports, [parallel], [
            each_pair_uses_the_transport_its_rule_says,
            a_unix_socket_reaches_another_network_namespace_by_uds_dirs_alone,
            a_rule_for_a_network_speaks_for_each_address,
            each_address_of_a_host_is_tried,
            a_host_may_have_addresses_of_one_family
        ]},
        {cuts, [parallel], [
            a_silent_port_costs_a_stagger,
            a_refusing_port_costs_nothing,
            a_silent_family_leaves_the_other,
            a_cut_path_is_noticed_by_its_tick_time_and_left,
            a_host_off_the_network_is_an_error_in_time,
            a_unix_socket_needs_no_network
        ]},
        {trust, [parallel], [
            plain_tcp_never_leaves_a_host_whose_rule_says_tls,
            a_connection_is_never_reconnected_beyond_its_rule,
            the_hosts_go_with_their_owner
        ]}
    ].

init_per_suite(Config) -> polydist_hosts:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%% Longer than two staggers and a handshake, shorter than anything that waits for an answer that does not come.
-define(SOON, 2000).

hosts(Config) -> polydist_hosts:open(lab(Config), self()).

%% Connects and says how long that took, in milliseconds.
timed_connect(From, #{node := B} = To) ->
    {Time, true} = call(From, timer, tc, [net_kernel, connect_node, [B]]),
    polydist_node:connect(From, To),
    Time div 1000.

transport(From, To) -> maps:get(transport, polydist_node:connection(From, To)).

%% What would be dialled, in order.
candidates(From, #{node := B}) ->
    {ok, Candidates, _} = call(From, polydist, candidates, [B]),
    [{Transport, Address} || #{transport := Transport, address := Address} <- Candidates].

skipped(From, #{node := B}) ->
    {ok, _, Skipped} = call(From, polydist, candidates, [B]),
    Skipped.

addresses(Node, Transport) ->
    Listeners = call(Node, polydist, listeners, []),
    lists:flatten([Address || #{transport := Each, address := Address} <- Listeners, Each =:= Transport]).

ports(Node, Transport) -> lists:usort([Port || {_, Port} <- addresses(Node, Transport)]).

contains(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_said, Part, Text});
        _ -> ok
    end.

rules(Rules) -> [{Match, #{transports => Transports}} || {Match, Transports} <- Rules].

%% What is first wins, however busy this machine is.
patient(Rules) -> [{Match, #{transports => Transports, stagger => 5000}} || {Match, Transports} <- Rules].

%% A directory for sockets that only this user may enter.
private_directory(Config, Name) ->
    Directory = filename:join(maps:get(directory, lab(Config)), polydist_ct:unique(Name)),
    ok = file:make_dir(Directory),
    ok = file:change_mode(Directory, 8#700),
    Directory.

%%
%% Transports
%%

each_pair_uses_the_transport_its_rule_says(Config) ->
    doc("h1 and h2 share a directory: uds; h1 and h3: TLS; h2 and h3: TCPv4. Whoever dials, both ends say the same"),
    Hosts = hosts(Config),
    Shared = private_directory(Config, "shared"),
    Socket = fun(Name) -> #{uds_dirs => [Shared], listen => #{uds => #{dir => filename:join(Shared, Name)}}} end,
    Nodes = polydist_hosts:start(Hosts, [
        {1, #{policy => patient([{{host, "h2"}, [uds, tcp6]}, {{host, "h3"}, [tls, tcp6]}]), config => Socket("one"), args => never()}},
        {2, #{policy => patient([{{host, "h1"}, [uds, tcp6]}, {{host, "h3"}, [tcp]}]), config => Socket("two"), args => never()}},
        {3, #{policy => patient([{{host, "h1"}, [tls, tcp6]}, {{host, "h2"}, [tcp]}]), args => never()}}
    ]),
    [begin
        {From, To} = {lists:nth(A, Nodes), lists:nth(B, Nodes)},
        polydist_node:connect(From, To),
        #{transport := Transport, direction := out, rule := Rule} = polydist_node:connection(From, To),
        contains(Rule, polydist_hosts:name(B)),
        #{transport := Transport, direction := in, rule := TheirRule} = polydist_node:connection(To, From),
        contains(TheirRule, polydist_hosts:name(A)),
        polydist_node:disconnect(From, To)
     end || {A, B, Transport} <- [{1, 2, uds}, {2, 1, uds}, {1, 3, tls}, {3, 1, tls}, {2, 3, tcp}, {3, 2, tcp}]].

a_unix_socket_reaches_another_network_namespace_by_uds_dirs_alone(Config) ->
    doc("One kernel, so the socket could be dialled: it is when its directory is named, and plain TCP is not for that reason"),
    Hosts = hosts(Config),
    Shared = private_directory(Config, "shared"),
    Policy = patient([{same_host, [uds, tcp6, tcp]}, {any, [tls]}]),
    There = #{config => #{listen => #{uds => #{dir => Shared}}}, policy => Policy},
    [With, Without, Peer] = polydist_hosts:start(Hosts, [
        {1, #{config => #{uds_dirs => [Shared]}, policy => Policy}}, {1, #{policy => Policy}}, {2, There}
    ]),
    [uds, tls, tls] = [Transport || {Transport, _} <- candidates(With, Peer)],
    [tls, tls] = [Transport || {Transport, _} <- candidates(Without, Peer)],
    {uds, Why} = lists:keyfind(uds, 1, skipped(Without, Peer)),
    contains(Why, "uds_dirs"),
    polydist_node:connect(With, Peer),
    polydist_node:connect(Without, Peer),
    {uds, tls} = {transport(With, Peer), transport(Without, Peer)}.

a_rule_for_a_network_speaks_for_each_address(Config) ->
    doc("IPv4 under one rule, IPv6 under another, one address under a third; order is by rule; the accepting end has its own"),
    Hosts = hosts(Config),
    [Net4, Net6] = [polydist_hosts:network(Hosts, Family) || Family <- [inet, inet6]],
    [Ip4, Ip6] = [polydist_hosts:address(Hosts, 2, Family) || Family <- [inet, inet6]],
    Host = inet:ntoa(Ip4),
    [Us, Them] = polydist_hosts:start(Hosts, [
        {1, #{args => never()}}, {2, #{policy => rules([{{net, Net6}, [tls]}, {any, [tcp]}]), args => never()}}
    ]),
    [Port] = ports(Them, tcp),
    [Port6] = ports(Them, tcp6),
    [[TlsPort4], [TlsPort6]] = [[P || {Ip, P} <- addresses(Them, tls), tuple_size(Ip) =:= Size] || Size <- [4, 8]],
    [begin
        ok = call(Us, polydist, set_policy, [rules(Rules)]),
        Expected = candidates(Us, Them)
     end || {Rules, Expected} <- [
        {[{{net, Net4}, [tcp]}, {{net, Net6}, [tls]}], [{tcp, {Ip4, Port}}, {tls, {Ip6, TlsPort6}}]},
        {[{{net, Net6}, [tls]}, {{net, Net4}, [tcp]}], [{tls, {Ip6, TlsPort6}}, {tcp, {Ip4, Port}}]},
        {[{{net, Net6}, [tcp6, tls]}, {any, [tls]}], [{tcp6, {Ip6, Port6}}, {tls, {Ip6, TlsPort6}}, {tls, {Ip4, TlsPort4}}]},
        {[{{net, Host}, [tcp]}, {any, []}], [{tcp, {Ip4, Port}}]},
        {[{{net, "10.99.0.0/32"}, [tcp]}, {any, []}], []},
        {[{{'not', {net, Net4}}, []}, {any, [tls]}], [{tls, {Ip4, TlsPort4}}]},
        {[{{all, [{host, "h2"}, {net, Net6}]}, [tls]}, {any, []}], [{tls, {Ip6, TlsPort6}}]},
        {[{{all, [{host, "h3"}, {net, Net6}]}, [tls]}, {any, []}], []},
        {[{{net, "0.0.0.0/0"}, [tcp]}, {any, []}], [{tcp, {Ip4, Port}}]}
    ]],
    [begin
        ok = call(Us, polydist, set_policy, [patient(Rules)]),
        polydist_node:connect(Us, Them),
        #{transport := Transport, peer := {Ip, _}} = polydist_node:connection(Us, Them),
        #{rule := Rule} = polydist_node:connection(Them, Us),
        contains(Rule, Accepted),
        polydist_node:disconnect(Us, Them)
     end || {Rules, Transport, Ip, Accepted} <- [
        {[{{net, Net4}, [tcp]}, {any, [tls]}], tcp, Ip4, "rule 2"},
        {[{{net, Net6}, [tls]}, {any, [tcp]}], tls, Ip6, "rule 1"}
    ]].

each_address_of_a_host_is_tried(Config) ->
    doc("The resolver's first address belongs to nobody: the second is dialled a stagger later, and epmd is asked there too"),
    Hosts = hosts(Config),
    Ip = polydist_hosts:address(Hosts, 2, inet),
    Nobody = setelement(4, Ip, 200),
    Inetrc = filename:join(maps:get(directory, Hosts), "inetrc-nobody"),
    ok = polydist_hosts:write_inetrc(Hosts, Inetrc, #{"h2" => [Nobody, Ip]}),
    [Us, Them] = polydist_hosts:start(Hosts, [
        {1, #{env => [{"ERL_INETRC", Inetrc}], policy => rules([{any, [tcp]}])}}, {2, #{}}
    ]),
    [{tcp, {Nobody, _}}, {tcp, {Ip, _}}] = candidates(Us, Them),
    Time = timed_connect(Us, Them),
    ct:comment("~b ms", [Time]),
    true = Time < ?SOON,
    #{peer := {Ip, _}} = polydist_node:connection(Us, Them).

a_host_may_have_addresses_of_one_family(Config) ->
    doc("The resolver knows h2 by IPv6 alone and h3 by IPv4 alone: epmd is found there, and every transport that can be goes"),
    Hosts = hosts(Config),
    [Ip6, Ip4] = [polydist_hosts:address(Hosts, N, Family) || {N, Family} <- [{2, inet6}, {3, inet}]],
    Inetrc = filename:join(maps:get(directory, Hosts), "inetrc-one-family"),
    ok = polydist_hosts:write_inetrc(Hosts, Inetrc, #{"h2" => [Ip6], "h3" => [Ip4]}),
    [Us, Six, Four] = polydist_hosts:start(Hosts, [
        {1, #{env => [{"ERL_INETRC", Inetrc}], policy => rules([{any, [tls, tcp6, tcp]}])}}, {2, #{}}, {3, #{}}
    ]),
    [{tls, {Ip6, _}}, {tcp6, {Ip6, _}}] = candidates(Us, Six),
    [{tls, {Ip4, _}}, {tcp, {Ip4, _}}] = candidates(Us, Four),
    [{tcp, NoFour}] = [Each || {tcp, _} = Each <- skipped(Us, Six)],
    contains(NoFour, "IPv4"),
    [{tcp6, NoSix}] = [Each || {tcp6, _} = Each <- skipped(Us, Four)],
    contains(NoSix, "IPv6"),
    [polydist_node:connect(Us, Them) || Them <- [Six, Four]].

%%
%% Cuts
%%

a_silent_port_costs_a_stagger(Config) ->
    doc("Packets to the TLS port vanish: TCPv6 after a stagger for each TLS address; healed, reconnect/2 goes back to TLS"),
    #{attempts := Attempts} = cut_and_heal(Config, drop),
    [cancelled, cancelled, connected] = [Outcome || #{outcome := Outcome} <- Attempts].

a_refusing_port_costs_nothing(Config) ->
    doc("The TLS port answers with a reset: TCPv6 at once; healed, reconnect/2 goes back to TLS"),
    #{attempts := Attempts, time := Time} = cut_and_heal(Config, reset),
    [failed, failed, connected] = [Outcome || #{outcome := Outcome} <- Attempts],
    [econnrefused, econnrefused] = [Kind || #{reason := {Kind, _}} <- Attempts],
    true = Time < 400.

cut_and_heal(Config, How) ->
    Hosts = hosts(Config),
    Rules = [{any, [tls, tcp6, tcp]}],
    [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [{N, #{policy => patient(Rules), args => never()}} || N <- [1, 3]]),
    polydist_node:connect(Us, Them),
    tls = transport(Us, Them),
    polydist_node:disconnect(Us, Them),
    ok = call(Us, polydist, set_policy, [rules(Rules)]),
    Cuts = [polydist_hosts:cut(Hosts, 1, 3, {port, Port}, How) || Port <- ports(Them, tls)],
    Time = timed_connect(Us, Them),
    ct:comment("~b ms", [Time]),
    true = Time < ?SOON,
    ct:log("~p", [{polydist_node:connection(Us, Them), call(Us, polydist, explain, [B])}]),
    tcp6 = transport(Us, Them),
    #{last := #{outcome := connected, attempts := Attempts}} = call(Us, polydist, explain, [B]),
    [tls, tls, tcp6] = [Transport || #{transport := Transport} <- Attempts],
    Page = call(Us, polydist, explain_text, [B]),
    ct:log("~ts", [Page]),
    [contains(Page, Part) || Part <- ["tls", "tcp6", inet:ntoa(polydist_hosts:address(Hosts, 3, inet))]],
    [polydist_hosts:heal(Hosts, Cut) || Cut <- Cuts],
    ok = call(Us, polydist, set_policy, [patient(Rules)]),
    {ok, #{from := tcp6, to := tls, gap := Gap}} = call(Us, polydist, reconnect, [B, #{}]),
    true = is_integer(Gap) andalso Gap >= 0 andalso Gap < ?SOON * 1000,
    polydist_node:connect(Us, Them),
    {tls, tls} = {transport(Us, Them), transport(Them, Us)},
    #{attempts => Attempts, time => Time}.

a_silent_family_leaves_the_other(Config) ->
    doc("All of TCP over one family vanishes, epmd's too: the other family carries the connection, plain and TLS, soon"),
    Hosts = hosts(Config),
    [Us, Them] = polydist_hosts:start(Hosts, [{N, #{args => never()}} || N <- [1, 2]]),
    Times = [begin
        ok = call(Us, polydist, set_policy, [rules([{any, Transports}])]),
        Cut = polydist_hosts:cut(Hosts, 1, 2, Family, drop),
        Time = timed_connect(Us, Them),
        #{transport := Transport, peer := {Ip, _}} = polydist_node:connection(Us, Them),
        Size = tuple_size(Ip),
        polydist_hosts:heal(Hosts, Cut),
        polydist_node:disconnect(Us, Them),
        Time
     end || {Transports, Family, Transport, Size} <- [
        {[tcp6, tcp], ipv6, tcp, 4}, {[tcp, tcp6], ipv4, tcp6, 8}, {[tls], ipv4, tls, 8}, {[tls], ipv6, tls, 4}
    ]],
    ct:comment("~w ms", [Times]),
    [] = [Time || Time <- Times, Time >= ?SOON].

a_cut_path_is_noticed_by_its_tick_time_and_left(Config) ->
    doc("IPv4 falls silent under a connection with a tick time of 800 ms: node down in time, and the next message goes by IPv6"),
    Hosts = hosts(Config),
    Policy = [{any, #{transports => [tcp, tcp6], ticktime => {800, ms}}}],
    [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [{1, #{policy => Policy}}, {2, #{}}]),
    polydist_node:connect(Us, Them),
    #{transport := tcp, ticktime := 800} = polydist_node:connection(Us, Them),
    Start = polydist_node:run(Us, fun() ->
        Caller = self(),
        Watch = spawn(fun() ->
            ok = net_kernel:monitor_nodes(true, #{nodedown_reason => true}),
            Caller ! {self(), ready},
            receive {nodedown, B, #{nodedown_reason := Reason}} -> persistent_term:put(B, {Reason, now_ms()}) end
        end),
        receive {Watch, ready} -> now_ms() end
    end),
    _ = polydist_hosts:cut(Hosts, 1, 2, ipv4, drop),
    wait_until(fun() -> call(Us, persistent_term, get, [B, none]) =/= none end),
    {net_tick_timeout, Down} = call(Us, persistent_term, get, [B]),
    Back = timed_connect(Us, Them),
    ct:comment("down after ~b ms, back after ~b ms", [Down - Start, Back]),
    %% 0.75 to 1.25 of it, and a machine that is busy.
    true = Down - Start >= 550 andalso Down - Start < 1500,
    true = Back < ?SOON,
    tcp6 = transport(Us, Them).

now_ms() -> erlang:monotonic_time(millisecond).

a_host_off_the_network_is_an_error_in_time(Config) ->
    doc("The cable is pulled: no answer within net_setuptime, and a sentence that says so; plugged in, it connects"),
    Hosts = hosts(Config),
    Args = ["-kernel", "net_setuptime", "2"],
    [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [{1, #{args => Args}}, {3, #{}}]),
    polydist_hosts:link_down(Hosts, 3),
    {Time, false} = call(Us, timer, tc, [net_kernel, connect_node, [B]]),
    #{last := #{outcome := failed, reason := {Kind, Sentence}}} = call(Us, polydist, explain, [B]),
    ct:comment("~p after ~b ms: ~ts", [Kind, Time div 1000, Sentence]),
    true = lists:member(Kind, [timeout, ehostunreach]),
    true = Time < 3000000,
    polydist_hosts:link_up(Hosts, 3),
    polydist_node:connect(Us, Them),
    tls = transport(Us, Them).

a_unix_socket_needs_no_network(Config) ->
    doc("Between two network namespaces over a shared directory; then not one packet passes, and megabytes of messages do"),
    Hosts = hosts(Config),
    Shared = private_directory(Config, "shared"),
    Options = #{force => [uds], config => #{listen => #{uds => #{dir => Shared}}}},
    [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [{1, Options}, {2, Options}]),
    polydist_node:connect(Us, Them),
    _ = polydist_hosts:cut(Hosts, 1, 2, tcp, drop),
    polydist_hosts:link_down(Hosts, 2),
    polydist_node:run(Them, fun() -> polydist_traffic:start_echo(echo) end),
    polydist_node:run(Us, fun() -> ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(5000000)) end),
    uds = transport(Us, Them).

%%
%% Trust
%%

plain_tcp_never_leaves_a_host_whose_rule_says_tls(Config) ->
    doc("TLS is blocked, silently and not, and a stock peer offers TCP: no packet goes to a port other than epmd's and TLS"),
    Hosts = hosts(Config),
    Args = ["-kernel", "net_setuptime", "2"],
    [Us, #{node := B} = Them, #{node := C} = Stock] = polydist_hosts:start(Hosts, [
        {1, #{args => Args}}, {2, #{}}, {3, #{stock => 25, proto_dist => "inet_tcp"}}
    ]),
    Ports = ports(Them, tls),
    Others = lists:concat(["oifname eth0 tcp dport != { 4369, ", set(Ports), " } tcp flags & (syn | ack) == syn"]),
    Strays = polydist_hosts:count(Hosts, 1, Others),
    [begin
        ok = call(Us, polydist, set_policy, [Policy]),
        Cuts = [polydist_hosts:cut(Hosts, 1, 2, {port, Port}, How) || Port <- Ports],
        pang = call(Us, net_adm, ping, [B]),
        pang = call(Us, net_adm, ping, [C]),
        [polydist_hosts:heal(Hosts, Cut) || Cut <- Cuts]
     end || {Policy, How} <- [
        {[], drop}, {[], reset}, {rules([{same_host, [uds, tcp6, tcp]}, {any, [tls]}]), reset}
    ]],
    0 = polydist_hosts:counted(Hosts, Strays),
    contains(maps:get(stock, maps:from_list([{stock, Why} || {tcp, Why} <- skipped(Us, Stock)]), <<>>), "does not allow"),
    %% The counter counts: a rule that allows TCP sends some.
    ok = call(Us, polydist, set_policy, [rules([{any, [tcp]}])]),
    pong = call(Us, net_adm, ping, [B]),
    pong = call(Us, net_adm, ping, [C]),
    true = polydist_hosts:counted(Hosts, Strays) >= 2.

a_connection_is_never_reconnected_beyond_its_rule(Config) ->
    doc("connect/2 and reconnect/2 with transports that the rule does not allow: an error, the connection stays, no packet goes"),
    Hosts = hosts(Config),
    [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [{N, #{policy => rules([{any, [tls]}])}} || N <- [1, 2]]),
    Others = lists:concat(["oifname eth0 tcp dport { ", set(ports(Them, tcp) ++ ports(Them, tcp6)), " }"]),
    Strays = polydist_hosts:count(Hosts, 1, Others),
    {error, {no_candidate, _}} = call(Us, polydist, connect, [B, #{transports => [tcp, tcp6]}]),
    polydist_node:connect(Us, Them),
    {error, {no_candidate, Sentence}} = call(Us, polydist, reconnect, [B, #{transports => [tcp6, tcp]}]),
    contains(Sentence, "tcp"),
    tls = transport(Us, Them),
    0 = polydist_hosts:counted(Hosts, Strays).

%% As nft writes what is between braces.
set(Ports) -> lists:concat(lists:join(", ", Ports)).

the_hosts_go_with_their_owner(Config) ->
    doc("The process that owns three hosts with a node is killed: the namespaces, their epmds and the node are gone"),
    Test = self(),
    Owner = spawn(fun() ->
        Hosts = polydist_hosts:open(lab(Config), self()),
        #{os_pid := OsPid} = polydist_hosts:start(Hosts, 1, #{}),
        Test ! {self(), Hosts, OsPid},
        receive never -> ok end
    end),
    {Hosts, OsPid} = receive {Owner, Opened, Process} -> {Opened, Process} end,
    Names = [polydist_hosts:netns(Hosts, N) || N <- [1, 2, 3]],
    {ok, There} = file:list_dir("/run/netns"),
    [] = Names -- There,
    exit(Owner, kill),
    wait_until(fun() ->
        {ok, Left} = file:list_dir("/run/netns"),
        Left -- Names =:= Left andalso not filelib:is_dir("/proc/" ++ OsPid)
    end).
