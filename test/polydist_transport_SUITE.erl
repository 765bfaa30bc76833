%%% What every transport must do: everything nodes do with each other over it, whichever side dials.
-module(polydist_transport_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, never/0, wait_until/1]).
-import(polydist_node, [run/2]).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, Group} || Group <- transports() ++ [choice]].

%% abstract and vsock are from outside: test/outside. ktls is tls in the kernel.
transports() ->
    [tcp, tcp6, tls, uds, abstract] ++ [vsock || polydist_ct:has_vsock()] ++ [sctp || polydist_ct:has_sctp()] ++
        [ktls || polydist_ct:has_ktls()].

groups() ->
    [{Transport, [], [{group, we_dial}, {group, they_dial}]} || Transport <- transports()] ++
        [{Direction, [], cases()} || Direction <- [we_dial, they_dial]] ++
        [{choice, [], choices()}].

cases() ->
    [
        nodes_ping_each_other,
        binaries_of_every_size_arrive_unchanged,
        terms_of_every_kind_arrive_unchanged,
        many_senders_keep_their_order,
        both_sides_send_at_full_speed_at_once,
        a_message_that_opens_the_connection_arrives,
        a_peer_that_talks_at_once_is_heard,
        monitors_work_across,
        links_work_across,
        exit_signals_carry_big_reasons,
        processes_are_spawned_across,
        erpc_calls_answer_and_fail_as_ever,
        global_names_are_seen_across,
        process_groups_span_nodes,
        a_frozen_receiver_suspends_its_senders_and_loses_nothing,
        a_full_connection_can_be_disconnected,
        a_full_connection_to_a_killed_node_leaves_nothing_behind,
        a_full_connection_to_a_frozen_node_ends_with_net_tick_timeout,
        socket_options_can_be_read_and_set,
        net_kernel_knows_the_node,
        connections_shows_the_connection,
        a_disconnected_node_is_down_with_reason_disconnect,
        a_halted_node_is_down_with_reason_connection_closed,
        a_killed_node_is_down_with_reason_connection_closed,
        a_frozen_node_is_down_with_reason_net_tick_timeout,
        an_idle_connection_stays_up
    ].

