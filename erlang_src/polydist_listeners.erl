%%% Opens the sockets of all our carriers, once, and registers the node for all of them.
%%%
%%% net_kernel asks carrier after carrier to listen. The first to be asked opens every one of them and registers once, since
%%% EPMD takes a name only once; the others get told what became of them. What was opened is kept in the supervisor's table,
%%% so this process may crash without harm; it closes the sockets when the distribution stops.
-module(polydist_listeners).
-behaviour(gen_server).

%% for the carriers and the API
-export([listen/3, config/0, set_policy/1, uds_dirs/0, tls/1, results/0]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, terminate/2]).

-include_lib("kernel/include/file.hrl").

-export_type([result/0]).

%% What became of a carrier. A carrier that listens may still have a reason: why it does so at fewer addresses than it should.
-type result() :: #{transport := polydist_native:transport(), state := listening | failed,
                    listeners := [polydist_native:listener()], addresses := [polydist_native:address()],
                    reason => {Kind :: atom(), Sentence :: binary()}, creation => integer()}.

-define(LOOPBACK4, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).
-define(ANY4, {0, 0, 0, 0}).
-define(ANY6, {0, 0, 0, 0, 0, 0, 0, 0}).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc What became of one carrier; opens them all if that has not been done.
-spec listen(polydist_native:transport(), Name :: atom(), Host :: string()) ->
    {ok, [polydist_native:listener()], polydist_native:address(), Creation :: integer()}
  | {error, duplicate_name | {Kind :: atom(), Sentence :: binary()}}.
