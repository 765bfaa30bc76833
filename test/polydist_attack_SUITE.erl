%%% A node that is attacked on all its ports: plain, by TLS, over a Unix socket and on a port that serves two protocols. Each case
%%% is one kind of attack. During it messages of a connected peer go to and fro and must not be held up, and the node's memory is
%%% watched; after it peers get in by every transport, memory, descriptors, ports and processes are given back, and nothing has
%%% crashed.
%%%
%%% All connections stay on this machine, and all loops are bounded.
-module(polydist_attack_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2, parallel/1]).
-import(polydist_node, [run/2, call/4]).
-import(polydist_attacker, [connect/1, connect/2, tls/2, over_tls/3, handshake/4, send/2, raw/2, close/1, reset/1, await_closed/2]).

%% Seconds until a connection must be established.
-define(SETUP, 3).
-define(COOKIE, "polydist").
%% The longest time for a message there and back meanwhile, in milliseconds.
-define(ROUND_TRIP, 2000).
%% Bytes: how far the node's resident memory may grow while it is attacked, and how much more the VM may hold for good.
-define(MOST_MEMORY, 96 * 1024 * 1024).
-define(LASTING_MEMORY, 8 * 1024 * 1024).
%% Sockets that the cases open here at the same time, and some for the VM itself.
-define(DESCRIPTORS, 2500).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        one_byte_at_a_time,
        announced_and_never_sent,
        names_that_are_none,
        the_name_of_a_peer_that_is_connected,
        wrong_cookies_over_and_over,
        resets_at_every_step,
        tls_that_breaks_off_anywhere,
        the_other_protocol,
        renegotiation_and_new_keys_without_end,
        records_that_are_none_after_the_handshake,
        two_thousand_idle_connections,
        a_thousand_connections_that_close_at_once,
        a_peer_that_stops_reading
    ].

init_per_suite(Config) ->
    case list_to_integer(string:trim(os:cmd("n=$(ulimit -n); [ $n = unlimited ] && n=1000000; echo $n"))) of
        Descriptors when Descriptors < ?DESCRIPTORS ->
            {skip, lists:concat(["only ", Descriptors, " descriptors may be open; try: ulimit -n ", ?DESCRIPTORS])};
        _ ->
            {ok, _} = application:ensure_all_started(ssl),
            attacked(polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)))
    end.

%% The same nodes for all cases: what one attack leaves behind, the next one finds.
attacked(Config) ->
    Listen = #{tcp => [#{}, #{name => both, shared => [tcp, tls]}]},
    %% Nobody comes back by himself after a disconnect.
    Never = polydist_ct:never(),
    Owner = #{owner => whereis(init), args => Never},
    [Us, Friend | Newcomers] = polydist_node:start_all(lab(Config), [
        Owner#{name => "attacked", config => #{listen => Listen}, carriers => [tcp, tls, uds],
               args => Never ++ ["net_setuptime", integer_to_list(?SETUP)]},
        Owner#{name => "friend", force => [tls]}
        | [Owner#{name => "newcomer", force => [Transport]} || Transport <- [tcp, tls, uds]]
    ]),
    run(Us, fun() -> polydist_traffic:start_echo(echo) end),
    polydist_node:connect(Friend, Us),
    [{us, Us}, {friend, Friend}, {newcomers, Newcomers} | Config].

end_per_suite(Config) ->
    [polydist_node:stop(Node) || Node <- [us(Config), friend(Config) | newcomers(Config)]],
    polydist_ct:close_lab(Config).

us(Config) -> proplists:get_value(us, Config).
friend(Config) -> proplists:get_value(friend, Config).
newcomers(Config) -> proplists:get_value(newcomers, Config).

%%
%% What must hold during and after an attack
%%

