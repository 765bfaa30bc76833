%%% What became of the last attempt to connect to each node, for polydist:explain/1, and the one log line of one that failed.
%%%
%%% The process of a connection notes in its attempt what it is about to do and what went wrong. It may be killed at any time: by
%%% dist_util's timer, or by net_kernel when the peer's own connection comes first. So this process watches it, and concludes when
%%% it is gone. Only the last MAX_NODES nodes are remembered.
-module(polydist_attempts).
-behaviour(gen_server).

%% for the process of a connection, or who wants one
-export([start/1, note/2, connected/2, failed/4]).

%% for everybody
-export([last/1, suspects/1, trouble/1, trouble/2, is_daily/1]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([attempt/0]).

%% `at' is erlang:system_time(millisecond), `time' milliseconds. `dialled' is what won the race of the transports.
-type attempt() :: #{pid := pid(), at := integer(), start := integer(), stage := lookup | dial | handshake | up,
                     outcome := under_way | connected | failed | superseded, time => non_neg_integer(),
                     reason => {Kind :: atom(), Sentence :: binary()}, plan => polydist_lookup:plan(),
                     attempts => [polydist_dial:attempt()], dialled => {polydist_native:transport(), polydist_native:address()}}.

-define(MAX_NODES, 1000).

%% How long an address that took our connection and did not shake hands goes last, in milliseconds.
-define(SUSPECT, 60000).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The calling process begins to connect to Node.
-spec start(node()) -> ok.
start(Node) ->
    polydist_sup:store({attempt, Node}, fresh()),
    gen_server:cast(?MODULE, {started, Node, self()}).

fresh() ->
    #{pid => self(), at => erlang:system_time(millisecond), start => now_ms(), stage => lookup, outcome => under_way}.

