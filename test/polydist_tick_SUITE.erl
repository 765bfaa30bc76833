%%% Tick times of rules: when a peer that fell silent is given up, and that no other is. Real nodes, frozen by SIGSTOP.
%%%
%%% All cases run at the same time, each with nodes of its own, since most of the time goes by in waiting. Their nodes boot case
%%% after case; those that are to be kept busy have to wait for the cases that measure times, and run two at a time: all of them
%%% at once would leave a node on two cores too little to take anything in within its tick time.
-module(polydist_tick_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, run/3, call/4, eval/3]).

suite() -> [{timetrap, {minutes, 4}}].

all() -> [{group, ticktime}].

groups() -> [{ticktime, [parallel], cases()}].

%% In the order of booting.
cases() -> patient() ++ measured() ++ indifferent() ++ loading().

patient() ->
    [
        ninety_seconds_of_silence_are_outlived_as_promised,
        a_longer_ticktime_outlives_the_kernel_s
    ].

measured() ->
    [
        a_node_that_was_frozen_itself_drops_nobody,
        a_frozen_peer_that_we_dialled_is_down_in_time,
        a_frozen_peer_that_dialled_us_is_down_in_time,
        half_a_second_can_be_asked_for,
        a_new_net_ticktime_changes_the_others_only,
        a_peer_that_expects_the_kernel_s_ticks_is_fed,
        a_peer_without_a_rule_keeps_the_kernel_s_ticktime
    ].

indifferent() ->
    [
        a_disconnected_peer_is_not_called_back,
        net_kernel_gets_its_answers,
        a_distribution_that_stops_is_gone_at_once
    ].

%% When the measured ones are through, this many at a time.
-define(LOADING, 2).

loading() ->
    [
        an_idle_connection_stays_up_under_load,
        a_connection_full_of_small_messages_stays_up_under_load,
        a_connection_full_of_big_messages_stays_up_under_load,
        a_connection_that_only_receives_stays_up_under_load
    ].

init_per_suite(Config) -> [{turns, spawn(fun() -> turns([], [], []) end)} | polydist_ct:open_lab(?MODULE, Config)].

end_per_suite(Config) ->
    exit(proplists:get_value(turns, Config), kill),
    polydist_ct:close_lab(Config).

init_per_testcase(Case, Config) -> [{'case', Case} | Config].

end_per_testcase(Case, Config) ->
    proplists:get_value(turns, Config) ! {ended, Case},
    ok.

%%
%% A peer that falls silent
%%

a_frozen_peer_that_we_dialled_is_down_in_time(Config) ->
    doc("ticktime => 2 where the kernel's is 60, over every transport, ours and stock, idle and while we send: net_tick_timeout"),
    Star = star(Config, [{Link, 2} || Link <- ours() ++ stock()]),
    freeze_rounds(Star, we_dial).

a_frozen_peer_that_dialled_us_is_down_in_time(Config) ->
    doc("The rule holds for accepted connections as well"),
    Star = star(Config, [{Link, 2} || Link <- ours() ++ [stock_tcp, stock_tcp6]]),
    freeze_rounds(Star, they_dial).

freeze_rounds(Star, Direction) ->
    [ct:log("~p, ~p: milliseconds from the freeze to nodedown~n~p", [Direction, Flow, freeze_round(Star, Direction, Flow)])
     || Flow <- [idle, small, big, drip, trickle]].

%% Connected, talked to, frozen all at once, down in time, thawed.
freeze_round({Us, Peers} = Star, Direction, Flow) ->
    connect_all(Star, Direction),
    record(Us),
    start_flow(Us, Peers, Flow),
    Took = down_within(Us, Peers, frozen(Peers), window(Flow)),
    thaw_all(Peers),
    await_disconnected(Star),
    Took.

%% From 3/4 to 5/4 of the tick time, and half a second for a machine that has much to do. What we send is progress until the
%% kernel's buffers are full, and that does not take a second.
window(idle) -> {1500, 3000};
window(_) -> {1500, 4000}.

