%%% A tick time for one connection, on our side alone.
%%%
%%% Where the policy gives a connection a ticktime, its process comes here instead of dist_util's con_loop once the handshake is
%%% over. It answers what con_loop answers and keeps a clock of its own: every quarter of the ticktime it looks whether anything was
%%% heard from the peer, and the fourth time in a row that nothing was the connection ends with net_tick_timeout. So a peer that
%%% falls silent is noticed after three to five quarters, as with the kernel's clock (erts, `net_ticktime'). Looks are counted, not
%%% seconds: a node that was stopped itself must not blame its peers when it goes on.
%%%
%%% A peer ticks by its own clock, which may be slower. So a quarter in silence is followed by a question that its VM answers
%%% at once and without any process: a monitor of a name that nobody has. And output of ours that the peer's host takes, little by
%%% little, is a sign of life as well: the answer may have to wait behind it.
%%%
%%% net_kernel's ticks are passed on as they come, for the peer counts on them.
-module(polydist_tick).

%% for polydist_connection, in the process of a connection
-export([supervise/6, watch/1, observe/1]).

-type socket() :: {polydist_native:conn(), port()}.
-type state() :: #{kernel := pid(), node := node(), transport := polydist_native:transport(), socket := socket(),
                   ticktime := pos_integer(), timer := reference(), silent := 0..4, missed := counters:counters_ref(),
                   %% What had passed at the last look, and whether output was waiting then.
                   seen := {WireIn :: non_neg_integer(), WireOut :: non_neg_integer()}, waiting := boolean(),
                   %% The monitor of the process that asks, while it waits for the answer.
                   question := reference() | none}.

-define(LOOKS, 4).
-define(NOBODY, '$polydist_nobody').

%% @doc Looks after an established connection until it ends. Ticktime is in milliseconds; Missed counts the quarters in
%% which the peer owed an answer and gave none.
-spec supervise(Kernel :: pid(), node(), polydist_native:transport(), socket(), Ticktime :: pos_integer(),
                Missed :: counters:counters_ref()) -> no_return().
supervise(Kernel, Node, Transport, {Conn, _} = Socket, Ticktime, Missed) ->
    #{wire_in := In, wire_out := Out, queued := Queued} = polydist_native:stats(Conn),
    loop(#{kernel => Kernel, node => Node, transport => Transport, socket => Socket, ticktime => Ticktime,
           timer => next_look(Ticktime), silent => 0, missed => Missed, seen => {In, Out}, waiting => Queued > 0,
           question => none}).

next_look(Ticktime) ->
    erlang:start_timer(Ticktime div ?LOOKS, self(), look).

%% The messages are those of dist_util's con_loop/2.
-spec loop(state()) -> no_return().
loop(#{kernel := Kernel, node := Node, transport := Transport, socket := Socket, timer := Timer, question := Question} = State) ->
    receive
        {timeout, Timer, look} -> look(State);
        {Kernel, Tick} when Tick =:= tick; Tick =:= aux_tick ->
            _ = polydist_connection:tick(Socket), % if it is closed, the end is on its way to us
            loop(State);
        {'DOWN', Question, process, _, _} -> loop(State#{question := none});
        {tcp_closed, Socket} -> shut_down(Node, connection_closed);
        {Kernel, disconnect} -> shut_down(Node, disconnected);
        {From, get_status} ->
            {Conn, _} = Socket,
            {ok, Read, Written, _} = polydist_native:getstat(Conn),
            From ! {self(), get_status, {ok, Read, Written}},
            loop(State);
        {From, Ref, {setopts, Options}} ->
            From ! {Ref, polydist_connection:setopts(Transport, Socket, Options)},
            loop(State);
        {From, Ref, {getopts, Names}} ->
            From ! {Ref, polydist_connection:getopts(Transport, Socket, Names)},
            loop(State);
        _ -> loop(State)
    end.

look(#{socket := {Conn, _}, ticktime := Ticktime, seen := {InBefore, OutBefore}, waiting := Waited, silent := Silent} = State) ->
    #{wire_in := In, wire_out := Out, queued := Queued} = polydist_native:stats(Conn),
    Seen = State#{seen := {In, Out}, waiting := Queued > 0, timer := next_look(Ticktime)},
    case In =/= InBefore orelse Waited andalso Out =/= OutBefore of
        true -> loop(Seen#{silent := 0});
        false -> silence(Seen#{silent := Silent + 1})
    end.

silence(#{silent := ?LOOKS, node := Node, ticktime := Ticktime, missed := Missed}) ->
    counters:add(Missed, 1, 1),
    error_logger:error_msg("** Node ~p not responding within its ticktime of ~p ms **~n"
                           "** Removing (timedout) connection **~n", [Node, Ticktime]),
    shut_down(Node, net_tick_timeout);
silence(#{silent := Silent, socket := Socket, waiting := Waiting, missed := Missed} = State) ->
    %% The first time nobody had been asked.
    Silent =:= 1 orelse counters:add(Missed, 1, 1),
    _ = polydist_connection:tick(Socket), % a C node answers this one
    case Waiting of
        true -> loop(State); % the question would only get in line
        false -> loop(ask(State))
    end.

%% By a process of its own: a process that monitors over a connection that has become busy is suspended until it no longer is.
ask(#{question := none, node := Node, socket := {_, Port}} = State) ->
    {_, Question} = spawn_opt(fun() -> ask(Node, Port) end, [monitor, {priority, max}]),
    State#{question := Question};
ask(State) ->
    State.

%% Not once the connection is gone: to monitor would make a new one. The port may outlive it for a while, and the other way round.
ask(Node, Port) ->
    case erlang:port_info(Port, id) =/= undefined andalso lists:member(Node, nodes(connected)) of
        true ->
            Monitor = monitor(process, {?NOBODY, Node}),
            receive {'DOWN', Monitor, process, _, _} -> ok end;
        false -> ok
    end.

-spec shut_down(node(), Reason :: atom()) -> no_return().
shut_down(Node, Reason) ->
    dist_util:shutdown(?MODULE, ?LINE, Node, Reason).

%% @doc Counts the missed ticks of a connection that dist_util looks after: a quarter of the kernel's net_ticktime in which nothing
%% was heard.
-spec watch(Missed :: counters:counters_ref()) -> ok.
watch(Missed) ->
    Intensity = max(1, application:get_env(kernel, net_tickintensity, 4)),
    Quarter = max(1, application:get_env(kernel, net_ticktime, 60) * 1000 div Intensity),
    _ = put(?MODULE, #{missed => Missed, quarter => Quarter, frames => 0, heard => now_ms(), counted => 0}),
    ok.

%% @doc dist_util has asked how many frames were read: at each tick of the kernel's, and whenever somebody wants to know.
-spec observe(FramesIn :: non_neg_integer()) -> ok.
observe(Frames) ->
    case get(?MODULE) of
        undefined -> ok; % still shaking hands
        #{frames := Frames, heard := Heard, counted := Counted, quarter := Quarter, missed := Missed} = Watch ->
            Silent = (now_ms() - Heard) div Quarter,
            counters:add(Missed, 1, Silent - Counted),
            _ = put(?MODULE, Watch#{counted := Silent}),
            ok;
        Watch ->
            _ = put(?MODULE, Watch#{frames := Frames, heard := now_ms(), counted := 0}),
            ok
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).
