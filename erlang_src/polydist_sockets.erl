%%% Opens the sockets of a listener, by what the configuration, the command line and the kernel's parameters say of it. Runs in
%%% polydist_listeners, at boot and later.
-module(polydist_sockets).

-export([open/2, close/1, failed/2, is_secured/2, spoken/1, legacy/2, local_ips/2, uds_directories/1]).

-include_lib("kernel/include/file.hrl").

-define(LOOPBACK4, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).
-define(ANY4, {0, 0, 0, 0}).
-define(ANY6, {0, 0, 0, 0, 0, 0, 0, 0}).

%% @doc Opens a listener, or what of it is not open yet. Others are those that are open.
-spec open(polydist_listeners:result(), Others :: [polydist_listeners:result()]) -> polydist_listeners:result().
open(#{transport := uds, place := Place} = Result, _) ->
    case socket_path(Place, node_name()) of
        {ok, Path} ->
            Options = (options(Place))#{mode => maps:get(mode, Place, 8#600)},
            opened(Result, [polydist_native:listen(uds, {local, Path}, Options)]);
        {error, Reason} -> failed(Result, Reason)
    end;
open(#{transport := Transport, place := Place, addresses := Addresses} = Result, Others) ->
    case polydist_carrier:is_outside(Transport) of
        true -> opened(Result, [polydist_outside:listen(Transport, Place, options(Place))]);
        false -> open_inet(Transport, Place, Addresses, Result, Others)
    end.

open_inet(Transport, Place, Addresses, Result, Others) ->
    case {ips(Transport, Place), secured(Transport, Place, options(Place))} of
        {{ok, Ips}, {ok, Options}} ->
            Missing = [Ip || Ip <- Ips, not lists:keymember(first(Ip), 1, Addresses)],
            opened(Result, open_ips(Transport, Missing, wanted(Result, Others), ports(Result), Options));
        {{error, Reason}, _} -> failed(Result, Reason);
        {_, {error, Reason}} -> failed(Result, Reason)
    end.

%% @doc Closes one socket.
-spec close(polydist_native:listener()) -> ok.
close(Listener) ->
    ok = polydist_native:close_listener(Listener),
    polydist_outside:close(Listener).

ports(#{place := #{ports := Ports}}) ->
    Ports;
ports(#{first := true, transport := Transport}) ->
    {ok, Config} = polydist_listeners:config(),
    case legacy(Config, polydist_config:carriers()) =:= Transport andalso fixed_port() of
        Port when is_integer(Port), Port =/= 0 -> {Port, Port};
        _ -> polydist_config:port_range()
    end;
ports(_) ->
    polydist_config:port_range().

%% All addresses of a listener have one port, if that can be. A stock inet6_tcp peer dials the number that is registered, TCPv4's.
wanted(#{addresses := [{_, Port} | _]}, _) ->
    Port;
wanted(#{transport := tcp6, first := true, place := Place}, Others) when not is_map_key(ports, Place) ->
    case [Port || #{transport := tcp, first := true, addresses := [{_, Port}]} <- Others] of
        [Port] -> Port;
        [] -> any
    end;
wanted(_, _) ->
    any.

secured(Transport, Place, Options) ->
    case is_secured(Transport, Place) andalso server_tls() of
        false -> {ok, Options};
        {ok, Tls} -> {ok, Options#{tls => Tls, shared => maps:get(shared, Place, false)}};
        Error -> Error
    end.

%% @doc Whether it speaks TLS, perhaps among others.
-spec is_secured(polydist_native:transport(), polydist_place:place()) -> boolean().
is_secured(tls, _) -> true;
is_secured(_, Place) -> maps:get(shared, Place, false).

%% @doc Where a listener can be reached over which transports: a port may be shared by two.
-spec spoken(polydist_listeners:result()) -> [{polydist_native:transport(), polydist_native:address()}].
spoken(#{place := #{shared := true}, addresses := Addresses}) ->
    [{Transport, Address} || {Ip, _} = Address <- Addresses, Transport <- [plain(Ip), tls]];
spoken(#{transport := Transport, addresses := Addresses}) ->
    [{Transport, Address} || Address <- Addresses].

plain(Ip) when tuple_size(Ip) =:= 4 -> tcp;
plain(_) -> tcp6.

%% Its files may be there by now.
server_tls() ->
    case polydist_tls:config(server) of
        {ok, Tls} -> {ok, Tls};
        {error, _} ->
            ok = polydist_tls:load(),
            polydist_tls:config(server)
    end.

%% The port number of one family is wanted for the next one, not needed: if somebody has it, another will do.
open_ips(_, [], _, _, _) ->
    [];
open_ips(Transport, [Ip | Ips], Wanted, Ports, Options) ->
    case open_ip(Transport, Ip, Wanted, Ports, Options) of
        {ok, _, At} = Ok ->
            {_, Port} = first(At),
            [Ok | open_ips(Transport, Ips, Port, Ports, Options)];
        Error -> [Error | open_ips(Transport, Ips, Wanted, Ports, Options)]
    end.

open_ip(Transport, [Ip | Others], Wanted, Ports, Options) ->
    case open_ip(Transport, Ip, Wanted, Ports, Options#{addresses => Others}) of
        {ok, Listener, {_, Port} = At} -> {ok, Listener, [At | [{Other, Port} || Other <- Others]]};
        Error -> Error
    end;
open_ip(Transport, Ip, any, Ports, Options) ->
    polydist_native:listen(Transport, {Ip, 0}, Options#{ports => Ports});
open_ip(Transport, Ip, Wanted, Ports, Options) ->
    case polydist_native:listen(Transport, {Ip, 0}, Options#{ports => {Wanted, Wanted}}) of
        {error, {eaddrinuse, _}} -> open_ip(Transport, Ip, any, Ports, Options);
        Result -> Result
    end.

%% A socket may have several addresses.
first([First | _]) -> First;
first(Only) -> Only.

opened(#{listeners := Listeners, addresses := Addresses} = Result, Tried) ->
    {New, Ats} = lists:unzip([{L, A} || {ok, L, A} <- Tried]),
    At = lists:flatten(Ats),
    Open = Result#{listeners := Listeners ++ New, addresses := Addresses ++ At},
    case {Addresses ++ At, [Reason || {error, Reason} <- Tried]} of
        {[], [Reason | _]} -> failed(Open, Reason);
        {_, Reasons} ->
            case [R || {Kind, _} = R <- Reasons, Kind =/= eafnosupport, Kind =/= eaddrnotavail] of
                [] -> maps:remove(reason, Open#{state := listening}); % a host without IPv6 is no reason to worry
                [Reason | _] -> (failed(Open, Reason))#{state := listening}
            end
    end.

%% @doc A listener that could not be opened, once more.
-spec failed(polydist_listeners:result(), {Kind :: atom(), Sentence :: binary()}) -> polydist_listeners:result().
failed(#{attempts := Attempts} = Result, Reason) ->
    Result#{state := failed, attempts := Attempts + 1, reason => Reason}.

options(Place) ->
    {Socket, _} = polydist_config:socket_options(listen),
    Limits = [{Native, Limit} || {Key, Native} <- [{max_handshakes, max_pending},
                                                   {max_handshakes_per_source, max_pending_of_source}],
                                 #{Key := Limit} <- [Place]],
    maps:merge(maps:merge(maps:with([allow], Place), maps:from_list(Limits)),
               #{backlog => maps:get(backlog, Socket, 128), socket => maps:remove(backlog, Socket),
                 setup_time => polydist_config:setup_time()}).

%% @doc The addresses to dial from by a transport that tells the peer all of them: those of its first listener, if that one has some
%% of its own, and the peer's family is among theirs. What is dialled on this host comes from this host.
-spec local_ips([polydist_listeners:result()], polydist_native:address()) -> [inet:ip_address()].
local_ips([#{transport := sctp, addresses := [_ | _] = Addresses} | _], {Peer, _}) ->
    Ips = [Ip || {Ip, _} <- Addresses],
    Same = [Ip || Ip <- Ips, tuple_size(Ip) =:= tuple_size(Peer)],
    Apart = [Ip || Ip <- Ips, Ip =:= ?ANY4 orelse Ip =:= ?ANY6 orelse is_loopback(Ip) =/= is_loopback(Peer)],
    case {Same, Apart} of
        {[_ | _], []} -> Ips;
        _ -> []
    end;
local_ips([#{} | Results], Peer) ->
    local_ips(Results, Peer);
local_ips([], _) ->
    [].

is_loopback({127, _, _, _}) -> true;
is_loopback(Ip) -> Ip =:= ?LOOPBACK6.

%% Where to listen: the key listen, else inet_dist_use_interface, else everywhere.
ips(Transport, #{interface := Name}) -> of_interface(Transport, Name);
ips(Transport, #{ip := any}) -> {ok, everywhere(Transport)};
ips(tcp6, #{ip := loopback}) -> {ok, [?LOOPBACK6]};
ips(tcp, #{ip := loopback}) -> {ok, [?LOOPBACK4]};
ips(_, #{ip := loopback}) -> {ok, [?LOOPBACK4, ?LOOPBACK6]};
ips(_, #{ip := Ip}) -> {ok, [Ip]}; % of SCTP this may be a list of what belongs together
ips(Transport, #{}) ->
    case polydist_config:interface() of
        any -> {ok, everywhere(Transport)};
        {invalid, Term} -> invalid("inet_dist_use_interface is ~0p, which is not an IP address", [Term]);
        Ip -> at_interface(Transport, Ip, tuple_size(Ip))
    end.

%% A link-local address needs a scope, which nothing here has a place for.
of_interface(Transport, Name) ->
    Interfaces = case inet:getifaddrs() of
                     {ok, Found} -> Found;
                     {error, _} -> []
                 end,
    case {[Ip || {Each, Options} <- Interfaces, Each =:= Name, {addr, Ip} <- Options, suits(Transport, Ip)], Interfaces} of
        {[_ | _] = Ips, _} when Transport =:= sctp -> {ok, [Ips]};
        {[_ | _] = Ips, _} -> {ok, lists:usort(Ips)};
        {[], _} ->
            {error, {no_interface, polydist_log:text("the interface ~ts has no address for ~p now; there are ~ts",
                                                     [Name, Transport, lists:join(", ", [Each || {Each, _} <- Interfaces])])}}
    end.

suits(_, {16#fe80, _, _, _, _, _, _, _}) -> false;
suits(tcp, Ip) -> tuple_size(Ip) =:= 4;
suits(tcp6, Ip) -> tuple_size(Ip) =:= 8;
suits(_, _) -> true.

everywhere(tcp) -> [?ANY4];
everywhere(tcp6) -> [?ANY6];
everywhere(_) -> [?ANY4, ?ANY6].

at_interface(tcp, Ip, 4) -> {ok, [Ip]};
at_interface(tcp6, Ip, 8) -> {ok, [Ip]};
at_interface(Both, Ip, _) when Both =:= tls orelse Both =:= sctp, Ip =:= ?LOOPBACK4 orelse Ip =:= ?LOOPBACK6 ->
    {ok, [?LOOPBACK4, ?LOOPBACK6]};
at_interface(Both, Ip, _) when Both =:= tls; Both =:= sctp -> {ok, [Ip]};
at_interface(tcp, ?LOOPBACK6, 8) -> {ok, [?LOOPBACK4]};
at_interface(tcp6, ?LOOPBACK4, 4) -> {ok, [?LOOPBACK6]};
at_interface(Transport, Ip, _) ->
    invalid("inet_dist_use_interface is ~ts, which says nothing for ~p; say where it listens: "
            "-polydist listen '#{~p => #{ip => \"...\"}}'", [inet:ntoa(Ip), Transport, Transport]).

invalid(Format, Args) ->
    {error, {bad_config, polydist_log:text(Format, Args)}}.

socket_path(#{path := Path}, _) ->
    {ok, Path};
socket_path(Options, Node) ->
    case {uds_directory(Options), lists:member($/, Node)} of
        {_, true} -> invalid("the node name ~ts contains a /, which the name of a socket cannot", [Node]);
        {{ok, Dir}, false} -> {ok, unicode:characters_to_binary(filename:join(Dir, Node ++ ".sock"))};
        {Error, false} -> Error
    end.

%% @doc The directories in which such sockets are, and in which they are by default.
-spec uds_directories([polydist_place:place()]) -> [binary()].
uds_directories(Places) ->
    Found = [uds_directory(Place) || Place <- Places ++ [#{}]] ++ [temporary_directory()],
    [unicode:characters_to_binary(Dir) || {ok, Dir} <- Found].

uds_directory(#{dir := Dir}) ->
    {ok, Dir};
uds_directory(#{path := Path}) ->
    {ok, filename:dirname(Path)};
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

%% @doc The transport whose port goes where stock nodes look for it, among those that listen.
-spec legacy(polydist_config:config(), [polydist_native:transport()]) -> polydist_native:transport() | none.
legacy(#{legacy := undefined}, Transports) ->
    case [T || T <- [tcp, tls, tcp6], lists:member(T, Transports)] of
        [First | _] -> First;
        [] -> none
    end;
legacy(#{legacy := Transport}, _) ->
    Transport.

node_name() ->
    {ok, {Name, Host}} = polydist_sup:lookup(node),
    Name ++ "@" ++ Host.

%% The port that the epmd module prescribes (-erl_epmd_port), or 0.
fixed_port() ->
    {ok, {Name, Host}} = polydist_sup:lookup(node),
    Epmd = net_kernel:epmd_module(),
    Module = case erlang:function_exported(Epmd, listen_port_please, 2) of
                 true -> Epmd;
                 false -> erl_epmd
             end,
    case Module:listen_port_please(Name, Host) of
        {ok, Port} when is_integer(Port) -> Port;
        _ -> 0
    end.
