%%% What a running node tells about its distribution, and what it can be told.
%%%
%%%   listeners/0, connections/0                       what there is, with its figures
%%%   add_listener/1, remove_listener/1                other listeners than those of the configuration
%%%   policy/0, set_policy/1, check_policy/1           which transport goes where: polydist_rule has the rules
%%%   candidates/1, explain/1, explain_text/1          what would be done to reach a node, what was done last, and why
%%%   connect/2, reconnect/2                           a deliberate choice
%%%   reload_tls/0                                     other certificates, with no connection lost
%%%
%%% Any process may call these, from a shell as well. Errors are `{error, {Kind, Sentence}}': match on Kind, read Sentence.
-module(polydist).

-export([listeners/0, add_listener/1, remove_listener/1, connections/0, policy/0, set_policy/1, check_policy/1, candidates/1,
         explain/1, explain_text/1, connect/2, reconnect/2, reload_tls/0]).

-export_type([listener/0, connection/0, explanation/0, past/0, error/0]).

-type error() :: {error, {Kind :: atom(), Sentence :: binary()}}.

%% `id' is what remove_listener/1 takes: the name, the transport for the first one of the configuration, else a reference.
%% `address' is a list where there are several. `reason' is there when it does not listen, or not everywhere it should, after so
%% many `attempts'. `accepted', `failed' and `pending' count transport handshakes, `refused' those whom `allow' kept out;
%% `established' the connections that are up now, whose figures are summed up in the rest.
-type listener() :: #{id := polydist_listeners:id(), transport := polydist_native:transport(), state := listening | failed,
                      address => polydist_native:address() | [polydist_native:address()],
                      allow => [binary() | non_neg_integer()], reason => binary(), attempts => pos_integer(),
                      accepted => non_neg_integer(), failed => non_neg_integer(), pending => non_neg_integer(),
                      refused => non_neg_integer(),
                      last_error => binary(), established := non_neg_integer(),
                      bytes_in := non_neg_integer(), bytes_out := non_neg_integer(),
                      frames_in := non_neg_integer(), frames_out := non_neg_integer(),
                      wire_in := non_neg_integer(), wire_out := non_neg_integer(), queued := non_neg_integer()}.

%% `since' is erlang:system_time(millisecond); `handshake_time' (from the dial or the accept until both sides were through) and
%% `busy_time' (for which the VM was held back, in `busy_count' spells) are microseconds; `ticktime' is milliseconds, or kernel
%% where net_ticktime holds. `bytes' are the payload of `frames', `wire' is what the socket saw. `queued' is what it has not taken
%% yet, `queued_max' the most that was. `ticks_missed' counts the quarters of the ticktime in which something was due and nothing
%% was heard. `listener' is the id of the one it came in by. `rule' is the policy's, `last_error' the last thing that went wrong
%% with that node. `addresses' are all that both ends have told each other, over SCTP only.
-type connection() :: #{node := node(), transport := polydist_native:transport(), direction := in | out,
                        listener => polydist_listeners:id(),
                        peer := polydist_native:address(), local := polydist_native:address(),
                        addresses => #{local := [polydist_native:address()], peer := [polydist_native:address()]},
                        tls := polydist_native:tls_facts() | undefined, since := integer(),
                        handshake_time := non_neg_integer(), rule := binary(), ticktime := pos_integer() | kernel,
                        last_error := binary() | undefined,
                        bytes_in := non_neg_integer(), bytes_out := non_neg_integer(),
                        frames_in := non_neg_integer(), frames_out := non_neg_integer(),
                        wire_in := non_neg_integer(), wire_out := non_neg_integer(),
                        reads := non_neg_integer(), writes := non_neg_integer(),
                        queued := non_neg_integer(), queued_max := non_neg_integer(),
                        busy_count := non_neg_integer(), busy_time := non_neg_integer(),
                        ticks_in := non_neg_integer(), ticks_out := non_neg_integer(), ticks_missed := non_neg_integer()}.

%% `now' is how Node would be dialled, `last' how it was.
-type explanation() :: #{node := node(), connection := connection() | none, now := polydist_lookup:plan(), last := past() | none}.

