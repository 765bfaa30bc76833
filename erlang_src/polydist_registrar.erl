%%% Keeps this node registered in one registry, whatever becomes of it: what fails is tried again, later and later, and what crashes
%%% is named in the log and registered anew.
-module(polydist_registrar).
-behaviour(gen_server).

%% for polydist_registrars
-export([start_link/1, register/4, update/3, unregister/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(FIRST_RETRY, 500).
-define(LONGEST_RETRY, 30000).
-define(CALL, 60000). % a registry may hang; who waits for it has a patience of its own

-type state() :: #{registry := polydist_registry:registry(), node := polydist_registry:registration() | none,
                   %% The registry's own state while the node is registered.
                   registered := {yes, term()} | no, changed := boolean(),
                   wait := pos_integer(), timer := reference() | none, said := boolean()}.

-spec start_link(polydist_registry:registry()) -> gen_server:start_ret().
start_link(#{name := Name} = Registry) ->
    gen_server:start_link({local, process(Name)}, ?MODULE, Registry, []).

process(Name) ->
    list_to_atom("polydist_registrar_" ++ atom_to_list(Name)). % the names come from the configuration

%% @doc Registers the node, the first time.
-spec register(polydist_registry:name(), Name :: string(), inet:port_number(), [map()]) ->
    ok | {error, duplicate_name | {Kind :: atom(), Sentence :: binary()}}.
register(Registry, Name, Port, Endpoints) ->
    gen_server:call(process(Registry), {register, Name, Port, Endpoints}, ?CALL).

%% @doc The endpoints have changed.
-spec update(polydist_registry:name(), inet:port_number(), [map()]) -> ok.
update(Registry, Port, Endpoints) ->
    gen_server:cast(process(Registry), {update, Port, Endpoints}).

%% @doc Takes the node out. Returns at once.
-spec unregister(polydist_registry:name()) -> ok.
unregister(Registry) ->
    gen_server:cast(process(Registry), unregister).

-spec init(polydist_registry:registry()) -> {ok, state()}.
init(#{name := Name} = Registry) ->
    process_flag(trap_exit, true), % to unregister in terminate/2
    State = #{registry => Registry, node => none, registered => no, changed => false, wait => ?FIRST_RETRY, timer => none,
              said => false},
    case polydist_sup:lookup({registered, Name}) of
        {ok, Node} -> % after a crash
            polydist_log:say(warning, "the registrar of ~p was restarted after a crash; the node is registered there again",
                             [Name]),
            {ok, retry_after(0, State#{node := Node})};
        error -> {ok, State}
    end.

-spec handle_call({register, string(), inet:port_number(), [map()]}, gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({register, Name, Port, Endpoints}, _From, State) ->
    case attempt(kept(State#{node := registration(Name, Port, Endpoints)})) of
        {ok, Registered} -> {reply, ok, Registered};
        %% A node that boots stops for this one, unless it has run out of patience: then this goes on, as for the others.
        {error, {duplicate_name, _} = Reason, Failed} -> {reply, {error, duplicate_name}, complain(Reason, Failed)};
        {error, Reason, Failed} -> {reply, {error, Reason}, complain(Reason, Failed)}
    end.

-spec handle_cast({update, inet:port_number(), [map()]} | unregister, state()) -> {noreply, state()}.
handle_cast({update, Port, Endpoints}, #{node := #{name := Name}} = State) ->
    self() ! changed, % behind all other changes that wait
    {noreply, kept(State#{node := registration(Name, Port, Endpoints), changed := true})};
handle_cast(unregister, #{registry := #{name := Name}} = State) ->
    polydist_sup:delete({registered, Name}),
    {noreply, (out(State))#{node := none}};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({timeout, Timer, retry}, #{timer := Timer, node := Node} = State) when Node =/= none ->
    {noreply, again(State#{timer := none})};
handle_info({timeout, _, retry}, State) ->
    {noreply, State};
handle_info(changed, #{changed := true, node := Node} = State) when Node =/= none ->
    {noreply, changed(State#{changed := false})};
handle_info(Message, #{registry := #{module := Module}, registered := {yes, Own}} = State) ->
    case erlang:function_exported(Module, handle, 2) andalso call(State, handle, [Message, Own]) of
        {ok, New} -> {noreply, State#{registered := {yes, New}}};
        {lost, Sentence} -> {noreply, complain({lost, Sentence}, State#{registered := no})};
        {error, Reason} -> {noreply, complain(Reason, out(State))};
        false -> {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), state()) -> ok.
terminate(shutdown, State) ->
    _ = out(State),
    ok;
terminate(_, _) -> % a crash: whoever comes next registers anew
    ok.

%% While the node boots node/0 does not know it yet.
registration(Name, Port, Endpoints) ->
    {ok, {Name, Host}} = polydist_sup:lookup(node),
    #{node => Name ++ "@" ++ Host, name => Name, port => Port, endpoints => Endpoints, record => polydist_epmd:record(Endpoints)}.

kept(#{registry := #{name := Name}, node := Node} = State) ->
    polydist_sup:store({registered, Name}, Node),
    State.

attempt(#{registry := #{options := Options}, node := Node} = State) ->
    case call(State, register, [Node, Options]) of
        {ok, Own} -> {ok, State#{registered := {yes, Own}, wait := ?FIRST_RETRY}};
        {error, Reason} -> {error, Reason, State}
    end.

again(#{registry := #{name := Name}, said := Said} = State) ->
    case attempt(State) of
        {ok, Registered} ->
            not Said orelse polydist_log:say(notice, "registered in ~p", [Name]),
            Registered#{said := false};
        {error, Reason, Failed} -> complain(Reason, Failed)
    end.

changed(#{registered := no} = State) ->
    State; % it is being tried
changed(#{registry := #{module := Module}, node := Node, registered := {yes, Own}} = State) ->
    case erlang:function_exported(Module, update, 2) andalso call(State, update, [Node, Own]) of
        {ok, New} -> State#{registered := {yes, New}};
        {error, Reason} -> complain(Reason, out(State));
        false -> again(out(State))
    end.

out(#{registry := #{module := Module}, registered := {yes, Own}} = State) ->
    _ = erlang:function_exported(Module, unregister, 1) andalso call(State, unregister, [Own]),
    State#{registered := no};
out(State) ->
    State.

%% Said once, until it is over.
complain({_, Sentence}, #{registry := #{name := Name}, said := Said, wait := Wait} = State) ->
    Said orelse polydist_log:say(warning, "the node is not registered in ~p (~ts); trying on", [Name, Sentence]),
    retry_after(Wait, State#{said := true, wait := min(?LONGEST_RETRY, 2 * Wait)}).

%% Not all nodes at the same moment.
retry_after(Wait, #{timer := none} = State) ->
    State#{timer := erlang:start_timer(Wait + rand:uniform(1 + Wait div 4), self(), retry)};
retry_after(Wait, #{timer := Timer} = State) ->
    _ = erlang:cancel_timer(Timer),
    retry_after(Wait, State#{timer := none}).

%% Calls the registry. What it does wrong is an error.
call(#{registry := #{name := Name, module := Module}}, Function, Args) ->
    try apply(Module, Function, Args) of
        ok -> ok;
        {ok, _} = Ok -> Ok;
        {lost, Sentence} when is_binary(Sentence) -> {lost, Sentence};
        {error, {Kind, Sentence}} when is_atom(Kind), is_binary(Sentence) -> {error, {Kind, Sentence}};
        Other -> {error, {bad_answer, polydist_log:text("~p answered ~0tP to ~p", [Name, Other, 20, Function])}}
    catch
        Class:Reason:Stack ->
            {error, {crashed, polydist_log:text("~p crashed in ~p: ~0tP",
                                                [Name, Function, {Class, Reason, hd(Stack ++ [none])}, 20])}}
    end.
