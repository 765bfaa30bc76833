%%% `-epmd_module polydist_epmd': one name in an ordinary EPMD, all endpoints of the node with it.
%%%
%%% The callbacks are those that net_kernel, net_adm and stock carriers use on erl_epmd. The process keeps the node registered:
%%% while no EPMD answers the node runs all the same, and as soon as one does it is registered again, under its name and with
%%% its creation unchanged. Endpoints go into the Extra field, which stock EPMDs keep and hand out and stock nodes ignore; the
%%% port is one that stock nodes can dial.
-module(polydist_epmd).
-behaviour(gen_server).

%% epmd module callbacks
-export([start/0, start_link/0, stop/0, register_node/2, register_node/3, listen_port_please/2, address_please/3, port_please/2,
         port_please/3, names/0, names/1]).

%% for the rest of polydist
-export([start_server/0, register_endpoints/3, update_endpoints/2, lookup/3, lookup/4, port/0, record/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(LOCAL, [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}]).
-define(DEFAULT_PORT, 4369).
-define(LOWEST_VERSION, 5).

%% The stock time between attempts.
-define(RETRY, 2000).

%% EPMD may see a connection end a little after the next one begins, and then calls a free name taken: so ask again, this
%% often, this many milliseconds apart.
-define(ASK_AGAIN, 5).
-define(ASK_AGAIN_AFTER, 100).

%% What infinity means to a lookup.
-define(PATIENCE, 10000).

%% What is registered. Kept in the supervisor's table, too, so that a crash of this process does not lose it.
%% `stock': the port is that of a stock carrier beside ours.
-type node_info() :: #{name := string(), port := inet:port_number(), stock := boolean(), endpoints := [map()]}.

-type state() :: #{node := node_info() | none,
                   %% The reference of the registration's messages, or none while there is no registration.
                   link := {reference(), polydist_native:registration()} | none,
                   creation := integer(),
                   %% Whether what is registered is no longer what `node' says.
                   changed := boolean(),
                   %% Whether the trouble at hand has been logged.
                   said := boolean()}.

%% @doc Started by net_sup. Carriers of ours have started the supervisor before; next to stock carriers it is started here.
-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    case whereis(polydist_sup) of
        undefined -> polydist_sup:start_link();
        _ -> ignore
    end.

%% @doc For those who know erl_epmd:start/0: does nothing, the distribution starts us.
-spec start() -> ignore.
start() ->
    ignore.

%% @doc Takes the node's name out of EPMD.
-spec stop() -> ok.
stop() ->
    gen_server:call(?MODULE, unregister, infinity).

%% @doc Registers a stock carrier's port.
-spec register_node(Name :: atom() | string(), inet:port_number()) -> {ok, Creation :: integer()} | {error, term()}.
register_node(Name, Port) ->
    register_node(Name, Port, inet).

%% @doc Registers a stock carrier's port. The third argument, a driver or a family, makes no difference: there is one EPMD.
-spec register_node(Name :: atom() | string(), inet:port_number(), inet | inet6 | inet_tcp | inet6_tcp) ->
    {ok, Creation :: integer()} | {error, duplicate_name | already_registered | term()}.
register_node(Name, Port, _Family) ->
    case polydist_sup:lookup(native) of
        {ok, ok} ->
            Node = #{name => string(Name), port => Port, stock => true, endpoints => []},
            gen_server:call(?MODULE, {register, Node}, infinity);
        {ok, {error, Sentence}} -> {error, {native, Sentence}};
        error -> {error, not_running}
    end.

%% @doc Registers all endpoints of our carriers, and the port that stock nodes dial. A creation of -1: no EPMD yet.
-spec register_endpoints(Name :: string(), inet:port_number(), [map()]) ->
    {ok, Creation :: integer()} | {error, duplicate_name | term()}.
register_endpoints(Name, Port, Endpoints) ->
    gen_server:call(?MODULE, {register, #{name => Name, port => Port, stock => false, endpoints => Endpoints}}, infinity).

%% @doc Registers anew what has changed. Returns at once.
-spec update_endpoints(inet:port_number(), [map()]) -> ok.
update_endpoints(Port, Endpoints) ->
    gen_server:cast(?MODULE, {update, Port, Endpoints}).

%% @doc As erl_epmd: the port of `-erl_epmd_port', or 0 for any.
-spec listen_port_please(Name :: term(), Host :: term()) -> {ok, inet:port_number()}.
listen_port_please(_Name, _Host) ->
    {ok, flag_port(erl_epmd_port, 0)}.