%% An attempt to connect. `at' is erlang:system_time(millisecond), `time' milliseconds; superseded: the peer's own connection came
%% first, or somebody here ended it.
-type past() :: #{at := integer(), outcome := under_way | connected | failed | superseded, time => non_neg_integer(),
                  reason => {Kind :: atom(), Sentence :: binary()}, attempts := [polydist_dial:attempt()],
                  registries := [polydist_lookup:asked()], candidates := [polydist_policy:candidate()],
                  skipped := [polydist_policy:skipped()], same_host := boolean()}.

-define(PATIENCE, 5000).

-define(SUMS, [bytes_in, bytes_out, frames_in, frames_out, wire_in, wire_out, queued]).

%% @doc One map for each listener: where it listens, or why it does not, and what it has accepted.
-spec listeners() -> [listener()].
listeners() ->
    Connections = connections(),
    [maps:merge(listener(Result), carried(Id, Connections)) || #{id := Id} = Result <- polydist_listeners:results()].

listener(#{id := Id, transport := Transport, state := State, place := Place, listeners := Listeners} = Result) ->
    Infos = [polydist_native:listener_info(L) || L <- Listeners],
    Sum = fun(Key) -> lists:sum([maps:get(Key, Info) || Info <- Infos]) end,
    maps:from_list(
        [{id, Id}, {transport, Transport}, {state, State}]
        ++ case maps:get(addresses, Result) of
               [] -> [];
               [Address] -> [{address, Address}];
               Addresses -> [{address, Addresses}]
           end
        ++ [{allow, polydist_place:allow_text(Allow)} || #{allow := Allow} <- [Place]]
        ++ [Each || #{reason := {_, Sentence}, attempts := Attempts} <- [Result],
                    Each <- [{reason, Sentence}, {attempts, Attempts}]]
        ++ [{Key, Sum(Key)} || Key <- [accepted, failed, pending, refused], Infos =/= []]
        ++ [{last_error, Error} || #{last_error := Error} <- Infos, Error =/= undefined]).

carried(Id, Connections) ->
    Mine = [Each || #{listener := By} = Each <- Connections, By =:= Id],
    Sums = [{Key, lists:sum([maps:get(Key, Each) || Each <- Mine])} || Key <- ?SUMS],
    maps:from_list([{established, length(Mine)} | Sums]).

%% @doc Opens another listener, for a transport that listens already or any other, until it is removed or the distribution stops.
%% Takes `transport', and what the key `listen' takes for it: `ip', `port', `ports' or `dir', `path', `mode', and `allow' and
%% `name'. The id is the name, or a reference. What the registries say of this node follows.
-spec add_listener(#{transport := polydist_native:transport(), atom() => term()}) -> {ok, polydist_listeners:id()} | error().
add_listener(Options) ->
    case polydist_place:listener(Options) of
        {ok, Transport, Place} -> polydist_listeners:add(Transport, Place);
        {error, Sentence} -> {error, {bad_listener, Sentence}}
    end.

%% @doc Closes a listener, one of the configuration too. Connections that came in by it stay; those whose handshake is under way
%% are closed. The last one may go as well.
-spec remove_listener(polydist_listeners:id()) -> ok | error().
remove_listener(Id) ->
    polydist_listeners:remove(Id).

%% @doc One map for each connection that polydist carries.
-spec connections() -> [connection()].
connections() ->
    [connection(Entry) || {_, Entry} <- polydist_connections:all()].

connection(#{node := Node, info := Info, conn := Conn, missed := Missed, settings := #{rule := Rule} = Settings} = Entry) ->
    Facts = #{rule => Rule, ticktime => maps:get(ticktime, Settings, kernel), ticks_missed => counters:get(Missed, 1),
              last_error => polydist_attempts:trouble(Node)},
    lists:foldl(fun maps:merge/2, Info,
                [maps:with([node, direction, since, handshake_time], Entry), Facts, polydist_native:stats(Conn)]).

%% @doc The policy in force, as it was written; the default rules, which follow it, are not in it.
-spec policy() -> [polydist_rule:source()].
policy() ->
    case polydist_listeners:config() of
        {ok, #{policy := Policy}} -> polydist_policy:source(Policy);
        {error, _} -> []
    end.

%% @doc Puts another policy in force, for connections made from now on and until the distribution stops. With a mistake in it the
%% old one stays.
-spec set_policy([polydist_rule:source()]) -> ok | error().
set_policy(Rules) ->
    case polydist_policy:compile(Rules, registries()) of
        {ok, Policy} ->
            case polydist_listeners:set_policy(Policy) of
                ok -> ok;
                {error, Sentence} -> {error, {not_running, Sentence}}
            end;
        {error, Sentence} -> {error, {bad_policy, Sentence}}
    end.

%% @doc Whether set_policy/1 would take these rules. Needs nothing to be running.
-spec check_policy(term()) -> ok | error().
check_policy(Rules) ->
    case polydist_policy:compile(Rules, registries()) of
        {ok, _} -> ok;
        {error, Sentence} -> {error, {bad_policy, Sentence}}
    end.

registries() ->
    case polydist_listeners:config() of
        {ok, #{registries := Registries}} -> [Name || #{name := Name} <- Registries];
        {error, _} -> [epmd]
    end.

%% @doc How a connection to Node would be made now: the addresses in the order of dialling, and for every other transport why not.
%% Looks Node up, so it may take a while.
-spec candidates(node()) -> {ok, [polydist_policy:candidate()], [polydist_policy:skipped()]} | error().
candidates(Node) ->
    case plan(Node) of
        #{error := {Kind, _} = Error} when Kind =/= no_candidate -> {error, Error};
        #{candidates := Candidates, skipped := Skipped} -> {ok, Candidates, Skipped}
    end.

%% @doc All there is to say about the way to Node: the connection, what would be done now, and what was done last. Looks Node up, so
%% it may take a while.
-spec explain(node()) -> explanation().
explain(Node) ->
    #{node => Node, connection => established(Node), now => plan(Node), last => past(polydist_attempts:last(Node))}.

plan(Node) ->
    polydist_lookup:plan(Node, erlang:monotonic_time(millisecond) + ?PATIENCE).

established(Node) ->
    case polydist_connections:find(Node) of
        {ok, Entry} -> connection(Entry);
        error -> none
    end.

past(none) ->
    none;
past(Attempt) ->
    Plan = maps:get(plan, Attempt, #{registries => [], same_host => false, candidates => [], skipped => []}),
    maps:merge(maps:remove(error, Plan), maps:merge(#{attempts => []}, maps:with([at, outcome, time, reason, attempts], Attempt))).

%% @doc explain/1 as a page to read: `io:put_chars(polydist:explain_text(Node))'.
-spec explain_text(node()) -> unicode:unicode_binary().
explain_text(Node) ->
    polydist_explain:text(explain(Node)).

%% @doc Connects to Node over one of these transports, in this order, as far as the policy allows them. A node that is connected
%% already stays as it is: an error if that is over another transport.
-spec connect(node(), polydist_choice:options()) -> {ok, connection()} | error().
connect(Node, Options) ->
    case polydist_choice:connect(Node, Options) of
        {ok, Entry} -> {ok, connection(Entry)};
        Error -> Error
    end.

%% @doc Moves the connection to Node to one of these transports, or with `#{}' to the best one that the policy knows now: dials,
%% ends the old one, and connects at once. `gap' is the microseconds in between, in which processes see the node down. When
%% nothing could be reached that way nothing is ended; when connecting fails after all, Node is connected as the policy says,
%% and the error tells.
-spec reconnect(node(), polydist_choice:options()) -> {ok, polydist_choice:moved()} | error().
reconnect(Node, Options) ->
    polydist_choice:reconnect(Node, Options).

%% @doc Reads the TLS options and all of their files again. Handshakes from now on are with what they say, connections that are up
%% stay as they are. With a mistake anywhere nothing changes. It happens by itself when files change, unless the key `tls_watch' is
%% false.
-spec reload_tls() -> ok | error().
reload_tls() ->
    polydist_tls:reload().