withstand(Config, Attack) ->
    Us = us(Config),
    [come_in(Newcomer, Us) || Newcomer <- newcomers(Config)], % so that what is made once is there
    Before = polydist_node:resources(Us),
    Total = call(Us, erlang, memory, [total]),
    Printed = byte_size(polydist_node:console(Us)),
    Resident = polydist_node:os_pid_memory(Us),
    Since = since(Config),
    {{Count, Longest}, Most} = polydist_node:peak_memory(Us, fun() ->
        Trips = start_trips(friend(Config), Us),
        Attack(ports(Us)),
        stop_trips(friend(Config), Trips)
    end),
    ct:comment("~b round trips, the longest ~b ms; at most ~b KiB more", [Count, Longest, (Most - Resident) div 1024]),
    true = Count > 0,
    true = Longest < ?ROUND_TRIP * polydist_ct:slowness(),
    true = Most - Resident < ?MOST_MEMORY,
    Since = since(Config),
    wait_until(fun() -> [] =:= [Pending || #{pending := Pending} <- call(Us, polydist, listeners, []), Pending > 0] end),
    [come_in(Newcomer, Us) || Newcomer <- newcomers(Config)],
    _ = polydist_node:await_resources(Us, Before),
    wait_until(fun() -> call(Us, erlang, memory, [total]) < Total + ?LASTING_MEMORY end),
    <<_:Printed/binary, New/binary>> = polydist_node:console(Us),
    case re:run(New, "CRASH REPORT|crasher:|Error in process|panicked|terminating") of
        nomatch -> ok;
        {match, _} -> error({crashed, New})
    end.

%% The friend's connection is the one that it always was.
since(Config) ->
    maps:get(since, polydist_node:connection(us(Config), friend(Config))).

come_in(Newcomer, Us) ->
    polydist_node:connect(Newcomer, Us),
    polydist_node:disconnect(Newcomer, Us).

ports(Us) ->
    maps:from_list([{Id, one(Address)} || #{id := Id, address := Address} <- call(Us, polydist, listeners, [])]).

one([Address | _]) -> Address;
one(Address) -> Address.

listener(Config, Id) ->
    [Listener] = [Each || #{id := Each_} = Each <- call(us(Config), polydist, listeners, []), Each_ =:= Id],
    Listener.

start_trips(From, #{node := To}) ->
    run(From, fun() -> spawn(fun() -> trips({echo, To}, 0, 0) end) end).

trips(To, Count, Longest) ->
    receive
        {stop, Caller} -> Caller ! {self(), {Count, Longest}}
    after 10 ->
        {Time, ok} = timed(fun() -> polydist_traffic:echo(To, Count) end),
        trips(To, Count + 1, max(Longest, Time))
    end.

timed(Function) ->
    Start = erlang:monotonic_time(millisecond),
    Result = Function(),
    {erlang:monotonic_time(millisecond) - Start, Result}.

stop_trips(From, Trips) ->
    run(From, fun() ->
        Monitor = monitor(process, Trips),
        Trips ! {stop, self()},
        receive
            {Trips, Result} -> Result;
            {'DOWN', Monitor, _, _, Reason} -> error(Reason)
        end
    end).

%% What a peer has that is one of the cluster's.
certificate(Config) ->
    #{certificates := Certificates} = lab(Config),
    lists:keyreplace(verify, 1, polydist_ct:tls_options(Certificates), {verify, verify_none}).

certificate(Config, Version) -> [{versions, [Version]} | certificate(Config)].

%% Connections on every port, as far as the distribution's handshake can begin.
all_ways(Config, Ports) ->
    [connect(Address) || {Id, Address} <- maps:to_list(Ports), Id =/= tls] ++
        [tls(Address, certificate(Config, Version)) || {Id, Address} <- maps:to_list(Ports), Id =:= tls orelse Id =:= both,
                                                       Version <- ['tlsv1.2', 'tlsv1.3']].

name() -> polydist_ct:unique("stranger") ++ "@localhost".

%%
%% Before the handshake is through
%%

one_byte_at_a_time(Config) ->
    doc("Handshake, ClientHello and a frame inside TLS arrive byte by byte, ten in a second: cut off when the time is over"),
    Name = iolist_to_binary(lists:duplicate(200, $n)),
    Frame = polydist_attacker:name_frame([Name, "@localhost"]),
    Hello = [<<22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3>>, binary:copy(<<7>>, 200)],
    withstand(Config, fun(Ports) ->
        Plain = [{connect(Address), [<<(byte_size(Frame)):16>>, Frame]} || {Id, Address} <- maps:to_list(Ports), Id =/= tls],
        Hellos = [{connect(maps:get(Id, Ports)), Hello} || Id <- [tls, both]],
        Inside = [{tls(maps:get(Id, Ports), certificate(Config)), [<<(byte_size(Frame)):32>>, Frame]} || Id <- [tls, both]],
        Drips = Plain ++ Hellos ++ Inside,
        Times = parallel([fun() -> element(1, timed(fun() -> drip(Conn, iolist_to_binary(Bytes)) end)) end
                          || {Conn, Bytes} <- Drips]),
        ct:log("closed after ~p ms", [Times]),
        true = lists:max(Times) < (?SETUP + 2) * 1000
    end).

drip(_, <<>>) ->
    error(all_was_taken);
drip(#{tls := Tls, socket := Socket} = Conn, <<Byte, Rest/binary>>) ->
    Sent = case Tls of
               none -> gen_tcp:send(Socket, <<Byte>>);
               _ -> ssl:send(Tls, <<Byte>>)
           end,
    receive after 100 -> ok end, % the attack itself
    case Sent of
        ok -> drip(Conn, Rest);
        {error, _} -> close(Conn)
    end.

announced_and_never_sent(Config) ->
    doc("Frames of 65535 bytes and of 4 GiB, records of 65535, only announced, 50 on every port: closed at once or in time"),
    Lengths = [<<16#ffff:16>>, <<16#ffffffff:32>>, <<22, 3, 1, 16#ffff:16>>, <<22, 3, 3, 16384:16, 1>>, <<4096:16, $N>>],
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            Conns = [begin
                Conn = connect(Address),
                _ = raw(Conn, Length),
                Conn
            end || _ <- lists:seq(1, 10), Length <- Lengths],
            [await_closed(Conn, (?SETUP + 2) * 1000) || Conn <- Conns]
        end || Address <- maps:values(Ports)]),
        Inside = [tls(maps:get(Id, Ports), certificate(Config)) || Id <- [tls, both], _ <- lists:seq(1, 10)],
        [ok = ssl:send(Tls, <<16#ffffffff:32>>) || #{tls := Tls} <- Inside],
        [await_closed(Conn, 2000) || Conn <- Inside]
    end).

names_that_are_none(Config) ->
    doc("Too long, cut off, without an @, empty, of bytes that are no text, with no flags, or no name message at all: each is "
        "closed, whatever way it came"),
    Flags = element(2, erts_internal:get_dflags()),
    Names = [
        [], "@", "nohost", "@localhost", "nobody@", "a@b@c", <<255, 254, 0, "@", 128>>, [lists:duplicate(300, $n), "@localhost"],
        [lists:duplicate(4000, $n), "@localhost"]
    ],
    Frames = [polydist_attacker:name_frame(Name) || Name <- Names] ++ [
        <<$N, Flags:64, 1:32, 16#ffff:16, "x@localhost">>, <<$N, Flags:64, 1:32, 11:16>>, <<$N, Flags:64>>, <<"N">>, <<"n">>, <<>>,
        <<$n, 5:16, 7:32>>, <<$n, 5:16, 7:32, "nohost">>, <<$n, 5:16, 7:32, 0:4000>>,
        <<$N, 0:64, 1:32, 11:16, "x@localhost">>, <<$N, -1:64, 1:32, 11:16, "x@localhost">>, <<$r, 0:160>>, <<"sok">>,
        binary:copy(<<$N>>, 4096), binary:copy(<<$N>>, 4097), binary:copy(<<$N>>, 65535)
    ],
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            Conns = all_ways(Config, Ports),
            _ = [send(Conn, Frame) || Conn <- Conns],
            [await_closed(Conn, (?SETUP + 2) * 1000) || Conn <- Conns]
        end || Frame <- Frames])
    end).

the_name_of_a_peer_that_is_connected(Config) ->
    doc("Somebody says that he is the friend, and does not know the cookie; or says nothing more: the friend's connection stays"),
    #{node := Friend} = friend(Config),
    Frame = polydist_attacker:name_frame(atom_to_list(Friend)),
    withstand(Config, fun(Ports) ->
        [begin
            ok = send(Conn, Frame),
            case polydist_attacker:recv(Conn, 5000) of
                {ok, <<"salive">>} ->
                    ok = send(Conn, Answer),
                    _ = send(Conn, [$r, <<1:32>>, <<0:128>>]);
                {ok, <<"snot_allowed">>} -> ok;
                {error, _} -> ok
            end,
            await_closed(Conn, (?SETUP + 2) * 1000)
        end || Answer <- ["strue", "sfalse", "snonsense"], Conn <- all_ways(Config, Ports)]
    end).

wrong_cookies_over_and_over(Config) ->
    doc("Fifty guesses at the cookie on every port: none gets in, none leaves a connection behind"),
    Established = [maps:get(established, listener(Config, Id)) || Id <- [tcp, tls, uds, both]],
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            [begin
                {error, _} = handshake(Conn, name(), "guess" ++ integer_to_list(Guess), connected),
                close(Conn)
            end || Guess <- lists:seq(1, 50), Conn <- all_ways(Config, maps:with([Id], Ports))]
        end || Id <- maps:keys(Ports)])
    end),
    Established = [maps:get(established, listener(Config, Id)) || Id <- [tcp, tls, uds, both]].

resets_at_every_step(Config) ->
    doc("A reset after the connect, in the middle of a message, and after every message there is, five times on every way in"),
    Steps = [
        fun(_) -> ok end, fun(Conn) -> raw(Conn, <<0>>) end, fun(Conn) -> raw(Conn, <<22, 3, 1, 2, 0, 1>>) end,
        fun(Conn) -> handshake(Conn, name(), ?COOKIE, named) end, fun(Conn) -> handshake(Conn, name(), ?COOKIE, challenged) end,
        fun(Conn) -> handshake(Conn, name(), "wrong", connected) end, fun(Conn) -> handshake(Conn, name(), ?COOKIE, connected) end
    ],
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            [begin
                _ = Step(Conn),
                reset(Conn)
            end || _ <- lists:seq(1, 5), Conn <- all_ways(Config, Ports)]
        end || Step <- Steps])
    end).