%% @doc As erl_epmd.
-spec address_please(Name :: term(), Host :: inet:hostname() | inet:ip_address(), inet | inet6) ->
    {ok, inet:ip_address()} | {error, term()}.
address_please(_Name, Host, Family) ->
    inet:getaddr(Host, Family).

%% @doc Asks a host's EPMD for the port that stock nodes dial.
-spec port_please(Name :: atom() | string(), Host :: atom() | string() | inet:ip_address()) ->
    {port, inet:port_number(), Version :: 5 | 6} | noport.
port_please(Name, Host) ->
    port_please(Name, Host, infinity).

%% @doc Asks a host's EPMD for the port that stock nodes dial, within a time.
-spec port_please(Name :: atom() | string(), Host :: atom() | string() | inet:ip_address(), timeout()) ->
    {port, inet:port_number(), Version :: 5 | 6} | noport.
port_please(Name, Host, Timeout) ->
    case listen_port_please(Name, Host) of
        {ok, 0} ->
            case lookup(string(Name), ips(Host), patience(Timeout)) of
                {ok, #{port := Port, high := High}} -> {port, Port, max(?LOWEST_VERSION, min(6, High))};
                {error, _} -> noport
            end;
        {ok, Port} -> {port, Port, ?LOWEST_VERSION}
    end.

%% @doc The names registered on this host. Needs nothing to be running.
-spec names() -> {ok, [{Name :: string(), inet:port_number()}]} | {error, address | inet:posix()}.
names() ->
    names(polydist_carrier:host()).

%% @doc The names registered on a host: in its EPMD, and for our own host in the other registries as well, which know no ports.
%% Needs nothing to be running.
-spec names(Host :: atom() | string() | inet:ip_address()) ->
    {ok, [{Name :: string(), inet:port_number()}]} | {error, address | inet:posix()}.
names(Host) ->
    Others = case lists:member(string(Host), [polydist_carrier:host(), "localhost"]) of
                 true -> polydist_registrars:names();
                 false -> []
             end,
    case {in_epmd(Host), Others} of
        {{ok, Names}, _} -> {ok, Names ++ [{Name, 0} || Name <- Others, not lists:keymember(Name, 1, Names)]};
        {Error, []} -> Error;
        {_, _} -> {ok, [{Name, 0} || Name <- Others]}
    end.

in_epmd(Host) ->
    case {polydist_native:load(), ips(Host)} of
        {ok, []} -> {error, nxdomain};
        {ok, Ips} ->
            Ref = make_ref(),
            ok = polydist_native:epmd_names(addresses(Ips), ?PATIENCE, Ref),
            case polydist_native:await(Ref, ?PATIENCE + 1000) of
                {ok, Names} -> {ok, [{unicode:characters_to_list(Name), Port} || {Name, Port} <- Names]};
                {error, _} -> {error, address}
            end;
        {{error, _}, _} -> erl_epmd:names(Host)
    end.

%% @doc All that a name has registered in the EPMD of a host.
-spec lookup(Name :: string(), [inet:ip_address()], Timeout :: pos_integer()) ->
    {ok, #{port := inet:port_number(), high := integer(), extra := binary(), _ => _}}
  | {error, {Kind :: atom(), Sentence :: binary()}}.
lookup(Name, Ips, Timeout) ->
    lookup(Name, Ips, port(), Timeout).

%% @doc The same in an EPMD that listens on this port.
-spec lookup(Name :: string(), [inet:ip_address()], inet:port_number(), Timeout :: pos_integer()) ->
    {ok, #{port := inet:port_number(), high := integer(), extra := binary(), _ => _}}
  | {error, {Kind :: atom(), Sentence :: binary()}}.
lookup(Name, Ips, Port, Timeout) ->
    case {polydist_native:load(), Ips} of
        {ok, [_ | _]} ->
            Ref = make_ref(),
            ok = polydist_native:epmd_lookup([{Ip, Port} || Ip <- Ips], unicode:characters_to_binary(Name), Timeout, Ref),
            polydist_native:await(Ref, Timeout + 1000);
        {ok, []} -> {error, {nxdomain, <<"the host has no address">>}};
        {{error, Sentence}, _} -> {error, {native, Sentence}}
    end.

ips(Host) when is_tuple(Host) -> [Host];
ips(Host) -> lists:flatmap(fun(Family) -> ips(Host, Family) end, [inet, inet6]).

ips(Host, Family) ->
    case inet:getaddrs(Host, Family) of
        {ok, Ips} -> lists:uniq(Ips);
        {error, _} -> []
    end.

addresses(Ips) ->
    Port = port(),
    [{Ip, Port} || Ip <- Ips].

%% @doc The port of EPMDs: that of the key `registries', of ERL_EPMD_PORT, or 4369.
-spec port() -> inet:port_number().
port() ->
    Configured = case polydist_listeners:config() of
                     {ok, #{registries := Registries}} -> [Port || #{name := epmd, options := #{port := Port}} <- Registries];
                     {error, _} -> []
                 end,
    case Configured of
        [Port | _] -> Port;
        [] -> flag_port(epmd_port, ?DEFAULT_PORT) % erlexec makes this flag of ERL_EPMD_PORT
    end.

flag_port(Flag, Default) ->
    case init:get_argument(Flag) of
        {ok, [[Text | _] | _]} ->
            case string:to_integer(Text) of
                {Port, []} when Port > 0, Port =< 65535 -> Port;
                _ -> Default
            end;
        _ -> Default
    end.

patience(infinity) -> ?PATIENCE;
patience(Timeout) -> max(1, Timeout).

string(Name) when is_atom(Name) -> atom_to_list(Name);
string(Name) -> Name.

%% @doc Started by our supervisor.
-spec start_server() -> gen_server:start_ret().
start_server() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec init([]) -> {ok, state()}.
init([]) ->
    State = #{node => none, link => none, creation => -1, changed => false, said => false},
    case polydist_sup:lookup(registration) of
        {ok, Node} ->
            self() ! retry, % after a crash
            {ok, State#{node := Node}};
        error -> {ok, State}
    end.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({register, Node}, _From, #{node := none} = State) ->
    first(Node, State);
handle_call({register, New}, _From, #{node := Old, creation := Creation} = State) ->
    %% A second carrier of another make: ours have endpoints, stock ones a port. There is one name, so both go under it.
    case merge(Old, New) of
        {ok, Old} -> {reply, {ok, Creation}, State};
        {ok, Node} -> {reply, {ok, Creation}, again(kept(Node, unlink_epmd(State)))};
        error -> {reply, {error, already_registered}, State}
    end;
handle_call(unregister, _From, State) ->
    polydist_sup:delete(registration),
    {reply, ok, (unlink_epmd(State))#{node := none}};
handle_call(_, _From, State) ->
    {reply, ignored, State}.

-spec handle_cast({update, inet:port_number(), [map()]}, state()) -> {noreply, state()}.
handle_cast({update, Port, Endpoints}, #{node := Old} = State) when Old =/= none ->
    Changed = case Old of
                  #{stock := true} -> Old#{endpoints := Endpoints};
                  #{} -> Old#{port := Port, endpoints := Endpoints}
              end,
    case Changed of
        Old -> {noreply, State};
        New ->
            %% Behind all other changes that wait: to register takes longer than to open and close listeners.
            self() ! changed,
            {noreply, (kept(New, State))#{changed := true}}
    end;
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({polydist, Ref, closed}, #{link := {Ref, _}} = State) ->
    polydist_log:say(warning, "EPMD is gone; connections go on, the node registers again as soon as there is one"),
    {noreply, retry_after(?ASK_AGAIN_AFTER, State#{link := none, said := true})};
handle_info(retry, #{link := none, node := Node} = State) when Node =/= none ->
    {noreply, again(State)};
handle_info(changed, #{changed := true, node := Node} = State) when Node =/= none ->
    {noreply, again(unlink_epmd(State#{changed := false}))};
handle_info(_, State) ->
    {noreply, State}.

%% The first registration, at boot: a name that is taken stops the node, an EPMD that is not there does not.
first(Node, State) ->
    case register_patiently(Node, ?ASK_AGAIN) of
        {ok, Link, Creation} ->
            {reply, {ok, Creation}, kept(Node, State#{link := Link, creation := Creation})};
        {error, {duplicate_name, _}} ->
            {reply, {error, duplicate_name}, State};
        {error, {_, Sentence}} ->
            polydist_log:say(warning, "the node starts without EPMD and can be found by nobody (~ts); start one by epmd -daemon, "
                             "the node registers as soon as it answers", [Sentence]),
            {reply, {ok, -1}, retry_after(?RETRY, kept(Node, State#{said := true}))}
    end.

%% A later one: the name is ours, the creation stays what the node got when it booted.
again(#{node := Node, said := Said} = State) ->
    case register_patiently(Node, ?ASK_AGAIN) of
        {ok, Link, _} ->
            not Said orelse polydist_log:say(notice, "registered as ~ts in EPMD", [maps:get(name, Node)]),
            State#{link := Link, said := false};
        {error, {_, Sentence}} ->
            Said orelse polydist_log:say(warning, "the node is not registered in EPMD (~ts); trying on", [Sentence]),
            retry_after(?RETRY, State#{said := true})
    end.

kept(Node, State) ->
    polydist_sup:store(registration, Node),
    State#{node := Node}.

unlink_epmd(#{link := {_, Registration}} = State) ->
    ok = polydist_native:epmd_unregister(Registration),
    State#{link := none};
unlink_epmd(State) ->
    State.

retry_after(Time, State) ->
    _ = erlang:send_after(Time, self(), retry),
    State.

merge(#{name := Name} = Node, #{name := Name} = Node) -> {ok, Node};
merge(#{name := Name, port := 0} = Old, #{name := Name, port := Port, endpoints := []}) -> {ok, Old#{port := Port, stock := true}};
merge(#{name := Name, endpoints := []} = Old, #{name := Name, endpoints := Endpoints}) -> {ok, Old#{endpoints := Endpoints}};
merge(_, _) -> error.

register_patiently(Node, Attempts) ->
    case register_at(addresses(?LOCAL), Node) of
        {error, {duplicate_name, _}} when Attempts > 1 ->
            receive after ?ASK_AGAIN_AFTER -> ok end,
            register_patiently(Node, Attempts - 1);
        Result -> Result
    end.

register_at([Epmd | Others], #{name := Name, port := Port} = Node) ->
    Ref = make_ref(),
    %% Not hidden, whatever the node is: so does erl_epmd.
    Request = #{name => unicode:characters_to_binary(Name), port => Port, hidden => false, extra => extra(Node)},
    Result = case polydist_native:epmd_register(Epmd, Request, Ref) of
                 {ok, Registration} ->
                     case polydist_native:await(Ref, ?PATIENCE + 1000) of
                         {registered, Creation} -> {ok, {Ref, Registration}, Creation};
                         closed -> {error, {closed, <<"EPMD closed the connection">>}};
                         Error ->
                             ok = polydist_native:epmd_unregister(Registration),
                             Error
                     end;
                 Error -> Error
             end,
    case Result of
        {error, {Kind, _}} when Kind =/= duplicate_name, Others =/= [] ->
            case register_at(Others, Node) of
                {error, {Later, _}} when Later =/= duplicate_name -> Result; % the first address is the one to talk about
                Other -> Other
            end;
        _ -> Result
    end.

extra(#{endpoints := Endpoints}) ->
    record(Endpoints).

%% @doc What a node with these endpoints registers, in bytes.
-spec record([map()]) -> binary().
record([]) ->
    <<>>;
record(Endpoints) ->
    case polydist_native:record_encode(#{host => polydist_native:host_identity(), machine => polydist_native:machine_identity(),
                                           endpoints => Endpoints}) of
        {ok, Extra} -> Extra;
        {error, {_, Sentence}} ->
            polydist_log:say(error, "the endpoints cannot be registered (~ts); peers see a stock node", [Sentence]),
            <<>>
    end.
