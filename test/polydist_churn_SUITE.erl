%%% Connections that come and go: both sides at the same moment, and a thousand times, after which nothing may be left over.
%%%
%%% POLYDIST_CHURN_ROUNDS sets the number of rounds per transport, 1000 otherwise.
-module(polydist_churn_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, never/0, wait_until/1]).
-import(polydist_node, [run/2, run/3, call/4]).

suite() -> [{timetrap, {minutes, 5}}].

all() -> [{group, simultaneous}, {group, thousand}, {group, failing}].

groups() ->
    [
        {simultaneous, [], [
            tcp_meets_uds, tls_meets_tcp6, tcp_meets_tls, uds_meets_uds,
            a_peer_that_leaves_at_once_can_come_back
        ]},
        {thousand, [], [tcp, tcp6, tls, uds]},
        {failing, [], [dials_that_fail_leave_nothing, handshakes_that_fail_leave_nothing]}
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%% Nobody dials but the test: global does as it likes after a disconnect.
node_options(Transports) ->
    #{force => Transports, args => never()}.

%%
%% Both sides at once
%%

tcp_meets_uds(Config) -> meet(Config, tcp, uds).
tls_meets_tcp6(Config) -> meet(Config, tls, tcp6).
tcp_meets_tls(Config) -> meet(Config, tcp, tls).
uds_meets_uds(Config) -> meet(Config, uds, uds).

meet(Config, Ours, Theirs) ->
    doc("Each node dials the other over its own transport at the same moment, 100 times: one connection, no hang"),
    [Us, Them] = polydist_node:start_all(lab(Config), [node_options([Ours]), node_options([Theirs])]),
    Directions = [meet_once(Us, Them) || _ <- lists:seq(1, 100)],
    Won = [Transport || Transport <- Directions, Transport =:= Ours],
    ct:comment("~p won ~b of ~b", [Ours, length(Won), length(Directions)]).

meet_once(#{node := A} = Us, #{node := B} = Them) ->
    %% The nodes share a clock.
    At = erlang:system_time(microsecond) + 15000,
    [true, true] = polydist_ct:parallel([
        fun() -> run(Us, fun() -> connect_at(At, B) end) end,
        fun() -> run(Them, fun() -> connect_at(At, A) end) end
    ]),
    [[B], [A]] = [call(Each, erlang, nodes, [connected]) || Each <- [Us, Them]],
    pong = call(Us, net_adm, ping, [B]),
    wait_until(fun() -> one_connection(Us) andalso one_connection(Them) end),
    #{transport := Transport, direction := Direction} = polydist_node:connection(Us, Them),
    #{transport := Transport, direction := Opposite} = polydist_node:connection(Them, Us),
    true = Direction =/= Opposite,
    polydist_node:disconnect(Us, Them),
    Transport.

one_connection(Node) ->
    length(call(Node, polydist, connections, [])) =:= 1.

connect_at(At, Node) ->
    case At - erlang:system_time(microsecond) of
        Left when Left > 3000 -> receive after (Left - 2000) div 1000 -> connect_at(At, Node) end;
        Left when Left > 0 -> connect_at(At, Node);
        _ -> net_kernel:connect_node(Node)
    end.

%% The side that accepts a connection must not be busy with it for longer than the side that dialled: a new one would be refused,
%% and its dialler left to wait for net_setuptime.
a_peer_that_leaves_at_once_can_come_back(Config) ->
    doc("Connect and disconnect with nothing in between, 300 times over each transport: every connect succeeds"),
    [
        begin
            %% Of two connections the one that the lesser name dialled gives way.
            Options = node_options([Transport]),
            [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [Options#{name => "a"}, Options#{name => "z"}]),
            run(Us, fun() ->
                [{true, true} = {net_kernel:connect_node(B), erlang:disconnect_node(B)} || _ <- lists:seq(1, 300)]
            end),
            [polydist_node:stop(Each) || Each <- [Us, Them]]
        end
     || Transport <- [tcp, tcp6, tls, uds]
    ].

%%
%% A thousand times
%%

tcp(Config) -> come_and_go(Config, tcp).
tcp6(Config) -> come_and_go(Config, tcp6).
tls(Config) -> come_and_go(Config, tls).
uds(Config) -> come_and_go(Config, uds).

come_and_go(Config, Transport) ->
    Rounds = rounds(),
    doc(lists:concat([Rounds, " connects and disconnects: descriptors, ports, processes and binaries as before on both nodes"])),
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [node_options([Transport]), node_options([Transport])]),
    Cycle = fun(N) -> run(Us, fun() -> come_and_go_on_node(B, N) end, infinity) end,
    Cycle(20),
    Before = [polydist_node:resources(Each) || Each <- [Us, Them]],
    Started = erlang:monotonic_time(millisecond),
    Cycle(Rounds),
    Took = erlang:monotonic_time(millisecond) - Started,
    After = [polydist_node:await_resources(Node, Was) || {Node, Was} <- lists:zip([Us, Them], Before)],
    [] = call(Us, polydist, connections, []),
    ct:log("before ~p~nafter ~p", [Before, After]),
    ct:comment("~b us a round", [Took * 1000 div Rounds]).

%% What connects has something to say, so that both planes work in every round.
come_and_go_on_node(Node, Rounds) ->
    polydist_traffic:watch_nodes(),
    [
        begin
            true = net_kernel:connect_node(Node),
            polydist_traffic:await_nodeup(Node),
            pong = net_adm:ping(Node),
            true = erlang:disconnect_node(Node),
            disconnect = polydist_traffic:await_nodedown(Node)
        end
     || _ <- lists:seq(1, Rounds)
    ].

rounds() ->
    case os:getenv("POLYDIST_CHURN_ROUNDS") of
        false -> 1000;
        Rounds -> list_to_integer(Rounds)
    end.

%%
%% What never comes to be
%%

dials_that_fail_leave_nothing(Config) ->
    doc("300 pings of a node that is not there, and of one that is registered and gone"),
    #{epmd := #{port := Port}} = Lab = lab(Config),
    Us = polydist_node:start(Lab),
    %% A name whose port nobody listens on.
    {ok, Epmd} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    Free = polydist_ct:free_port(),
    Alive = <<120, Free:16, 77, 0, 6:16, 5:16, 4:16, "gone", 0:16>>,
    ok = gen_tcp:send(Epmd, <<(byte_size(Alive)):16, Alive/binary>>),
    {ok, <<118, 0, _:32>>} = gen_tcp:recv(Epmd, 0, 5000),
    Absent = ['nobody@localhost', 'gone@localhost'],
    Ping = fun(Rounds) ->
        run(Us, fun() -> [pang = net_adm:ping(Node) || _ <- lists:seq(1, Rounds), Node <- Absent] end)
    end,
    Ping(10),
    Before = polydist_node:resources(Us),
    Ping(150),
    _ = polydist_node:await_resources(Us, Before).

handshakes_that_fail_leave_nothing(Config) ->
    doc("100 pings with the wrong cookie over each transport: both sides are as before"),
    Lab = lab(Config),
    #{node := B} = Them = polydist_node:start(Lab, #{args => never()}),
    [
        begin
            Us = polydist_node:start(Lab, #{force => [Transport], cookie => "wrong"}),
            Ping = fun(Rounds) -> run(Us, fun() -> [pang = net_adm:ping(B) || _ <- lists:seq(1, Rounds)] end) end,
            Ping(5),
            Before = [polydist_node:resources(Each) || Each <- [Us, Them]],
            Ping(100),
            [polydist_node:await_resources(Node, Was) || {Node, Was} <- lists:zip([Us, Them], Before)],
            polydist_node:stop(Us)
        end
     || Transport <- [tcp, tcp6, tls, uds]
    ].
