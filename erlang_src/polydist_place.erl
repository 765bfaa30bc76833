%%% Where and how to listen: the key `listen', and what polydist:add_listener/1 takes. Pure.
%%%
%%%   #{tcp | tcp6 | tls => #{ip => any | loopback | Address, interface => "eth0", port => N, ports => {Low, High},
%%%                           allow => ["10.0.0.0/8", "fd00::1"], shared => [tcp, tls], identity => true},
%%%     sctp => #{ip => any | loopback | Address | [Address], interface, port, ports, allow},
%%%     uds => #{dir => Path, path => Path, mode => 8#600, allow => any | [Uid]}}
%%%
%%% The addresses of an interface are looked up when the listener is opened. A port that is shared serves both, TLS and the plain
%%% protocol. With `identity' the certificate of whoever connects must be for the node that it says it is; without it this is so
%%% where the TLS options demand certificates.
%%%
%%% The addresses in the list of SCTP are those of one listener: each connection has all of them.
%%%
%%% A transport from outside has options of its own, which it checks itself; see doc/transports.md.
%%%
%%% Any of them may have a `name', an atom, and a list of such maps is as many listeners of one transport. `allow' says whose
%%% connections are taken; without it everybody's are, but by a Unix socket only those of this node's user and of root. At most
%%% `max_handshakes' connections are in their handshake at once (256), and `max_handshakes_per_source' of one address or user (64).
-module(polydist_place).

-export([parse/1, listener/1, of_transport/2, allow_text/1]).

-export_type([place/0, allow/0]).

-type allow() :: [polydist_net:net()] | [Uid :: non_neg_integer()] | any.
-type place() :: #{name => atom(), allow => allow(), max_handshakes => pos_integer(), max_handshakes_per_source => pos_integer(),
                   shared => boolean(), identity => boolean(), interface => string(),
                   ip => any | loopback | inet:ip_address() | [inet:ip_address(), ...], % a list for SCTP only
                   ports => {inet:port_number(), inet:port_number()},
                   dir => string(), path => binary(), mode => non_neg_integer(),
                   options => map()}. % of a transport from outside

