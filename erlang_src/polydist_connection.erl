%%% One process a connection: it finds and dials the peer or takes an accepted connection, goes through the handshake, and then
%%% supervises. It must be one process: the VM lets only that one name a peer's controller that net_kernel was told about.
%%%
%%%   1. lookup and policy give the addresses, tried in order        (only when we dial)
%%%   2. dist_util's handshake, frame by frame through the library
%%%   3. f_getll: the connection leaves the library's threads for a driver port, which is the controller from here on
%%%   4. f_setopts_post_nodeup: the port begins to read, and lets go the last frame of an accepted handshake
%%%   5. dist_util's con_loop; it ends with the port, to which it is linked, by the port's reason
%%%
%%% dist_util's `socket' is `{Conn, Port}' throughout.
-module(polydist_connection).

-include_lib("kernel/include/dist_util.hrl").

-export([setup/5, accept/6]).

%% internal, exported for spawn and dist_util
-export([do_setup/6, do_accept/7, tick/1, getstat/1, setopts/3, getopts/3]).

-define(ATTACH, 1).
-define(START, 2).
-define(TICK, 3).
-define(SETOPT, 4).
-define(GETOPT, 5).
-define(LAST_FRAME, 6).

-type socket() :: {polydist_native:conn(), port()}.

%% @doc Starts a process that connects to Node. Called in net_kernel.
-spec setup(node(), Type :: atom(), MyNode :: node(), shortnames | longnames, SetupTime :: timeout()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    spawn_opt(?MODULE, do_setup, [self(), Node, Type, MyNode, LongOrShortNames, SetupTime],
              dist_util:net_ticker_spawn_options()).

%% @doc Starts a process for a connection that a peer opened; it waits until Acceptor has made it the owner. Called in net_kernel.
-spec accept(Acceptor :: pid(), polydist_native:conn(), polydist_native:info(), MyNode :: node(), Allowed :: list(),
             SetupTime :: timeout()) -> pid().
accept(Acceptor, Conn, Info, MyNode, Allowed, SetupTime) ->
    spawn_opt(?MODULE, do_accept, [self(), Acceptor, Conn, Info, MyNode, Allowed, SetupTime],
              dist_util:net_ticker_spawn_options()).

-spec do_accept(pid(), pid(), polydist_native:conn(), polydist_native:info(), node(), list(), timeout()) -> no_return().
do_accept(Kernel, Acceptor, Conn, Info, MyNode, Allowed, SetupTime) ->
    Monitor = monitor(process, Acceptor),
    receive
        {Acceptor, controller} -> demonitor(Monitor, [flush]);
        {'DOWN', Monitor, process, Acceptor, _} -> ?shutdown(no_node)
    end,
    Timer = dist_util:start_timer(SetupTime),
    HsData = hs_data(Conn, open_port(no_node), Info, in, SetupTime),
    dist_util:handshake_other_started(HsData#hs_data{kernel_pid = Kernel, this_node = MyNode, timer = Timer, allowed = Allowed}).

-spec do_setup(pid(), node(), atom(), node(), shortnames | longnames, timeout()) -> no_return().
do_setup(Kernel, Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    Deadline = erlang:monotonic_time(millisecond) + SetupTime - SetupTime div 20, % so that our reason comes before the timer's
    Host = check_name(Node, LongOrShortNames),
    case polydist_lookup:candidates(Node, Deadline) of
        {ok, [_ | _] = Candidates, _} ->
            case dial(Candidates, Host, Deadline, []) of
                {ok, Conn, Info} ->
                    dist_util:reset_timer(Timer),
                    HsData = hs_data(Conn, open_port(Node), Info, out, SetupTime),
                    dist_util:handshake_we_started(
                        HsData#hs_data{kernel_pid = Kernel, other_node = Node, this_node = MyNode, timer = Timer,
                                       request_type = Type});
                {error, Failures} ->
                    refused(Node, Failures)
            end;
        {ok, [], Skipped} ->
            polydist_log:say(warning, "no way to ~ts: ~ts", [Node, sentences(Skipped)]),
            ?shutdown(Node);
        {error, {_, Sentence}} ->
            polydist_log:say(info, "cannot find ~ts: ~ts", [Node, Sentence]),
            ?shutdown(Node)
    end.

%% As stock carriers: a short name has no dot in its host, a long one has, or is an address.
check_name(Node, LongOrShortNames) ->
    case {dist_util:split_node(Node), LongOrShortNames} of
        {{node, _, Host}, shortnames} ->
            lists:member($., Host) andalso illegal(Node, Host, "System NOT running to use fully qualified hostnames"),
            Host;
        {{node, _, Host}, longnames} ->
            lists:member($., Host) orelse is_address(Host)
                orelse illegal(Node, Host, "System running to use fully qualified hostnames"),
            Host;
        _ ->
            error_logger:error_msg("** Nodename ~0p illegal **~n", [Node]),
            ?shutdown(Node)
    end.

is_address(Host) ->
    case inet:parse_strict_address(Host) of
        {ok, _} -> true;
        {error, _} -> false
    end.

-spec illegal(node(), string(), string()) -> no_return().
illegal(Node, Host, Why) ->
    error_logger:error_msg("** ~ts **~n** Hostname ~ts is illegal **~n", [Why, Host]),
    ?shutdown(Node).

%% One after the other, each with its share of the time that is left.
dial([], _, _, Failures) ->
    {error, lists:reverse(Failures)};
dial([#{transport := Transport, address := Address} | Rest], Host, Deadline, Failures) ->
    Timeout = max(1, polydist_lookup:remaining(Deadline) div (1 + length(Rest))),
    case dial_one(Transport, Address, Host, Timeout) of
        {ok, _, _} = Ok -> Ok;
        {error, Reason} -> dial(Rest, Host, Deadline, [{Transport, Address, Reason} | Failures])
    end.

dial_one(Transport, Address, Host, Timeout) ->
    {Socket, _} = polydist_config:socket_options(connect),
    Options = #{timeout => Timeout, socket => maps:remove(backlog, Socket)},
    case Transport of
        tls ->
            case polydist_listeners:tls(client) of
                {ok, Tls} ->
                    Name = unicode:characters_to_binary(Host),
                    connect(tls, Address, Options#{tls => Tls, server_name => Name}, Timeout);
                Error ->
                    Error
            end;
        _ -> connect(Transport, Address, Options, Timeout)
    end.

connect(Transport, Address, Options, Timeout) ->
    Ref = make_ref(),
    case polydist_native:dial(Transport, Address, Options, Ref) of
        {ok, Conn} ->
            case polydist_native:await(Ref, Timeout + 1000) of
                {connected, Info} -> {ok, Conn, Info};
                {error, _} = Error ->
                    ok = polydist_native:close(Conn),
                    Error
            end;
        Error -> Error
    end.

-spec refused(node(), [{polydist_native:transport(), polydist_native:address(), {atom(), binary()}}]) -> no_return().
refused(Node, Failures) ->
    polydist_log:say(level([Kind || {_, _, {Kind, _}} <- Failures]),
                     "cannot connect to ~ts: ~ts", [Node, sentences([{T, S} || {T, _, {_, S}} <- Failures])]),
    ?shutdown(Node).

%% A peer that is not there is daily life; a certificate that is not accepted wants somebody to look.
level(Kinds) ->
    case lists:all(fun is_daily/1, Kinds) of
        true -> info;
        false -> warning
    end.

is_daily(Kind) ->
    lists:member(Kind, [econnrefused, econnreset, etimedout, timeout, closed, enoent, ehostunreach, enetunreach, ehostdown,
                        not_found, epipe, eaddrnotavail, refused]).

sentences(Reasons) ->
    lists:join("; ", [[atom_to_list(T), ": ", Sentence] || {T, Sentence} <- Reasons]).

%% Linked to this process: the connection ends with it, and it ends with the connection.
open_port(Node) ->
    try
        open_port({spawn_driver, "polydist"}, [binary])
    catch
        error:Reason ->
            polydist_log:say(error, "the driver cannot be used (~0p); restart the distribution", [Reason]),
            ?shutdown(Node)
    end.

hs_data(Conn, Port, #{transport := Transport} = Info, Direction, SetupTime) ->
    #hs_data{socket = {Conn, Port},
             this_flags = 0,
             f_send = case Direction of
                          in -> fun answer/2;
                          out -> fun send/2
                      end,
             f_recv = fun(Socket, 0, Timeout) -> recv(Socket, Timeout, Info) end,
             f_setopts_pre_nodeup = fun(_) -> ok end,
             f_getll = fun(Socket) -> getll(Socket, SetupTime) end,
             f_address = fun(Socket, Node) -> established(Socket, Node, Info, Direction) end,
             f_setopts_post_nodeup = fun start/1,
             mf_tick = fun ?MODULE:tick/1,
             mf_getstat = fun ?MODULE:getstat/1,
             mf_setopts = fun(Socket, Options) -> ?MODULE:setopts(Transport, Socket, Options) end,
             mf_getopts = fun(Socket, Options) -> ?MODULE:getopts(Transport, Socket, Options) end}.

send({Conn, _}, [$r | _] = ChallengeReply) ->
    put(?MODULE, expecting_acknowledgement),
    polydist_native:send(Conn, ChallengeReply);
send({Conn, _}, Frame) ->
    polydist_native:send(Conn, Frame).

%% The last frame of a handshake that the peer began, the acknowledgement, tells it that it is connected. The port keeps that
%% one and sends it first when it starts: were the peer to learn it earlier and to disconnect and dial again at once, it would
%% find this node in the middle of setting up, be told to wait, and wait for nothing.
answer({_, Port}, [$a | _] = Acknowledgement) ->
    case control(Port, ?LAST_FRAME, Acknowledgement) of
        <<"ok">> -> ok;
        _ -> {error, closed}
    end;
answer(Socket, Frame) ->
    send(Socket, Frame).

%% dist_util bounds the wait by its timer, and says nothing about what came of it.
recv({Conn, _}, Timeout, #{transport := Transport, peer := Peer}) ->
    Ref = make_ref(),
    ok = polydist_native:recv(Conn, Ref),
    case erase(?MODULE) of
        %% The last frame of a handshake that we began: from it on the peer takes us for connected, so the connection is detached with it, rather
        %% than when dist_util comes to ask. The process dictionary is all that one call of dist_util's has in common with the next.
        expecting_acknowledgement -> put(?MODULE, detach(Conn));
        undefined -> ok
    end,
    case polydist_native:await(Ref, Timeout) of
        {ok, Frame} -> {ok, binary_to_list(Frame)};
        {error, {Kind, Sentence}} ->
            %% Here a TLS 1.3 client learns that the server did not like its certificate.
            polydist_log:say(level([Kind]), "handshake over ~p with ~ts: ~ts", [Transport, text(Peer), Sentence]),
            {error, Kind}
    end.

text({local, Path}) -> Path;
text({Ip, Port}) -> [inet:ntoa(Ip), " port ", integer_to_list(Port)].

getll({Conn, Port}, SetupTime) ->
    Ref = case erase(?MODULE) of
              undefined -> detach(Conn);
              Asked -> Asked
          end,
    case polydist_native:await(Ref, SetupTime) of
        {ok, Token} ->
            case control(Port, ?ATTACH, <<Token:64>>) of
                <<"ok">> -> {ok, Port};
                _ -> {error, closed}
            end;
        {error, {Kind, _}} -> {error, Kind}
    end.

detach(Conn) ->
    Ref = make_ref(),
    ok = polydist_native:detach(Conn, Ref),
    Ref.

%% dist_util wants the peer's address when the VM has the node up and nothing has been read from it: the place to enter the
%% list.
established({Conn, _}, Node, #{transport := Transport, peer := Peer, tls := Tls}, Direction) ->
    polydist_connections:enter(#{node => Node, transport => Transport, direction => Direction, peer => Peer,
                                 since => erlang:system_time(millisecond), tls => Tls, conn => Conn}),
    {node, _, Host} = dist_util:split_node(Node),
    polydist_carrier:net_address(Transport, Peer, Host).

start({_, Port}) ->
    case control(Port, ?START, <<>>) of
        <<"ok">> -> ok;
        _ -> {error, closed}
    end.

%% @doc Sends a tick.
-spec tick(socket()) -> ok | {error, closed}.
tick({_, Port} = Socket) ->
    case control(Port, ?TICK, <<>>) of
        closed ->
            self() ! {tcp_closed, Socket},
            {error, closed};
        _ -> ok
    end.

%% @doc The frames read and written and the bytes waiting.
-spec getstat(socket()) -> {ok, non_neg_integer(), non_neg_integer(), non_neg_integer()}.
getstat({Conn, _}) ->
    polydist_native:getstat(Conn).

%% @doc net_kernel:setopts/2 on an established connection.
-spec setopts(polydist_native:transport(), socket(), [term()]) -> ok | {error, term()}.
setopts(Transport, {_, Port}, Options) ->
    case polydist_config:pick_socket_options(Options) of
        {Known, []} ->
            Results = [control(Port, ?SETOPT, <<Code, (value(Value)):32/signed>>)
                       || {Name, Value} <- maps:to_list(Known), {ok, Code} <- [code(Transport, Name)]],
            case [Result || Result <- Results, Result =/= <<"ok">>] of
                [] -> ok;
                _ -> {error, einval}
            end;
        {_, Unknown} -> {error, {badopts, Unknown}}
    end.

%% @doc net_kernel:getopts/2 on an established connection.
-spec getopts(polydist_native:transport(), socket(), [atom()]) -> {ok, [{atom(), term()}]} | {error, term()}.
getopts(Transport, {_, Port}, Names) ->
    Options = [{Name, Value} || Name <- Names, {ok, Code} <- [code(Transport, Name)],
                                <<Value:32/signed>> <- [control(Port, ?GETOPT, <<Code>>)]],
    {ok, [{Name, named(Name, Value)} || {Name, Value} <- Options]}.

%% The socket of a Unix domain has no such thing as Nagle's algorithm; asking for it to be off is not an error.
code(uds, nodelay) -> none;
code(uds, tos) -> none;
code(_, nodelay) -> {ok, 1};
code(_, keepalive) -> {ok, 2};
code(_, sndbuf) -> {ok, 3};
code(_, recbuf) -> {ok, 4};
code(_, priority) -> {ok, 5};
code(_, tos) -> {ok, 6};
code(_, _) -> none.

value(true) -> 1;
value(false) -> 0;
value(Number) -> Number.

named(Name, Value) when Name =:= nodelay; Name =:= keepalive -> Value =/= 0;
named(_, Value) -> Value.

control(Port, Operation, Data) ->
    try
        iolist_to_binary(port_control(Port, Operation, Data))
    catch
        error:badarg -> closed
    end.
