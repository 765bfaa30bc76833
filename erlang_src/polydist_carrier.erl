%%% A carrier of distribution, as net_kernel knows it, and everything the carriers of polydist share.
%%%
%%% The callbacks are those net_kernel calls on a module named in `-proto_dist'. A carrier of ours only says which transport
%%% it is; polydist_listeners opens the sockets of all of them when the first is asked to listen, and polydist_connection
%%% chooses the transport of a connection, whichever carrier net_kernel picked for it: net_kernel has no second try.
%%%
%%% To add a transport to polydist: native/0 and family/1 here, polydist_place and polydist_sockets, a carrier module, and
%%% a file in native/transport. To add one from outside of polydist: doc/transports.md.
-module(polydist_carrier).

-include_lib("kernel/include/net_address.hrl").

%% for the carriers
-export([childspecs/1, listen/3, accept/1, accept_connection/5, setup/5, select/1, close/1, address/2, setopts/2, getopts/2]).

%% for the rest of polydist
-export([transports/0, outside/0, is_outside/1, is_inet/1, named/1, transport/1, implementation/1, net_address/3, host/0,
         take_up/2]).

%% internal, exported for spawn
-export([accept_loop/3]).

-export_type([handle/0, net_address/0, listening/0]).

%% What net_kernel keeps of a carrier that listens. Its sockets come and go: polydist_listeners knows them.
-type handle() :: {polydist, polydist_native:transport()}.
-type net_address() :: #net_address{}.
-type listening() :: {ok, {handle(), net_address(), Creation :: integer()}}
                   | {error, duplicate_name | {Kind :: atom(), Sentence :: string()}}.

%% Our processes, given to net_sup by the first of our carriers. Runs in net_sup, before anything else of the distribution.
-callback childspecs() -> {ok, [supervisor:child_spec()]}.

%% Opens the sockets and registers the node. Runs in net_kernel while the node boots; must not raise.
-callback listen(Name :: atom(), Host :: string()) -> listening().

%% net_kernel tries this after any `undef' from listen/2, which must not open everything twice.
-callback listen(Name :: atom()) -> {error, listen_2_only}.

%% Starts the acceptor. Runs in net_kernel, again each time the acceptor dies.
-callback accept(handle()) -> pid().

%% Starts the process of a connection that a peer opened. Runs in net_kernel.
-callback accept_connection(Acceptor :: pid(), Connection :: term(), MyNode :: node(), Allowed :: list(),
                            SetupTime :: timeout()) -> pid().

%% Starts the process of a connection that we open. Runs in net_kernel.
-callback setup(node(), Type :: atom(), MyNode :: node(), shortnames | longnames, SetupTime :: timeout()) -> pid().

%% Whether we can connect to a node. Runs in net_kernel up to OTP 27: it looks at the name only, never resolves, never raises.
-callback select(node()) -> boolean().

-callback close(handle()) -> ok.

%% The address of a node that does not listen.
-callback address() -> net_address().
-callback address(Host :: string()) -> net_address().

%% net_kernel:setopts(new, Options) on the listening sockets.
-callback setopts(handle(), [term()]) -> ok | {error, term()}.
-callback getopts(handle(), [term()]) -> {ok, [term()]} | {error, term()}.

%% The transport that this carrier is for; what else is in -proto_dist has no such function.
-callback polydist() -> polydist_native:transport().

%% @doc All transports there are: those of polydist, and those from outside that are on the command line.
-spec transports() -> [polydist_native:transport()].
transports() ->
    native() ++ outside().

native() ->
    [tcp, tcp6, tls, uds, sctp].

%% @doc The transports from outside that this node's command line names.
-spec outside() -> [polydist_native:transport()].
outside() ->
    lists:filter(fun is_outside/1, polydist_config:carriers()).

%% @doc Whether a transport is from outside.
-spec is_outside(polydist_native:transport()) -> boolean().
is_outside(Transport) ->
    not lists:member(Transport, native()).

%% @doc Whether a transport's addresses are IP addresses and ports.
-spec is_inet(term()) -> boolean().
is_inet(Transport) ->
    Transport =/= uds andalso lists:member(Transport, native()).

