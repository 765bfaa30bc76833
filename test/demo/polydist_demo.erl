%% What `make demo` shows, run on node a. Its peers: b_uds, b_tls, b_tcp6 and b_tcp, which its policy tells to reach over that
%% transport; c, which has no Unix sockets; and stock, a plain inet_tcp node.
-module(polydist_demo).

-export([main/0]).

-spec main() -> no_return().
main() ->
    io:setopts(standard_io, [{encoding, unicode}]),
    heading("One node, a, that listens on four transports"),
    listeners(),
    heading("All of it in one registration, in an unmodified epmd"),
    registration(),
    heading("Four peers, each reached as the policy says, and a stock node"),
    io:format("  ~-10s ~-18s ~12s ~10s~n", ["transport", "peer", "round trip", "MB/s"]),
    [reach(T, Peer) || {T, Peer} <- [{uds, b_uds@localhost}, {tls, b_tls@localhost}, {tcp6, b_tcp6@localhost},
                                     {tcp, b_tcp@localhost}, {tcp, stock@localhost}]],
    heading("A peer without Unix sockets, a's first choice: the connection comes up over the next"),
    reach(tls, c@localhost),
    heading("All at the same time: polydist:connections()"),
    connections(),
    heading("Why c is reached like that: polydist:explain_text(c@localhost)"),
    explain(c@localhost),
    heading("And moved to another transport: polydist:reconnect(c@localhost, #{transports => [tcp6]})"),
    move(c@localhost, tcp6),
    io:format("~n"),
    halt(0).

heading(Text) ->
    io:format("~n\e[1m~ts\e[0m~n", [Text]).

listeners() ->
    Listeners = polydist:listeners(),
    lists:foreach(
        fun(#{transport := Transport, state := State} = L) ->
            io:format("  ~-6s ~-10s ~ts~n", [Transport, State, address(maps:get(address, L, maps:get(reason, L, "")))])
        end,
        Listeners),
    length([up || #{state := listening} <- Listeners]) =:= 4 orelse fail("not all four listen", []).

registration() ->
    wait(fun() -> length(names()) =:= 7 end),
    io:format("  $ epmd -names~n"),
    [io:format("  name ~s at port ~b~n", [Name, Port]) || {Name, Port} <- lists:sort(names())],
    Extra = extra("a"),
    {ok, #{host := Host, endpoints := Endpoints}} = polydist_native:record_decode(Extra),
    io:format("  and ~b more bytes for a: host ~s~n", [byte_size(Extra), [io_lib:format("~2.16.0b", [B]) || <<B>> <= Host]]),
    [io:format("    ~-6s ~ts~n", [T, address(A)]) || #{transport := T, address := A} <- Endpoints].

names() ->
    {ok, Names} = net_adm:names(),
    Names.

%% Asks epmd as a stock node does (PORT_PLEASE2_REQ), and takes what a stock node ignores.
extra(Name) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, list_to_integer(os:getenv("ERL_EPMD_PORT")), [binary, {packet, raw}, {active, false}]),
    ok = gen_tcp:send(Socket, [<<(length(Name) + 1):16, $z>>, Name]),
    {ok, Reply} = gen_tcp:recv(Socket, 0, 5000),
    <<$w, 0, _Port:16, _Type, _Protocol, _High:16, _Low:16, Len:16, _Name:Len/binary, Size:16, Extra:Size/binary>> = Reply,
    Extra.

reach(Transport, Peer) ->
    _ = net_adm:ping(Peer),
    case [T || #{node := N, transport := T} <- polydist:connections(), N =:= Peer] of
        [Transport] -> ok;
        [Other] -> fail("~s was to be reached over ~s and is over ~s", [Peer, Transport, Other]);
        [] -> fail("~s cannot be reached: ~p", [Peer, polydist:candidates(Peer)])
    end,
    _ = polydist_bench:sample(rtt, Peer, 100), % to warm up
    {_, #{p50 := RoundTrip}} = polydist_bench:sample(rtt, Peer, 300),
    {_, #{rate := Rate}} = polydist_bench:sample(mb1, Peer, 300),
    io:format("  ~-10s ~-18s ~9b ~ts ~10b~n", [Transport, Peer, round(RoundTrip), "µs", round(Rate)]).

connections() ->
    lists:foreach(
        fun(#{node := Node, transport := Transport, direction := Direction, peer := Peer, frames_in := In, frames_out := Out} = C) ->
            io:format("  ~-5s ~-3s ~-18s ~8b frames in, ~8b out  ~ts~s~n", [Transport, Direction, Node, In, Out, address(Peer), tls(C)])
        end,
        polydist:connections()).

explain(Node) ->
    [io:format("  ~ts~n", [Line]) || Line <- string:split(string:trim(polydist:explain_text(Node)), "\n", all)].

move(Node, Transport) ->
    case polydist:reconnect(Node, #{transports => [Transport]}) of
        {ok, #{gap := Gap, from := From, to := Transport}} ->
            io:format("  from ~s to ~s, down for ~.1f ms~n", [From, Transport, Gap / 1000]);
        {error, {_, Why}} -> fail("~s could not be moved: ~ts", [Node, Why])
    end.

tls(#{tls := #{version := Version, cipher := Cipher}}) -> io_lib:format(", ~s ~s", [Version, Cipher]);
tls(_) -> "".

address({local, Path}) -> Path;
address({any4, Port}) -> io_lib:format("any IPv4 address, port ~b", [Port]);
address({any6, Port}) -> io_lib:format("any IPv6 address, port ~b", [Port]);
address({Ip, Port}) when tuple_size(Ip) =:= 8 -> io_lib:format("[~s]:~b", [inet:ntoa(Ip), Port]);
address({Ip, Port}) when is_tuple(Ip) -> io_lib:format("~s:~b", [inet:ntoa(Ip), Port]);
address(Addresses) when is_list(Addresses), is_tuple(hd(Addresses)) -> lists:join(", ", [address(A) || A <- Addresses]);
address(Text) -> Text.

wait(Condition) -> wait(Condition, 200).

wait(_, 0) -> fail("not all nodes came up: epmd has ~p", [net_adm:names()]);
wait(Condition, Tries) ->
    case Condition() of
        true -> ok;
        false -> timer:sleep(50), wait(Condition, Tries - 1)
    end.

-spec fail(string(), [term()]) -> no_return().
fail(Format, Args) ->
    io:format("  " ++ Format ++ "~n", Args),
    halt(1).
