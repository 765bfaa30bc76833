%%% Listeners at run time: added and removed under load, who may come in by them, several of one transport, and those that come up
%%% late. What is registered is read from epmd in its own protocol and compared with the listeners.
-module(polydist_listeners_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, churn}, {group, life}, {group, access}].

groups() ->
    [
        {churn, [], [listeners_come_and_go_a_hundred_times]},
        {life, [parallel], [
            an_inner_and_an_outer_listener_of_one_transport,
            a_transport_without_a_carrier_is_added,
            the_last_listener_goes_and_another_comes,
            mistakes_are_sentences,
            a_node_without_carriers_that_listen_says_so,
            a_port_in_use_at_boot_is_joined_when_it_is_free,
            certificates_that_come_late_are_found,
            a_failed_listener_can_be_removed,
            a_killed_polydist_listeners_forgets_nothing,
            polydist_listeners_may_be_killed_in_the_middle_of_it,
            a_killed_acceptor_is_followed_by_one_for_all_listeners,
            the_configured_listeners_come_back_with_the_distribution,
            another_epmd_module_keeps_its_port_and_we_say_so
        ]},
        {access, [parallel], [
            peers_are_told_by_their_networks,
            nodes_outside_of_the_networks_stay_outside,
            peers_are_told_by_their_users,
            refusals_are_logged_once_a_second,
        an_interface_is_named,
        a_shared_port_is_registered_for_both,
        one_address_cannot_take_every_place
        ]}
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%%
%% What there is, here and in epmd
%%

listeners(Node) -> call(Node, polydist, listeners, []).

listener(Node, Id) ->
    [Listener] = [Each || #{id := Each_} = Each <- listeners(Node), Each_ =:= Id],
    Listener.

%% What does not change from one moment to the next.
steady(Node) -> [maps:with([id, transport, state, address], Each) || Each <- listeners(Node)].

ids(Node) -> [Id || #{id := Id} <- listeners(Node)].

addresses(#{address := Addresses}) when is_list(Addresses) -> Addresses;
addresses(#{address := Address}) -> [Address];
addresses(_) -> [].

address(Node, Id) -> hd(addresses(listener(Node, Id))).

add(Node, Options) -> call(Node, polydist, add_listener, [Options]).

remove(Node, Id) -> call(Node, polydist, remove_listener, [Id]).

name(#{node := Node}) -> hd(string:split(atom_to_list(Node), "@")).

%% Waits until epmd says of the node what the node says of itself.
await_registered(Lab, Node) ->
    wait_until(fun() -> registered(Lab, Node) =:= expected(listeners(Node)) end).

registered(#{epmd := Epmd}, Node) ->
    case polydist_ct:epmd_lookup(Epmd, name(Node)) of
        not_found -> not_found; % for a moment, between two registrations
        #{port := Port, extra := <<>>} -> {Port, []};
        #{port := Port, extra := Extra} ->
            {ok, #{endpoints := Endpoints}} = call(Node, polydist_native, record_decode, [Extra]),
            {Port, lists:sort([{binary_to_atom(Transport), Where} || #{transport := Transport, address := Where} <- Endpoints])}
    end.

expected(Listeners) ->
    Open = [{Transport, Address} || #{transport := Transport} = Each <- Listeners, Address <- addresses(Each)],
    Ports = [Port || Legacy <- [tcp, tls, tcp6], {Transport, {_, Port}} <- Open, Transport =:= Legacy],
    {hd(Ports ++ [0]), lists:sort([{Transport, where(Address)} || {Transport, Address} <- Open])}.

where({{0, 0, 0, 0}, Port}) -> {any4, Port};
where({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) -> {any6, Port};
where(Address) -> Address.

contains(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_said, Part, Text});
        _ -> ok
    end.

%% A node that dials over these only, and only when told to; global leaves its connections alone.
dialler(Transports) ->
    #{force => Transports, args => ["-kernel", "dist_auto_connect", "never", "connect_all", "false",
                                    "prevent_overlapping_partitions", "false"]}.

ping(From, #{node := To}) -> call(From, net_kernel, connect_node, [To]).

%%
%% Churn
%%

listeners_come_and_go_a_hundred_times(Config) ->
    doc("Traffic on connections whose listeners are gone; each new listener is removed while strangers, and a real peer, are "
        "half way through their handshakes: they see a close, nobody else does, epmd says what is, and nothing is left over"),
    Lab = lab(Config),
    [Us, Busy | Peers] = polydist_node:start_all(Lab, [dialler([tcp]), dialler([tcp, tls, uds, tcp6])
                                                       | [dialler([Transport]) || Transport <- [tcp, tcp6, tls, uds]]]),
    run(Us, fun() -> polydist_traffic:start_echo(echo) end),
    [true = ping(Peer, Us) || Peer <- Peers],
    wait_until(fun() -> length(call(Us, polydist, connections, [])) =:= 4 end),
    [ok = remove(Us, Id) || Id <- [tcp, tcp6, tls, uds]],
    await_registered(Lab, Us),
    Connections = lasting(Us),
    come_and_go(Lab, Us, 1),
    Before = polydist_node:resources(Us),
    Load = [load(Peer, Us) || Peer <- Peers],
    Dials = dial_on(Busy, Us),
    [come_and_go(Lab, Us, Round) || Round <- lists:seq(2, 100)],
    Dialled = stop_dialling(Busy, Us, Dials),
    Echoes = [begin Loader ! stop, receive {Loader, Count} -> Count end end || Loader <- Load],
    true = lists:min(Echoes) > 10,
    Connections = lasting(Us),
    [] = listeners(Us),
    await_registered(Lab, Us),
    _ = polydist_node:await_resources(Us, Before),
    ct:comment("~p echoes, ~b dials came through", [Echoes, Dialled]).

lasting(Node) ->
    lists:sort([maps:with([node, transport, since, listener], Each) || Each <- call(Node, polydist, connections, [])]).

come_and_go(Lab, Us, Round) ->
    Transport = lists:nth(Round rem 4 + 1, [tcp, tcp6, tls, uds]),
    Options = case Round rem 3 of
                  0 -> #{transport => Transport, name => passing};
                  _ -> #{transport => Transport}
              end,
    {ok, Id} = add(Us, Options),
    Addresses = addresses(listener(Us, Id)),
    Strangers = [half_way(Transport, Address, Kind, Round) || Address <- Addresses, Kind <- [silent, begun, asked]],
    await_registered(Lab, Us),
    ok = remove(Us, Id),
    [await_closed(Socket) || Socket <- Strangers],
    [{error, _} = connect(Address) || Address <- Addresses],
    await_registered(Lab, Us).

%% Silent; in the middle of its first message; and, where no TLS is in the way, waited for in the distribution's own handshake.
half_way(_, Address, silent, _) ->
    {ok, Socket} = connect(Address),
    Socket;
half_way(tls, Address, _, _) ->
    {ok, Socket} = connect(Address),
    ok = gen_tcp:send(Socket, <<22, 3, 1, 2, 0, 1, 0, 1, 252>>),
    Socket;
half_way(_, Address, begun, _) ->
    {ok, Socket} = connect(Address),
    ok = gen_tcp:send(Socket, <<0, 50, $N, 0, 0>>),
    Socket;
half_way(_, Address, asked, Round) ->
    {ok, Socket} = connect(Address),
    ok = gen_tcp:send(Socket, send_name(Round)),
    {ok, <<0, 3, "sok">>} = gen_tcp:recv(Socket, 5, 5000),
    {ok, <<_:16, $N>>} = gen_tcp:recv(Socket, 3, 5000),
    Socket.

send_name(Round) ->
    Name = <<"stranger", (integer_to_binary(Round))/binary, "@localhost">>,
    Flags = element(2, erts_internal:get_dflags()),
    Frame = <<$N, Flags:64, 1:32, (byte_size(Name)):16, Name/binary>>,
    <<(byte_size(Frame)):16, Frame/binary>>.

await_closed(Socket) ->
    case gen_tcp:recv(Socket, 0, 5000) of
        {ok, _} -> await_closed(Socket);
        {error, timeout} -> error(still_open);
        {error, _} -> gen_tcp:close(Socket)
    end.

load(Peer, #{node := A}) ->
    Caller = self(),
    spawn_link(fun() -> load(Peer, A, Caller, 0) end).

load(Peer, A, Caller, Count) ->
    receive
        stop -> Caller ! {self(), Count}
    after 0 ->
        ok = run(Peer, fun() -> polydist_traffic:echo({echo, A}, polydist_traffic:payload(200000)) end),
        load(Peer, A, Caller, Count + 1)
    end.

%% A peer that connects whenever it can, and disconnects.
dial_on(Busy, #{node := A}) ->
    run(Busy, fun() -> spawn(fun() -> dial_loop(A, 0) end) end).

dial_loop(A, Count) ->
    receive
        {stop, From} -> From ! {self(), Count}
    after 0 ->
        case net_kernel:connect_node(A) of
            true ->
                _ = erlang:disconnect_node(A),
                dial_loop(A, Count + 1);
            false -> dial_loop(A, Count)
        end
    end.

stop_dialling(Busy, #{node := A} = Us, Pid) ->
    Count = run(Busy, fun() ->
        Pid ! {stop, self()},
        receive {Pid, Dialled} -> Dialled end
    end),
    #{node := B} = Busy,
    wait_until(fun() ->
        _ = call(Busy, erlang, disconnect_node, [A]),
        not lists:member(B, call(Us, erlang, nodes, [connected]))
    end),
    Count.

connect({local, Path}) ->
    gen_tcp:connect({local, Path}, 0, [binary, {active, false}], 5000);
connect({{0, 0, 0, 0}, Port}) ->
    connect({{127, 0, 0, 1}, Port});
connect({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) ->
    connect({{0, 0, 0, 0, 0, 0, 0, 1}, Port});
connect({Ip, Port}) ->
    connect({Ip, Port}, []).

connect({Ip, Port}, Options) ->
    gen_tcp:connect(Ip, Port, [binary, {active, false} | Options], 5000).

%%
%% Life
%%

an_inner_and_an_outer_listener_of_one_transport(Config) ->
    doc("Three tcp listeners by configuration, two with names: all are registered, the first one's port is for stock nodes; each "
        "connection has the listener it came in by; when the first goes, stock nodes are given the next one's port"),
    Lab = lab(Config),
    Listen = #{tcp => [
        #{name => inner, ip => "127.0.0.1", allow => ["127.0.0.0/8"]}, #{name => outer, ip => "127.0.0.2", port => 0},
        #{ip => "127.0.0.3"}
    ]},
    [Us, #{node := B} = Them, Other] = polydist_node:start_all(Lab, [
        #{config => #{listen => Listen}}, dialler([tcp]), dialler([tcp])
    ]),
    [inner, outer, Third, tcp6, tls, uds] = ids(Us),
    true = is_reference(Third),
    #{allow := [<<"127.0.0.0/8">>], address := {{127, 0, 0, 1}, Port}} = listener(Us, inner),
    {{127, 0, 0, 2}, Second} = address(Us, outer),
    await_registered(Lab, Us),
    {Port, _} = registered(Lab, Us),
    true = ping(Them, Us),
    wait_until(fun() -> polydist_node:connection(Us, Them) =/= none end),
    #{listener := inner} = Connection = polydist_node:connection(Us, Them),
    [1, 0] = [maps:get(established, listener(Us, Id)) || Id <- [inner, outer]],
    ok = remove(Us, inner),
    await_registered(Lab, Us),
    {Second, _} = registered(Lab, Us),
    #{since := Since} = Connection,
    #{since := Since} = polydist_node:connection(Us, Them),
    pong = call(Us, net_adm, ping, [B]),
    true = ping(Other, Us),
    wait_until(fun() -> polydist_node:connection(Us, Other) =/= none end),
    #{listener := outer} = polydist_node:connection(Us, Other).

a_transport_without_a_carrier_is_added(Config) ->
    doc("Only uds is in -proto_dist: tcp, tcp6 and tls are added, and peers of each come in; net_kernel:setopts reaches them"),
    Lab = lab(Config),
    [Us | Peers] = polydist_node:start_all(Lab, [#{carriers => [uds]} | [dialler([Transport]) || Transport <- [tcp, tcp6, tls]]]),
    [uds] = ids(Us),
    [{ok, Id} = add(Us, #{transport => Id, name => Id}) || Id <- [tcp, tcp6, tls]],
    [tcp, tcp6, tls, uds] = ids(Us),
    await_registered(Lab, Us),
    ok = call(Us, net_kernel, setopts, [new, [{nodelay, true}]]),
    [true = ping(Peer, Us) || Peer <- Peers],
    wait_until(fun() ->
        Connections = call(Us, polydist, connections, []),
        lists:sort([{Transport, Id} || #{transport := Transport, listener := Id} <- Connections]) =:=
            [{tcp, tcp}, {tcp6, tcp6}, {tls, tls}]
    end).

the_last_listener_goes_and_another_comes(Config) ->
    doc("Removed one by one; the last one's end is a warning; nobody gets in, we get out, and a new listener is found by peers"),
    Lab = lab(Config),
    [Us, #{node := B}, Other] = polydist_node:start_all(Lab, [#{}, #{}, dialler([tcp])]),
    [begin ok = remove(Us, Id), await_registered(Lab, Us) end || Id <- [tls, tcp, uds]],
    nomatch = re:run(polydist_node:console(Us), "last listener"),
    ok = remove(Us, tcp6),
    _ = polydist_node:await_console(Us, "last listener"),
    [] = listeners(Us),
    await_registered(Lab, Us),
    {0, []} = registered(Lab, Us),
    false = ping(Other, Us),
    pong = call(Us, net_adm, ping, [B]),
    {ok, again} = add(Us, #{transport => tcp, name => again}),
    await_registered(Lab, Us),
    true = ping(Other, Us).

mistakes_are_sentences(Config) ->
    doc("Each says what is wrong, and nothing is changed by it"),
    Lab = lab(Config),
    Us = polydist_node:start(Lab),
    Before = steady(Us),
    {_, Port} = address(Us, tcp),
    {local, Path} = address(Us, uds),
    [begin
        {error, {Kind, Sentence}} = add(Us, Options),
        ct:log("~0tp: ~ts", [Kind, Sentence]),
        contains(Sentence, Part)
     end || {Kind, Options, Part} <- [
        {bad_listener, [], "map"},
        {bad_listener, #{port => 1}, "transport"},
        {bad_listener, #{transport => quic}, "quic"},
        {bad_listener, #{transport => tcp, port => 70000}, "70000"},
        {bad_listener, #{transport => tcp, colour => red}, "colour"},
        {bad_listener, #{transport => tcp, ip => "::1"}, "IPv4"},
        {bad_listener, #{transport => tcp, name => "inner"}, "atom"},
        {bad_listener, #{transport => tcp, allow => []}, "leave it out"},
        {bad_listener, #{transport => tcp, allow => "10.0.0.0/8"}, "networks"},
        {bad_listener, #{transport => tcp, allow => ["10.0.0.0/33"]}, "10.0.0.0/33"},
        {bad_listener, #{transport => tcp, allow => ["10.1.0.0/8"]}, "10.0.0.0/8"},
        {bad_listener, #{transport => tcp, allow => ["fd00::/8"]}, "fd00::/8"},
        {bad_listener, #{transport => tcp6, allow => ["fd00::1/8"]}, "fd00::/8"},
        {bad_listener, #{transport => tls, allow => [1000]}, "1000"},
        {bad_listener, #{transport => tcp, allow => ["10.0.0.0/8" | tail]}, "tail"},
        {bad_listener, #{transport => uds, allow => ["10.0.0.0/8"]}, "user ids"},
        {bad_listener, #{transport => uds, allow => [-1]}, "-1"},
        {bad_listener, #{transport => uds, path => "relative"}, "absolute"},
        {bad_listener, #{transport => uds, dir => "/a", path => "/b/c"}, "both"},
        {eaddrinuse, #{transport => tcp, port => Port}, integer_to_list(Port)},
        {eaddrinuse, #{transport => uds, path => Path}, binary_to_list(Path)},
        {eaddrnotavail, #{transport => tcp, ip => "192.0.2.1"}, "192.0.2.1"},
        {name_taken, #{transport => tcp6, name => tcp}, "tcp"}
    ]],
    {error, {not_found, NotFound}} = remove(Us, nonesuch),
    contains(NotFound, "tcp6"),
    Before = steady(Us),
    {ok, Id} = add(Us, #{transport => tcp}),
    true = is_reference(Id),
    ok = remove(Us, Id),
    {error, {not_found, _}} = remove(Us, Id),
    Before = steady(Us),
    await_registered(Lab, Us).

a_node_without_carriers_that_listen_says_so(Config) ->
    doc("-dist_listen false; and no distribution at all"),
    [Silent, None] = polydist_node:start_all(lab(Config), [#{args => ["-dist_listen", "false"]}, #{name => none}]),
    {error, {not_listening, Sentence}} = add(Silent, #{transport => tcp}),
    contains(Sentence, "-dist_listen false"),
    {error, {not_running, _}} = add(None, #{transport => tcp}),
    {error, {not_running, _}} = remove(None, tcp).

a_port_in_use_at_boot_is_joined_when_it_is_free(Config) ->
    doc("It has failed, with reason and attempts; when the port is free the listener joins, is registered, and is dialled"),
    Lab = lab(Config),
    {ok, Socket} = gen_tcp:listen(0, [{reuseaddr, true}]),
    {ok, Port} = inet:port(Socket),
    [Us, Them] = polydist_node:start_all(Lab, [#{config => #{listen => #{tcp => #{port => Port}}}}, dialler([tcp])]),
    wait_until(fun() -> maps:get(attempts, listener(Us, tcp)) >= 2 end),
    #{state := failed, reason := Reason} = listener(Us, tcp),
    contains(Reason, "eaddrinuse"),
    await_registered(Lab, Us),
    ok = gen_tcp:close(Socket),
    wait_until(fun() -> maps:get(state, listener(Us, tcp)) =:= listening end),
    {_, Port} = address(Us, tcp),
    [] = maps:to_list(maps:with([reason, attempts], listener(Us, tcp))),
    _ = polydist_node:await_console(Us, "tcp .*listens after [0-9]+ attempts"),
    await_registered(Lab, Us),
    {Port, _} = registered(Lab, Us),
    true = ping(Them, Us).

certificates_that_come_late_are_found(Config) ->
    doc("The file of -ssl_dist_optfile is not there at boot; tls joins when it is, and dials too"),
    #{directory := Directory, certificates := Certificates} = Lab = lab(Config),
    File = filename:join(Directory, polydist_ct:unique("late_tls")),
    [Us, #{node := B} = Them] = polydist_node:start_all(Lab, [(dialler([tls]))#{optfile => File}, dialler([tls])]),
    #{state := failed, reason := Reason} = listener(Us, tls),
    contains(Reason, File),
    ok = polydist_ct:write_tls_options(File, polydist_ct:tls_options(Certificates)),
    wait_until(fun() -> maps:get(state, listener(Us, tls)) =:= listening end),
    await_registered(Lab, Us),
    true = ping(Them, Us),
    polydist_node:disconnect(Us, Them),
    true = call(Us, net_kernel, connect_node, [B]).

a_failed_listener_can_be_removed(Config) ->
    doc("It is tried no more; and so can one be added with its name"),
    {ok, Socket} = gen_tcp:listen(0, [{reuseaddr, true}]),
    {ok, Port} = inet:port(Socket),
    Us = polydist_node:start(lab(Config), #{config => #{listen => #{tcp => #{port => Port}}}}),
    #{state := failed} = listener(Us, tcp),
    ok = remove(Us, tcp),
    [tcp6, tls, uds] = ids(Us),
    {ok, tcp} = add(Us, #{transport => tcp, name => tcp}),
    ok = gen_tcp:close(Socket),
    %% Longer than the first attempt would be away.
    receive after 1500 -> ok end,
    [Other] = [Each || {_, Each} <- addresses(listener(Us, tcp))],
    true = Other =/= Port.

a_killed_polydist_listeners_forgets_nothing(Config) ->
    doc("Listeners, ids and addresses are as before, what had failed is still tried, and adding and removing goes on"),
    Lab = lab(Config),
    {ok, Socket} = gen_tcp:listen(0, [{reuseaddr, true}]),
    {ok, Port} = inet:port(Socket),
    [Us, Them] = polydist_node:start_all(Lab, [
        #{config => #{listen => #{tcp => [#{}, #{name => late, port => Port}]}}}, dialler([tcp])
    ]),
    {ok, Reference} = add(Us, #{transport => tcp}),
    {ok, named} = add(Us, #{transport => tls, name => named}),
    Before = steady(Us),
    [begin
        Pid = call(Us, erlang, whereis, [polydist_listeners]),
        call(Us, erlang, exit, [Pid, kill]),
        wait_until(fun() -> not lists:member(call(Us, erlang, whereis, [polydist_listeners]), [Pid, undefined]) end),
        Before = steady(Us)
     end || _ <- [1, 2, 3]],
    await_registered(Lab, Us),
    true = ping(Them, Us),
    [ok = remove(Us, Id) || Id <- [named, Reference]],
    ok = gen_tcp:close(Socket),
    wait_until(fun() -> maps:get(state, listener(Us, late)) =:= listening end),
    [tcp, late, tcp6, tls, uds] = ids(Us),
    await_registered(Lab, Us).

polydist_listeners_may_be_killed_in_the_middle_of_it(Config) ->
    doc("Killed forty times while listeners are added and removed: what listeners/0 shows is what there is, no socket more"),
    Lab = lab(Config),
    Us = polydist_node:start(Lab),
    Before = polydist_node:resources(Us),
    ok = run(Us, fun() -> add_and_remove_while_killing(40) end),
    %% It follows the one that was killed last.
    wait_until(fun() -> is_pid(call(Us, erlang, whereis, [polydist_listeners])) end),
    _ = [ok = remove(Us, Id) || Id <- ids(Us), not lists:member(Id, [tcp, tcp6, tls, uds])],
    [tcp, tcp6, tls, uds] = ids(Us),
    await_registered(Lab, Us),
    _ = polydist_node:await_resources(Us, Before).

add_and_remove_while_killing(Kills) ->
    {Killer, Monitor} = spawn_monitor(fun() -> kill_on(Kills) end),
    add_and_remove_until(Killer, Monitor).

kill_on(0) ->
    ok;
kill_on(Kills) ->
    receive after rand:uniform(50) -> ok end,
    case whereis(polydist_listeners) of
        undefined -> kill_on(Kills);
        Pid ->
            exit(Pid, kill),
            kill_on(Kills - 1)
    end.

add_and_remove_until(Killer, Monitor) ->
    receive
        {'DOWN', Monitor, process, Killer, normal} -> ok
    after 0 ->
        try
            {ok, Id} = polydist:add_listener(#{transport => lists:nth(rand:uniform(3), [tcp, tcp6, tls])}),
            ok = polydist:remove_listener(Id)
        catch
            exit:_ -> ok % it was killed
        end,
        add_and_remove_until(Killer, Monitor)
    end.

a_killed_acceptor_is_followed_by_one_for_all_listeners(Config) ->
    doc("Carriers tcp and uds, with listeners added, one of them for a transport without a carrier: each acceptor is killed, and "
        "then each listener takes a connection"),
    Lab = lab(Config),
    Us = polydist_node:start(Lab, #{carriers => [tcp, uds]}),
    {ok, more} = add(Us, #{transport => tcp, name => more}),
    {ok, secure} = add(Us, #{transport => tls, name => secure}),
    [begin
        {ok, Acceptor} = call(Us, polydist_sup, lookup, [{acceptor, Carrier}]),
        call(Us, erlang, exit, [Acceptor, kill]),
        wait_until(fun() ->
            {ok, Now} = call(Us, polydist_sup, lookup, [{acceptor, Carrier}]),
            Now =/= Acceptor
        end)
     end || Carrier <- [tcp, uds]],
    [answers(Address, Id) || #{id := Id} = Each <- listeners(Us), Id =/= secure, Address <- addresses(Each)],
    [ok = remove(Us, Id) || Id <- [tcp, more, uds]],
    await_registered(Lab, Us),
    true = ping(polydist_node:start(Lab, dialler([tls])), Us).

%% The node's answer to a name: somebody took the connection.
answers(Address, Number) ->
    gen_tcp:close(half_way(tcp, Address, asked, erlang:phash2(Number))).

the_configured_listeners_come_back_with_the_distribution(Config) ->
    doc("net_kernel:stop/0 and start/2: those of the configuration are there, those added are not, and nothing is left over"),
    Lab = lab(Config),
    Us = polydist_node:start(Lab, #{name => none, config => #{listen => #{tcp => [#{}, #{name => second, ip => "127.0.0.1"}]}}}),
    _ = start_add_and_stop(Us),
    Before = polydist_node:resources(Us),
    [start_add_and_stop(Us) || _ <- lists:seq(1, 5)],
    _ = polydist_node:await_resources(Us, Before).

start_add_and_stop(Us) ->
    Name = list_to_atom(polydist_ct:unique("again") ++ "@localhost"),
    {ok, _} = call(Us, net_kernel, start, [Name, #{name_domain => shortnames}]),
    [tcp, second, tcp6, tls, uds] = ids(Us),
    {ok, added} = add(Us, #{transport => tcp, name => added}),
    ok = remove(Us, tcp6),
    Addresses = lists:append([addresses(Each) || Each <- listeners(Us)]),
    ok = call(Us, net_kernel, stop, []),
    [{error, _} = connect(Address) || Address <- Addresses],
    [] = listeners(Us).

another_epmd_module_keeps_its_port_and_we_say_so(Config) ->
    doc("With erl_epmd nothing that is registered can be changed: a warning"),
    Lab = lab(Config),
    Us = polydist_node:start(Lab, #{epmd_module => "erl_epmd", proto_dist => "polydist_tcp"}),
    {ok, _} = add(Us, #{transport => tcp}),
    ok = remove(Us, tcp),
    _ = polydist_node:await_console(Us, "erl_epmd keeps the port").

%%
%% Access
%%

peers_are_told_by_their_networks(Config) ->
    doc("IPv4 and IPv6 networks and addresses, on tcp, tcp6 and tls: whoever is outside is closed before a byte, and counted"),
    Us = polydist_node:start(lab(Config)),
    Cases = [
        {tcp, ["127.0.0.0/31", "10.0.0.0/8"], [{127, 0, 0, 1}], [{127, 0, 0, 2}, {127, 1, 1, 1}]},
        {tcp, ["127.0.0.7"], [{127, 0, 0, 7}], [{127, 0, 0, 6}]},
        {tcp, [{127, 0, 0, 9}], [{127, 0, 0, 9}], [{127, 0, 0, 1}]},
        {tcp6, [<<"fd00::/8">>], [], [{0, 0, 0, 0, 0, 0, 0, 1}]},
        {tcp6, ["::1"], [{0, 0, 0, 0, 0, 0, 0, 1}], []},
        {tls, ["127.0.0.1/32", "fd00::/8"], [{127, 0, 0, 1}], [{127, 0, 0, 2}, {0, 0, 0, 0, 0, 0, 0, 1}]}
    ],
    [begin
        {ok, Id} = add(Us, #{transport => Transport, allow => Allow}),
        [begin
            Socket = connect_from(Source, listener(Us, Id)),
            {error, timeout} = gen_tcp:recv(Socket, 0, 100),
            gen_tcp:close(Socket)
         end || Source <- Inside],
        [await_closed(connect_from(Source, listener(Us, Id))) || Source <- Outside],
        {Accepted, Refused} = {length(Inside), length(Outside)},
        wait_until(fun() -> #{accepted := In, refused := Out} = listener(Us, Id), {In, Out} =:= {Accepted, Refused} end),
        ok = remove(Us, Id)
     end || {Transport, Allow, Inside, Outside} <- Cases].

%% From this address of ours, to the listener's port of that family.
connect_from(Source, Listener) ->
    [Port | _] = [Port || {Ip, Port} <- addresses(Listener), tuple_size(Ip) =:= tuple_size(Source)],
    To = case tuple_size(Source) of
             4 -> {127, 0, 0, 1};
             8 -> {0, 0, 0, 0, 0, 0, 0, 1}
         end,
    {ok, Socket} = connect({To, Port}, [{ip, Source}]),
    Socket.

nodes_outside_of_the_networks_stay_outside(Config) ->
    doc("A peer over tcp is refused by configuration, and is in by a listener that is added for it"),
    Lab = lab(Config),
    [Us, Them] = polydist_node:start_all(Lab, [
        #{carriers => [tcp], config => #{listen => #{tcp => #{allow => ["192.0.2.0/24"]}}}}, dialler([tcp])
    ]),
    false = ping(Them, Us),
    #{refused := Refused, established := 0, last_error := Error} = listener(Us, tcp),
    true = Refused > 0,
    contains(Error, "192.0.2.0/24"),
    {ok, _} = add(Us, #{transport => tcp, allow => ["127.0.0.1"], name => local}),
    await_registered(Lab, Us),
    true = ping(Them, Us),
    #{established := 1} = listener(Us, local).

peers_are_told_by_their_users(Config) ->
    doc("A Unix socket that every user may open, for one of them: the others are closed before a byte, and counted"),
    case {os:cmd("id -u"), os:find_executable("setpriv"), os:find_executable("perl")} of
        {"0\n", Setpriv, Perl} when Setpriv =/= false, Perl =/= false -> users(Config);
        _ -> {skip, "to be another user takes root, setpriv and perl"}
    end.

users(Config) ->
    Directory = polydist_ct:temporary_directory(),
    ok = file:change_mode(Directory, 8#755),
    Us = polydist_node:start(lab(Config), #{args => ["-kernel", "net_setuptime", "1"]}),
    Open = fun(Name, Allow) ->
        Path = filename:join(Directory, Name),
        {ok, Id} = add(Us, Allow#{transport => uds, path => Path, mode => 8#666, name => list_to_atom(Name)}),
        {Id, Path}
    end,
    {Ours, OurPath} = Open("ours", #{}), % without a word it is for the node's user, and root
    {Theirs, TheirPath} = Open("theirs", #{allow => [65534, 65533]}),
    {Anybodys, AnyPath} = Open("anybodys", #{allow => any}),
    any = maps:get(allow, listener(Us, Anybodys)),
    #{allow := [65534, 65533]} = listener(Us, Theirs),
    [begin
        Took = as_user(Uid, Path),
        ct:log("~b at ~ts: ~b ms", [Uid, Path, Took]),
        wait_until(fun() -> #{accepted := In, refused := Out} = listener(Us, Id), {In, Out} =:= {Accepted, Refused} end)
     end || {Uid, Path, Id, Accepted, Refused} <- [
        {65534, OurPath, Ours, 0, 1}, {0, OurPath, Ours, 1, 1}, {0, TheirPath, Theirs, 0, 1}, {65533, TheirPath, Theirs, 1, 1},
        {65534, AnyPath, Anybodys, 1, 0}
    ]],
    _ = as_user(65533, OurPath),
    wait_until(fun() -> maps:get(refused, listener(Us, Ours)) =:= 2 end),
    contains(maps:get(last_error, listener(Us, Ours)), "of user 65533; it allows user 0"),
    ok = polydist_node:stop(Us),
    file:del_dir_r(Directory).

%% Connects as another user and waits until the connection is closed; how many milliseconds that took.
as_user(Uid, Path) ->
    Script = "use IO::Socket::UNIX; use Time::HiRes 'time'; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die \"$!\";"
        " my $t = time; sysread $s, my $b, 1; printf '%d', 1000 * (time - $t);",
    Id = integer_to_list(Uid),
    Args = ["--reuid", Id, "--regid", Id, "--clear-groups", os:find_executable("perl"), "-e", Script, Path],
    Port = open_port({spawn_executable, os:find_executable("setpriv")}, [{args, Args}, binary, exit_status, {cd, "/"}]),
    receive
        {Port, {data, Milliseconds}} -> binary_to_integer(Milliseconds)
    after 10000 -> error(timeout)
    end.

an_interface_is_named(Config) ->
    doc("The addresses of an interface, the loopback's only, and an interface that is not there"),
    Us = polydist_node:start(lab(Config), #{config => #{listen => #{tcp => #{interface => "nosuch0"}, tcp6 => #{ip => loopback}}}}),
    #{state := failed, reason := Reason, attempts := _} = listener(Us, tcp),
    contains(Reason, "nosuch0 has no address for tcp now; there are"),
    #{address := {{0, 0, 0, 0, 0, 0, 0, 1}, _}} = listener(Us, tcp6),
    {ok, Tcp} = add(Us, #{transport => tcp, interface => "lo"}),
    #{address := {{127, 0, 0, 1}, _}} = listener(Us, Tcp),
    {ok, Tls} = add(Us, #{transport => tls, ip => loopback}),
    #{address := [{{127, 0, 0, 1}, Port}, {{0, 0, 0, 0, 0, 0, 0, 1}, Port}]} = listener(Us, Tls),
    {error, {no_interface, _}} = add(Us, #{transport => tls, interface => "nosuch0"}).

a_shared_port_is_registered_for_both(Config) ->
    doc("The one port that epmd holds is TLS's as well, and peers reach it by either transport"),
    Lab = lab(Config),
    Shared = #{carriers => [tcp, tls], config => #{listen => #{tcp => #{shared => [tcp, tls]}, tls => #{ip => loopback}}}},
    [Us, Plain, Secure] = polydist_node:start_all(Lab, [Shared, dialler([tcp]), dialler([tls])]),
    #{address := {_, Port}} = listener(Us, tcp),
    [Name, _] = string:split(atom_to_list(maps:get(node, Us)), "@"),
    #{port := Port} = polydist_ct:epmd_lookup(maps:get(epmd, Lab), Name),
    {ok, Candidates, _} = call(Secure, polydist, candidates, [maps:get(node, Us)]),
    true = lists:any(fun(#{address := {_, P}}) -> P =:= Port end, Candidates),
    true = ping(Plain, Us),
    true = ping(Secure, Us),
    #{transport := tcp} = polydist_node:connection(Us, Plain),
    #{transport := tls} = polydist_node:connection(Us, Secure).

one_address_cannot_take_every_place(Config) ->
    doc("Ten connections from one address that begin and go no further; a peer from another one gets in at once"),
    [Us, Them] = polydist_node:start_all(lab(Config), [
        #{carriers => [tcp], config => #{listen => #{tcp => #{max_handshakes => 3, max_handshakes_per_source => 2}}}},
        dialler([tcp])
    ]),
    Sockets = [connect_from({127, 0, 0, 2}, listener(Us, tcp)) || _ <- lists:seq(1, 10)],
    [ok = gen_tcp:send(Socket, <<0>>) || Socket <- Sockets],
    wait_until(fun() -> maps:get(pending, listener(Us, tcp)) =:= 10 end),
    true = ping(Them, Us),
    #{failed := 0} = listener(Us, tcp),
    [ok = gen_tcp:close(Socket) || Socket <- Sockets],
    wait_until(fun() -> maps:get(pending, listener(Us, tcp)) =:= 0 end).

refusals_are_logged_once_a_second(Config) ->
    doc("Forty strangers are refused: a line at info, or two, and the count"),
    Us = polydist_node:start(lab(Config), #{config => #{log_level => info}, args => ["-kernel", "logger_level", "info"]}),
    {ok, Id} = add(Us, #{transport => tcp, allow => ["192.0.2.1"]}),
    [await_closed(connect_from({127, 0, 0, 1}, listener(Us, Id))) || _ <- lists:seq(1, 40)],
    wait_until(fun() -> maps:get(refused, listener(Us, Id)) =:= 40 end),
    Printed = polydist_node:await_console(Us, "refused 127.0.0.1.*it allows 192.0.2.1"),
    {match, Lines} = re:run(Printed, "refused 127.0.0.1", [global]),
    true = length(Lines) =< 5.
