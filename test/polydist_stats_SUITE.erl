%%% The figures of connections and listeners, held against what was really sent; over every transport, whichever side dials.
-module(polydist_stats_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, Group} || Group <- transports()] ++ [the_figures_of_a_connection_to_a_stock_node_count].

transports() -> [tcp, tcp6, tls, uds].

groups() ->
    [{Transport, [], [{group, we_dial}, {group, they_dial}]} || Transport <- transports()] ++
        [{Direction, [], cases()} || Direction <- [we_dial, they_dial]].

cases() ->
    [
        everything_is_shown,
        the_ends_name_each_other,
        the_ends_agree_on_what_passed,
        what_is_sent_is_counted,
        a_reader_that_stops_is_seen_in_the_queue,
        ticks_are_counted,
        ticks_that_do_not_come_are_counted,
        what_went_wrong_before_is_told,
        a_listener_sums_up_its_connections
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(Direction, Config) when Direction =:= we_dial; Direction =:= they_dial ->
    [{direction, Direction} | Config];
init_per_group(Transport, Config) ->
    [Us, Them] = polydist_node:start_all(lab(Config), [Options#{owner => whereis(init)} || Options <- options(Transport)]),
    [{transport, Transport}, {us, Us}, {them, Them} | Config].

end_per_group(Group, Config) ->
    _ = [polydist_node:stop(proplists:get_value(Key, Config)) || lists:member(Group, transports()), Key <- [us, them]],
    ok.

%% The kernel's ticks are half a second apart; we go by a rule of our own, the other side by the kernel's.
options(Transport) ->
    Args = ["-connect_all", "false", "-kernel", "dist_auto_connect", "never", "net_ticktime", "2"],
    [
        #{name => "us", args => Args, policy => [{"them*@*", #{transports => [Transport], ticktime => 2}}]},
        #{name => "them", args => Args, policy => [{any, #{transports => [Transport]}}]}
    ].

%% Every case gets a new connection, made by the side its group says.
init_per_testcase(Case, Config) ->
    case lists:member(Case, cases()) of
        true ->
            {Us, Them} = pair(Config),
            polydist_node:disconnect(Us, Them),
            dial(Us, Them, Config);
        false ->
            ok
    end,
    Config.

end_per_testcase(Case, Config) ->
    _ = [polydist_node:thaw(Node) || lists:member(Case, cases()), Node <- tuple_to_list(pair(Config))],
    ok.

pair(Config) -> {proplists:get_value(us, Config), proplists:get_value(them, Config)}.

transport(Config) -> proplists:get_value(transport, Config).

dial(Us, Them, Config) ->
    case proplists:get_value(direction, Config) of
        we_dial -> polydist_node:connect(Us, Them);
        they_dial -> polydist_node:connect(Them, Us)
    end.

%%
%% What is shown
%%

everything_is_shown(Config) ->
    doc("Each field is there and of its type; the rule and the tick time are those of the side that is asked"),
    {#{node := A} = Us, #{node := B} = Them} = pair(Config),
    Transport = transport(Config),
    {Ours, Theirs} = case proplists:get_value(direction, Config) of we_dial -> {out, in}; they_dial -> {in, out} end,
    Here = connection(Us, Them),
    There = connection(Them, Us),
    #{node := B, transport := Transport, direction := Ours, ticktime := 2000, rule := OurRule} = Here,
    #{node := A, transport := Transport, direction := Theirs, ticktime := kernel, rule := TheirRule} = There,
    {match, _} = re:run(OurRule, "policy rule 1.*them"),
    {match, _} = re:run(TheirRule, "policy rule 1.*any"),
    [begin
        [] = Counters -- [Key || Key <- Counters, is_integer(maps:get(Key, Each)), maps:get(Key, Each) >= 0],
        true = is_map_key(last_error, Each),
        true = (Transport =:= tls) =:= is_map(maps:get(tls, Each)),
        %% To dial takes time, and nobody can have waited for longer than net_setuptime.
        #{handshake_time := Took, since := Since} = Each,
        true = Took > 0 andalso Took < 7000000,
        true = abs(erlang:system_time(millisecond) - Since) < 30000
     end || Each <- [Here, There], Counters <- [counters()]].

counters() ->
    [bytes_in, bytes_out, frames_in, frames_out, wire_in, wire_out, reads, writes, queued, queued_max, busy_count, busy_time,
     ticks_in, ticks_out, ticks_missed].

the_ends_name_each_other(Config) ->
    doc("One side's local address is the other's peer; a socket in the file system has one name, its listener's"),
    {Us, Them} = pair(Config),
    {Dialler, Listener} = case proplists:get_value(direction, Config) of we_dial -> {Us, Them}; they_dial -> {Them, Us} end,
    #{peer := Peer, local := Local} = connection(Dialler, Listener),
    #{peer := TheirPeer, local := TheirLocal} = connection(Listener, Dialler),
    Peer = TheirLocal,
    Local = TheirPeer,
    [true = is_address(transport(Config), Each) || Each <- [Peer, TheirLocal]].

is_address(tcp, {{127, 0, 0, 1}, Port}) -> is_integer(Port);
is_address(tcp6, {{0, 0, 0, 0, 0, 0, 0, 1}, Port}) -> is_integer(Port);
is_address(tls, {Ip, Port}) -> is_tuple(Ip) andalso is_integer(Port);
is_address(uds, {local, Path}) -> filename:pathtype(Path) =:= absolute;
is_address(_, _) -> false.

%%
%% What passes
%%

the_ends_agree_on_what_passed(Config) ->
    doc("From the first byte on: what one side has sent is what the other has received, on the wire as well"),
    {Us, Them} = pair(Config),
    agree(Us, Them),
    send(Us, Them, 200, 1000),
    send(Them, Us, 3, 3000000),
    agree(Us, Them).

%% Between two looks a tick may pass.
agree(Us, Them) ->
    wait_until(fun() ->
        {Here, There} = {connection(Us, Them), connection(Them, Us)},
        all_sent(Here, There) andalso all_sent(There, Here)
    end).

all_sent(From, To) ->
    lists:all(fun({Out, In}) -> maps:get(Out, From) =:= maps:get(In, To) end,
              [{bytes_out, bytes_in}, {frames_out, frames_in}, {wire_out, wire_in}, {ticks_out, ticks_in}]).

what_is_sent_is_counted(Config) ->
    doc("Payload, frames, bytes on the wire, system calls: 1000 messages of 100 bytes, and one of 8 MiB"),
    {Us, Them} = pair(Config),
    [begin
        Before = settled(From, To),
        send(From, To, Count, Size),
        After = settled(From, To),
        Grown = fun(Key) -> maps:get(Key, After) - maps:get(Key, Before) end,
        ct:log("~b messages of ~b bytes: ~p", [Count, Size, maps:from_list([{Key, Grown(Key)} || Key <- counters()])]),
        true = Grown(bytes_out) >= Count * Size andalso Grown(bytes_out) < Count * (Size + 200) + 10000,
        true = Grown(frames_out) >= Count,
        true = is_wire(transport(Config), Grown(wire_out), Grown(bytes_out), Grown(frames_out)),
        true = Grown(writes) > 0 andalso Grown(writes) =< 2 * Grown(frames_out) + Grown(wire_out) div 1000,
        true = Grown(bytes_in) < 10000
     end || {From, To} <- [{Us, Them}, {Them, Us}], {Count, Size} <- [{1000, 100}, {1, 8388608}]].

%% Each frame has four bytes of length before it. TLS adds at least 22 to each record of 16 KiB.
is_wire(tls, Wire, Bytes, Frames) ->
    Plain = Bytes + 4 * Frames,
    Wire > Plain + 22 * (Bytes div 16384) andalso Wire < 2 * Plain + 10000;
is_wire(_, Wire, Bytes, Frames) ->
    Wire =:= Bytes + 4 * Frames.

%% The figures between two ticks with nothing on its way.
settled(From, To) ->
    Look = connection(From, To),
    #{queued := Queued, wire_out := Out} = Look,
    case {Queued, connection(To, From)} of
        {0, #{wire_in := Out}} -> Look;
        _ -> receive after 5 -> settled(From, To) end
    end.

%% Waits until they have been received.
send(From, #{node := To} = Receiver, Count, Size) ->
    Echo = run(Receiver, fun() -> polydist_traffic:start_echo(stats_echo) end),
    run(From, fun() ->
        [{stats_echo, To} ! {data, <<0:Size/unit:8>>} || _ <- lists:seq(1, Count)],
        polydist_traffic:echo({stats_echo, To}, done)
    end),
    run(Receiver, fun() -> exit(Echo, kill), wait_until(fun() -> whereis(stats_echo) =:= undefined end) end).

a_reader_that_stops_is_seen_in_the_queue(Config) ->
    doc("The peer is frozen while we send: bytes queued, the most that were, spells in which the VM was held back and their "
        "time, the one under way included; thawed, the queue empties and the time stands still"),
    {Us, Them} = pair(Config),
    %% What has arrived may still be counted as waiting for a moment.
    wait_until(fun() -> maps:get(queued, connection(Us, Them)) =:= 0 end),
    #{busy_count := Spells} = Before = connection(Us, Them),
    freeze(Them),
    Frozen = now_us(),
    fill(Us, Them),
    wait_until(fun() -> maps:get(busy_count, connection(Us, Them)) > Spells end),
    #{queued := Queued, queued_max := Most, busy_time := Time1} = await_full(Us, Them),
    T1 = now_us(),
    true = Queued > 0 andalso Most >= Queued andalso Most < 16 * 1048576,
    wait_until(fun() -> now_us() > T1 + 200000 end),
    #{busy_time := Time2} = connection(Us, Them),
    T2 = now_us(),
    true = Time2 - Time1 >= 190000,
    true = Time2 - maps:get(busy_time, Before) =< T2 - Frozen,
    ok = polydist_node:thaw(Them),
    wait_until(fun() -> maps:get(queued, connection(Us, Them)) =:= 0 andalso not is_filling(Us) end),
    #{busy_time := Time3, queued_max := AtMost} = connection(Us, Them),
    true = Time3 >= Time2 andalso AtMost >= Most,
    T3 = now_us(),
    wait_until(fun() -> now_us() > T3 + 100000 end),
    #{busy_time := Time3, queued_max := AtMost, queued := 0} = connection(Us, Them).

%% 24 MiB and an end: more than the kernel's buffers hold, and soon over when the reader goes on.
fill(Us, #{node := To}) ->
    run(Us, fun() ->
        Sender = spawn(fun() -> [{nobody, To} ! <<N:32, 0:32768/unit:8>> || N <- lists:seq(1, 768)] end),
        register(stats_filler, Sender)
    end).

is_filling(Us) -> is_pid(call(Us, erlang, whereis, [stats_filler])).

%% Nothing moves any more.
await_full(Us, Them) ->
    Look = connection(Us, Them),
    receive after 200 -> ok end,
    case {maps:get(wire_out, Look), connection(Us, Them)} of
        {Out, #{wire_out := Out, queued := Queued} = Full} when Queued > 0 -> Full;
        _ -> await_full(Us, Them)
    end.

ticks_are_counted(Config) ->
    doc("The kernel's ticks, half a second apart, on both sides and whatever the rule says; they are empty frames"),
    {Us, Them} = pair(Config),
    #{ticks_in := In, ticks_out := Out, bytes_out := Bytes, frames_out := Frames} = connection(Us, Them),
    wait_until(fun() ->
        #{ticks_in := MoreIn, ticks_out := MoreOut} = connection(Us, Them),
        MoreIn >= In + 2 andalso MoreOut >= Out + 2
    end),
    agree(Us, Them),
    #{ticks_out := Ticks, bytes_out := MoreBytes, frames_out := MoreFrames} = connection(Us, Them),
    true = MoreFrames - Frames >= Ticks - Out,
    true = MoreBytes - Bytes < 1000.

ticks_that_do_not_come_are_counted(Config) ->
    doc("Either side is frozen for two or three quarters of the tick time: missed, by the rule's clock and by the kernel's, and "
        "no reason to part"),
    {Us, Them} = pair(Config),
    #{since := Since} = connection(Us, Them),
    [begin
        #{ticks_missed := Missed} = connection(Awake, Asleep),
        freeze(Asleep),
        wait_until(fun() -> maps:get(ticks_missed, connection(Awake, Asleep)) > Missed end, 4500),
        ok = polydist_node:thaw(Asleep),
        pong = call(Awake, net_adm, ping, [maps:get(node, Asleep)])
     end || {Awake, Asleep} <- [{Us, Them}, {Them, Us}]],
    #{since := Since} = connection(Us, Them).

%%
%% What came before, and all together
%%

what_went_wrong_before_is_told(Config) ->
    doc("last_error: nothing at first, then why an earlier connection ended, then why one could not be made"),
    Transport = transport(Config),
    [UsOptions, ThemOptions] = options(Transport),
    Name = {exactly, polydist_ct:unique("them")},
    [Us, Them] = polydist_node:start_all(lab(Config), [UsOptions, ThemOptions#{name => Name}]),
    dial(Us, Them, Config),
    #{last_error := undefined} = connection(Us, Them),
    polydist_node:stop(Them),
    wait_until(fun() -> call(Us, erlang, nodes, [connected]) =:= [] end),
    Again = polydist_node:start(lab(Config), ThemOptions#{name => Name}),
    dial(Us, Again, Config),
    #{last_error := Ended} = connection(Us, Again),
    {match, _} = re:run(Ended, atom_to_list(Transport) ++ ".* ended after .*connection_closed"),
    polydist_node:stop(Again),
    wait_until(fun() -> call(Us, erlang, nodes, [connected]) =:= [] end),
    false = call(Us, net_kernel, connect_node, [maps:get(node, Again)]),
    Third = polydist_node:start(lab(Config), ThemOptions#{name => Name}),
    dial(Us, Third, Config),
    #{last_error := Failed} = connection(Us, Third),
    true = is_binary(Failed) andalso Failed =/= Ended,
    ct:comment("~ts", [Failed]),
    polydist_node:disconnect(Us, Third),
    dial(Us, Third, Config),
    %% That we wanted it so is no error.
    #{last_error := Failed} = connection(Us, Third).

a_listener_sums_up_its_connections(Config) ->
    doc("listeners/0 of the side that accepts: how many are established and the sums of their figures; none, and 0, when they "
        "have ended; connections that were dialled are no listener's"),
    Transport = transport(Config),
    {Us, Them} = pair(Config),
    {Dialler, Accepter} = case proplists:get_value(direction, Config) of we_dial -> {Us, Them}; they_dial -> {Them, Us} end,
    [Options, _] = options(Transport),
    Third = polydist_node:start(lab(Config), Options#{name => "third", policy => [{any, #{transports => [Transport]}}]}),
    wait_for_sums(Accepter, Transport, [Dialler]),
    polydist_node:connect(Third, Accepter),
    send(Third, Accepter, 10, 10000),
    send(Accepter, Dialler, 10, 10000),
    wait_for_sums(Accepter, Transport, [Dialler, Third]),
    #{established := 0, bytes_in := 0, bytes_out := 0} = listener(Dialler, Transport),
    [#{established := 0} = Each || #{transport := Other} = Each <- call(Accepter, polydist, listeners, []), Other =/= Transport],
    polydist_node:disconnect(Third, Accepter),
    wait_for_sums(Accepter, Transport, [Dialler]),
    polydist_node:disconnect(Us, Them),
    wait_for_sums(Accepter, Transport, []).

%% Between two looks a tick may pass.
wait_for_sums(Accepter, Transport, Peers) ->
    Keys = [bytes_in, bytes_out, frames_in, frames_out, wire_in, wire_out, queued],
    wait_until(fun() ->
        Listener = listener(Accepter, Transport),
        Connections = [connection(Accepter, Peer) || Peer <- Peers],
        maps:get(established, Listener) =:= length(Peers) andalso
            lists:all(fun(Key) -> maps:get(Key, Listener) =:= lists:sum([maps:get(Key, Each) || Each <- Connections]) end, Keys)
    end).

listener(Node, Transport) ->
    [Listener] = [Each || #{transport := T} = Each <- call(Node, polydist, listeners, []), T =:= Transport],
    Listener.

the_figures_of_a_connection_to_a_stock_node_count(Config) ->
    doc("Towards inet_tcp of another release, as towards ours"),
    [Options, _] = options(tcp),
    Stock = #{name => "them", stock => 29, proto_dist => "inet_tcp", args => maps:get(args, Options)},
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [Options, Stock]),
    polydist_node:connect(Us, Them),
    #{ticktime := 2000, transport := tcp, ticks_in := TicksIn, ticks_out := TicksOut} = Before = connection(Us, Them),
    run(Us, fun() -> [{nobody, B} ! <<0:800000>> || _ <- lists:seq(1, 10)], pong = net_adm:ping(B) end),
    wait_until(fun() ->
        #{ticks_in := In, ticks_out := Out} = connection(Us, Them),
        In > TicksIn andalso Out > TicksOut
    end),
    After = connection(Us, Them),
    [true = maps:get(Key, After) >= maps:get(Key, Before) + 1000000 || Key <- [bytes_out, wire_out]],
    [true = maps:get(Key, After) > maps:get(Key, Before) || Key <- [bytes_in, frames_in, frames_out, wire_in, reads, writes]].

connection(Node, Other) -> polydist_node:connection(Node, Other).

freeze(#{os_pid := OsPid}) ->
    [] = os:cmd("kill -STOP " ++ OsPid),
    ok.

now_us() -> erlang:monotonic_time(microsecond).
