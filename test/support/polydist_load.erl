%%% Traffic from every node of a cluster to every other, for as long as the nodes live: numbered messages, whose receiver checks
%%% their order and that none is missing. A stock node, of whatever release, gets this module over its console.
-module(polydist_load).

-export([start/1, take/0]).

-export_type([report/0]).

%% `sent' and `received' are the numbers of the last messages to and from each node. The rest is what happened since the last
%% report: numbers that were left out, numbers that came too late or twice or changed, nodes that were seen to go down.
-type report() :: #{
    sent := #{node() => non_neg_integer()},
    received := #{node() => {Run :: integer(), non_neg_integer()}},
    run := integer(),
    missing := [{From :: node(), Expected :: pos_integer(), Got :: pos_integer()}],
    wrong := [{From :: node(), Expected :: pos_integer(), Got :: pos_integer()}],
    down := [node()]
}.

-define(PAUSE, 10).

%% @doc Begins to send to these nodes, and to take what they send.
-spec start([node()]) -> ok.
start(Nodes) ->
    Run = erlang:system_time(),
    Caller = self(),
    Others = Nodes -- [node()],
    Counters = counters:new(length(Others), []),
    Numbered = lists:zip(Others, lists:seq(1, length(Others))),
    Sink = spawn(fun() ->
        register(?MODULE, self()),
        ok = net_kernel:monitor_nodes(true),
        Caller ! {self(), ready},
        sink(#{numbered => Numbered, counters => Counters, run => Run, received => #{}, missing => [], wrong => [], down => []})
    end),
    receive {Sink, ready} -> ok end,
    _ = [spawn_link(fun() -> send(Node, Run, 1, Counters, Index) end) || {Node, Index} <- Numbered],
    ok.

%% @doc What there is to report, which is not reported again.
-spec take() -> report().
take() ->
    Monitor = monitor(process, ?MODULE),
    ?MODULE ! {take, self(), Monitor},
    receive
        {Monitor, Report} ->
            demonitor(Monitor, [flush]),
            Report;
        {'DOWN', Monitor, process, _, Reason} -> error({sink, Reason})
    end.

send(Node, Run, Number, Counters, Index) ->
    Payload = binary:copy(<<Number:32>>, 1 + Number * 37 rem 5000),
    {?MODULE, Node} ! {node(), Run, Number, Payload},
    counters:put(Counters, Index, Number),
    receive after ?PAUSE -> send(Node, Run, Number + 1, Counters, Index) end.

sink(#{missing := Missing, wrong := Wrong, down := Down, received := Received} = State) ->
    receive
        {From, Run, Number, Payload} ->
            Got = {From, expected(From, Run, Number, Received), Number},
            Next = State#{received := Received#{From => {Run, Number}}},
            sink(case {Got, intact(Payload, Number)} of
                {{_, Number, Number}, true} -> Next;
                {{_, Expected, Number}, true} when Number > Expected -> Next#{missing := [Got | Missing]};
                _ -> Next#{wrong := [Got | Wrong]}
            end);
        {nodedown, Node} ->
            sink(State#{down := [Node | Down]});
        {nodeup, _} ->
            sink(State);
        {take, From, Tag} ->
            From ! {Tag, report(State)},
            sink(State#{missing := [], wrong := [], down := []})
    end.

%% Whichever is heard first, for the others may begin to send before this node takes anything.
expected(From, Run, Number, Received) ->
    case Received of
        #{From := {Run, Last}} -> Last + 1;
        _ -> Number
    end.

intact(Payload, Number) ->
    Payload =:= binary:copy(<<Number:32>>, 1 + Number * 37 rem 5000).

report(#{numbered := Numbered, counters := Counters} = State) ->
    Sent = maps:from_list([{Node, counters:get(Counters, Index)} || {Node, Index} <- Numbered]),
    maps:put(sent, Sent, maps:without([numbered, counters], State)).
