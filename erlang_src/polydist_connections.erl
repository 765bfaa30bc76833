%%% Keeps the list of established connections: the process of a connection enters itself, this one takes it out when it dies.
-module(polydist_connections).
-behaviour(gen_server).

-export([enter/1, all/0]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([entry/0]).

-type entry() :: #{node := node(), transport := polydist_native:transport(), direction := in | out,
                   peer := polydist_native:address(), since := integer(),
                   tls := #{version := atom(), cipher := binary()} | undefined, conn := polydist_native:conn()}.

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Enters the calling process, which owns the connection.
-spec enter(entry()) -> ok.
enter(Entry) ->
    %% The entry first: the peer may be seen as up from now on.
    polydist_sup:store({connection, self()}, Entry),
    gen_server:cast(?MODULE, {enter, self()}).

%% @doc All connections and the processes that own them.
-spec all() -> [{pid(), entry()}].
all() ->
    [{Pid, Entry} || [Pid, Entry] <- polydist_sup:match({{connection, '$1'}, '$2'})].

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
    {noreply, State}.

-spec handle_info(term(), State) -> {noreply, State}.
handle_info({'DOWN', _, process, Pid, _}, State) ->
    polydist_sup:delete({connection, Pid}),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.