listen(Transport, Name, Host) ->
    case gen_server:call(?MODULE, {listen, Transport, atom_to_list(Name), Host}, infinity) of
        #{state := listening, listeners := Listeners, addresses := [Address | _], creation := Creation} ->
            {ok, Listeners, Address, Creation};
        #{state := failed, reason := {duplicate_name, _}} -> {error, duplicate_name};
        #{state := failed, reason := Reason} -> {error, Reason}
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
    Own = [Found || Found <- [uds_directory(maps:get(uds, Listen, #{})), uds_directory(#{}), temporary_directory()]],
    lists:uniq([unicode:characters_to_binary(Dir) || {ok, Dir} <- Own] ++ Configured).

%% @doc The TLS configuration for one side.
-spec tls(server | client) -> {ok, polydist_native:tls_config()} | {error, {tls, Sentence :: binary()}}.
tls(Role) ->
    case polydist_sup:lookup(tls) of
        {ok, {ok, #{Role := Tls}}} -> {ok, Tls};
        {ok, {error, Sentence}} -> {error, {tls, Sentence}};
        error -> {error, {tls, <<"this node does not run the TLS carrier">>}}
    end.

%% @doc What became of each carrier, in the order of transports/0.
-spec results() -> [result()].
results() ->
    [Result || T <- polydist_carrier:transports(), {ok, Result} <- [polydist_sup:lookup({listener, T})]].

-spec init([]) -> {ok, #{}}.
init([]) ->
    process_flag(trap_exit, true), % to close the sockets in terminate/2
    case polydist_sup:lookup(config) of
        error -> configure();
        {ok, _} -> ok % restarted after a crash
    end,
    {ok, #{}}.

configure() ->
    Config = polydist_config:read(),
    polydist_sup:store(config, Config),
    Carriers = polydist_config:carriers(),
    case {lists:member(tls, Carriers), polydist_sup:lookup(native), Config} of
        {true, {ok, ok}, {ok, #{tls := Terms}}} -> polydist_sup:store(tls, polydist_tls_config:load(Terms));
        _ -> ok
    end,
    Carriers =:= [] orelse warn_of_ignored(),
    ok.

warn_of_ignored() ->
    {_, Listen} = polydist_config:socket_options(listen),
    {_, Connect} = polydist_config:socket_options(connect),
    case lists:usort(Listen ++ Connect) of
        [] -> ok;
        Ignored ->
            polydist_log:say(warning, "of inet_dist_listen_options and inet_dist_connect_options these are ignored: ~0p; nodelay, "
                             "keepalive, sndbuf, recbuf, priority, tos and backlog are known", [Ignored])
    end.

-spec handle_call({listen, polydist_native:transport(), string(), string()} | {set_policy, polydist_policy:policy()},
                  gen_server:from(), #{}) -> {reply, result() | ok | {error, binary()}, #{}}.
handle_call({listen, Transport, Name, Host}, _From, State) ->
    case polydist_sup:lookup({listener, Transport}) of
        {ok, Result} -> {reply, Result, State};
        error ->
            Results = open_all(lists:usort([Transport | polydist_config:carriers()]), Name, Host),
            lists:foreach(fun(#{transport := T} = Result) -> polydist_sup:store({listener, T}, Result) end, Results),
            lists:foreach(fun log/1, Results),
            [Result] = [R || #{transport := T} = R <- Results, T =:= Transport],
            {reply, Result, State}
    end;
handle_call({set_policy, Policy}, _From, State) ->
    case config() of
        {ok, Config} -> {reply, polydist_sup:store(config, {ok, Config#{policy := Policy}}), State};
        Error -> {reply, Error, State}
    end.

-spec handle_cast(term(), State) -> {noreply, State}.
handle_cast(_, State) ->
    {noreply, State}.

-spec terminate(term(), #{}) -> ok.
terminate(shutdown, _) ->
    lists:foreach(fun close/1, results());
terminate(_, _) -> % a crash: the sockets live on in the table
    ok.

close(#{listeners := Listeners}) ->
    lists:foreach(fun polydist_native:close_listener/1, Listeners).

log(#{transport := T, state := failed, reason := {_, Sentence}}) ->
    polydist_log:say(error, "~p does not listen: ~ts", [T, Sentence]);
log(#{transport := T, reason := {_, Sentence}}) ->
    polydist_log:say(warning, "~p listens only in part: ~ts", [T, Sentence]);
log(_) ->
    ok.

%% tcp comes before tcp6, which wants its port number.
open_all(Carriers, Name, Host) ->
    Ordered = [T || T <- polydist_carrier:transports(), lists:member(T, Carriers)],
    case {polydist_sup:lookup(native), config()} of
        {{ok, ok}, {ok, Config}} ->
            Fixed = fixed_port(Name, Host),
            Node = Name ++ "@" ++ Host,
            Legacy = legacy(Config, Ordered),
            Results = lists:foldl(fun(T, Opened) -> Opened ++ [open(T, Opened, Node, Legacy, Fixed, Config)] end, [], Ordered),
            registered(Results, Name, Config);
        {{ok, {error, Sentence}}, _} -> [failed(T, {native, Sentence}) || T <- Ordered];
        {_, {error, Sentence}} -> [failed(T, {bad_config, Sentence}) || T <- Ordered]
    end.

%% The port that the epmd module prescribes (-erl_epmd_port), or 0.
fixed_port(Name, Host) ->
    Epmd = net_kernel:epmd_module(),
    Module = case erlang:function_exported(Epmd, listen_port_please, 2) of
                 true -> Epmd;
                 false -> erl_epmd
             end,
    case Module:listen_port_please(Name, Host) of
        {ok, Port} when is_integer(Port) -> Port;
        _ -> 0
    end.

%% The transport whose port goes where stock nodes look for it.
legacy(#{legacy := undefined}, Transports) ->
    case [T || T <- [tcp, tls, tcp6], lists:member(T, Transports)] of
        [First | _] -> First;
        [] -> none
    end;
legacy(#{legacy := Transport}, _) ->
    Transport.

open(uds, _, Node, _, _, #{listen := Listen}) ->
    Own = maps:get(uds, Listen, #{}),
    case socket_path(Own, Node) of
        {ok, Path} -> opened(uds, [polydist_native:listen(uds, {local, Path}, (options())#{mode => maps:get(mode, Own, 8#600)})]);
        {error, Reason} -> failed(uds, Reason)
    end;
open(Transport, Opened, _, Legacy, Fixed, #{listen := Listen}) ->
    Own = maps:get(Transport, Listen, #{}),
    Ports = case Own of
                #{ports := Given} -> Given;
                #{} when Transport =:= Legacy, Fixed =/= 0 -> {Fixed, Fixed};
                #{} -> polydist_config:port_range()
            end,
    %% A stock inet6_tcp peer dials the number that is registered, TCPv4's.
    Wanted = case [Port || #{transport := tcp, addresses := [{_, Port}]} <- Opened] of
                 [Port] when Transport =:= tcp6, not is_map_key(ports, Own) -> Port;
                 _ -> any
             end,
    case {ips(Transport, Own), Transport} of
        {{ok, Ips}, tls} ->
            case tls(server) of
                {ok, Tls} -> opened(tls, open_ips(tls, Ips, Wanted, Ports, (options())#{tls => Tls}));
                {error, Reason} -> failed(tls, Reason)
            end;
        {{ok, Ips}, _} -> opened(Transport, open_ips(Transport, Ips, Wanted, Ports, options()));
        {{error, Reason}, _} -> failed(Transport, Reason)
    end.

%% The port number of one family is wanted for the next one, not needed: if somebody has it, another will do.
open_ips(_, [], _, _, _) ->
    [];
open_ips(Transport, [Ip | Ips], Wanted, Ports, Options) ->
    case open_ip(Transport, Ip, Wanted, Ports, Options) of
        {ok, _, {_, Port}} = Ok -> [Ok | open_ips(Transport, Ips, Port, Ports, Options)];
        Error -> [Error | open_ips(Transport, Ips, Wanted, Ports, Options)]
    end.

open_ip(Transport, Ip, any, Ports, Options) ->
    polydist_native:listen(Transport, {Ip, 0}, Options#{ports => Ports});
open_ip(Transport, Ip, Wanted, Ports, Options) ->
    case polydist_native:listen(Transport, {Ip, 0}, Options#{ports => {Wanted, Wanted}}) of
        {error, {eaddrinuse, _}} -> open_ip(Transport, Ip, any, Ports, Options);
        Result -> Result
    end.

opened(Transport, Tried) ->
    Open = [{L, A} || {ok, L, A} <- Tried],
    case {Open, [Reason || {error, Reason} <- Tried]} of
        {[], [Reason | _]} -> failed(Transport, Reason);
        {_, Reasons} ->
            {Listeners, Addresses} = lists:unzip(Open),
            Result = #{transport => Transport, state => listening, listeners => Listeners, addresses => Addresses},
            case [R || {Kind, _} = R <- Reasons, Kind =/= eafnosupport, Kind =/= eaddrnotavail] of
                [] -> Result; % a host without IPv6 is no reason to worry
                [Reason | _] -> Result#{reason => Reason}
            end
    end.

failed(Transport, Reason) ->
    #{transport => Transport, state => failed, listeners => [], addresses => [], reason => Reason}.

options() ->
    {Socket, _} = polydist_config:socket_options(listen),
    #{backlog => maps:get(backlog, Socket, 128), socket => maps:remove(backlog, Socket),
      setup_time => polydist_config:setup_time()}.

%% Where to listen: the key listen, else inet_dist_use_interface, else everywhere.
ips(Transport, #{ip := any}) -> {ok, everywhere(Transport)};
ips(_, #{ip := Ip}) -> {ok, [Ip]};
ips(Transport, #{}) ->
    case polydist_config:interface() of
        any -> {ok, everywhere(Transport)};
        {invalid, Term} -> invalid("inet_dist_use_interface is ~0p, which is not an IP address", [Term]);
        Ip -> at_interface(Transport, Ip, tuple_size(Ip))
    end.

everywhere(tcp) -> [?ANY4];
everywhere(tcp6) -> [?ANY6];
everywhere(tls) -> [?ANY4, ?ANY6].

at_interface(tcp, Ip, 4) -> {ok, [Ip]};
at_interface(tcp6, Ip, 8) -> {ok, [Ip]};
at_interface(tls, Ip, _) when Ip =:= ?LOOPBACK4; Ip =:= ?LOOPBACK6 -> {ok, [?LOOPBACK4, ?LOOPBACK6]};
at_interface(tls, Ip, _) -> {ok, [Ip]};
at_interface(tcp, ?LOOPBACK6, 8) -> {ok, [?LOOPBACK4]};
at_interface(tcp6, ?LOOPBACK4, 4) -> {ok, [?LOOPBACK6]};
at_interface(Transport, Ip, _) ->
    invalid("inet_dist_use_interface is ~ts, which says nothing for ~p; say where it listens: "
            "-polydist listen '#{~p => #{ip => \"...\"}}'", [inet:ntoa(Ip), Transport, Transport]).

invalid(Format, Args) ->
    {error, {bad_config, polydist_log:text(Format, Args)}}.

socket_path(Options, Node) ->
    case {uds_directory(Options), lists:member($/, Node)} of
        {_, true} -> invalid("the node name ~ts contains a /, which the name of a socket cannot", [Node]);
        {{ok, Dir}, false} -> {ok, unicode:characters_to_binary(filename:join(Dir, Node ++ ".sock"))};
        {Error, false} -> Error
    end.

uds_directory(#{dir := Dir}) ->
    {ok, Dir};
uds_directory(_) ->
    case os:getenv("XDG_RUNTIME_DIR") of
        "/" ++ _ = Dir ->
            case file:read_file_info(Dir, [raw]) of
                {ok, #file_info{type = directory}} -> {ok, filename:join(Dir, "polydist")};
                _ -> temporary_directory()
            end;
        _ -> temporary_directory()
    end.

temporary_directory() ->
    case file:read_file_info("/proc/self", [raw]) of
        {ok, #file_info{uid = Uid}} -> {ok, "/tmp/polydist-" ++ integer_to_list(Uid)};
        {error, _} ->
            invalid("there is no /proc to tell the user id by; say where sockets go: "
                    "-polydist listen '#{uds => #{dir => \"...\"}}'", [])
    end.

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
                    [failed(T, Reason) || #{transport := T} <- Results]
            end
    end.

register_node(polydist_epmd, Name, Listening, Config) ->
    {Port, _} = legacy_port(Listening, Config),
    Endpoints = [#{transport => atom_to_binary(T), flags => 0, address => where(A)}
                 || #{transport := T, addresses := Addresses} <- Listening, A <- Addresses],
    registration(polydist_epmd:register_endpoints(Name, Port, Endpoints), Name);
register_node(Epmd, Name, Listening, Config) ->
    {Port, Family} = legacy_port(Listening, Config),
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
    Legacy = legacy(Config, [T || #{transport := T} <- Listening]),
    case [A || #{transport := T, addresses := [A | _]} <- Listening, T =:= Legacy] of
        [{Ip, Port}] when tuple_size(Ip) =:= 4 -> {Port, inet};
        [{_, Port}] -> {Port, inet6};
        [] -> {0, inet}
    end.

where({?ANY4, Port}) -> {any4, Port};
where({?ANY6, Port}) -> {any6, Port};
where(Address) -> Address.
