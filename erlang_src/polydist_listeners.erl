%%% Opens the sockets of all our carriers, registers the node for all of them, and opens and closes more while it runs.
%%%
%%% net_kernel asks carrier after carrier to listen. The first to be asked opens every one of them and registers once, since
%%% EPMD takes a name only once; the others get told what became of them. What was opened is kept in the supervisor's table,
%%% so this process may crash without harm; it closes the sockets when the distribution stops.
%%%
%%% A listener that could not be opened for a reason that can pass is tried again, and joins the others when it can. net_kernel
%%% has an acceptor for each carrier that listened at boot, and for no other: the first of those takes what has no acceptor of
%%% its own.
-module(polydist_listeners).
-behaviour(gen_server).

%% for the carriers and the API
-export([listen/3, sockets/1, id/1, add/2, remove/1, config/0, set_policy/1, uds_dirs/0, take_tls/0,
         take_tls_soon/0, results/0]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([id/0, result/0]).

%% A configured listener without a name is called by its transport, if it is the first; any other one has a reference.
-type id() :: atom() | reference().

%% What became of a listener. One that listens may still have a reason: why it does so at fewer addresses than it should.
%% `attempts' failed so far. `first': the first of its transport at boot; what the command line and the kernel's parameters say of
%% ports is meant for that one.
-type result() :: #{id := id(), transport := polydist_native:transport(), state := listening | failed | closing,
                    place := polydist_place:place(), first := boolean(), order := integer(),
                    listeners := [polydist_native:listener()], addresses := [polydist_native:address()],
                    attempts := non_neg_integer(), reason => {Kind :: atom(), Sentence :: binary()}, creation => integer()}.

%% The timers of the listeners that are tried again.
-type state() :: #{id() => reference()}.

%% When a listener is tried again, in milliseconds: at first, and at most.
-define(RETRY, 1000).
-define(RETRY_MAX, 60000).

%% When to tell the registries again if there is nobody to tell.
-define(ANNOUNCE_AGAIN, 200).

%% No time heals these.
-define(LASTING, [bad_config, bad_option, native, duplicate_name, register, too_long, eafnosupport, einval]).

-define(ANY4, {0, 0, 0, 0}).
-define(ANY6, {0, 0, 0, 0, 0, 0, 0, 0}).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc What became of one carrier; opens them all if that has not been done.
-spec listen(polydist_native:transport(), Name :: atom(), Host :: string()) ->
    {ok, polydist_native:address(), Creation :: integer()} | {error, duplicate_name | {Kind :: atom(), Sentence :: binary()}}.
