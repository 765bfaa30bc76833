%% Two-node benchmark of distribution carriers; test/bench/run starts the nodes and collects what they write.
%% Everything counted was received: a sink counts what arrives and answers when it has the last message.
-module(polydist_bench).

-export([measure/1, report/1, sample/3]).
-export([sink/1, echo/0, overdue/0]).

-type measure() :: small1 | small8 | kb64 | mb1 | rtt.
-type sample() :: #{atom() => number()}.

%% Runs the measures named on the command line against the peer and appends one term a measure to the file.
-spec measure([atom()]) -> no_return().
measure([Peer, Case, Round, Duration, File | Measures]) ->
    {ok, _} = timer:apply_after(60000 + 10 * number(Duration) * length(Measures), ?MODULE, overdue, []),
    ok = connect(Peer, 100),
    ok = check_transport(Case, Peer),
    Pids = {os:getpid(), erpc:call(Peer, os, getpid, [])},
    Time = number(Duration),
    lists:foreach(
        fun(Measure) ->
            _ = sample(Measure, Peer, Time div 5),
            Before = cpu(Pids),
            {N, Sample} = sample(Measure, Peer, Time),
            Cpu = (cpu(Pids) - Before) / N,
            Term = {Case, Measure, number(Round), Sample#{cpu => Cpu}},
            ok = file:write_file(atom_to_list(File), io_lib:format("~0p.~n", [Term]), [append])
        end,
        Measures),
    halt(0).

connect(Peer, 0) ->
    fail("cannot connect to ~p", [Peer]);
connect(Peer, Tries) ->
    case net_adm:ping(Peer) of
        pong -> ok;
        pang -> timer:sleep(50), connect(Peer, Tries - 1)
    end.

%% A forced transport that is not the one in use would make the figures worthless.
check_transport(Case, Peer) ->
    case lists:prefix("stock_", atom_to_list(Case)) of
        true ->
            ok;
        false ->
            case [used(C) || #{node := N} = C <- polydist:connections(), N =:= Peer] of
                [Case] -> ok;
                Other -> fail("forced ~p, connected over ~p", [Case, Other])
            end
    end.

used(#{transport := tls, tls := #{ktls := true}}) -> ktls;
used(#{transport := Transport}) -> Transport.

%% One measurement of Time milliseconds: how many messages, and the figures.
-spec sample(measure(), node(), pos_integer()) -> {pos_integer(), sample()}.
sample(Measure, Peer, Time) ->
    {Run, _, _} = plan(Measure),
    Run(Peer, Time).

-spec plan(measure()) -> {fun((node(), pos_integer()) -> {pos_integer(), sample()}), string(), string()}.
plan(small1) -> {fun(Peer, Time) -> stream(Peer, Time, 1, {msg, <<0:128>>}, 500) end, "small messages, 1 sender", "messages/s"};
plan(small8) -> {fun(Peer, Time) -> stream(Peer, Time, 8, {msg, <<0:128>>}, 500) end, "small messages, 8 senders", "messages/s"};
plan(kb64) -> {fun(Peer, Time) -> stream(Peer, Time, 1, rand:bytes(65536), 1) end, "64 KiB messages", "MB/s"};
plan(mb1) -> {fun(Peer, Time) -> stream(Peer, Time, 1, rand:bytes(1048576), 1) end, "1 MiB messages", "MB/s"};
plan(rtt) -> {fun round_trips/2, "round trip of a small message", "p50 us"}.

%% How many batches may be on their way. Without a limit a sender fills its sink's mailbox, and what is measured is how the
%% receiver's garbage collector copes with a very long one.
-define(WINDOW, 16).

%% Senders, each to a sink of its own, until the time is over; the clock stops when every sink has everything.
stream(Peer, Time, Senders, Message, Batch) ->
    Sinks = [spawn_link(Peer, ?MODULE, sink, [0]) || _ <- lists:seq(1, Senders)],
    Start = erlang:monotonic_time(),
    End = Start + erlang:convert_time_unit(Time, millisecond, native),
    Jobs = [spawn_monitor(fun() -> exit({sent, send(Sink, Message, Batch, ?WINDOW, End, 0)}) end) || Sink <- Sinks],
    N = lists:sum([receive {'DOWN', Ref, process, _, {sent, Count}} -> Count end || {_, Ref} <- Jobs]),
    Seconds = erlang:convert_time_unit(erlang:monotonic_time() - Start, native, nanosecond) / 1.0e9,
    Size = case Message of <<_/binary>> -> byte_size(Message) / 1.0e6; _ -> 1 end,
    {N, #{rate => N * Size / Seconds}}.

send(Sink, Message, Batch, 0, End, N) ->
    receive ready -> send(Sink, Message, Batch, 1, End, N) after 60000 -> fail("the peer takes nothing any more", []) end;
send(Sink, Message, Batch, Window, End, N) ->
    ok = send_batch(Sink, Message, Batch),
    case erlang:monotonic_time() of
        Now when Now < End ->
            Sink ! {ready, self()},
            send(Sink, Message, Batch, Window - 1, End, N + Batch);
        _ ->
            Total = N + Batch,
            Sink ! {done, self()},
            receive
                {counted, Total} -> Total;
                {counted, Other} -> fail("~p messages sent, ~p arrived", [Total, Other])
            after 60000 -> fail("the peer did not get the last message within a minute", [])
            end
    end.

send_batch(_, _, 0) -> ok;
send_batch(Sink, Message, N) -> Sink ! Message, send_batch(Sink, Message, N - 1).

-spec sink(non_neg_integer()) -> ok.
sink(N) ->
    receive
        {done, From} -> From ! {counted, N}, ok;
        {ready, From} -> From ! ready, sink(N);
        _ -> sink(N + 1)
    end.

round_trips(Peer, Time) ->
    Echo = spawn_link(Peer, ?MODULE, echo, []),
    End = erlang:monotonic_time() + erlang:convert_time_unit(Time, millisecond, native),
    Samples = lists:sort(round_trips(Echo, erlang:monotonic_time(), End, [])),
    unlink(Echo),
    exit(Echo, kill),
    N = length(Samples),
    At = fun(Part) -> erlang:convert_time_unit(lists:nth(max(1, ceil(N * Part)), Samples), native, nanosecond) / 1000 end,
    {N, #{p50 => At(0.50), p99 => At(0.99)}}.

round_trips(_, Start, End, Samples) when Start >= End -> Samples;
round_trips(Echo, Start, End, Samples) ->
    Echo ! {self(), <<0:128>>},
    receive {echo, _} -> ok after 10000 -> fail("no echo within ten seconds", []) end,
    Now = erlang:monotonic_time(),
    round_trips(Echo, Now, End, [Now - Start | Samples]).

-spec echo() -> no_return().
echo() ->
    receive {From, Bytes} -> From ! {echo, Bytes} end,
    echo().

%% Microseconds of processor time both nodes have used, all their threads together.
cpu({Own, Peer}) -> cpu_of(Own) + cpu_of(Peer).

cpu_of(Pid) ->
    {ok, Stat} = file:read_file(["/proc/", Pid, "/stat"]),
    [_, Rest] = binary:split(Stat, <<") ">>),
    Fields = binary:split(Rest, <<" ">>, [global]),
    (binary_to_integer(lists:nth(12, Fields)) + binary_to_integer(lists:nth(13, Fields))) * 10000.

-spec fail(string(), [term()]) -> no_return().
fail(Format, Args) ->
    io:format(standard_error, Format ++ "~n", Args),
    halt(1).

-spec overdue() -> no_return().
overdue() -> fail("the measures take far too long; does a message not arrive?", []).

number(Atom) -> list_to_integer(atom_to_list(Atom)).

%% Prints the table of medians and writes everything as JSON.
-spec report([string()]) -> no_return().
report([File, Json, Title]) ->
    {ok, Terms} = file:consult(File),
    io:format("~s~nmedians; x is the ratio to stock inet_tcp and inet_tls of the same run; cpu is what both nodes used, user and system, "
        "in microseconds a message~n", [Title]),
    Cases = unique([Case || {Case, _, _, _} <- Terms]),
    Rows = [row(Case, Measure, Terms) || Measure <- [small1, small8, kb64, mb1, rtt], Case <- Cases],
    Results = [Row || #{samples := [_ | _]} = Row <- Rows],
    lists:foreach(fun(Measure) -> table(Measure, [R || #{measure := M} = R <- Results, M =:= Measure]) end,
        unique([M || #{measure := M} <- Results])),
    ok = file:write_file(Json, [json(#{title => list_to_binary(Title), results => [ratios(R, Results) || R <- Results]}), $\n]),
    io:format("~nall samples: ~s~n", [Json]),
    halt(0).

row(Case, Measure, Terms) ->
    Samples = [Sample || {C, M, _, Sample} <- Terms, C =:= Case, M =:= Measure],
    Keys = lists:usort(lists:append([maps:keys(S) || S <- Samples])),
    Medians = maps:from_list([{K, median([maps:get(K, S) || S <- Samples])} || K <- Keys]),
    Medians#{'case' => Case, measure => Measure, samples => Samples}.

table(Measure, Rows) ->
    {_, Title, Unit} = plan(Measure),
    Extra = case Measure of rtt -> "p99 us"; _ -> "" end,
    Format = "~-29s ~11s ~6s ~6s ~8s ~6s ~6s ~8s~n",
    io:format("~n" ++ Format, [Title, Unit, "x tcp", "x tls", "cpu", "x tcp", "x tls", Extra]),
    lists:foreach(
        fun(#{'case' := Case, cpu := Cpu} = Row) ->
            #{x_tcp := Tcp, x_tls := Tls, cpu_x_tcp := CpuTcp, cpu_x_tls := CpuTls} = ratios(Row, Rows),
            io:format(Format,
                ["  " ++ name(Case), figure(value(Row)), ratio(Tcp), ratio(Tls), figure(Cpu), ratio(CpuTcp), ratio(CpuTls),
                 figure(maps:get(p99, Row, null))])
        end,
        Rows).

%% Ratio of the medians to the stock carriers in the same run; for a round trip and for cpu less than 1 is better.
ratios(#{measure := Measure} = Row, Rows) ->
    Ratio = fun(Stock, Value) ->
        case [Value(R) || #{'case' := C, measure := M} = R <- Rows, C =:= Stock, M =:= Measure] of
            [V] when V > 0 -> Value(Row) / V;
            _ -> null
        end
    end,
    Cpu = fun(#{cpu := Used}) -> Used end,
    Row#{
        x_tcp => Ratio(stock_tcp, fun value/1), x_tls => Ratio(stock_tls, fun value/1),
        cpu_x_tcp => Ratio(stock_tcp, Cpu), cpu_x_tls => Ratio(stock_tls, Cpu)
    }.

value(#{rate := Rate}) -> Rate;
value(#{p50 := P50}) -> P50.

name(stock_tcp) -> "stock inet_tcp";
name(stock_tcp6) -> "stock inet6_tcp";
name(stock_tls) -> "stock inet_tls";
name(Transport) -> "polydist " ++ atom_to_list(Transport).

ratio(null) -> "";
ratio(X) -> io_lib:format("~.2f", [X]).

figure(null) -> "";
figure(X) when X < 100 -> io_lib:format("~.2f", [float(X)]);
figure(X) -> integer_to_list(round(X)).

median(Values) ->
    Sorted = lists:sort(Values),
    N = length(Sorted),
    (lists:nth((N + 1) div 2, Sorted) + lists:nth((N + 2) div 2, Sorted)) / 2.

unique(List) -> lists:foldr(fun(X, Acc) -> [X | lists:delete(X, Acc)] end, [], List).

json(Map) when is_map(Map) -> [${, lists:join($,, [[$", atom_to_list(K), $", $:, json(V)] || {K, V} <- lists:sort(maps:to_list(Map))]), $}];
json(List) when is_list(List) -> [$[, lists:join($,, [json(X) || X <- List]), $]];
json(Binary) when is_binary(Binary) -> [$", Binary, $"];
json(null) -> "null";
json(Atom) when is_atom(Atom) -> [$", atom_to_list(Atom), $"];
json(Float) when is_float(Float) -> io_lib:format("~.3f", [Float]);
json(Integer) -> integer_to_list(Integer).