half_a_second_can_be_asked_for(Config) ->
    doc("ticktime => {500, ms}: ten seconds go by in health, and a frozen peer is down in half a second"),
    {Us, Peers} = Star = star(Config, [{Link, {500, ms}} || Link <- ours() ++ [stock_tcp]]),
    connect_all(Star, we_dial),
    [] = lost_in(Us, 10000),
    record(Us),
    Took = down_within(Us, Peers, frozen(Peers), {375, 1200}),
    ct:log("milliseconds from the freeze to nodedown: ~p", [Took]).

a_peer_without_a_rule_keeps_the_kernel_s_ticktime(Config) ->
    doc("net_ticktime 4, and ticktime => 60 for some: frozen for as long, those stay and the others go"),
    Args = ticktime(4),
    Links = [tcp, uds, stock_tcp],
    {Us, Peers} = Star = star(Config, [{Link, Ticktime} || Link <- Links, Ticktime <- [kernel, 60]], Args, Args),
    connect_all(Star, we_dial),
    record(Us),
    Times = frozen(Peers),
    _ = down_within(Us, with(kernel, Peers), Times, {3000, 7000}),
    [] = lost_in(Us, 6000),
    thaw_all(Peers),
    [pong = ping(Us, Peer) || {_, Peer} <- with(60, Peers)],
    true = length(Links) =:= length(call(Us, erlang, nodes, [connected])).

a_new_net_ticktime_changes_the_others_only(Config) ->
    doc("net_kernel:set_net_ticktime/2 from 60 to 4: who has no rule gets 4, who has one keeps its own, 2 or 60"),
    Spokes = [{Link, Ticktime} || Link <- [tcp, uds], Ticktime <- [kernel, 2, 60]],
    {Us, Peers} = Star = star(Config, Spokes, ticktime(60), ticktime(4)),
    connect_all(Star, we_dial),
    change_initiated = call(Us, net_kernel, set_net_ticktime, [4, 0]),
    wait_until(fun() -> call(Us, net_kernel, get_net_ticktime, []) =:= 4 end),
    [] = lost_in(Us, 8000),
    record(Us),
    Times = frozen(Peers),
    polydist_ct:parallel([
        fun() -> down_within(Us, with(2, Peers), Times, {1500, 3000}) end,
        fun() -> down_within(Us, with(kernel, Peers), Times, {3000, 7000}) end
    ]),
    [] = lost_in(Us, 5000),
    thaw_all(Peers),
    [pong = ping(Us, Peer) || {_, Peer} <- with(60, Peers)].

%%
%% A peer that is silent for long and comes back
%%

ninety_seconds_of_silence_are_outlived_as_promised(Config) ->
    doc("ticktime => 120 where the kernel's is 60: frozen for 90 seconds; what was sent meanwhile arrives, in order"),
    outlive(star(Config, [{Link, 120} || Link <- ours()]), 90000).

a_longer_ticktime_outlives_the_kernel_s(Config) ->
    doc("ticktime => 120 where the kernel's is 8: frozen for 30 seconds; what was sent meanwhile arrives, in order"),
    outlive(star(Config, [{Link, 120} || Link <- ours() ++ stock()], ticktime(8), []), 30000).