%% @doc The transport that a name in `-proto_dist' stands for, if its carrier is one of ours.
-spec named(Name :: string()) -> {ok, polydist_native:transport()} | error.
named(Name) ->
    Carrier = list_to_atom(Name ++ "_dist"), % net_kernel makes the same
    case code:ensure_loaded(Carrier) of
        {module, Carrier} ->
            case erlang:function_exported(Carrier, polydist, 0) of
                true -> {ok, transport(Carrier)};
                false -> error
            end;
        {error, _} -> error
    end.

%% @doc The transport of a carrier module: a carrier of polydist's own is called polydist_Transport_dist, another Transport_dist.
-spec transport(module()) -> polydist_native:transport().
transport(Carrier) ->
    Name = lists:droplast(string:split(atom_to_list(Carrier), "_dist", trailing)),
    case lists:append(Name) of
        "polydist_" ++ Transport -> list_to_atom(Transport);
        Transport -> list_to_atom(Transport)
    end.

%% @doc The module that implements a transport from outside.
-spec implementation(polydist_native:transport()) -> module().
implementation(Transport) ->
    list_to_atom(atom_to_list(Transport) ++ "_transport").

%% net_kernel finds the carrier of an accepted connection by this and the protocol, which is the carrier's name.
family(tcp) -> inet;
family(tcp6) -> inet6;
family(tls) -> inet;
family(uds) -> local;
family(sctp) -> inet;
family(Outside) -> Outside.

protocol(tcp) -> polydist_tcp;
protocol(tcp6) -> polydist_tcp6;
protocol(tls) -> polydist_tls;
protocol(uds) -> polydist_uds;
protocol(sctp) -> polydist_sctp;
protocol(Outside) -> Outside.

%% @doc How net_kernel names an address.
-spec net_address(polydist_native:transport(), Address :: term(), Host :: string() | undefined) -> net_address().
net_address(Transport, Address, Host) ->
    #net_address{address = Address, host = Host, protocol = protocol(Transport), family = family(Transport)}.

%% @doc This host's name, without its domain.
-spec host() -> string().
host() ->
    {ok, Host} = inet:gethostname(), % always ok, inet says
    Host.

%% @doc Our supervisor, given once: by the first of our carriers on the command line.
-spec childspecs(polydist_native:transport()) -> {ok, [supervisor:child_spec()]}.
childspecs(Transport) ->
    case polydist_config:carriers() of
        [Transport | _] ->
            {ok, [#{id => polydist_sup, start => {polydist_sup, start_link, []}, type => supervisor, shutdown => 1000}]};
        _ ->
            {ok, []}
    end.

%% @doc Opens all our carriers, the first time; then tells what became of this one.
-spec listen(polydist_native:transport(), Name :: atom(), Host :: string()) -> listening().
listen(Transport, Name, Host) ->
    try polydist_listeners:listen(Transport, Name, Host) of
        {ok, Address, Creation} ->
            {ok, {{polydist, Transport}, net_address(Transport, Address, Host), Creation}};
        {error, duplicate_name} ->
            {error, duplicate_name};
        %% net_kernel prints this by ~p or erlang:display: a list of characters is what stays readable.
        {error, {Kind, Sentence}} ->
            {error, {Kind, unicode:characters_to_list(Sentence)}}
    catch
        %% An `undef' above all must not get out: net_kernel would call listen/1.
        Class:Reason ->
            {error, {Class, unicode:characters_to_list(polydist_log:text("~p cannot listen: ~0p", [Transport, Reason]))}}
    end.

%% @doc Starts the acceptor of a carrier.
-spec accept(handle()) -> pid().
accept(Handle) ->
    spawn_opt(?MODULE, accept_loop, [self(), Handle, start], [link, {priority, max}]).

%% @doc Gives more sockets to an acceptor.
-spec take_up(Acceptor :: pid(), [polydist_native:listener()]) -> ok.
take_up(Acceptor, Listeners) ->
    Acceptor ! {take_up, Listeners},
    ok.