%% @doc Adds to what is known of the calling process's attempt.
-spec note(node(), map()) -> ok.
note(Node, Facts) ->
    case polydist_sup:lookup({attempt, Node}) of
        {ok, #{pid := Pid} = Attempt} when Pid =:= self() -> polydist_sup:store({attempt, Node}, maps:merge(Attempt, Facts));
        _ -> ok
    end.

%% @doc The calling process has Node up; Time is how long that took, in milliseconds.
-spec connected(node(), Time :: non_neg_integer()) -> ok.
connected(Node, Time) ->
    case {stored(Node), polydist_sup:lookup({suspect, Node})} of
        {#{dialled := Dialled}, {ok, {Dialled, _}}} -> polydist_sup:delete({suspect, Node});
        _ -> ok
    end,
    note(Node, #{stage => up, outcome => connected, time => Time}).

%% @doc An attempt that came to its end before net_kernel knew of it. Not logged: the caller has been told.
-spec failed(node(), polydist_lookup:plan(), [polydist_dial:attempt()], Reason :: {Kind :: atom(), Sentence :: binary()}) -> ok.
failed(Node, Plan, Attempts, Reason) ->
    polydist_sup:store({attempt, Node}, (fresh())#{plan => Plan, attempts => Attempts, reason => Reason, outcome := failed,
                                                   time => 0}),
    gen_server:cast(?MODULE, {remember, Node}).

%% @doc The last attempt at Node. What its process left when it died is in it.
-spec last(node()) -> attempt() | none.
last(Node) ->
    case stored(Node) of
        #{outcome := under_way, pid := Pid} = Attempt ->
            case is_process_alive(Pid) of
                true -> Attempt;
                false ->
                    ok = gen_server:call(?MODULE, {conclude, Pid}),
                    stored(Node)
            end;
        Attempt -> Attempt
    end.

stored(Node) ->
    case polydist_sup:lookup({attempt, Node}) of
        {ok, Attempt} -> Attempt;
        error -> none
    end.

%% @doc The addresses that had better go last: what listens there seems not to be the node.
-spec suspects(node()) -> [{polydist_native:transport(), polydist_native:address()}].
suspects(Node) ->
    case polydist_sup:lookup({suspect, Node}) of
        {ok, {Dialled, Since}} ->
            case now_ms() - Since < ?SUSPECT of
                true -> [Dialled];
                false -> []
            end;
        error -> []
    end.

%% @doc The last thing that went wrong with Node.
-spec trouble(node()) -> binary() | undefined.
trouble(Node) ->
    case polydist_sup:lookup({trouble, Node}) of
        {ok, Sentence} -> Sentence;
        error -> undefined
    end.

%% @doc Something went wrong with a connection to Node that was established.
-spec trouble(node(), Sentence :: binary()) -> ok.
trouble(Node, Sentence) ->
    gen_server:cast(?MODULE, {trouble, Node, Sentence}).

-type state() :: #{watched := #{pid() => node()}, remembered := #{node() => integer()}}.

-spec init([]) -> {ok, state()}.
init([]) ->
    %% There are some after a crash.
    Known = [{Node, Pid} || [Node, #{pid := Pid, outcome := under_way}] <- polydist_sup:match({{attempt, '$1'}, '$2'})],
    State = lists:foldl(fun({Node, Pid}, State) -> watch(Node, Pid, State) end, #{watched => #{}, remembered => #{}}, Known),
    {ok, State}.

-spec handle_call({conclude, pid()}, gen_server:from(), state()) -> {reply, ok, state()}.
handle_call({conclude, Pid}, _From, #{watched := Watched} = State) when is_map_key(Pid, Watched) ->
    receive % it is on its way
        {'DOWN', _, process, Pid, Reason} -> {reply, ok, ended(Pid, Reason, State)}
    end;
handle_call({conclude, _}, _From, State) ->
    {reply, ok, State}.

-spec handle_cast({started, node(), pid()} | {remember, node()} | {trouble, node(), binary()}, state()) -> {noreply, state()}.
handle_cast({started, Node, Pid}, State) ->
    {noreply, watch(Node, Pid, remember(Node, State))};
handle_cast({remember, Node}, State) ->
    {noreply, remember(Node, State)};
handle_cast({trouble, Node, Sentence}, State) ->
    polydist_sup:store({trouble, Node}, Sentence),
    {noreply, remember(Node, State)}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'DOWN', _, process, Pid, Reason}, State) ->
    {noreply, ended(Pid, Reason, State)};
handle_info(_, State) ->
    {noreply, State}.

ended(Pid, Reason, #{watched := Watched} = State) ->
    case maps:take(Pid, Watched) of
        {Node, Rest} ->
            case stored(Node) of
                #{pid := Pid, outcome := under_way} = Attempt -> conclude(Node, Attempt, Reason);
                _ -> ok
            end,
            State#{watched := Rest};
        error -> State
    end.

watch(Node, Pid, #{watched := Watched} = State) ->
    _ = monitor(process, Pid),
    State#{watched := Watched#{Pid => Node}}.

remember(Node, #{remembered := Remembered} = State) when is_map_key(Node, Remembered); map_size(Remembered) < ?MAX_NODES ->
    State#{remembered := Remembered#{Node => now_ms()}};
remember(Node, #{remembered := Remembered} = State) ->
    {_, Oldest} = lists:min([{Time, Each} || {Each, Time} <- maps:to_list(Remembered)]),
    lists:foreach(fun(Kind) -> polydist_sup:delete({Kind, Oldest}) end, [attempt, suspect, trouble]),
    remember(Node, State#{remembered := maps:remove(Oldest, Remembered)}).

%% The peer's own connection came first; nothing has failed.
conclude(Node, Attempt, Reason) when Reason =:= remarked; Reason =:= wait_pending; Reason =:= disconnect ->
    polydist_sup:store({attempt, Node}, over(Attempt, superseded));
conclude(Node, Attempt, Reason) ->
    {Kind, Sentence} = why(Attempt, Reason),
    polydist_sup:store({attempt, Node}, (over(Attempt, failed))#{reason => {Kind, Sentence}}),
    polydist_sup:store({trouble, Node}, Sentence),
    suspect(Node, Attempt),
    Before = case Attempt of
                 #{stage := handshake, attempts := Attempts} ->
                     [polydist_dial:sentences([Each]) || #{outcome := failed} = Each <- Attempts];
                 #{} -> [] % they are the reason
             end,
    polydist_log:say(level(Kind, Attempt), [what(Kind, Attempt, Node), lists:join("; ", Before ++ [Sentence])]).

over(#{start := Start} = Attempt, Outcome) ->
    Attempt#{outcome := Outcome, time => now_ms() - Start}.

suspect(Node, #{stage := handshake, dialled := Dialled}) -> polydist_sup:store({suspect, Node}, {Dialled, now_ms()});
suspect(_, _) -> ok.

what(no_candidate, _, _) -> ""; % says it all
what(_, #{stage := lookup}, Node) -> polydist_log:text("cannot find ~ts: ", [Node]);
what(_, _, Node) -> polydist_log:text("cannot connect to ~ts: ", [Node]).

why(#{reason := Reason}, _) -> Reason;
why(#{stage := lookup}, setup_timer_timeout) ->
    {timeout, <<"it was not looked up within net_setuptime: does the name server answer, does EPMD?">>};
why(#{stage := dial}, setup_timer_timeout) ->
    {timeout, <<"no address answered within net_setuptime">>};
why(#{stage := handshake, dialled := Dialled}, setup_timer_timeout) ->
    {silent, polydist_log:text("~ts took the connection and then said nothing for as long as net_setuptime allows",
                               [text(Dialled)])};
why(#{dialled := Dialled}, Reason) ->
    {handshake, polydist_log:text("the handshake with ~ts came to nothing: ~0tP", [text(Dialled), Reason, 20])};
why(_, Reason) ->
    {ended, polydist_log:text("the attempt was ended: ~0tP", [Reason, 20])}.

text({Transport, Address}) ->
    [atom_to_list(Transport), " ", polydist_address:text(Transport, Address)].

%% A peer that is not there is daily life; a certificate that is not accepted, or a policy that forbids, wants somebody to look.
level(Kind, Attempt) ->
    Kinds = [Each || #{reason := {Each, _}} <- maps:get(attempts, Attempt, [])],
    case lists:all(fun is_daily/1, [Kind | Kinds]) of
        true -> info;
        false -> warning
    end.

%% @doc Whether an error is of the kind that a cluster sees every day.
-spec is_daily(Kind :: atom()) -> boolean().
is_daily(Kind) ->
    lists:member(Kind, [econnrefused, econnreset, etimedout, timeout, silent, closed, enoent, ehostunreach, enetunreach, ehostdown,
                        not_found, nxdomain, epipe, eaddrnotavail, refused, ended]).

now_ms() ->
    erlang:monotonic_time(millisecond).
