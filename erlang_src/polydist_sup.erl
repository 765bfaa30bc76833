%%% The supervisor of all processes of polydist, itself beneath net_sup: it comes and goes with the distribution.
%%%
%%% It owns the table `polydist', so that no crash of a child loses a listener, a registration or a connection's entry. The
%%% table holds:
%%%   native                       ok | {error, Sentence}              whether the library could be loaded
%%%   config                       {ok, Config} | {error, Sentence}    polydist_config:config()
%%%   tls                          {ok, Loaded} | {error, Sentence}    polydist_tls_config:loaded(), kept by polydist_tls
%%%   {listener, Id}               polydist_listeners:result()
%%%   {socket, Listener}           the id of the listener that has it
%%%   {outside, Listener}          the process that has the socket of a transport from outside
%%%   node                         {Name, Host} as they were at boot
%%%   accepting                    the carriers that listened at boot: those for which net_kernel has acceptors
%%%   {acceptor, Transport}        the acceptor's process
%%%   announced                    the port that another epmd module than ours has registered
%%%   registration                 what polydist_epmd keeps registered
%%%   {registered, Registry}       what a polydist_registrar keeps registered
%%%   {static, Path}, {dns, Name, Type, Servers}    what registries remember
%%%   {connection, Pid}            polydist_connections:entry()
%%%   {attempt, Node}, {suspect, Node}, {trouble, Node}    what polydist_attempts remembers
%%%   {choice, Node}               {Chooser, Plan}, while polydist_choice connects
-module(polydist_sup).
-behaviour(supervisor).

-export([start_link/0, init/1, lookup/1, match/1, store/2, store_new/2, delete/1]).

-define(TABLE, polydist).

%% @doc Started by net_sup, as a child of the first carrier or of polydist_epmd.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Reads from our table; an error also when nothing of polydist runs.
-spec lookup(Key :: term()) -> {ok, term()} | error.
lookup(Key) ->
    try ets:lookup(?TABLE, Key) of
        [{Key, Value}] -> {ok, Value};
        [] -> error
    catch
        error:badarg -> error
    end.

%% @doc Writes to our table.
-spec store(Key :: term(), Value :: term()) -> ok.
store(Key, Value) ->
    true = ets:insert(?TABLE, {Key, Value}),
    ok.

%% @doc Writes to our table unless the key is there.
-spec store_new(Key :: term(), Value :: term()) -> boolean().
store_new(Key, Value) ->
    ets:insert_new(?TABLE, {Key, Value}).

%% @doc What the pattern's variables matched, entry by entry.
-spec match(ets:match_pattern()) -> [[term()]].
match(Pattern) ->
    try
        ets:match(?TABLE, Pattern)
    catch
        error:badarg -> []
    end.

%% @doc Removes from our table.
-spec delete(Key :: term()) -> ok.
delete(Key) ->
    true = ets:delete(?TABLE, Key),
    ok.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    store(native, load()),
    Children = [child(polydist_listeners), child(polydist_log), child(polydist_tls), child(polydist_attempts),
                child(polydist_connections), child(polydist_age),
                (child(polydist_epmd))#{start := {polydist_epmd, start_server, []}},
                (child(polydist_registrars))#{type => supervisor, shutdown := 1000}],
    %% Generous: net_sup, above us, takes the whole node down when we give up.
    {ok, {#{strategy => one_for_one, intensity => 100, period => 10}, Children}}.

child(Module) ->
    #{id => Module, start => {Module, start_link, []}, shutdown => 500}.

%% The driver is loaded here since it must not go before the last connection does.
load() ->
    case polydist_native:load() of
        ok -> polydist_native:load_driver();
        Error -> Error
    end.
