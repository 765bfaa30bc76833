%%% One process a connection: it finds and dials the peer or takes an accepted connection, goes through the handshake, and then
%%% supervises. It must be one process: the VM lets only that one name a peer's controller that net_kernel was told about.
%%%
%%%   1. polydist_lookup and the policy give the addresses, polydist_dial connects to one of them   (only when we dial)
%%%   2. dist_util's handshake, frame by frame through the library
%%%   3. f_getll: the connection leaves the library's threads for a driver port, which is the controller from here on
%%%   4. f_setopts_post_nodeup: the port begins to read, and lets go the last frame of an accepted handshake
%%%   5. dist_util's con_loop, or polydist_tick's where the policy sets a ticktime; it ends with the port, to which it is linked, by
%%%      the port's reason
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
-define(SETSCTP, 7).
-define(GETSCTP, 8).

-define(NOTSENT_LOWAT, 8).
-define(UNSENT, 131072).

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
    case polydist_tls:verify(server, Info, undefined) of
        ok -> ok;
        {error, Reason} -> refuse(Info, Reason)
    end,
    Timer = dist_util:start_timer(SetupTime),
    Start = erlang:monotonic_time() - native(maps:get(took, Info)),
    HsData = hs_data(#{conn => Conn, port => open_port(no_node), info => Info, direction => in, kernel => Kernel, start => Start,
                       setup_time => SetupTime}),
    dist_util:handshake_other_started(HsData#hs_data{kernel_pid = Kernel, this_node = MyNode, timer = Timer, allowed = Allowed}).

-spec do_setup(pid(), node(), atom(), node(), shortnames | longnames, timeout()) -> no_return().
do_setup(Kernel, Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    Start = erlang:monotonic_time(),
    Deadline = erlang:monotonic_time(millisecond) + SetupTime - SetupTime div 20, % so that our reason comes before the timer's
    Host = check_name(Node, LongOrShortNames),
    ok = polydist_attempts:start(Node),
    Context = case polydist_choice:take(Node) of
                  {taken, Plan, {ok, _, #{took := Took}, _, _} = Result} -> dialled(Node, Plan, Result, Start - native(Took));
                  none -> dial(Node, Host, Deadline, Start)
              end,
    dist_util:reset_timer(Timer),
    HsData = hs_data(Context#{port => open_port(Node), direction => out, node => Node, kernel => Kernel, setup_time => SetupTime}),
    dist_util:handshake_we_started(HsData#hs_data{kernel_pid = Kernel, other_node = Node, this_node = MyNode, timer = Timer,
                                                  request_type = Type}).

dial(Node, Host, Deadline, Start) ->
    case polydist_lookup:plan(Node, Deadline) of
        #{candidates := [_ | _] = Candidates} = Plan ->
            ok = polydist_attempts:note(Node, #{plan => Plan, stage => dial}),
            dialled(Node, Plan, polydist_dial:race(Candidates, Host, Deadline), Start);
        #{error := Error} = Plan ->
            give_up(Node, #{plan => Plan, reason => Error})
    end.

dialled(Node, Plan, {ok, Conn, #{transport := Transport, peer := Peer} = Info, #{settings := Settings}, Attempts}, Start) ->
    ok = polydist_attempts:note(Node, #{plan => Plan, stage => handshake, attempts => Attempts, dialled => {Transport, Peer}}),
    #{conn => Conn, info => Info, settings => Settings, start => Start};
dialled(Node, _, {error, Attempts}, _) ->
    give_up(Node, #{attempts => Attempts, reason => polydist_dial:failure(Attempts)}).

native(Microseconds) ->
    erlang:convert_time_unit(Microseconds, microsecond, native).

%% The process that watches the attempt logs it.
-spec give_up(node(), map()) -> no_return().
give_up(Node, Why) ->
    ok = polydist_attempts:note(Node, Why),
    ?shutdown(Node).

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

%% Linked to this process: the connection ends with it, and it ends with the connection.
open_port(Node) ->
    try
        open_port({spawn_driver, "polydist"}, [binary])
    catch
        error:Reason ->
            polydist_log:say(error, "the driver cannot be used (~0p); restart the distribution", [Reason]),
            ?shutdown(Node)
    end.

hs_data(#{conn := Conn, port := Port, info := Info, direction := Direction, setup_time := SetupTime} = Context) ->
    #{transport := Transport} = Info,
    #hs_data{socket = {Conn, Port},
             this_flags = 0,
             f_send = case Direction of
                          in -> fun answer/2;
                          out -> fun send/2
                      end,
             f_recv = fun(Socket, 0, Timeout) -> recv(Socket, Timeout, Context) end,
             f_setopts_pre_nodeup = fun(_) -> ok end,
             f_getll = fun(Socket) -> getll(Socket, SetupTime) end,
             f_address = fun(Socket, Node) -> established(Socket, Node, Context) end,
             f_setopts_post_nodeup = fun start/1,
             f_handshake_complete = fun(Socket, Node, _) -> supervise(Socket, Node, Context) end,
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
recv({Conn, _}, Timeout, Context) ->
    Ref = make_ref(),
    ok = polydist_native:recv(Conn, Ref),
    Last = erase(?MODULE),
    case Last of
        %% The last frame of a handshake that we began: from it on the peer takes us for connected, so the connection is detached
        %% with it, rather than when dist_util comes to ask. The process dictionary is all that one call of dist_util's has in
        %% common with the next.
        expecting_acknowledgement -> put(?MODULE, detach(Conn));
        undefined -> ok
    end,
    case polydist_native:await(Ref, Timeout) of
        {ok, Frame} ->
            identified(Conn, Frame, Context),
            {ok, binary_to_list(Frame)};
        {error, {Kind, _} = Reason} ->
            ended(Context, Last, Reason),
            {error, Kind}
    end.

%% A peer that is not who it says it is hears no more than one that net_kernel does not allow: no challenge, which it could answer.
identified(Conn, Frame, #{direction := in, info := Info}) ->
    case polydist_identity:claimed(Frame) of
        {ok, Name} ->
            case polydist_identity:check(Name, Info) of
                ok -> ok;
                {refused, Sentence} ->
                    polydist_log:say(warning, Sentence),
                    _ = polydist_native:send(Conn, "snot_allowed"),
                    ?shutdown(no_node)
            end;
        malformed -> refuse(Info, {bad_message, <<"it gives no name, or none that a node can have">>});
        none -> ok
    end;
identified(_, <<"snot_allowed">>, #{node := Node, info := #{transport := Transport}}) ->
    Sentence = polydist_log:text("~p: ~ts does not allow this node: its log may say why (net_kernel:allow/1, or over TLS a "
                                 "certificate that is not for ~ts)", [Transport, Node, called(node())]),
    polydist_attempts:note(Node, #{reason => {not_allowed, Sentence}});
identified(_, _, _) ->
    ok.

called(nonode@nohost) -> "the name of this host"; % the peer gives it a name
called(Node) -> atom_to_list(Node).

%% Here a TLS 1.3 client learns that the server did not like its certificate.
ended(#{direction := in, info := Info}, _, Reason) ->
    handshake_failed(Info, Reason);
ended(#{node := Node, info := #{transport := Transport}}, Last, {Kind, Sentence}) ->
    Hint = case {Last, Kind} of
               {expecting_acknowledgement, closed} -> " after our answer to its challenge; have both nodes the same cookie?";
               _ -> ""
           end,
    polydist_attempts:note(Node, #{reason => {Kind, polydist_log:text("~p: ~ts~ts", [Transport, Sentence, Hint])}}).

-spec refuse(polydist_native:info(), {Kind :: atom(), Sentence :: binary()}) -> no_return().
refuse(Info, Reason) ->
    handshake_failed(Info, Reason),
    ?shutdown(no_node).

handshake_failed(#{transport := Transport, peer := Peer}, {Kind, Sentence}) ->
    Level = case polydist_attempts:is_daily(Kind) of
                true -> info;
                false -> warning
            end,
    polydist_log:say(Level, "handshake over ~p with ~ts: ~ts", [Transport, polydist_address:text(Transport, Peer), Sentence]).

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
established({Conn, _} = Socket, Node, #{info := Info, direction := Direction, start := Start} = Context) ->
    #{transport := Transport, peer := Peer} = Info,
    Took = erlang:monotonic_time() - Start,
    Direction =:= in orelse polydist_attempts:connected(Node, erlang:convert_time_unit(Took, native, millisecond)),
    polydist_connections:enter(#{node => Node, direction => Direction, since => erlang:system_time(millisecond), conn => Conn,
                                 handshake_time => erlang:convert_time_unit(Took, native, microsecond),
                                 settings => settings(Socket, Node, Context), missed => counters:new(1, []),
                                 info => shown(Info)}),
    {node, _, Host} = dist_util:split_node(Node),
    polydist_carrier:net_address(Transport, Peer, Host).

%% What connections/0 tells of it. Only an end of SCTP may have several addresses.
shown(#{addresses := undefined} = Info) -> shown(maps:remove(addresses, Info));
shown(#{tls := #{chain := _} = Tls} = Info) -> shown(Info#{tls := maps:without([chain, deferred], Tls)});
shown(Info) -> maps:with([transport, listener, peer, local, addresses, tls], Info).

%% What the policy says of the peer. Who accepts learns only now who it is.
settings(_, _, #{settings := Settings}) ->
    Settings;
settings(Socket, Node, #{info := #{transport := Transport, peer := Peer}}) ->
    #{socket := Options} = Settings = polydist_lookup:settings(Node, Transport, Peer),
    case setopts(Transport, Socket, maps:to_list(Options)) of
        ok -> ok;
        {error, Reason} ->
            polydist_log:say(warning, "the socket options ~0p of the policy could not be set on the connection that ~ts opened: "
                             "~0p", [Options, Node, Reason])
    end,
    Settings.

%% Returns where dist_util is to look after the connection.
supervise(Socket, Node, #{kernel := Kernel, info := #{transport := Transport}}) ->
    {ok, #{settings := Settings, missed := Missed}} = polydist_connections:own(),
    case Settings of
        #{ticktime := Ticktime} ->
            _ = show_progress(Transport, Socket),
            polydist_tick:supervise(Kernel, Node, Transport, Socket, Ticktime, Missed);
        #{} -> polydist_tick:watch(Missed)
    end.

%% A slow reader is alive, which polydist_tick sees by what the socket takes. With megabytes of unsent output in the kernel that
%% would stand still for seconds: TCP calls a socket writable again only when a third of its buffer is free.
show_progress(uds, _) -> ok;
show_progress(_, {_, Port}) -> control(Port, ?SETOPT, <<?NOTSENT_LOWAT, ?UNSENT:32>>).

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
    {ok, FramesIn, _, _} = Stat = polydist_native:getstat(Conn),
    ok = polydist_tick:observe(FramesIn),
    Stat.

%% @doc net_kernel:setopts/2 on an established connection.
-spec setopts(polydist_native:transport(), socket(), [term()]) -> ok | {error, term()}.
setopts(Transport, {_, Port}, Options) ->
    case polydist_config:pick_socket_options(Options) of
        {Known, []} ->
            Results = [control(Port, ?SETOPT, <<Code, (value(Value)):32/signed>>)
                       || {Name, Value} <- maps:to_list(Known), {ok, Code} <- [code(Transport, Name)]]
                      ++ [control(Port, ?SETSCTP, << <<(maps:get(Name, Sctp, 0)):32>> || Name <- polydist_config:sctp_options() >>)
                          || #{sctp := Sctp} <- [Known], Transport =:= sctp],
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
    {ok, [{Name, named(Name, Value)} || {Name, Value} <- Options]
         ++ [{sctp, Sctp} || Transport =:= sctp, lists:member(sctp, Names), Sctp <- sctp(control(Port, ?GETSCTP, <<>>))]}.

sctp(<<Values:24/binary>>) -> [maps:from_list(lists:zip(polydist_config:sctp_options(), [Value || <<Value:32>> <= Values]))];
sctp(_) -> [].

%% A Unix socket has nothing of what belongs to TCP and IP; asking for it is not an error.
code(uds, Name) when Name =:= nodelay; Name =:= priority; Name =:= tos; Name =:= user_timeout -> none;
code(_, nodelay) -> {ok, 1};
code(_, keepalive) -> {ok, 2};
code(_, sndbuf) -> {ok, 3};
code(_, recbuf) -> {ok, 4};
code(_, priority) -> {ok, 5};
code(_, tos) -> {ok, 6};
code(_, user_timeout) -> {ok, 7};
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