outlive({Us, Peers} = Star, Milliseconds) ->
    connect_all(Star, mixed),
    Before = connections(Us, Peers),
    _ = [start_collector(Peer) || {_, Peer} <- Peers],
    _ = frozen(Peers),
    %% More than the kernel's buffers hold: the senders wait for most of the time.
    run(Us, fun() -> [spawn(fun() -> send_numbers(Node, 1, 2000, 5000) end) || {_, #{node := Node}} <- Peers], ok end),
    [] = lost_in(Us, Milliseconds),
    thaw_all(Peers),
    [wait_until(fun() -> collected(Peer) =:= 2000 end, 30000) || {_, Peer} <- Peers],
    [] = lost_in(Us, 2000),
    Before = connections(Us, Peers).

send_numbers(_, Number, Last, _) when Number > Last ->
    ok;
send_numbers(Node, Number, Last, Size) ->
    erlang:send({collector, Node}, {number, Number, <<0:Size/unit:8>>}, [noconnect]),
    send_numbers(Node, Number + 1, Last, Size).

%% Counts messages as long as they come in order.
start_collector(Peer) ->
    eval(Peer, "
        F = fun(F, N) ->
                receive
                    {number, M, _} when M =:= N + 1 -> F(F, M);
                    {From, Tag} -> From ! {Tag, N}, F(F, N)
                end
            end,
        register(collector, spawn(fun() -> F(F, 0) end)), ok", #{}).

collected(Peer) ->
    eval(Peer, "
        Tag = make_ref(), collector ! {self(), Tag},
        receive {Tag, N} -> N after 20000 -> {out_of_order, process_info(whereis(collector), messages)} end", #{}).

a_node_that_was_frozen_itself_drops_nobody(Config) ->
    doc("ticktime => 2 on the node that is frozen, for seconds and again and again; its peers were well all the time"),
    {Us, Peers} = Star = star(Config, [{Link, 2} || Link <- ours() ++ stock()]),
    connect_all(Star, mixed),
    Before = connections(Us, Peers),
    [begin
        record(Us),
        _ = frozen([{us, Us}]),
        receive after Milliseconds -> ok end,
        thaw_all([{us, Us}]),
        [] = lost_in(Us, 3000),
        [] = lost(Us)
     end || Milliseconds <- [5000, 1900]],
    %% Little more awake than a poll takes.
    record(Us),
    _ = [begin
        _ = frozen([{us, Us}]),
        receive after 800 -> ok end,
        thaw_all([{us, Us}]),
        receive after 40 -> ok end
     end || _ <- lists:seq(1, 8)],
    [] = lost_in(Us, 3000),
    [] = lost(Us),
    Before = connections(Us, Peers).

a_peer_that_expects_the_kernel_s_ticks_is_fed(Config) ->
    doc("A peer whose kernel gives up after 4 seconds of silence hears enough, under a longer tick time and under a shorter one"),
    Links = [tcp, uds, stock_tcp, stock_tls],
    Longer = star(Config, [{Link, 60} || Link <- Links], ticktime(4), ticktime(4)),
    Shorter = star(Config, [{Link, 2} || Link <- Links], ticktime(60), ticktime(4)),
    polydist_ct:parallel([fun() -> fed(Star) end || Star <- [Longer, Shorter]]).

fed({Us, Peers} = Star) ->
    connect_all(Star, mixed),
    Before = connections(Us, Peers),
    [] = lost_in(Us, 15000),
    Before = connections(Us, Peers).

%%
%% A peer that is well, on a machine that is not
%%

an_idle_connection_stays_up_under_load(Config) ->
    doc("ticktime => 2, a busy process for each scheduler of every node, nothing sent for a minute"),
    stay_up(Config, 60, in_two_seconds(ours() ++ stock()), 0, fun(_, _) -> ok end).

a_connection_full_of_small_messages_stays_up_under_load(Config) ->
    doc("ticktime => 2, 4 for stock TLS, every node busy, and we send small messages for a minute as fast as they go"),
    %% Stock TLS in want of a processor may read nothing for two seconds, which is silence.
    Spokes = [{stock_tls, 4} | in_two_seconds([tcp, tls, uds, stock_tcp])],
    stay_up(Config, 60, Spokes, 1000000, fun(Us, Peers) -> start_flow(Us, Peers, small) end).

a_connection_full_of_big_messages_stays_up_under_load(Config) ->
    doc("ticktime => 2, every node busy, and we send messages of 1 MiB as fast as they go; nothing is sent back"),
    Spokes = in_two_seconds([tcp6, tls, uds, stock_tcp6, stock_tls]),
    stay_up(Config, 30, Spokes, 1000000, fun(Us, Peers) -> start_flow(Us, Peers, big) end).

a_connection_that_only_receives_stays_up_under_load(Config) ->
    doc("ticktime => 2, every node busy, and the peers send, big messages and small, while we say nothing"),
    stay_up(Config, 30, in_two_seconds([tcp, tls, uds, stock_tcp]), 1000000, fun(#{node := A}, Peers) ->
        [ok = eval(Peer, "
            Payload = binary:copy(<<0>>, Size),
            F = fun(F, ok) -> F(F, erlang:send({nobody, A}, Payload, [noconnect])); (_, noconnect) -> gone end,
            spawn(fun() -> F(F, ok) end), ok", #{'A' => A, 'Size' => Size})
         || {Number, {_, Peer}} <- lists:enumerate(Peers), Size <- [element(1 + Number rem 2, {10, 1048576})]]
    end).

in_two_seconds(Links) -> [{Link, 2} || Link <- Links].

%% Least is the number of bytes that show that they really talked.
stay_up(Config, Seconds, Spokes, Least, Talk) ->
    %% One scheduler, or this suite would load the machine with a hundred threads that are always busy.
    {Us, Peers} = Star = star(Config, Spokes, ticktime(60), [], alone() ++ ["+S", "1"]),
    connect_all(Star, mixed),
    Before = connections(Us, Peers),
    record(Us),
    _ = [keep_busy(Node) || {_, Node} <- [{us, Us} | Peers]],
    Talk(Us, Peers),
    [] = lost_in(Us, Seconds * 1000),
    [] = lost(Us),
    Before = connections(Us, Peers),
    Keys = [bytes_in, bytes_out, ticks_missed],
    Moved = [{Spoke, maps:with(Keys, polydist_node:connection(Us, Peer))} || {Spoke, Peer} <- Peers],
    ct:log("in ~b s~n~p", [Seconds, Moved]),
    [] = [Too || {_, #{bytes_in := In, bytes_out := Out}} = Too <- Moved, In + Out < Least].

keep_busy(Node) ->
    eval(Node, "
        F = fun(F) -> F(F) end,
        [spawn(fun() -> F(F) end) || _ <- lists:seq(1, erlang:system_info(schedulers_online))], ok", #{}).

%%
%% What net_kernel and its callers ask of a connection
%%

net_kernel_gets_its_answers(Config) ->
    doc("nodes_info/0, node_info/1, get_status, setopts and getopts, and the reasons of disconnect_node/1 on a ruled connection"),
    {Us, Peers} = Star = star(Config, [{Link, 60} || Link <- ours() ++ [stock_tcp, stock_tls]]),
    connect_all(Star, mixed),
    [begin
        ok = run(Us, fun() -> net_kernel_knows(B), options_can_be_set(B, Transport) end),
        record(Us),
        start_recorder_of(Link, Them),
        T0 = now_ms(),
        true = call(Us, erlang, disconnect_node, [B]),
        wait_until(fun() -> [{B, disconnect}] =:= [{Node, Reason} || {Node, Reason, _} <- lost(Us)] end),
        true = now_ms() - T0 < 2000,
        wait_until(fun() -> call(Them, erlang, nodes, [connected]) =:= [] end),
        [connection_closed] = reasons_of(Link, Them)
     end || {{Link, _}, #{node := B} = Them} <- Peers, Transport <- [transport(Link)]].

%% Nodes of another release do not run this module.
start_recorder_of(Link, Node) ->
    lists:member(Link, ours()) andalso record(Node).

reasons_of(Link, Node) ->
    case lists:member(Link, ours()) of
        true -> [Reason || {_, Reason, _} <- lost(Node)];
        false -> [connection_closed]
    end.

net_kernel_knows(Node) ->
    {ok, Info} = net_kernel:node_info(Node),
    up = proplists:get_value(state, Info),
    normal = proplists:get_value(type, Info),
    Owner = proplists:get_value(owner, Info),
    true = is_process_alive(Owner),
    {ok, In} = net_kernel:node_info(Node, in),
    {ok, Out} = net_kernel:node_info(Node, out),
    true = In > 0 andalso Out > 0,
    Owner ! {self(), get_status},
    receive {Owner, get_status, {ok, Read, Written}} -> true = Read >= In andalso Written >= Out end,
    pong = net_adm:ping(Node),
    {ok, More} = net_kernel:node_info(Node, in),
    true = More > In,
    {ok, Nodes} = net_kernel:nodes_info(),
    {Node, All} = lists:keyfind(Node, 1, Nodes),
    Owner = proplists:get_value(owner, All),
    %% Like dist_util's own loop it takes part in what the ticker does with all connections.
    {message_queue_len, 0} = process_info(Owner, message_queue_len).

options_can_be_set(Node, Transport) ->
    {Option, Values} = case Transport of uds -> {sndbuf, [65536, 131072]}; _ -> {nodelay, [false, true]} end,
    [begin
        ok = net_kernel:setopts(Node, [{Option, Value}]),
        {ok, [{Option, Got}]} = net_kernel:getopts(Node, [Option]),
        true = Got =:= Value orelse Got =:= 2 * Value
     end || Value <- Values],
    {ok, []} = net_kernel:getopts(Node, []),
    {error, _} = net_kernel:setopts(Node, [{no_such_option, 1}]),
    ok.

a_disconnected_peer_is_not_called_back(Config) ->
    doc("ticktime => {200, ms} and nodes that connect by themselves: after disconnect_node/1, by us or by them, at any moment of "
        "a poll, idle or while we send, they stay apart"),
    Spokes = [{Link, {200, ms}} || Link <- ours() ++ stock()],
    Star = star(Config, Spokes, [], [], ["-connect_all", "false"]),
    Ways = [{us, idle}, {them, idle}, {us, small}, {them, big}],
    [stay_apart(Star, Side, Flow, 7 * Round, 300) || Round <- lists:seq(1, 6), {Side, Flow} <- Ways],
    [stay_apart(Star, Side, idle, 0, 3000) || Side <- [us, them]].

stay_apart({Us, Peers} = Star, Side, Flow, Before, After) ->
    connect_all(Star, mixed),
    %% Any may be down already: a fifth of a second is not much on a machine with that much to do.
    start_flow(Us, Peers, Flow, infinity),
    receive after Before -> ok end,
    _ = [disconnect_by(Side, Us, Peer) || {_, Peer} <- Peers],
    await_disconnected(Star),
    [] = events_in(Us, After).

disconnect_by(us, Us, #{node := B}) -> call(Us, erlang, disconnect_node, [B]);
disconnect_by(them, #{node := A}, Them) -> call(Them, erlang, disconnect_node, [A]).

a_distribution_that_stops_is_gone_at_once(Config) ->
    doc("net_kernel:stop/0 with ruled connections, also to a peer that is frozen while we send: soon done, and nothing is left"),
    Lab = lab(Config),
    Policy = [{any, #{transports => [uds], ticktime => 2}}],
    [Us, Them] = turn(Config, fun() ->
        polydist_node:start_all(Lab, [#{name => none, policy => Policy, args => alone()}, #{force => [uds], args => alone()}])
    end),
    _ = start_and_stop(Us, Them, idle),
    _ = start_and_stop(Us, Them, small),
    {Ours, Theirs} = {polydist_node:resources(Us), polydist_node:resources(Them)},
    Reasons = [start_and_stop(Us, Them, Flow) || Flow <- [idle, small, drip, idle, small]],
    [connection_closed] = lists:usort(Reasons),
    [] = call(Us, erlang, nodes, [connected]),
    _ = polydist_node:await_resources(Us, Ours),
    _ = polydist_node:await_resources(Them, Theirs).

start_and_stop(Us, #{node := B} = Them, Flow) ->
    Name = list_to_atom(polydist_ct:unique("stops") ++ "@localhost"),
    {ok, _} = call(Us, net_kernel, start, [Name, #{name_domain => shortnames}]),
    true = call(Us, net_kernel, connect_node, [B]),
    record(Them),
    start_flow(Us, [{peer, Them}], Flow),
    Flow =:= small andalso frozen([{peer, Them}]),
    T0 = now_ms(),
    ok = call(Us, net_kernel, stop, []),
    true = now_ms() - T0 < 3000,
    thaw_all([{peer, Them}]),
    wait_until(fun() -> lost(Them) =/= [] end),
    [{Name, Reason, _}] = lost(Them),
    stop_recorder(Them),
    Reason.

%%
%% Stars: a node of ours in the middle, with a rule for each of its peers
%%

%% Ours by transport; stock ones of three releases.
ours() -> [tcp, tcp6, tls, uds].
stock() -> [stock_tcp, stock_tcp6, stock_tls].

transport(stock_tcp) -> tcp;
transport(stock_tcp6) -> tcp6;
transport(stock_tls) -> tls;
transport(Ours) -> Ours.

%% A spoke is `{Link, Ticktime}', Ticktime as a rule has it, or kernel for no rule about it.
star(Config, Spokes) ->
    star(Config, Spokes, ticktime(60), []).

star(Config, Spokes, OurArgs, TheirArgs) ->
    star(Config, Spokes, OurArgs, TheirArgs, alone()).

star(Config, Spokes, OurArgs, TheirArgs, AllArgs) ->
    Lab = lab(Config),
    Hub = #{name => "hub", policy => [rule(Spoke) || Spoke <- Spokes], args => AllArgs ++ OurArgs},
    Rim = [peer(Lab, Spoke, AllArgs ++ TheirArgs) || Spoke <- Spokes],
    [Us | Them] = turn(Config, fun() -> polydist_node:start_all(Lab, [Hub | Rim]) end),
    {Us, lists:zip(Spokes, Them)}.

%% Nobody dials but the test.
alone() -> ["-connect_all", "false" | polydist_ct:never()].

ticktime(Seconds) -> ["-kernel", "net_ticktime", integer_to_list(Seconds)].

rule({Link, Ticktime} = Spoke) ->
    Options = [{transports, [transport(Link)]}] ++ [{ticktime, Ticktime} || Ticktime =/= kernel] ++
        [{legacy, tls} || Link =:= stock_tls],
    {prefix(Spoke) ++ "*@*", maps:from_list(Options)}.

prefix({Link, {Milliseconds, ms}}) -> lists:concat([Link, "_", Milliseconds, "ms_"]);
prefix({Link, Ticktime}) -> lists:concat([Link, "_", Ticktime, "_"]).

peer(Lab, {Link, _} = Spoke, Args) ->
    Options = peer(Link, Lab),
    Options#{name => prefix(Spoke), args => maps:get(args, Options, []) ++ Args}.

peer(stock_tcp, _) -> #{stock => 29, proto_dist => "inet_tcp"};
peer(stock_tcp6, _) -> #{stock => 27, proto_dist => "inet6_tcp"};
peer(stock_tls, #{optfile := Optfile}) -> #{proto_dist => "inet_tls", args => ["-ssl_dist_optfile", Optfile]};
peer(Transport, _) -> #{carriers => [Transport], force => [Transport]}.

with(Ticktime, Peers) -> [Peer || {{_, Each}, _} = Peer <- Peers, Each =:= Ticktime].

connect_all({Us, Peers}, Direction) ->
    [case dials(Direction, Link) of
        us -> ok = polydist_node:connect(Us, Peer);
        them -> ok = polydist_node:connect(Peer, Us)
     end || {{Link, _}, Peer} <- Peers].

dials(we_dial, _) -> us;
dials(they_dial, _) -> them;
dials(mixed, Link) when Link =:= tls; Link =:= uds -> them;
dials(mixed, _) -> us.

%% A stock node that finds its TLS connection closed first tries to send a closing alert, and waits for that for five seconds at a
%% time (tls_gen_connection:send_sync_alert/2): how soon it tells its own net_kernel is not ours to measure.
await_disconnected({Us, Peers}) ->
    [wait_until(fun() -> call(Node, erlang, nodes, [connected]) =:= [] end, 60000) || {_, Node} <- [{us, Us} | Peers]],
    ok.

%% The same as before if each connection is still the same.
connections(Us, Peers) ->
    [maps:with([node, since], polydist_node:connection(Us, Peer)) || {_, Peer} <- Peers].

ping(Us, #{node := B}) -> call(Us, net_adm, ping, [B]).

%%
%% Turns: one case boots its nodes at a time, of those that wait the first in the list
%%

turn(Config, Boot) ->
    Turns = proplists:get_value(turns, Config),
    Turns ! {waits, self(), proplists:get_value('case', Config)},
    receive {Turns, your_turn} -> ok end,
    Booted = Boot(),
    Turns ! {booted, self()},
    Booted.

%% All begin to wait at the same time, if not in order.
turns(Waiting, Measuring, Loading) ->
    receive
        {waits, Pid, Case} ->
            Sorted = lists:sort([{position(Case), Case, Pid} | Waiting]),
            turns(Sorted, lists:usort([Case || is_measured(Case)] ++ Measuring), Loading);
        {ended, Case} ->
            turns(Waiting, Measuring -- [Case], Loading -- [Case])
    after 50 ->
        MayLoad = Measuring =:= [] andalso length(Loading) < ?LOADING,
        case [Each || {_, Case, _} = Each <- Waiting, MayLoad orelse not is_loading(Case)] of
            [{_, Case, Pid} = First | _] ->
                give_turn(Pid),
                turns(Waiting -- [First], Measuring, [Case || is_loading(Case)] ++ Loading);
            [] ->
                turns(Waiting, Measuring, Loading)
        end
    end.

give_turn(Pid) ->
    Monitor = monitor(process, Pid),
    Pid ! {self(), your_turn},
    receive
        {booted, Pid} -> demonitor(Monitor, [flush]);
        {'DOWN', Monitor, process, Pid, _} -> true
    end.

position(Case) -> length(lists:takewhile(fun(Each) -> Each =/= Case end, cases())).

is_measured(Case) -> lists:member(Case, measured()).

is_loading(Case) -> lists:member(Case, loading()).

%%
%% Frozen and thawed
%%

%% They have been frozen no sooner than the first time and no later than the second.
frozen(Nodes) ->
    T0 = now_ms(),
    [] = os:cmd(lists:append(lists:join(" ", ["kill -STOP" | [OsPid || {_, #{os_pid := OsPid}} <- Nodes]]))),
    {T0, now_ms()}.

thaw_all(Nodes) ->
    _ = [ok = polydist_node:thaw(Node) || {_, Node} <- Nodes],
    ok.

%% The nodes share a clock.
now_ms() -> os:system_time(millisecond).

%% Waits until all are down, each in time by net_tick_timeout, and tells in what time.
down_within(Us, Peers, {T0, T1}, {Shortest, Longest}) ->
    Names = [Name || {_, #{node := Name}} <- Peers],
    wait_until(fun() -> Names -- [Name || {Name, _, _} <- lost(Us)] =:= [] end, Longest + 12000),
    Lost = lost(Us),
    Took = [{Spoke, Reason, At - T1} || {Spoke, #{node := Name}} <- Peers, {Each, Reason, At} <- Lost, Each =:= Name],
    case [Each || {_, Reason, Time} = Each <- Took,
                  Reason =/= net_tick_timeout orelse Time + T1 - T0 < Shortest orelse Time > Longest] of
        [] -> [{Spoke, Time} || {Spoke, _, Time} <- Took];
        Wrong -> error({not_down_in_time, {Shortest, Longest}, Wrong, {signal_took, T1 - T0}, {of_all, Took}})
    end.

%%
%% On our node: what is lost, and when
%%

%% From now on; what was recorded before is forgotten.
record(Node) ->
    stop_recorder(Node),
    run(Node, fun() ->
        Caller = self(),
        Recorder = spawn(fun() ->
            process_flag(priority, high),
            polydist_traffic:watch_nodes(),
            register(tick_recorder, self()),
            Caller ! {self(), ready},
            recorder([])
        end),
        receive {Recorder, ready} -> ok end
    end).

recorder(Events) ->
    receive
        {nodedown, Node, Info} ->
            recorder([{nodedown, Node, proplists:get_value(nodedown_reason, Info), now_ms()} | Events]);
        {nodeup, Node, _} ->
            recorder([{nodeup, Node, none, now_ms()} | Events]);
        {From, Tag, events} ->
            From ! {Tag, lists:reverse(Events)},
            recorder(Events);
        {From, Tag, stop} ->
            unregister(tick_recorder),
            From ! {Tag, stopped}
    end.

stop_recorder(Node) ->
    run(Node, fun() -> is_pid(whereis(tick_recorder)) andalso ask_recorder(stop) end).

ask_recorder(What) ->
    Tag = make_ref(),
    tick_recorder ! {self(), Tag, What},
    receive {Tag, Answer} -> Answer end.

events(Node) -> run(Node, fun() -> ask_recorder(events) end).

lost(Node) -> [{Name, Reason, At} || {nodedown, Name, Reason, At} <- events(Node)].

%% The nodes that go down in this time.
lost_in(Node, Milliseconds) ->
    run(Node, fun() ->
        polydist_traffic:watch_nodes(),
        receive {nodedown, Name, Info} -> [{Name, Info}] after Milliseconds -> [] end
    end, Milliseconds + 60000).

events_in(Node, Milliseconds) ->
    run(Node, fun() ->
        polydist_traffic:watch_nodes(),
        receive Event -> [Event] after Milliseconds -> [] end
    end, Milliseconds + 60000).

%%
%% What we send
%%

%% The size of a message, and the milliseconds between two.
flow(small) -> {10, 0};
flow(big) -> {1048576, 0};
flow(drip) -> {100, 10};
flow(trickle) -> {20000, 2}.

%% A sender to each, until the connection ends; waits until something has been sent by all of them.
start_flow(Us, Peers, Flow) ->
    start_flow(Us, Peers, Flow, 0).

%% IfDown stands for the frames of a connection that is down.
start_flow(_, _, idle, _) ->
    ok;
start_flow(Us, Peers, Flow, IfDown) ->
    {Size, Pause} = flow(Flow),
    Before = frames_out(Us),
    run(Us, fun() ->
        Payload = binary:copy(<<0>>, Size),
        [spawn(fun() -> send_flow({nobody, Node}, Payload, Pause) end) || {_, #{node := Node}} <- Peers],
        ok
    end),
    wait_until(fun() ->
        Now = frames_out(Us),
        lists:all(fun({_, #{node := Node}}) -> maps:get(Node, Now, IfDown) >= maps:get(Node, Before, 0) + 20 end, Peers)
    end, 30000).

frames_out(Us) ->
    maps:from_list([{Node, Frames} || #{node := Node, frames_out := Frames} <- call(Us, polydist, connections, [])]).

send_flow(To, Payload, Pause) ->
    case erlang:send(To, Payload, [noconnect]) of
        ok when Pause =:= 0 -> send_flow(To, Payload, Pause);
        ok -> receive after Pause -> send_flow(To, Payload, Pause) end;
        noconnect -> gone
    end.