listen(Transport, Name, Host) ->
    Results = gen_server:call(?MODULE, {listen, Transport, atom_to_list(Name), Host}, infinity),
    case {[Each || #{state := listening} = Each <- Results], Results} of
        {[#{addresses := [Address | _], creation := Creation} | _], _} -> {ok, Address, Creation};
        {[], [#{reason := {duplicate_name, _}} | _]} -> {error, duplicate_name};
        {[], [#{reason := Reason} | _]} -> {error, Reason}
    end.

%% @doc The sockets whose connections the acceptor of this carrier takes.
-spec sockets(polydist_native:transport()) -> [polydist_native:listener()].
sockets(Carrier) ->
    lists:append([Listeners || #{transport := T, listeners := Listeners} <- results(), acceptor_of(T) =:= {ok, Carrier}]).

acceptor_of(Transport) ->
    case polydist_sup:lookup(accepting) of
        {ok, [First | _] = Accepting} ->
            case lists:member(Transport, Accepting) of
                true -> {ok, Transport};
                false -> {ok, First}
            end;
        _ -> none
    end.

%% @doc Which listener a socket belongs to.
-spec id(polydist_native:listener()) -> {ok, id()} | error.
id(Socket) ->
    polydist_sup:lookup({socket, Socket}).

%% @doc Opens another listener.
-spec add(polydist_native:transport(), polydist_place:place()) -> {ok, id()} | {error, {Kind :: atom(), Sentence :: binary()}}.
add(Transport, Place) ->
    running(fun() -> gen_server:call(?MODULE, {add, Transport, Place}, infinity) end).

%% @doc Closes a listener for good.
-spec remove(id()) -> ok | {error, {Kind :: atom(), Sentence :: binary()}}.
remove(Id) ->
    running(fun() -> gen_server:call(?MODULE, {remove, Id}, infinity) end).

running(Do) ->
    case config() of
        {ok, _} -> Do();
        {error, Sentence} -> {error, {not_running, Sentence}}
    end.

%% @doc The configuration this node started with. Any process; an error also when polydist does not run.
-spec config() -> {ok, polydist_config:config()} | {error, Sentence :: binary()}.
config() ->
    case polydist_sup:lookup(config) of
        {ok, Config} -> Config;
        error -> {error, <<"the distribution of polydist is not running">>}
    end.

%% @doc Puts another policy in force, for connections made from now on. Any process.
-spec set_policy(polydist_policy:policy()) -> ok | {error, Sentence :: binary()}.
set_policy(Policy) ->
    case config() of
        {ok, _} -> gen_server:call(?MODULE, {set_policy, Policy});
        Error -> Error
    end.

%% @doc The directories whose sockets may be dialled: those where this node and others of its user put theirs, and those configured.
-spec uds_dirs() -> [binary()].
uds_dirs() ->
    {ok, #{uds_dirs := Configured, listen := Listen}} = config(),
    Open = [filename:dirname(Path) || #{addresses := Addresses} <- results(), {local, Path} <- Addresses],
    lists:uniq(polydist_sockets:uds_directories(polydist_place:of_transport(uds, Listen)) ++ Open ++ Configured).

%% @doc What polydist_tls:config/1 returns has changed: listeners take it for new handshakes, and those that had to do without are
%% tried again.
-spec take_tls() -> ok.
take_tls() ->
    gen_server:call(?MODULE, take_tls, infinity).

%% @doc As take_tls/0, without waiting for it.
-spec take_tls_soon() -> ok.
take_tls_soon() ->
    gen_server:cast(?MODULE, take_tls).

%% @doc What became of each listener, in the order of polydist_carrier:transports/0.
-spec results() -> [result()].
results() ->
    Results = [Result || [#{state := State} = Result] <- polydist_sup:match({{listener, '_'}, '$1'}), State =/= closing],
    Ordered = lists:sort(fun(#{order := A}, #{order := B}) -> A =< B end, Results),
    [Result || T <- polydist_carrier:transports(), #{transport := Each} = Result <- Ordered, Each =:= T].

listening() ->
    [Result || #{state := listening} = Result <- results()].

-spec init([]) -> {ok, state()}.
init([]) ->
    process_flag(trap_exit, true), % to close the sockets in terminate/2
    case polydist_sup:lookup(config) of
        error ->
            configure(),
            {ok, #{}};
        {ok, _} -> {ok, recovered()}
    end.

%% After a crash: what was begun is finished, and what is to be tried again is.
recovered() ->
    Closing = [Result || [#{state := closing} = Result] <- polydist_sup:match({{listener, '_'}, '$1'})],
    lists:foreach(fun forget/1, Closing),
    lists:foreach(fun offer/1, listening()),
    _ = [polydist_outside:watch(Socket) || #{listeners := Sockets} <- listening(), Socket <- Sockets],
    State = lists:foldl(fun try_later/2, #{}, results()),
    self() ! announce,
    taken_tls(State).

configure() ->
    polydist_sup:store(config, polydist_config:read()),
    polydist_config:carriers() =:= [] orelse warn_of_ignored(),
    ok.

warn_of_ignored() ->
    {_, Listen} = polydist_config:socket_options(listen),
    {_, Connect} = polydist_config:socket_options(connect),
    case lists:usort(Listen ++ Connect) of
        [] -> ok;
        Ignored ->
            polydist_log:say(warning, "of inet_dist_listen_options and inet_dist_connect_options these are ignored: ~0p; nodelay, "
                             "keepalive, sndbuf, recbuf, priority, tos, sctp and backlog are known", [Ignored])
    end.

-spec handle_call({listen, polydist_native:transport(), Name :: string(), Host :: string()}
                  | {add, polydist_native:transport(), polydist_place:place()} | {remove, id()}
                  | {set_policy, polydist_policy:policy()} | take_tls,
                  gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({listen, Transport, Name, Host}, _From, State) ->
    Booted = case polydist_sup:lookup(accepting) of
                 {ok, _} -> State;
                 error -> boot(lists:usort([Transport | polydist_config:carriers()]), Name, Host)
             end,
    {reply, [Result || #{transport := T} = Result <- results(), T =:= Transport], Booted};
handle_call({add, Transport, Place}, _From, State) ->
    Id = maps:get(name, Place, make_ref()),
    case {polydist_sup:lookup({listener, Id}), acceptor_of(Transport)} of
        {_, none} ->
            {reply, {error, {not_listening, <<"none of this node's carriers of polydist listened at boot, so nobody takes what "
                                              "comes in; start it with one that does, without -dist_listen false">>}}, State};
        {{ok, _}, _} ->
            Sentence = polydist_log:text("there is a listener with the name ~0tp; remove it first, or choose another name", [Id]),
            {reply, {error, {name_taken, Sentence}}, State};
        {error, {ok, _}} -> added(polydist_sockets:open(result(Id, Transport, Place, false), results()), State)
    end;
handle_call({remove, Id}, _From, State) ->
    case polydist_sup:lookup({listener, Id}) of
        {ok, Result} ->
            forget(Result),
            announce(),
            polydist_log:say(info, "the listener ~ts is removed", [text(Result)]),
            listening() =/= [] orelse
                polydist_log:say(warning, "the last listener is removed; nobody can connect to this node until "
                                 "polydist:add_listener/1 opens another"),
            {reply, ok, not_again(Id, State)};
        error ->
            {reply, {error, {not_found, polydist_log:text("there is no listener ~0tp; these there are: ~0tp",
                                                          [Id, [Each || #{id := Each} <- results()]])}}, State}
    end;
handle_call({set_policy, Policy}, _From, State) ->
    case config() of
        {ok, Config} -> {reply, polydist_sup:store(config, {ok, Config#{policy := Policy}}), State};
        Error -> {reply, Error, State}
    end;
handle_call(take_tls, _From, State) ->
    {reply, ok, taken_tls(State)}.

added(#{state := failed, reason := Reason}, State) ->
    {reply, {error, Reason}, State};
added(#{id := Id} = Result, State) ->
    log(Result),
    polydist_log:say(info, "the listener ~ts is added", [text(Result)]),
    joined(Result),
    {reply, {ok, Id}, try_later(Result, State)}.

%% The table first: an acceptor that starts at this moment reads it.
joined(Result) ->
    keep(Result),
    offer(Result),
    announce().

offer(#{transport := Transport, listeners := Listeners}) ->
    Acceptors = [Acceptor || {ok, Carrier} <- [acceptor_of(Transport)],
                             {ok, Acceptor} <- [polydist_sup:lookup({acceptor, Carrier})]],
    lists:foreach(fun(Acceptor) -> polydist_carrier:take_up(Acceptor, Listeners) end, Acceptors).

keep(#{id := Id, listeners := Listeners} = Result) ->
    lists:foreach(fun(Socket) -> polydist_sup:store({socket, Socket}, Id) end, Listeners),
    polydist_sup:store({listener, Id}, Result).

%% Marked before it is closed: were this process to crash in between, its successor would go on from there.
forget(#{id := Id, listeners := Listeners} = Result) ->
    keep(Result#{state := closing}),
    close(Result),
    lists:foreach(fun(Socket) -> polydist_sup:delete({socket, Socket}) end, Listeners),
    polydist_sup:delete({listener, Id}).

-spec handle_cast(take_tls, state()) -> {noreply, state()}.
handle_cast(take_tls, State) ->
    {noreply, taken_tls(State)}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({timeout, Timer, {retry, Id}}, State) when map_get(Id, State) =:= Timer ->
    {ok, Old} = polydist_sup:lookup({listener, Id}),
    {noreply, retry(Old, maps:remove(Id, State))};
handle_info(announce, State) ->
    announce(),
    {noreply, State};
handle_info({{polydist_outside, Socket}, _, process, _, _}, State) ->
    case id(Socket) of
        {ok, Id} -> {noreply, lost(polydist_sup:lookup({listener, Id}), State)};
        error -> {noreply, State} % it was closed
    end;
handle_info(_, State) ->
    {noreply, State}.

taken_tls(State) ->
    case polydist_tls:config(server) of
        {ok, Tls} ->
            Results = [Result || #{transport := T, place := Place} = Result <- results(),
                                 polydist_sockets:is_secured(T, Place)],
            %% One that has been closed needs none.
            _ = [polydist_native:set_listener_tls(Listener, Tls) || #{listeners := Listeners} <- Results, Listener <- Listeners],
            lists:foldl(fun(#{id := Id} = Without, Before) -> retry(Without, not_again(Id, Before)) end, State,
                        [Result || #{reason := {tls, _}} = Result <- Results, is_passing(Result)]);
        {error, _} -> State
    end.

retry(Old, State) ->
    New = polydist_sockets:open(Old, results()),
    tried(Old, New),
    try_later(New, State).

%% The process of a transport from outside is gone, and with it the socket that listened.
lost({ok, #{id := Id, transport := Transport} = Result}, State) ->
    forget(Result),
    Sentence = polydist_log:text("the process that had the socket of ~p was ended", [Transport]),
    Lost = polydist_sockets:failed(Result#{listeners := [], addresses := [], attempts := 0}, {crashed, Sentence}),
    log(Lost),
    keep(Lost),
    announce(),
    try_later(Lost, not_again(Id, State)).

tried(#{addresses := Addresses, reason := {_, Was}}, #{addresses := Addresses, reason := {_, Is}} = New) ->
    Was =:= Is orelse log(New),
    keep(New);
tried(#{attempts := Attempts}, New) ->
    polydist_log:say(notice, "~ts after ~b attempts that failed", [[text(New), " listens"], Attempts]),
    joined(New).

try_later(#{id := Id, attempts := Attempts} = Result, State) ->
    case is_passing(Result) of
        true ->
            State#{Id => erlang:start_timer(polydist_backoff:wait(?RETRY, ?RETRY_MAX, Attempts), self(), {retry, Id})};
        false -> State
    end.

is_passing(#{reason := {Kind, _}, transport := Transport}) ->
    not lists:member(Kind, ?LASTING) andalso acceptor_of(Transport) =/= none;
is_passing(_) ->
    false.

not_again(Id, State) ->
    case State of
        #{Id := Timer} ->
            _ = erlang:cancel_timer(Timer),
            maps:remove(Id, State);
        #{} -> State
    end.

-spec terminate(term(), state()) -> ok.
terminate(shutdown, _) ->
    lists:foreach(fun close/1, results());
terminate(_, _) -> % a crash: the sockets live on in the table
    ok.

close(#{listeners := Listeners}) ->
    lists:foreach(fun polydist_sockets:close/1, Listeners).

log(#{transport := T, state := failed, reason := {_, Sentence}} = Result) ->
    polydist_log:say(error, "~p does not listen~ts: ~ts", [T, again(Result), Sentence]);
log(#{transport := T, reason := {_, Sentence}} = Result) ->
    polydist_log:say(warning, "~p listens only in part~ts: ~ts", [T, again(Result), Sentence]);
log(_) ->
    ok.

again(Result) ->
    case is_passing(Result) of
        true -> ", and tries again";
        false -> ""
    end.

text(#{id := Id, transport := Transport, addresses := Addresses}) ->
    Name = case is_atom(Id) andalso Id =/= Transport of
               true -> io_lib:format("~0tp, ", [Id]);
               false -> ""
           end,
    [Name, atom_to_list(Transport), [[" ", polydist_address:text(Transport, Address)] || Address <- Addresses]].

%% Opens what is configured. tcp comes before tcp6, which wants its port number.
boot(Carriers, Name, Host) ->
    polydist_sup:store(node, {Name, Host}),
    Transports = [T || T <- polydist_carrier:transports(), lists:member(T, Carriers)],
    Results = case {polydist_sup:lookup(native), config()} of
                  {{ok, ok}, {ok, #{listen := Listen} = Config}} ->
                      registered(opened(configured(Transports, Listen)), Name, Config);
                  {{ok, {error, Sentence}}, _} -> all_failed(configured(Transports, #{}), {native, Sentence});
                  {_, {error, Sentence}} -> all_failed(configured(Transports, #{}), {bad_config, Sentence})
              end,
    lists:foreach(fun keep/1, Results),
    polydist_sup:store(accepting, [T || T <- Transports, lists:any(fun(Each) -> listens(T, Each) end, Results)]),
    lists:foreach(fun log/1, Results),
    lists:foldl(fun try_later/2, #{}, Results).

opened(Configured) ->
    lists:foldl(fun(Each, Others) -> Others ++ [polydist_sockets:open(Each, Others)] end, [], Configured).

all_failed(Results, Reason) ->
    [polydist_sockets:failed(Each, Reason) || Each <- Results].

listens(Transport, #{transport := Each, state := State}) ->
    Each =:= Transport andalso State =:= listening.

configured(Transports, Listen) ->
    Places = [{T, polydist_place:of_transport(T, Listen)} || T <- Transports],
    Names = [Name || {_, Each} <- Places, #{name := Name} <- Each],
    [result(configured_id(T, Place, First, Names), T, Place, First)
     || {T, [Head | Tail]} <- Places, {First, Place} <- [{true, Head} | [{false, Each} || Each <- Tail]]].

configured_id(_, #{name := Name}, _, _) -> Name;
configured_id(Transport, _, First, Names) ->
    case First andalso not lists:member(Transport, Names) of
        true -> Transport;
        false -> make_ref()
    end.

result(Id, Transport, Place, First) ->
    #{id => Id, transport => Transport, state => failed, place => Place, first => First,
      order => erlang:unique_integer([monotonic]), listeners => [], addresses => [], attempts => 0}.

%% Registers what listens. One name, all endpoints; a name that is taken takes every carrier down, as it would a stock node.
registered(Results, Name, Config) ->
    case [R || #{state := listening} = R <- Results] of
        [] -> Results;
        Listening ->
            case register_node(net_kernel:epmd_module(), Name, Listening, Config) of
                {ok, Creation} ->
                    [case State of listening -> R#{creation => Creation}; failed -> R end || #{state := State} = R <- Results];
                {error, Reason} ->
                    lists:foreach(fun close/1, Listening),
                    all_failed([R#{listeners := [], addresses := []} || R <- Results], Reason)
            end
    end.

%% What is registered follows the listeners. If none of ours listened at boot, it is not ours.
announce() ->
    case {polydist_sup:lookup(accepting), config()} of
        {{ok, [_ | _]}, {ok, Config}} ->
            Listening = listening(),
            {Port, _} = legacy_port(Listening, Config),
            announce(net_kernel:epmd_module(), Port, Listening);
        _ -> ok
    end.

announce(polydist_epmd, Port, Listening) ->
    try
        polydist_registrars:update(Port, endpoints(Listening))
    catch
        exit:_ -> % it is being restarted
            _ = erlang:send_after(?ANNOUNCE_AGAIN, self(), announce),
            ok
    end;
announce(Epmd, Port, _) ->
    case polydist_sup:lookup(announced) of
        {ok, Port} -> ok;
        {ok, Old} ->
            polydist_log:say(warning, "~p keeps the port ~b registered, though ~ts; with -epmd_module polydist_epmd what is "
                             "registered follows the listeners",
                             [Epmd, Old, case Port of
                                             0 -> "no port is left that stock nodes could dial";
                                             _ -> io_lib:format("stock nodes should dial ~b", [Port])
                                         end])
    end.

endpoints(Listening) ->
    [#{transport => atom_to_binary(T), flags => 0, address => where(A)} || {T, A} <- spoken(Listening)].

spoken(Listening) ->
    lists:append([polydist_sockets:spoken(Each) || Each <- Listening]).

register_node(polydist_epmd, Name, Listening, Config) ->
    {Port, _} = legacy_port(Listening, Config),
    registration(polydist_registrars:register(Name, Port, endpoints(Listening)), Name);
register_node(Epmd, Name, Listening, Config) ->
    {Port, Family} = legacy_port(Listening, Config),
    polydist_sup:store(announced, Port),
    NameAtom = list_to_atom(Name), % it is net_kernel's own
    registration(case erlang:function_exported(Epmd, register_node, 3) of
                     true -> Epmd:register_node(NameAtom, Port, driver(Family));
                     false -> Epmd:register_node(NameAtom, Port)
                 end, Name).

%% What erl_epmd gets as third argument: a driver module up to OTP 25, then a family.
driver(Family) ->
    case {erlang:system_info(otp_release), Family} of
        {"25", inet} -> inet_tcp;
        {"25", inet6} -> inet6_tcp;
        {_, Family} -> Family
    end.

registration({ok, Creation}, _) when is_integer(Creation) -> {ok, Creation};
registration({error, duplicate_name}, Name) ->
    {error, {duplicate_name, polydist_log:text("the name ~ts is in use by another node", [Name])}};
registration(Other, Name) ->
    {error, {register, polydist_log:text("the name ~ts could not be registered by ~p: ~0p",
                                         [Name, net_kernel:epmd_module(), Other])}}.

legacy_port(Listening, Config) ->
    Spoken = spoken(Listening),
    Legacy = polydist_sockets:legacy(Config, [T || {T, _} <- Spoken]),
    case [A || {T, A} <- Spoken, T =:= Legacy] of
        [{Ip, Port} | _] when tuple_size(Ip) =:= 4 -> {Port, inet};
        [{_, Port} | _] -> {Port, inet6};
        [] -> {0, inet}
    end.

where({?ANY4, Port}) -> {any4, Port};
where({?ANY6, Port}) -> {any6, Port};
where(Address) -> Address.