%% @doc Hands each accepted connection to the process that net_kernel starts for it, under the family and the protocol of its own
%% carrier, whatever the connection's transport is: it must be one that net_kernel knows to listen.
%%   1. acceptor   -> net_kernel: {accept, Acceptor, {Conn, Info}, Family, Protocol}
%%   2. net_kernel -> acceptor:   {Kernel, controller, Pid}, Pid being accept_connection/5's
%%   3. acceptor   -> Pid:        {Acceptor, controller}, after making it the owner
-spec accept_loop(Kernel :: pid(), handle(), start | loop) -> no_return().
accept_loop(Kernel, {polydist, Carrier} = Handle, start) ->
    %% Entered first: of what is added from now on it gets told.
    polydist_sup:store({acceptor, Carrier}, self()),
    lists:foreach(fun polydist_native:accept/1, polydist_listeners:sockets(Carrier)),
    accept_loop(Kernel, Handle, loop);
accept_loop(Kernel, {polydist, Carrier} = Handle, loop) ->
    receive
        {polydist, Listener, {accepted, Conn, Info}} ->
            Kernel ! {accept, self(), {Conn, entered(Listener, Info)}, family(Carrier), protocol(Carrier)},
            hand_over(Kernel, Conn),
            accept_loop(Kernel, Handle, loop);
        {take_up, Listeners} ->
            lists:foreach(fun polydist_native:accept/1, Listeners),
            accept_loop(Kernel, Handle, loop);
        _Late ->
            accept_loop(Kernel, Handle, loop)
    end.

entered(Listener, Info) ->
    case polydist_listeners:id(Listener) of
        {ok, Id} -> Info#{listener => Id};
        error -> Info % just removed
    end.

hand_over(Kernel, Conn) ->
    receive
        {Kernel, controller, Pid} ->
            _ = polydist_native:controlling_process(Conn, Pid), % if it is closed already, Pid will notice
            Pid ! {self(), controller},
            ok;
        {Kernel, unsupported_protocol} ->
            exit(unsupported_protocol)
    end.

%% @doc Starts the process of a connection that a peer opened.
-spec accept_connection(pid(), {polydist_native:conn(), polydist_native:info()}, node(), list(), timeout()) -> pid().
accept_connection(Acceptor, {Conn, Info}, MyNode, Allowed, SetupTime) ->
    polydist_connection:accept(Acceptor, Conn, Info, MyNode, Allowed, SetupTime).

%% @doc Starts the process of a connection that we open, over whichever transport is right.
-spec setup(node(), atom(), node(), shortnames | longnames, timeout()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    polydist_connection:setup(Node, Type, MyNode, LongOrShortNames, SetupTime).

%% @doc Yes to every well-formed name that the policy does not forbid.
-spec select(term()) -> boolean().
select(Node) ->
    try
        {node, _, _} = dist_util:split_node(Node),
        case polydist_listeners:config() of
            {ok, #{policy := Policy}} -> polydist_policy:may_connect(Policy, Node);
            {error, _} -> true
        end
    catch
        _:_ -> false
    end.

%% @doc Closes the sockets of a carrier.
-spec close(handle() | undefined) -> ok.
close({polydist, Carrier}) ->
    lists:foreach(fun polydist_sockets:close/1, polydist_listeners:sockets(Carrier));
close(_) -> % net_kernel has no socket for a carrier that does not listen
    ok.

%% @doc The address of a node that does not listen.
-spec address(polydist_native:transport(), Host :: string()) -> net_address().
address(Transport, Host) ->
    net_address(Transport, undefined, Host).

%% @doc Sets options for the connections accepted from now on.
-spec setopts(handle() | undefined, [term()]) -> ok | {error, term()}.
setopts({polydist, Carrier}, Options) ->
    case polydist_config:pick_socket_options(Options) of
        {Known, []} -> setopts_all(polydist_listeners:sockets(Carrier), maps:remove(backlog, Known));
        {_, Unknown} -> {error, {badopts, Unknown}}
    end;
setopts(_, _) ->
    ok.

setopts_all([Listener | Rest], Options) ->
    case polydist_native:set_listener_options(Listener, Options) of
        ok -> setopts_all(Rest, Options);
        {error, {Kind, _}} -> {error, Kind}
    end;
setopts_all([], _) ->
    ok.

%% @doc Not asked for by any net_kernel so far.
-spec getopts(handle() | undefined, [term()]) -> {error, enotsup}.
getopts(_, _) ->
    {error, enotsup}.