choices() ->
    [
        without_a_policy_nodes_of_one_host_meet_over_uds,
        a_transport_the_peer_lacks_is_left_out,
        the_next_transport_is_dialled_when_one_fails,
        the_first_policy_line_that_matches_decides,
        a_policy_that_allows_nothing_connects_nothing
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(choice, Config) ->
    Config;
init_per_group(Direction, Config) when Direction =:= we_dial; Direction =:= they_dial ->
    [{direction, Direction} | Config];
init_per_group(Transport, Config) ->
    Node = maps:merge(only(Transport, Config), #{owner => whereis(init), args => never()}),
    [Us, Them] = polydist_node:start_all(lab(Config), [Node#{name => "us"}, Node#{name => "them"}]),
    _ = [run(Each, fun() -> polydist_traffic:start_echo(echo) end) || Each <- [Us, Them]],
    [{transport, name(Transport)}, {us, Us}, {them, Them} | Config].

end_per_group(Group, Config) ->
    _ = [polydist_node:stop(proplists:get_value(Key, Config)) || lists:member(Group, transports()), Key <- [us, them]],
    ok.

%% What a transport is called everywhere else.
name(ktls) -> tls;
name(Transport) -> Transport.

only(ktls, Config) ->
    #{directory := Directory, certificates := Certificates} = lab(Config),
    File = filename:join(Directory, "ktls.conf"),
    ok = polydist_ct:write_tls_options(File, [{ktls, true} | polydist_ct:tls_options(Certificates)]),
    (only(tls))#{optfile => File};
only(Transport, _) ->
    only(Transport).

%% A node that has them all and dials by one.
only(Transport) -> #{carriers => lists:usort([tcp, tcp6, tls, uds, Transport]), force => [Transport]}.

%% Every case gets a new connection, made by the side its group says.
init_per_testcase(Case, Config) ->
    case lists:member(Case, cases()) of
        true ->
            {Us, Them} = pair(Config),
            polydist_node:disconnect(Us, Them),
            dial(Us, Them, Config),
            Config;
        false ->
            Config
    end.

end_per_testcase(Case, Config) ->
    lists:member(Case, cases()) andalso polydist_node:thaw(element(2, pair(Config))),
    Config.

pair(Config) -> {proplists:get_value(us, Config), proplists:get_value(them, Config)}.

transport(Config) -> proplists:get_value(transport, Config).

dial(Us, Them, Config) ->
    case proplists:get_value(direction, Config) of
        we_dial -> polydist_node:connect(Us, Them);
        they_dial -> polydist_node:connect(Them, Us)
    end.

dialler(Config) ->
    {Us, Them} = pair(Config),
    case proplists:get_value(direction, Config) of
        we_dial -> {Us, Them};
        they_dial -> {Them, Us}
    end.

%%
%% Messages
%%

nodes_ping_each_other(Config) ->
    doc("net_adm:ping/1 answers pong both ways"),
    {#{node := A} = Us, #{node := B} = Them} = pair(Config),
    pong = polydist_node:call(Us, net_adm, ping, [B]),
    pong = polydist_node:call(Them, net_adm, ping, [A]).

binaries_of_every_size_arrive_unchanged(Config) ->
    doc("From 0 bytes to 64 MiB, with the sizes around every power of two that somebody may cut at"),
    {Us, #{node := B}} = pair(Config),
    Powers = [128, 1024, 4096, 16384, 32768, 65536, 131072, 262144, 1048576],
    Sizes = [0, 1, 2, 3, 63, 64, 65] ++ [Power + More || Power <- Powers, More <- [-40, -1, 0, 1]] ++ [5000000, 64 * 1048576],
    run(Us, fun() -> [ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(Size)) || Size <- Sizes] end).

terms_of_every_kind_arrive_unchanged(Config) ->
    doc("Atoms new to the peer, pids, funs, bit strings, maps, deep and wide terms, thousands of pieces of memory"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() -> [ok = polydist_traffic:echo({echo, B}, Term) || Term <- polydist_traffic:payloads()] end).

many_senders_keep_their_order(Config) ->
    doc("Twenty senders; every message arrives once, in its sender's order"),
    {Us, Them} = pair(Config),
    [Bytes, ok] = send_to_sink(Them, many_senders, [{Us, [0, 1, 10, 100, 1000]}], {20, 2000}),
    true = Bytes > 0.

both_sides_send_at_full_speed_at_once(Config) ->
    doc("Small and big messages from eight senders each way at the same time"),
    {Us, Them} = pair(Config),
    Sizes = [10, 300, 70000, 5, 20000, 1, 200000],
    polydist_ct:parallel([
        fun() -> send_to_sink(Them, both_ways, [{Us, Sizes}], {8, 200}) end,
        fun() -> send_to_sink(Us, both_ways, [{Them, Sizes}], {8, 200}) end
    ]).

%% The sink and its senders run at the same time, the senders once the sink is there.
send_to_sink(#{node := To} = Receiver, Name, Senders, {Processes, Count}) ->
    polydist_ct:parallel([
        fun() -> run(Receiver, fun() -> polydist_traffic:await_sink(polydist_traffic:start_sink(Name, Processes, Count)) end) end
        | [
            fun() ->
                await_registered(Receiver, Name),
                run(From, fun() -> polydist_traffic:send_all({Name, To}, Processes, Count, Sizes) end)
            end
         || {From, Sizes} <- Senders
        ]
    ]).

await_registered(Node, Name) ->
    wait_until(fun() -> is_pid(polydist_node:call(Node, erlang, whereis, [Name])) end).

a_message_that_opens_the_connection_arrives(Config) ->
    doc("Senders that find no connection and open it: what they sent comes first and in order"),
    {Us, Them} = pair(Config),
    {From, To} = dialler(Config),
    [begin
        polydist_node:disconnect(Us, Them),
        ok = polydist_node:call(From, application, unset_env, [kernel, dist_auto_connect]),
        send_to_sink(To, opening, [{From, [0, 100, 70000]}], {5, 20}),
        ok = polydist_node:call(From, application, set_env, [kernel, dist_auto_connect, never])
     end || _ <- lists:seq(1, 10)].

a_peer_that_talks_at_once_is_heard(Config) ->
    doc("The other node sends as soon as it sees nodeup, which may be in the same segment as the end of the handshake"),
    {#{node := A} = Us, Them} = pair(Config),
    {Dialler, #{node := Other}} = dialler(Config),
    polydist_node:disconnect(Us, Them),
    Talk = polydist_ct:parallel([
        fun() -> run(Them, fun() -> talk_at_once(A, 20) end) end,
        fun() -> await_registered(Them, talker), run(Dialler, fun() -> keep_dialling(Other) end) end
    ]),
    [ok, dialler_is_stopped] = Talk.

%% On the other node.
talk_at_once(Node, Rounds) ->
    polydist_traffic:watch_nodes(),
    register(talker, self()),
    Payloads = [polydist_traffic:payload(Size) || Size <- [0, 10, 1000, 70000, 300000], _ <- lists:seq(1, 4)],
    [
        begin
            polydist_traffic:await_nodeup(Node),
            Tags = [begin Tag = make_ref(), {echo, Node} ! {self(), Tag, Payload}, {Tag, Payload} end || Payload <- Payloads],
            [receive {Tag, Payload} -> ok after 10000 -> error({lost, Round, byte_size(Payload)}) end || {Tag, Payload} <- Tags],
            Round =:= Rounds andalso (ok = rpc:call(Node, ?MODULE, stop_dialling, [])),
            Round =:= Rounds andalso ?MODULE:stop_dialling(),
            erlang:disconnect_node(Node),
            polydist_traffic:await_nodedown(Node)
        end
     || Round <- lists:seq(1, Rounds)
    ],
    ok.

stop_dialling() ->
    case whereis(keep_dialling) of
        undefined -> ok;
        Pid -> Pid ! stop, ok
    end.

keep_dialling(Node) ->
    register(keep_dialling, self()),
    polydist_traffic:watch_nodes(),
    keep_dialling_loop(Node).

keep_dialling_loop(Node) ->
    _ = net_kernel:connect_node(Node),
    receive
        stop -> dialler_is_stopped;
        {nodedown, Node, _} -> keep_dialling_loop(Node)
    after 10000 -> error({connection_lasts, Node})
    end.

%%
%% Signals
%%

monitors_work_across(Config) ->
    doc("DOWN carries the reason; a monitor of nobody, of a name, and one taken back"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() ->
        Worker = spawn(B, fun() -> receive Reason -> exit(Reason) end end),
        Monitor = monitor(process, Worker),
        Worker ! {done, [1, 2, 3]},
        receive {'DOWN', Monitor, process, Worker, {done, [1, 2, 3]}} -> ok end,
        Nobody = monitor(process, {nobody, B}),
        receive {'DOWN', Nobody, process, {nobody, B}, noproc} -> ok end,
        Echo = monitor(process, {echo, B}),
        true = demonitor(Echo, [info, flush]),
        Frail = spawn(B, fun() -> receive never -> ok end end),
        Lost = monitor(process, Frail),
        erlang:disconnect_node(B),
        receive {'DOWN', Lost, process, Frail, noconnection} -> ok end
    end).

links_work_across(Config) ->
    doc("An exit signal crosses a link either way, kill becomes killed, and a lost connection is noconnection"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() ->
        process_flag(trap_exit, true),
        Exits = spawn_link(B, fun() -> exit(reason) end),
        receive {'EXIT', Exits, reason} -> ok end,
        Killed = spawn_link(B, fun() -> receive never -> ok end end),
        exit(Killed, kill),
        receive {'EXIT', Killed, killed} -> ok end,
        Test = self(),
        Traps = spawn(B, fun() ->
            process_flag(trap_exit, true),
            Test ! {self(), ready},
            receive {'EXIT', From, Reason} -> Test ! {self(), From, Reason} end
        end),
        receive {Traps, ready} -> ok end,
        {Dies, _} = spawn_monitor(fun() -> link(Traps), exit({from, here}) end),
        receive {Traps, Dies, {from, here}} -> ok end,
        Unlinked = spawn_link(B, fun() -> receive Reason -> exit(Reason) end end),
        true = unlink(Unlinked),
        Monitor = monitor(process, Unlinked),
        Unlinked ! quietly,
        receive {'DOWN', Monitor, process, Unlinked, quietly} -> ok end,
        Lost = spawn_link(B, fun() -> receive never -> ok end end),
        erlang:disconnect_node(B),
        receive {'EXIT', Lost, noconnection} -> ok end,
        receive {'EXIT', Unlinked, _} = Exit -> error(Exit) after 0 -> ok end
    end).

exit_signals_carry_big_reasons(Config) ->
    doc("8 MiB as the reason of an exit/2, of a link's exit and of a DOWN"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() ->
        process_flag(trap_exit, true),
        Big = {big, polydist_traffic:payload(8 * 1048576), lists:seq(1, 100000)},
        {Worker, Monitor} = spawn_monitor(B, fun() -> receive never -> ok end end),
        exit(Worker, Big),
        receive {'DOWN', Monitor, process, Worker, Big} -> ok end,
        Linked = spawn_link(B, fun() -> receive Reason -> exit(Reason) end end),
        Linked ! Big,
        receive {'EXIT', Linked, Big} -> ok end
    end).

processes_are_spawned_across(Config) ->
    doc("spawn, spawn_monitor, spawn_link and spawn_request, many at once"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() ->
        Test = self(),
        Pids = [spawn(B, fun() -> Test ! {self(), node()} end) || _ <- lists:seq(1, 500)],
        [receive {Pid, B} -> ok end || Pid <- Pids],
        Request = spawn_request(B, fun() -> exit(done) end, [monitor]),
        Spawned = receive {spawn_reply, Request, ok, Pid} -> Pid end,
        receive {'DOWN', Request, process, Spawned, done} -> ok end
    end).

erpc_calls_answer_and_fail_as_ever(Config) ->
    doc("Values, exceptions, time-outs, and a thousand calls in flight"),
    {Us, #{node := B}} = pair(Config),
    run(Us, fun() ->
        B = erpc:call(B, erlang, node, []),
        ok = try erpc:call(B, erlang, error, [oops]) catch error:{exception, oops, _} -> ok end,
        ok = try erpc:call(B, timer, sleep, [60000], 50) catch error:{erpc, timeout} -> ok end,
        Requests = [{I, erpc:send_request(B, erlang, '*', [I, 2])} || I <- lists:seq(1, 1000)],
        [I2 = erpc:receive_response(Request) || {I, Request} <- Requests, I2 <- [I * 2]]
    end).

global_names_are_seen_across(Config) ->
    doc("A name registered here is found there, and goes with its process"),
    {Us, Them} = pair(Config),
    run(Us, fun() -> ok = global:sync() end),
    run(Them, fun() -> ok = global:sync() end),
    Pid = run(Us, fun() ->
        Pid = spawn(fun() -> receive stop -> ok end end),
        yes = global:register_name(polydist_global, Pid),
        Pid
    end),
    run(Them, fun() ->
        Pid = global:whereis_name(polydist_global),
        Pid ! stop,
        wait_until(fun() -> global:whereis_name(polydist_global) =:= undefined end)
    end).

process_groups_span_nodes(Config) ->
    doc("pg tells of a member that joins on the other node, and of its death"),
    {Us, Them} = pair(Config),
    Name = polydist_ct:unique("scope"),
    [Scope, Watch] = [list_to_atom(Name), list_to_atom(Name ++ "_watch")],
    _ = [run(Each, fun() -> {ok, _} = pg:start(Scope) end) || Each <- [Us, Them]],
    polydist_ct:parallel([
        fun() ->
            run(Us, fun() ->
                {Monitor, []} = pg:monitor(Scope, group),
                register(Watch, self()),
                Joined = receive {Monitor, join, group, [Pid]} -> Pid end,
                exit(Joined, kill),
                receive {Monitor, leave, group, [Joined]} -> ok end
            end)
        end,
        fun() ->
            await_registered(Us, Watch),
            run(Them, fun() -> ok = pg:join(Scope, group, spawn(fun() -> receive never -> ok end end)) end)
        end
    ]).

%%
%% Back-pressure, options and what is shown
%%

a_frozen_receiver_suspends_its_senders_and_loses_nothing(Config) ->
    doc("The receiving node is stopped: the sender is suspended while memory stays small; woken, all 96 MiB arrive"),
    {Us, #{node := B, os_pid := OsPid} = Them} = pair(Config),
    Count = 3072,
    Size = 32768,
    [Bytes, Sent] = polydist_ct:parallel([
        fun() -> run(Them, fun() -> polydist_traffic:await_sink(polydist_traffic:start_sink(frozen, 1, Count)) end) end,
        fun() ->
            await_registered(Them, frozen),
            run(Us, fun() -> send_to_frozen({frozen, B}, OsPid, {Count, Size}) end)
        end
    ]),
    ct:comment("suspended after ~b KiB", [Sent * Size div 1024]),
    Bytes = Count * (Size + 4).

send_to_frozen(To, OsPid, {Count, Size}) ->
    Before = erlang:memory(binary),
    {Sender, Counter} = fill({To, OsPid}, {Count, Size}),
    Sent = await_standstill(Counter, counters:get(Counter, 1)),
    {status, suspended} = process_info(Sender, status),
    Held = erlang:memory(binary) - Before,
    true = Sent < Count div 2,
    true = Held < 16 * 1048576,
    _ = os:cmd("kill -CONT " ++ OsPid),
    receive {'DOWN', _, process, Sender, Reason} -> normal = Reason after 60000 -> error(never_resumed) end,
    Sent.

%% Freezes the receiver's node and sends until the connection is full and the sender suspended.
fill({To, OsPid}, CountSize) ->
    _ = erlang:system_monitor(self(), [busy_dist_port]),
    _ = os:cmd("kill -STOP " ++ OsPid),
    {Sender, Counter} = polydist_traffic:start_count(To, CountSize),
    receive {monitor, Sender, busy_dist_port, _} -> ok after 20000 -> error(never_busy) end,
    _ = erlang:system_monitor(undefined),
    {Sender, Counter}.

%% The kernel's buffers grow for a while. Still for 300 ms is still.
await_standstill(Counter, Sent) ->
    receive after 300 -> ok end,
    case counters:get(Counter, 1) of
        Sent -> Sent;
        More -> await_standstill(Counter, More)
    end.

a_full_connection_can_be_disconnected(Config) ->
    doc("The peer is frozen and the sender suspended: a disconnect takes effect at once, and the sender goes on"),
    {Us, #{node := B, os_pid := OsPid}} = pair(Config),
    run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        {Sender, _} = fill({{echo, B}, OsPid}, {3072, 32768}),
        Asked = erlang:monotonic_time(millisecond),
        true = erlang:disconnect_node(B),
        disconnect = polydist_traffic:await_nodedown(B),
        receive {'DOWN', _, process, Sender, normal} -> ok end,
        true = erlang:monotonic_time(millisecond) - Asked < 2000
    end).

a_full_connection_to_a_killed_node_leaves_nothing_behind(Config) ->
    doc("The peer is killed while a sender is suspended: nodedown, the sender goes on, what was queued is freed"),
    [Us, #{node := B, os_pid := OsPid} = Them] = own_pair(Config, never()),
    _ = run(Them, fun() -> polydist_traffic:start_echo(echo) end),
    dial(Us, Them, Config),
    polydist_node:disconnect(Us, Them),
    Before = polydist_node:resources(Us),
    dial(Us, Them, Config),
    connection_closed = run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        {Sender, _} = fill({{echo, B}, OsPid}, {3072, 32768}),
        _ = os:cmd("kill -9 " ++ OsPid),
        Reason = polydist_traffic:await_nodedown(B),
        receive {'DOWN', _, process, Sender, normal} -> Reason end
    end),
    _ = polydist_node:await_resources(Us, Before).

a_full_connection_to_a_frozen_node_ends_with_net_tick_timeout(Config) ->
    doc("Ticks do not wait behind a full queue: the time-out comes as for an idle connection"),
    [Us, #{node := B, os_pid := OsPid} = Them] = own_pair(Config, never() ++ ticktime()),
    dial(Us, Them, Config),
    net_tick_timeout = run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        {Sender, _} = fill({{echo, B}, OsPid}, {3072, 32768}),
        Reason = polydist_traffic:await_nodedown(B),
        receive {'DOWN', _, process, Sender, normal} -> Reason end
    end).

socket_options_can_be_read_and_set(Config) ->
    doc("net_kernel:getopts/2 and setopts/2 reach the connection's socket, and new ones through setopts(new, ..)"),
    {#{node := A} = Us, #{node := B} = Them} = pair(Config),
    Option = case has_nodelay(transport(Config)) of true -> nodelay; false -> sndbuf end,
    Values = case Option of sndbuf -> [65536, 131072]; nodelay -> [false, true] end,
    run(Us, fun() ->
        [begin
            ok = net_kernel:setopts(B, [{Option, Value}]),
            {ok, [{Option, Got}]} = net_kernel:getopts(B, [Option]),
            %% Linux keeps twice the buffer it is asked for.
            true = Got =:= Value orelse Got =:= 2 * Value
         end || Value <- Values],
        {ok, []} = net_kernel:getopts(B, []),
        {error, noconnection} = net_kernel:setopts('nobody@localhost', [{Option, hd(Values)}])
    end),
    [run(Each, fun() -> ok = net_kernel:setopts(new, [{Option, hd(Values)}]) end) || Each <- [Us, Them]],
    polydist_node:disconnect(Us, Them),
    dial(Us, Them, Config),
    [run(Each, fun() ->
        {ok, [{Option, Got}]} = net_kernel:getopts(Other, [Option]),
        true = Got =:= hd(Values) orelse Got =:= 2 * hd(Values),
        ok = net_kernel:setopts(new, [{Option, lists:last(Values)}])
     end) || {Each, Other} <- [{Us, B}, {Them, A}]].

net_kernel_knows_the_node(Config) ->
    doc("node_info/1, nodes_info/0 and i/0 work, and the counters count"),
    {Us, #{node := B}} = pair(Config),
    {Family, Protocol} = net_address(transport(Config)),
    run(Us, fun() ->
        {ok, Info} = net_kernel:node_info(B),
        up = proplists:get_value(state, Info),
        normal = proplists:get_value(type, Info),
        {net_address, Address, _Host, Protocol, Family} = proplists:get_value(address, Info),
        true = Address =/= undefined,
        {ok, In} = net_kernel:node_info(B, in),
        {ok, Out} = net_kernel:node_info(B, out),
        %% Handshake frames count: a counter of 0 would never time out.
        true = In > 0 andalso Out > 0,
        ok = polydist_traffic:echo({echo, B}, counted),
        {ok, More} = net_kernel:node_info(B, in),
        true = More > In,
        {ok, Nodes} = net_kernel:nodes_info(),
        true = lists:keymember(B, 1, Nodes)
    end).

has_nodelay(Transport) -> lists:member(Transport, [tcp, tcp6, tls, sctp]).

net_address(tcp) -> {inet, polydist_tcp};
net_address(tcp6) -> {inet6, polydist_tcp6};
net_address(tls) -> {inet, polydist_tls};
net_address(sctp) -> {inet, polydist_sctp};
net_address(uds) -> {local, polydist_uds};
net_address(Outside) -> {Outside, Outside}.

connections_shows_the_connection(Config) ->
    doc("polydist:connections/0: node, transport, direction, peer, since, what went in and out, and TLS's terms"),
    {#{node := A} = Us, #{node := B} = Them} = pair(Config),
    Transport = transport(Config),
    {Ours, Theirs} = case proplists:get_value(direction, Config) of we_dial -> {out, in}; they_dial -> {in, out} end,
    #{node := B, transport := Transport, direction := Ours, peer := Peer, since := Since, tls := Tls} = Before =
        polydist_node:connection(Us, Them),
    #{node := A, transport := Transport, direction := Theirs} = polydist_node:connection(Them, Us),
    true = is_peer(Transport, Ours, Peer),
    true = is_tls(Transport, Tls),
    Age = erlang:system_time(millisecond) - Since,
    true = Age >= 0 andalso Age < 60000,
    run(Us, fun() -> ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(100000)) end),
    After = polydist_node:connection(Us, Them),
    [true = maps:get(Key, After) >= maps:get(Key, Before) + 100000 || Key <- [bytes_in, bytes_out]],
    [true = maps:get(Key, After) > maps:get(Key, Before) || Key <- [frames_in, frames_out]],
    polydist_node:disconnect(Us, Them),
    wait_until(fun() -> polydist_node:connection(Us, Them) =:= none end).

is_peer(uds, out, {local, Path}) -> is_binary(Path);
is_peer(uds, in, Peer) -> Peer =/= undefined;
is_peer(tcp, _, {{127, 0, 0, 1}, Port}) -> is_integer(Port);
is_peer(tcp6, _, {{0, 0, 0, 0, 0, 0, 0, 1}, Port}) -> is_integer(Port);
is_peer(Transport, _, {Ip, Port}) when Transport =:= tls; Transport =:= sctp -> is_tuple(Ip) andalso is_integer(Port);
is_peer(_, _, {opaque, Bytes}) -> is_binary(Bytes);
is_peer(_, _, _) -> false.

is_tls(tls, #{version := 'tlsv1.3', cipher := <<"TLS_", _/binary>>}) -> true;
is_tls(Transport, undefined) -> Transport =/= tls;
is_tls(_, _) -> false.

%%
%% Ends
%%

a_disconnected_node_is_down_with_reason_disconnect(Config) ->
    doc("disconnect here, connection_closed there"),
    {#{node := A} = Us, #{node := B} = Them} = pair(Config),
    [connection_closed, disconnect] = polydist_ct:parallel([
        fun() ->
            run(Them, fun() ->
                polydist_traffic:watch_nodes(),
                register(watching, self()),
                polydist_traffic:await_nodedown(A)
            end)
        end,
        fun() ->
            await_registered(Them, watching),
            run(Us, fun() ->
                polydist_traffic:watch_nodes(),
                true = erlang:disconnect_node(B),
                polydist_traffic:await_nodedown(B)
            end)
        end
    ]).

a_halted_node_is_down_with_reason_connection_closed(Config) ->
    doc("erlang:halt/0 on the other node"),
    {connection_closed, _} = end_of_node(Config, fun(B, _) -> erpc:cast(B, erlang, halt, []) end, []).

a_killed_node_is_down_with_reason_connection_closed(Config) ->
    doc("kill -9 of the other node"),
    {connection_closed, _} = end_of_node(Config, fun(_, OsPid) -> os:cmd("kill -9 " ++ OsPid) end, []).

a_frozen_node_is_down_with_reason_net_tick_timeout(Config) ->
    doc("A node that is stopped goes down in the time stock takes: (3/4 to 5/4) net_ticktime"),
    Freeze = fun(_, OsPid) -> os:cmd("kill -STOP " ++ OsPid) end,
    {net_tick_timeout, Milliseconds} = end_of_node(Config, Freeze, ticktime()),
    true = Milliseconds < 10000.

%% Why the node is down, and how long that took.
end_of_node(Config, End, Args) ->
    [Us, #{node := B, os_pid := OsPid} = Them] = own_pair(Config, Args),
    dial(Us, Them, Config),
    run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        Started = erlang:monotonic_time(millisecond),
        End(B, OsPid),
        {polydist_traffic:await_nodedown(B), erlang:monotonic_time(millisecond) - Started}
    end).

own_pair(Config, Args) ->
    Options = (only(transport(Config)))#{args => Args},
    polydist_node:start_all(lab(Config), [Options, Options]).

an_idle_connection_stays_up(Config) ->
    doc("Ticks keep a connection on which nothing is sent up, well beyond net_ticktime"),
    [Us, #{node := B} = Them] = own_pair(Config, ticktime()),
    dial(Us, Them, Config),
    Long = 2500 * polydist_ct:slowness(),
    run(Us, fun() ->
        polydist_traffic:watch_nodes(),
        receive {nodedown, B, Info} -> error({down, Info}) after Long -> ok end
    end).

ticktime() -> ["-kernel", "net_ticktime", integer_to_list(polydist_ct:slowness())].

%%
%% The choice of a transport
%%

without_a_policy_nodes_of_one_host_meet_over_uds(Config) ->
    doc("The default for one host is uds, tls, tcp6, tcp"),
    [Us, Them] = polydist_node:start_all(lab(Config), [#{}, #{}]),
    polydist_node:connect(Us, Them),
    #{transport := uds, direction := out} = polydist_node:connection(Us, Them).

a_transport_the_peer_lacks_is_left_out(Config) ->
    doc("The peer has no uds, and later only tcp: the next of the list that it has is taken"),
    Options = [#{}, #{carriers => [tcp, tls, tcp6]}, #{carriers => [tcp]}],
    [Us, WithoutUds, OnlyTcp] = polydist_node:start_all(lab(Config), Options),
    polydist_node:connect(Us, WithoutUds),
    #{transport := tls} = polydist_node:connection(Us, WithoutUds),
    polydist_node:connect(Us, OnlyTcp),
    #{transport := tcp} = polydist_node:connection(Us, OnlyTcp).

the_next_transport_is_dialled_when_one_fails(Config) ->
    doc("The peer registered a socket that is no longer there: the dial goes on to TLS"),
    [Us, Them] = polydist_node:start_all(lab(Config), [#{}, #{}]),
    [Path] = [Path || #{transport := uds, address := {local, Path}} <- polydist_node:call(Them, polydist, listeners, [])],
    ok = file:delete(Path),
    polydist_node:connect(Us, Them),
    #{transport := tls} = polydist_node:connection(Us, Them).

the_first_policy_line_that_matches_decides(Config) ->
    doc("A line for a name, then one for the host"),
    Policy = [{"db*@*", #{transports => [tcp6]}}, {same_host, #{transports => [tls]}}, {any, #{transports => [tcp]}}],
    [Us, Db, Other] = polydist_node:start_all(lab(Config), [#{policy => Policy}, #{name => "db"}, #{name => "other"}]),
    polydist_node:connect(Us, Db),
    #{transport := tcp6} = polydist_node:connection(Us, Db),
    polydist_node:connect(Us, Other),
    #{transport := tls} = polydist_node:connection(Us, Other).

a_policy_that_allows_nothing_connects_nothing(Config) ->
    doc("A line with no transports forbids the peer; the node stays as it is"),
    [Us, #{node := B}] = polydist_node:start_all(lab(Config), [#{policy => [{any, #{transports => []}}]}, #{}]),
    pang = polydist_node:call(Us, net_adm, ping, [B]),
    4 = length(polydist_node:call(Us, polydist, listeners, [])).