-define(is_inet(Transport), Transport =:= tcp orelse Transport =:= tcp6 orelse Transport =:= tls orelse Transport =:= sctp).
-define(MAX_UID, 16#fffffffe).

%% @doc The key `listen'. Throws `{invalid, Sentence}'.
-spec parse(term()) -> #{polydist_native:transport() => place() | [place()]}.
parse(Listen) when is_map(Listen) ->
    Places = maps:map(fun places/2, Listen),
    Names = [Name || Transport <- maps:keys(Places), #{name := Name} <- of_transport(Transport, Places)],
    case Names -- lists:usort(Names) of
        [] -> Places;
        [Name | _] -> invalid("two listeners have the name ~0tp; a name is for one", [Name])
    end;
parse(Listen) ->
    invalid("listen is ~0tp, but must be a map such as #{tcp => #{port => 9100}}", [Listen]).

%% @doc One listener, from a map with its `transport'.
-spec listener(term()) -> {ok, polydist_native:transport(), place()} | {error, Sentence :: binary()}.
listener(#{transport := Transport} = Options) ->
    try
        {ok, Transport, place(Transport, maps:remove(transport, Options))}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end;
listener(Options) ->
    {error, polydist_log:text("a listener is a map such as #{transport => tcp, port => 9100}, not ~0tp", [Options])}.

%% @doc The places of a transport in the key `listen'; one without options if it is not there.
-spec of_transport(polydist_native:transport(), #{polydist_native:transport() => place() | [place()]}) -> [place()].
of_transport(Transport, Listen) ->
    case maps:get(Transport, Listen, #{}) of
        Places when is_list(Places) -> Places;
        Place -> [Place]
    end.

%% @doc `allow' as one writes it.
-spec allow_text(allow()) -> any | [binary() | non_neg_integer()].
allow_text(any) ->
    any;
allow_text(Allow) ->
    [allowed(Each) || Each <- Allow].

allowed({_, _} = Net) -> polydist_net:text(Net);
allowed(Uid) -> Uid.

places(Transport, [_ | _] = Places) ->
    try length(Places) of
        _ -> [place(Transport, Place) || Place <- Places]
    catch
        error:badarg -> no_place(Transport, Places)
    end;
places(Transport, []) ->
    invalid("listen has ~0p => [], which is no listener; to have none leave polydist_~0p out of -proto_dist",
            [Transport, Transport]);
places(Transport, Place) ->
    place(Transport, Place).

place(uds, Options) when is_map(Options) ->
    case Options of
        #{dir := _, path := _} -> invalid("uds listens at a path or in a dir; it cannot have both", []);
        _ -> maps:map(fun uds_option/2, Options)
    end;
place(Transport, #{ip := _, interface := _}) when ?is_inet(Transport) ->
    invalid("~0p listens at an ip or at an interface; it cannot have both", [Transport]);
place(Transport, Options) when is_map(Options), ?is_inet(Transport) ->
    maps:fold(fun(Key, Value, Place) -> inet_option(Transport, Key, Value, Place) end, #{}, Options);
place(Transport, Options) when is_map(Options) ->
    case lists:member(Transport, polydist_carrier:outside()) of
        true -> outside(Options);
        false -> no_place(Transport, Options)
    end;
place(Transport, Options) ->
    no_place(Transport, Options).

outside(#{name := Name} = Options) -> #{name => name(Name), options => maps:remove(name, Options)};
outside(Options) -> #{options => Options}.

-spec no_place(term(), term()) -> no_return().
no_place(Transport, Options) ->
    Known = lists:join(", ", [atom_to_list(T) || T <- polydist_carrier:transports()]),
    invalid("nothing listens by ~0tp => ~0tp; there are ~ts, each with a map of options", [Transport, Options, Known]).

uds_option(name, Name) -> name(Name);
uds_option(dir, Dir) when is_binary(Dir); is_list(Dir) ->
    case polydist_log:chars(Dir) of
        {ok, [_ | _] = Path} -> Path;
        _ -> unknown_uds_option(dir, Dir)
    end;
uds_option(path, Path) when is_binary(Path); is_list(Path) ->
    case polydist_log:chars(Path) of
        {ok, "/" ++ _ = Chars} -> unicode:characters_to_binary(Chars);
        _ -> invalid("uds has path => ~0tp, which is not absolute: \"/run/app/node.sock\"", [Path])
    end;
uds_option(mode, Mode) when is_integer(Mode), Mode >= 0, Mode =< 8#777 -> Mode;
uds_option(allow, any) -> any;
uds_option(allow, Uids) -> uids(Uids);
uds_option(Key, Value) when Key =:= max_handshakes; Key =:= max_handshakes_per_source -> number(uds, Key, Value);
uds_option(Key, Value) -> unknown_uds_option(Key, Value).

-spec unknown_uds_option(term(), term()) -> no_return().
unknown_uds_option(Key, Value) ->
    invalid("uds has ~0tp => ~0tp, but uds knows dir => Path or path => Path, mode => 8#600, allow => [Uid], name => Atom, "
            "max_handshakes and max_handshakes_per_source", [Key, Value]).

uids(Uids) ->
    case is_list(Uids) andalso Uids =/= [] andalso lists:all(fun is_uid/1, proper(Uids)) of
        true -> Uids;
        false -> invalid("uds has allow => ~0tp, but must list user ids: [1000]~ts", [Uids, everybody(Uids)])
    end.

is_uid(Uid) -> is_integer(Uid) andalso Uid >= 0 andalso Uid =< ?MAX_UID.

inet_option(_, name, Name, Place) -> Place#{name => name(Name)};
inet_option(_, port, Port, Place) when is_integer(Port), Port >= 0, Port =< 65535 -> Place#{ports => {Port, Port}};
inet_option(_, ports, {Low, High} = Ports, Place)
  when is_integer(Low), is_integer(High), Low >= 0, Low =< High, High =< 65535 -> Place#{ports => Ports};
inet_option(_, ip, Where, Place) when Where =:= any; Where =:= loopback -> Place#{ip => Where};
inet_option(Transport, interface, Name, Place) ->
    case polydist_log:chars(Name) of
        {ok, [_ | _] = Chars} -> Place#{interface => Chars};
        _ -> invalid("~0p has interface => ~0tp, but must have its name, such as \"eth0\"", [Transport, Name])
    end;
inet_option(Transport, Key, Value, Place) when Key =:= max_handshakes; Key =:= max_handshakes_per_source ->
    Place#{Key => number(Transport, Key, Value)};
inet_option(Transport, shared, Both, Place) when Transport =/= sctp -> Place#{shared => shared(Transport, Both)};
inet_option(Transport, identity, Bool, Place) when Transport =/= sctp, is_boolean(Bool) -> Place#{identity => Bool};
inet_option(sctp, ip, [Head | _] = Ips, Place) when not is_integer(Head) -> Place#{ip => ips(Ips)};
inet_option(Transport, ip, Ip, Place) -> Place#{ip => ip(Transport, Ip)};
inet_option(Transport, allow, Nets, Place) when is_list(Nets), Nets =/= [] ->
    Place#{allow => [net(Transport, Net, Nets) || Net <- proper(Nets)]};
inet_option(Transport, allow, Nets, _) ->
    no_nets(Transport, Nets);
inet_option(Transport, Key, Value, _) ->
    {Addresses, Others} = case Transport of
                              sctp -> {"an address or a list of them", ""};
                              _ -> {"or an address", ", shared => [tcp, tls], identity => true or false"}
                          end,
    invalid("~0p has ~0tp => ~0tp, but ~0p knows ip => any, loopback, ~ts, interface => \"eth0\", port => 0..65535, "
            "ports => {Low, High}, allow => [\"10.0.0.0/8\"], name => Atom, max_handshakes and max_handshakes_per_source~ts",
            [Transport, Key, Value, Transport, Addresses, Others]).

shared(Transport, Both) ->
    Is = fun(Wanted) -> try lists:sort(Both) =:= Wanted catch error:_ -> false end end,
    Is([tcp, tls]) orelse Is([tcp6, tls])
        orelse invalid("~0p has shared => ~0tp, but a port can be shared by both of [tcp, tls] only", [Transport, Both]).

number(_, _, Number) when is_integer(Number), Number > 0, Number =< 16#ffff -> Number;
number(Transport, Key, Value) ->
    invalid("~0p has ~0p => ~0tp, but must have a number from 1 to 65535", [Transport, Key, Value]).

%% All addresses of one endpoint.
ips(Ips) ->
    Parsed = [ip(sctp, Ip) || Ip <- proper(Ips)],
    case {Parsed -- lists:usort(Parsed), [Ip || Ip <- Parsed, lists:all(fun(Part) -> Part =:= 0 end, tuple_to_list(Ip))]} of
        {[], []} -> Parsed;
        {[Twice | _], _} -> invalid("sctp has ip => ~0tp, which names ~ts twice", [Ips, inet:ntoa(Twice)]);
        {[], [Any | _]} -> invalid("sctp has ip => ~0tp, but ~ts stands for all addresses: say ip => any", [Ips, inet:ntoa(Any)])
    end.

name(Name) when is_atom(Name), Name =/= undefined -> Name;
name(Name) -> invalid("a listener has name => ~0tp, but a name is an atom", [Name]).

net(Transport, Text, All) ->
    case polydist_net:parse(Text) of
        {ok, {Ip, _}} when Transport =:= tcp, tuple_size(Ip) =:= 8; Transport =:= tcp6, tuple_size(Ip) =:= 4 ->
            no_nets(Transport, All);
        {ok, Net} -> Net;
        {error, {beyond, Net}} ->
            invalid("~0p has ~0tp in allow, but the network of that length is ~ts", [Transport, Text, polydist_net:text(Net)]);
        {error, no_net} -> no_nets(Transport, All)
    end.

-spec no_nets(atom(), term()) -> no_return().
no_nets(Transport, Nets) ->
    Example = case Transport of
                  tcp -> "[\"10.0.0.0/8\", \"192.0.2.7\"]";
                  tcp6 -> "[\"fd00::/8\", \"2001:db8::7\"]";
                  _ -> "[\"10.0.0.0/8\", \"fd00::/8\"]"
              end,
    invalid("~0p has allow => ~0tp, but must list networks it can be reached from: ~ts~ts",
            [Transport, Nets, Example, everybody(Nets)]).

everybody([]) -> "; leave it out to let everybody in";
everybody(_) -> "".

ip(Transport, Text) when is_list(Text); is_binary(Text) ->
    case polydist_log:chars(Text) of
        {ok, Chars} ->
            case inet:parse_strict_address(Chars) of
                {ok, Ip} -> ip(Transport, Ip);
                {error, _} -> no_ip(Transport, Text)
            end;
        error -> no_ip(Transport, Text)
    end;
ip(Transport, Ip) ->
    Fits = case Transport of
               tcp -> inet:is_ipv4_address(Ip);
               tcp6 -> inet:is_ipv6_address(Ip);
               _ -> inet:is_ip_address(Ip)
           end,
    case Fits of
        true -> Ip;
        false -> invalid("~0p has ip => ~0tp, but ~0p listens on ~ts", [Transport, Ip, Transport, kind(Transport)])
    end.

-spec no_ip(atom(), term()) -> no_return().
no_ip(Transport, Text) ->
    invalid("~0p has ip => ~0tp, which is not an IP address", [Transport, Text]).

kind(tcp) -> "an IPv4 address";
kind(tcp6) -> "an IPv6 address";
kind(_) -> "an IPv4 or IPv6 address".

%% An improper list has no elements to speak of.
proper(List) ->
    try length(List) of
        _ -> List
    catch
        error:badarg -> [improper]
    end.

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).
