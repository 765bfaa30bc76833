%%% Traffic between two nodes whose every byte and order is checked. All of it runs on the nodes under test.
-module(polydist_traffic).

-export([start_echo/1, payload/1, payloads/0, echo/2]).
-export([start_sink/3, await_sink/1, send_all/4, start_count/2]).
-export([watch_nodes/0, await_nodeup/1, await_nodedown/1]).

%% @doc Registers a process that answers `{From, Tag, Term}' with `{Tag, Term}' for ever, and takes anything else in silence.
-spec start_echo(Name :: atom()) -> pid().
start_echo(Name) ->
    Pid = spawn(fun echo_loop/0),
    register(Name, Pid),
    Pid.

echo_loop() ->
    receive
        {From, Tag, Term} -> From ! {Tag, Term};
        _ -> passed_over
    end,
    echo_loop().

%% @doc Sends a term to an echo process and checks that the very same comes back.
-spec echo(To :: pid() | {atom(), node()}, term()) -> ok.
echo(To, Term) ->
    Tag = make_ref(),
    To ! {self(), Tag, Term},
    receive
        {Tag, Term} -> ok;
        {Tag, Other} -> error({changed_on_the_way, erlang:external_size(Term), erlang:external_size(Other)})
    after 60000 -> error({no_echo, erlang:external_size(Term)})
    end.

%% @doc A binary of this size in which no two kilobytes are alike, so that a lost or moved piece shows.
-spec payload(Size :: non_neg_integer()) -> binary().
payload(Size) ->
    Block = list_to_binary([(I * 7 + I div 251) band 255 || I <- lists:seq(1, 1020)]),
    Blocks = (Size + 1023) div 1024,
    binary:part(<<<<I:32, Block/binary>> || I <- lists:seq(1, Blocks)>>, 0, Size).

%% @doc Terms of every kind that the external format treats in its own way.
-spec payloads() -> [term()].
payloads() ->
    Big = payload(200000),
    [
        [], {}, #{}, a, 'ünïcödé 😀', -1, 1 bsl 3000, 1.5, "string", <<1:3>>, <<Big/binary, 5:3>>, self(), make_ref(),
        fun lists:map/2, fun() -> Big end, lists:seq(1, 50000), maps:from_list([{I, {I}} || I <- lists:seq(1, 2000)]),
        %% As many pieces of memory as binaries.
        [binary:part(Big, I * 40, 70) || I <- lists:seq(0, 4000)],
        [payload(65536) || _ <- lists:seq(1, 20)],
        [list_to_atom("polydist_atom_" ++ integer_to_list(I)) || I <- lists:seq(1, 3000)],
        lists:foldl(fun(I, Inner) -> {I, Inner} end, leaf, lists:seq(1, 10000))
    ].

%% @doc Registers a process that takes `Count' numbered messages of each of the senders and checks their order.
-spec start_sink(Name :: atom(), Senders :: pos_integer(), Count :: pos_integer()) -> pid().
start_sink(Name, Senders, Count) ->
    Caller = self(),
    {Sink, _} = spawn_monitor(fun() ->
        register(Name, self()),
        Caller ! {self(), ready},
        exit({all, sink(maps:from_list([{N, 1} || N <- lists:seq(1, Senders)]), Count, 0)})
    end),
    receive {Sink, ready} -> Sink end.

sink(Expected, _, Bytes) when map_size(Expected) =:= 0 ->
    Bytes;
sink(Expected, Count, Bytes) ->
    receive
        {Sender, Number, Check, Payload} ->
            #{Sender := Number} = Expected,
            Check = erlang:crc32(Payload),
            sink(next(Sender, Number, Count, Expected), Count, Bytes + byte_size(Payload))
    after 60000 -> exit({missing, Expected})
    end.

next(Sender, Count, Count, Expected) -> maps:remove(Sender, Expected);
next(Sender, Number, _, Expected) -> Expected#{Sender := Number + 1}.

%% @doc Waits for a sink of the calling process: the bytes it got, or an error that says what it missed.
-spec await_sink(pid()) -> Bytes :: non_neg_integer().
await_sink(Sink) ->
    receive
        {'DOWN', _, process, Sink, {all, Bytes}} -> Bytes;
        {'DOWN', _, process, Sink, Reason} -> error({sink, Reason})
    after 120000 -> error(sink_timeout)
    end.

%% @doc Many senders at once, each its own numbered sequence of messages of these sizes in turn.
-spec send_all(To :: {atom(), node()}, Senders :: pos_integer(), Count :: pos_integer(), Sizes :: [non_neg_integer()]) -> ok.
send_all(To, Senders, Count, Sizes) ->
    Payloads = list_to_tuple([{erlang:crc32(Payload), Payload} || Size <- Sizes, Payload <- [payload(Size)]]),
    Started = [spawn_monitor(fun() -> send_numbered(To, Sender, 1, Count, Payloads) end) || Sender <- lists:seq(1, Senders)],
    _ = [receive {'DOWN', Monitor, process, _, normal} -> ok end || {_, Monitor} <- Started],
    ok.

send_numbered(_, _, Number, Count, _) when Number > Count ->
    ok;
send_numbered(To, Sender, Number, Count, Payloads) ->
    {Check, Payload} = element((Sender + Number) rem tuple_size(Payloads) + 1, Payloads),
    To ! {Sender, Number, Check, Payload},
    send_numbered(To, Sender, Number + 1, Count, Payloads).

%% @doc A sender whose progress can be read while it is suspended: `counters:get(Counter, 1)' messages are sent.
-spec start_count(To :: {atom(), node()}, {Count :: pos_integer(), Size :: pos_integer()}) -> {pid(), counters:counters_ref()}.
start_count(To, {Count, Size}) ->
    Counter = counters:new(1, []),
    Payload = payload(Size),
    {Sender, _} = spawn_monitor(fun() -> send_counted(To, 1, Count, Payload, Counter) end),
    {Sender, Counter}.

send_counted(_, Number, Count, _, _) when Number > Count ->
    ok;
send_counted(To, Number, Count, Payload, Counter) ->
    %% Its own binary each time, so that what is queued is held and not shared.
    Mine = <<Number:32, Payload/binary>>,
    To ! {1, Number, erlang:crc32(Mine), Mine},
    counters:add(Counter, 1, 1),
    send_counted(To, Number + 1, Count, Payload, Counter).

%% @doc From now on the calling process can wait for nodes to come and go.
-spec watch_nodes() -> ok.
watch_nodes() ->
    net_kernel:monitor_nodes(true, [nodedown_reason, {node_type, all}]).

-spec await_nodeup(node()) -> ok.
await_nodeup(Node) ->
    receive {nodeup, Node, _} -> ok after 15000 -> error({no_nodeup, Node}) end.

%% @doc The reason the runtime system gives.
-spec await_nodedown(node()) -> Reason :: term().
await_nodedown(Node) ->
    receive
        {nodedown, Node, Info} -> proplists:get_value(nodedown_reason, Info)
    after 15000 -> error({no_nodedown, Node})
    end.
