%%% polydist:explain/1 as a page.
-module(polydist_explain).

-export([text/1]).

%% @doc Writes the page.
-spec text(polydist:explanation()) -> unicode:unicode_binary().
text(#{node := Node, connection := Connection, now := Now, last := Last}) ->
    polydist_log:text("~ts", [[io_lib:format("~ts~n", [Node]), connection(Connection), now(Now), last(Last)]]).

connection(none) ->
    line(1, "is not connected over polydist.", []);
connection(#{transport := Transport, peer := Peer, since := Since, direction := Direction, rule := Rule, ticktime := Ticktime,
             handshake_time := Time, tls := Tls, last_error := Trouble} = Connection) ->
    [line(1, "is connected over ~p, ~ts, since ~ts.", [Transport, polydist_address:text(Transport, Peer), time(Since)]),
     line(2, "~ts; the handshake took ~.1f ms", [opened(Direction), Time / 1000]),
     line(2, "~ts; ticktime: ~ts", [Rule, ticktime(Ticktime)]),
     [line(2, "it has ~ts; here ~ts", [addresses(Transport, Theirs), addresses(Transport, Ours)])
      || #{addresses := #{peer := Theirs, local := Ours}} <- [Connection]],
     [line(2, "~p, ~ts", [Version, Cipher]) || #{version := Version, cipher := Cipher} <- [Tls]],
     figures(Connection),
     [line(2, "the trouble before: ~ts", [Trouble]) || Trouble =/= undefined]].

figures(#{bytes_in := In, bytes_out := Out, frames_in := FramesIn, frames_out := FramesOut, queued := Queued, queued_max := Most,
          busy_time := Busy, busy_count := Spells, ticks_missed := Missed}) ->
    [line(2, "sent ~ts in ~p messages, received ~ts in ~p", [amount(Out), FramesOut, amount(In), FramesIn]),
     line(2, "~ts wait to be sent, at most it was ~ts; senders were held back ~p times, ~.1f ms in all; ~p ticks missed",
          [amount(Queued), amount(Most), Spells, Busy / 1000, Missed])].

addresses(Transport, Addresses) ->
    lists:join(", ", [polydist_address:text(Transport, Address) || Address <- Addresses]).

opened(out) -> "opened by this node";
opened(in) -> "opened by the peer".

ticktime(kernel) -> "net_ticktime, as for every other";
ticktime(Ms) -> polydist_log:text("~p s", [Ms / 1000]).

now(#{registries := Registries} = Plan) ->
    Said = [Error || #{answer := {error, Error}} <- Registries],
    [line(1, "Now it would be dialled like this:", []), plan(Plan),
     [line(2, "~ts", [Sentence]) || #{error := {_, Sentence} = Error} <- [Plan], not lists:member(Error, Said)]].

plan(#{registries := Registries, same_host := SameHost, candidates := Candidates, skipped := Skipped}) ->
    [[line(2, "~p said after ~p ms: ~ts", [Registry, Time, answer(Answer)])
      || #{registry := Registry, time := Time, answer := Answer} <- Registries],
     [line(2, "it is on this host", []) || SameHost],
     [line(2, "~p. ~p ~ts, by ~ts", [Number, Transport, polydist_address:text(Transport, Address), Why])
      || {Number, #{transport := Transport, address := Address, why := Why}} <- lists:enumerate(Candidates)],
     [line(2, "not ~p: ~ts", [Transport, Why]) || {Transport, Why} <- Skipped]].

answer({record, []}) -> "a record without any endpoint that this node knows";
answer({record, Endpoints}) ->
    lists:join(", ", [[atom_to_list(Transport), " ", where(Transport, Where)] || {Transport, Where} <- Endpoints]);
answer({port, Port}) -> polydist_log:text("port ~p and no record, as stock nodes register", [Port]);
answer({error, {_, Sentence}}) -> Sentence.

where(_, {any4, Port}) -> polydist_log:text("port ~p on its IPv4 addresses", [Port]);
where(_, {any6, Port}) -> polydist_log:text("port ~p on its IPv6 addresses", [Port]);
where(Transport, Where) -> polydist_address:text(Transport, Where).

last(none) ->
    line(1, "This node has not tried to connect to it.", []);
last(#{at := At, outcome := Outcome, attempts := Attempts} = Last) ->
    [line(1, "The last attempt, ~ts, ~ts.", [time(At), outcome(Outcome, Last)]),
     [line(2, "~ts", [Sentence]) || #{reason := {_, Sentence}} <- [Last], Attempts =:= [] orelse Outcome =/= failed],
     [attempt(Attempt) || Attempt <- Attempts],
     [line(2, "then: ~ts", [Sentence]) || Outcome =:= failed, #{reason := {_, Sentence}} <- [Last],
                                          #{outcome := connected} <- Attempts],
     [line(2, "not ~p: ~ts", [Transport, Why]) || {Transport, Why} <- maps:get(skipped, Last)]].

outcome(under_way, _) -> "is under way";
outcome(connected, #{time := Time}) -> polydist_log:text("connected within ~p ms", [Time]);
outcome(failed, #{time := Time}) -> polydist_log:text("failed after ~p ms", [Time]);
outcome(superseded, #{time := Time}) -> polydist_log:text("was given up after ~p ms, for the peer's own or by this node", [Time]).

attempt(#{transport := Transport, address := Address, outcome := Outcome, 'after' := After, time := Time} = Attempt) ->
    Result = case Attempt of
                 #{reason := {_, Sentence}} -> [": ", Sentence];
                 _ -> ""
             end,
    line(2, "~p ms: ~p ~ts ~p after ~p ms~ts",
         [After, Transport, polydist_address:text(Transport, Address), Outcome, Time, Result]).

amount(Bytes) when Bytes < 10000 -> io_lib:format("~p bytes", [Bytes]);
amount(Bytes) when Bytes < 10000000 -> io_lib:format("~p kB", [Bytes div 1000]);
amount(Bytes) -> io_lib:format("~p MB", [Bytes div 1000000]).

time(Ms) ->
    calendar:system_time_to_rfc3339(Ms div 1000, [{time_designator, $\s}]).

line(Indent, Format, Args) ->
    [lists:duplicate(2 * Indent, $\s), polydist_log:text(Format, Args), $\n].
