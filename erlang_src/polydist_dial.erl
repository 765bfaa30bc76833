%%% Dials the candidates for a connection, staggered (RFC 8305): the next starts when one fails or has been alone for a while, the
%%% first whose transport is through with its handshake wins, and the others are cancelled. Runs in the process of the connection,
%%% which owns what it dials: nothing outlives it.
-module(polydist_dial).

-export([race/3, failure/1, sentences/1]).

-export_type([attempt/0, result/0]).

%% One candidate that was dialled. Times are milliseconds, `after' since the race began.
-type attempt() :: #{transport := polydist_native:transport(), address := polydist_native:address(),
                     outcome := connected | failed | cancelled, 'after' := non_neg_integer(), time := non_neg_integer(),
                     reason => {Kind :: atom(), Sentence :: binary()}}.

-type result() :: {ok, polydist_native:conn(), polydist_native:info(), polydist_policy:candidate(), [attempt()]}
                | {error, [attempt()]}.

-type running() :: #{reference() => {dial(), polydist_policy:candidate(), Start :: integer()}}.
-type dial() :: polydist_native:conn() | polydist_outside:dial().

%% How much longer than its timeout the library may take to say that it ran out.
-define(GRACE, 1000).

%% @doc The first connection that comes about. Host is whom a certificate must name; Deadline is in
%% erlang:monotonic_time(millisecond).
-spec race([polydist_policy:candidate(), ...], Host :: string(), Deadline :: integer()) -> result().
race(Candidates, Host, Deadline) ->
    Now = now_ms(),
    race(#{waiting => Candidates, running => #{}, next => Now, start => Now, host => Host, deadline => Deadline, done => []}).

race(#{waiting := [], running := Running, done := Done}) when map_size(Running) =:= 0 ->
    {error, lists:reverse(Done)};
race(#{waiting := [Candidate | Waiting], running := Running} = Race) when map_size(Running) =:= 0 ->
    start(Candidate, Race#{waiting := Waiting});
race(#{waiting := Waiting, running := Running, next := Next, deadline := Deadline} = Race) ->
    Wait = case Waiting of
               [] -> polydist_lookup:remaining(Deadline) + ?GRACE;
               _ -> max(0, Next - now_ms())
           end,
    receive
        {polydist, Ref, Answer} when is_map_key(Ref, Running) -> answered(maps:take(Ref, Running), Answer, Race)
    after Wait ->
        case Waiting of
            [Candidate | Rest] -> start(Candidate, Race#{waiting := Rest});
            [] -> {error, finished(failed, {timeout, <<"no answer in time">>}, Race)}
        end
    end.

start(#{transport := Transport, address := Address, settings := #{stagger := Stagger}} = Candidate, #{running := Running} = Race) ->
    Now = now_ms(),
    case dial(Transport, Address, options(Candidate, Race)) of
        {ok, Ref, Dial} -> race(Race#{running := Running#{Ref => {Dial, Candidate, Now}}, next := Now + Stagger});
        {error, Reason} -> race(done(Candidate, Now, failed, Reason, Race#{next := Now}))
    end.

dial(_, _, {error, _} = Error) ->
    Error;
dial(Transport, Address, Options) ->
    Ref = make_ref(),
    Started = case polydist_carrier:is_outside(Transport) of
                  true -> polydist_outside:dial(Transport, Address, Options, Ref);
                  false -> polydist_native:dial(Transport, Address, Options, Ref)
              end,
    case Started of
        {ok, Dial} -> {ok, Ref, Dial};
        Error -> Error
    end.

options(#{transport := Transport, address := Address, settings := #{socket := OfRule} = Settings},
        #{host := Host, deadline := Deadline}) ->
    {OfKernel, _} = polydist_config:socket_options(connect),
    Remaining = polydist_lookup:remaining(Deadline),
    Options = #{timeout => min(Remaining, maps:get(connect_timeout, Settings, Remaining)),
                socket => maps:remove(backlog, maps:merge(OfKernel, OfRule))},
    case Transport of
        tls ->
            case polydist_tls:config(client) of
                {ok, Tls} ->
                    Options#{tls => Tls, server_name => unicode:characters_to_binary(polydist_tls:server_name(Host))};
                Error -> Error
            end;
        sctp -> Options#{local => polydist_sockets:local_ips(polydist_listeners:results(), Address)};
        _ -> Options
    end.

answered({{Conn, Candidate, Start}, Running}, {connected, Info}, #{host := Host} = Race) ->
    case polydist_tls:verify(client, Info, Host) of
        ok -> won(Conn, Info, Candidate, Start, Race#{running := Running});
        {error, Reason} ->
            ok = close(Conn),
            race(done(Candidate, Start, failed, Reason, Race#{running := Running, next := now_ms()}))
    end;
answered({{Dial, Candidate, Start}, Running}, {connected, Conn, Info}, Race) ->
    ok = polydist_outside:stop(Dial),
    won(Conn, Info, Candidate, Start, Race#{running := Running});
answered({{Dial, Candidate, Start}, Running}, {error, Reason}, Race) ->
    ok = close(Dial),
    race(done(Candidate, Start, failed, Reason, Race#{running := Running, next := now_ms()})).

won(Conn, Info, Candidate, Start, Race) ->
    {ok, Conn, Info, Candidate, finished(cancelled, none, done(Candidate, Start, connected, none, Race))}.

%% Ends what is still under way. Each owes an answer, which must not be found in the mailbox later.
-spec finished(cancelled | failed, none | {atom(), binary()}, #{running := running(), _ => _}) -> [attempt()].
finished(Outcome, Reason, #{running := Running} = Race) ->
    All = maps:to_list(Running),
    lists:foreach(fun({_, {Dial, _, _}}) -> close(Dial) end, All),
    lists:foreach(fun({Ref, {Dial, _, _}}) -> is_reference(Dial) andalso polydist_native:await(Ref, ?GRACE) end, All),
    End = fun({_, {_, Candidate, Start}}, Each) -> done(Candidate, Start, Outcome, Reason, Each) end,
    #{done := Done} = lists:foldl(End, Race, All),
    lists:sort(fun(#{'after' := A}, #{'after' := B}) -> A =< B end, lists:reverse(Done)).

close(Conn) when is_reference(Conn) -> polydist_native:close(Conn);
close(Dial) -> polydist_outside:stop(Dial).

done(#{transport := Transport, address := Address}, Started, Outcome, Reason, #{start := Start, done := Done} = Race) ->
    Attempt = #{transport => Transport, address => Address, outcome => Outcome, 'after' => Started - Start,
                time => now_ms() - Started},
    Race#{done := [case Reason of none -> Attempt; _ -> Attempt#{reason => Reason} end | Done]}.

%% @doc What failed attempts come to: the kind of the first, and what there is to say of each.
-spec failure([attempt(), ...]) -> {Kind :: atom(), Sentence :: binary()}.
failure(Attempts) ->
    [{Kind, _} | _] = [Reason || #{reason := Reason} <- Attempts],
    {Kind, sentences(Attempts)}.

%% @doc What there is to say of the attempts that failed.
-spec sentences([attempt()]) -> binary().
sentences(Attempts) ->
    Sentences = [[atom_to_list(T), ": ", Sentence] || #{transport := T, reason := {_, Sentence}} <- Attempts],
    polydist_log:text("~ts", [lists:join("; ", Sentences)]).

now_ms() ->
    erlang:monotonic_time(millisecond).