tls_that_breaks_off_anywhere(Config) ->
    doc("TLS handshakes of both versions of which only so many bytes get through, in every flight of the client, to the TLS port "
        "and to the shared one; then the connection is closed, reset, or silent"),
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            Address = maps:get(Id, Ports),
            Whole = polydist_attacker:truncated_tls(Address, certificate(Config, Version), 1000000, close),
            true = Whole > 500,
            Limits = [1, 4, 5, 6, 11 | lists:seq(50, Whole, Whole div 12)],
            ct:log("~p, ~p: the client's part has ~b bytes", [Id, Version, Whole]),
            [polydist_attacker:truncated_tls(Address, certificate(Config, Version), Limit, Then)
             || Limit <- Limits, Then <- [close, reset]],
            parallel([fun() -> polydist_attacker:truncated_tls(Address, certificate(Config, Version), Limit, silence) end
                      || Limit <- [1, 5, 100, Whole - 10]])
        end || Id <- [tls, both], Version <- ['tlsv1.2', 'tlsv1.3']])
    end).

the_other_protocol(Config) ->
    doc("Plain messages to the TLS port, TLS to the plain one and to the Unix socket, neither to the shared one: closed, and soon"),
    withstand(Config, fun(#{tcp := Tcp, tls := Tls, uds := Uds, both := Both}) ->
        [begin
            Plain = connect(Tls),
            ok = send(Plain, polydist_attacker:name_frame(name())),
            await_closed(Plain, 1000),
            [{error, _} = over_tls(connect(Address), certificate(Config), 2000) || Address <- [Tcp, Uds]],
            Neither = connect(Both),
            ok = raw(Neither, <<"GET / HTTP/1.1\r\n\r\n">>),
            await_closed(Neither, 1000)
        end || _ <- lists:seq(1, 20)]
    end).

%%
%% After it
%%

%% Established connections by TLS; the node has them up.
connected(Config, Ports, Versions) ->
    Names = [{Id, Version, name()} || Id <- [tls, both], Version <- Versions],
    Conns = [begin
        Conn = tls(maps:get(Id, Ports), certificate(Config, Version)),
        ok = handshake(Conn, Name, ?COOKIE, connected),
        Conn
    end || {Id, Version, Name} <- Names],
    Nodes = [list_to_atom(Name) || {_, _, Name} <- Names],
    wait_until(fun() -> Nodes -- call(us(Config), erlang, nodes, [connected]) =:= [] end),
    {Conns, Nodes}.

await_gone(Config, Nodes) ->
    wait_until(fun() -> Nodes -- call(us(Config), erlang, nodes, [connected]) =:= Nodes end).

renegotiation_and_new_keys_without_end(Config) ->
    doc("TLS 1.2 peers that want to negotiate again; TLS 1.3 ones that change their keys, and want ours changed, a thousand times"),
    withstand(Config, fun(Ports) ->
        {Old, OldNodes} = connected(Config, Ports, ['tlsv1.2']),
        [{error, _} = ssl:renegotiate(Tls) || #{tls := Tls} <- Old],
        {New, NewNodes} = connected(Config, Ports, ['tlsv1.3']),
        [[ssl:update_keys(Tls, read_write) || _ <- lists:seq(1, 1000)] || #{tls := Tls} <- New],
        [close(Conn) || Conn <- Old ++ New],
        await_gone(Config, OldNodes ++ NewNodes)
    end).

records_that_are_none_after_the_handshake(Config) ->
    doc("Nonsense where a record should be, below an established connection: that connection ends, and no other"),
    Wrong = [
        <<"GET / HTTP/1.1\r\n\r\n">>, <<23, 3, 3, 16#ffff:16>>, <<23, 3, 3, 0:16>>, <<23, 3, 3, 5:16, "abcde">>,
        <<23, 3, 3, 16384:16, 0:131072>>, <<22, 3, 3, 4:16, 0, 0, 0, 0>>, <<21, 3, 3, 2:16, 2, 80>>, <<20, 3, 3, 1:16, 1>>,
        <<99, 3, 3, 1:16, 0>>, <<0:800>>, polydist_traffic:payload(100000)
    ],
    withstand(Config, fun(Ports) ->
        [begin
            {Conns, Nodes} = connected(Config, Ports, ['tlsv1.2', 'tlsv1.3']),
            _ = [raw(Conn, Bytes) || Conn <- Conns],
            await_gone(Config, Nodes),
            [close(Conn) || Conn <- Conns]
        end || Bytes <- Wrong]
    end).

%%
%% Many
%%

two_thousand_idle_connections(Config) ->
    doc("Five hundred connections on every port, from one address, that never say anything: a peer from another gets in at once"),
    [Newcomer | _] = newcomers(Config),
    withstand(Config, fun(Ports) ->
        Conns = [Conn || Address <- maps:values(Ports), _ <- lists:seq(1, 500),
                         {ok, Conn} <- [connect(Address, elsewhere(Address))]],
        Counts = [maps:with([pending, refused], listener(Config, Id)) || Id <- maps:keys(Ports)],
        ct:log("~b are open: ~p", [length(Conns), Counts]),
        true = length(Conns) > 1000,
        {Time, ok} = timed(fun() -> come_in(Newcomer, us(Config)) end),
        ct:log("a peer came and went in ~b ms", [Time]),
        true = Time < ?ROUND_TRIP * polydist_ct:slowness(),
        [await_closed(Conn, (?SETUP + 10) * 1000) || Conn <- Conns]
    end).

%% The newcomers are on 127.0.0.1.
elsewhere({local, _}) -> [];
elsewhere(_) -> [{ip, {127, 0, 0, 2}}].

a_thousand_connections_that_close_at_once(Config) ->
    doc("A thousand on every port, closed as soon as they are open, every second one by a reset"),
    withstand(Config, fun(Ports) ->
        parallel([fun() ->
            [case connect(Address, elsewhere(Address)) of
                 {ok, Conn} when Number rem 2 =:= 0 -> close(Conn);
                 {ok, Conn} -> reset(Conn);
                 {error, _} -> ok % the Unix socket's queue is full
             end || Number <- lists:seq(1, 1000)]
        end || Address <- maps:values(Ports)])
    end).

a_peer_that_stops_reading(Config) ->
    doc("Connected peers read nothing more while a process sends them what it can, plain and by TLS: what waits is bounded"),
    withstand(Config, fun(Ports) ->
        Plain = connect(maps:get(tcp, Ports)),
        Name = name(),
        ok = handshake(Plain, Name, ?COOKIE, connected),
        {Conns, Nodes} = connected(Config, Ports, ['tlsv1.2', 'tlsv1.3']),
        All = [list_to_atom(Name) | Nodes],
        wait_until(fun() -> All -- call(us(Config), erlang, nodes, [connected]) =:= [] end),
        Sent = run(us(Config), fun() -> [send_on(Node, polydist_traffic:payload(100000), 0) || Node <- All] end),
        ct:log("messages of 100000 bytes that went until the port was busy: ~p", [Sent]),
        true = lists:max(Sent) < 1000,
        [reset(Conn) || Conn <- [Plain | Conns]],
        await_gone(Config, All)
    end).

send_on(_, _, 1000) -> 1000;
send_on(Node, Message, Count) ->
    case erlang:send({nobody, Node}, Message, [nosuspend, noconnect]) of
        ok -> send_on(Node, Message, Count + 1);
        nosuspend -> Count
    end.
