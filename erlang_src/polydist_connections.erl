%%% Keeps the list of established connections: the process of a connection enters itself, this one takes it out when it dies.
-module(polydist_connections).
-behaviour(gen_server).

-export([enter/1, own/0, find/1, all/0]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([entry/0]).

%% `handshake_time' is microseconds, `since' erlang:system_time(millisecond).
-type entry() :: #{node := node(), direction := in | out, since := integer(), handshake_time := non_neg_integer(),
                   info := #{transport := polydist_native:transport(), listener => polydist_listeners:id(),
                             peer := polydist_native:address(),
                             local := polydist_native:address(),
                             addresses => #{local := [polydist_native:address()], peer := [polydist_native:address()]},
                             tls := polydist_native:tls_facts() | undefined},
                   settings := polydist_rule:settings(), missed := counters:counters_ref(), conn := polydist_native:conn()}.

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Enters the calling process, which owns the connection.
-spec enter(entry()) -> ok.
enter(Entry) ->
    %% The entry first: the peer may be seen as up from now on.
    polydist_sup:store({connection, self()}, Entry),
    gen_server:cast(?MODULE, {enter, self()}).

%% @doc The calling process's entry.
-spec own() -> {ok, entry()} | error.
own() ->
    polydist_sup:lookup({connection, self()}).

%% @doc The connection to Node.
-spec find(node()) -> {ok, entry()} | error.
find(Node) ->
    case [Entry || {_, #{node := Each} = Entry} <- all(), Each =:= Node] of
        [Entry | _] -> {ok, Entry};
        [] -> error
    end.

%% @doc All connections and the processes that own them.
-spec all() -> [{pid(), entry()}].
all() ->
    %% Of one that has just ended the entry may still be there.
    [{Pid, Entry} || [Pid, Entry] <- polydist_sup:match({{connection, '$1'}, '$2'}), is_process_alive(Pid)].

-spec init([]) -> {ok, #{}}.
init([]) ->
    lists:foreach(fun({Pid, _}) -> monitor(process, Pid) end, all()), % there are some after a crash
    {ok, #{}}.

-spec handle_call(term(), gen_server:from(), State) -> {reply, ignored, State}.
handle_call(_, _From, State) ->
    {reply, ignored, State}.

-spec handle_cast({enter, pid()}, State) -> {noreply, State}.
handle_cast({enter, Pid}, State) ->
    _ = monitor(process, Pid),
    ok = polydist_age:entered(Pid),
    {noreply, State}.

-spec handle_info(term(), State) -> {noreply, State}.
handle_info({'DOWN', _, process, Pid, Reason}, State) ->
    case polydist_sup:lookup({connection, Pid}) of
        {ok, Entry} -> ended(Entry, Reason);
        error -> ok
    end,
    polydist_sup:delete({connection, Pid}),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

%% Somebody here wanted it so, or the distribution stops: no trouble.
ended(_, Reason) when Reason =:= disconnect; Reason =:= disconnected; Reason =:= shutdown; Reason =:= killed ->
    ok;
ended(#{node := Node, since := Since, info := #{transport := Transport}}, Reason) ->
    Seconds = (erlang:system_time(millisecond) - Since) / 1000,
    Sentence = polydist_log:text("the connection over ~p ended after ~.1f s: ~0tP", [Transport, Seconds, Reason, 20]),
    polydist_attempts:trouble(Node, Sentence).
