%%% A peer that means no good: it connects to any port of a node, by TLS if it likes, goes through as much of the distribution's
%%% handshake as it wants, and keeps hold of the bare socket throughout. No code of ours is in it.
-module(polydist_attacker).

-export([connect/1, connect/2, tls/2, over_tls/3, handshake/4, send/2, recv/2, raw/2]).
-export([close/1, reset/1, await_closed/2, truncated_tls/4, name_frame/1, is_tls/1]).

-export_type([conn/0]).

%% The socket, and what is on top of it: with TLS the prefix of a handshake frame has 4 bytes.
-type conn() :: #{socket := gen_tcp:socket(), tls := ssl:sslsocket() | none}.
-type phase() :: named | challenged | connected.

%% @doc Connects to an address as polydist:listeners/0 shows it.
-spec connect(polydist_native:address()) -> conn().
connect(Address) ->
    {ok, Conn} = connect(Address, []),
    Conn.

-spec connect(polydist_native:address(), [gen_tcp:connect_option()]) -> {ok, conn()} | {error, inet:posix() | timeout}.
connect(Address, Options) ->
    {Host, Port} = place(Address),
    case gen_tcp:connect(Host, Port, [binary, {active, false}, {send_timeout, 5000} | Options], 10000) of
        {ok, Socket} -> {ok, #{socket => Socket, tls => none}};
        {error, Reason} -> {error, Reason}
    end.

place({local, _} = Path) -> {Path, 0};
place({{0, 0, 0, 0}, Port}) -> {{127, 0, 0, 1}, Port};
place({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) -> {{0, 0, 0, 0, 0, 0, 0, 1}, Port};
place(Address) -> Address.

%% @doc Connects by TLS, with a certificate that is good.
-spec tls(polydist_native:address(), [ssl:tls_client_option()]) -> conn().
tls(Address, Options) ->
    {ok, Conn} = over_tls(connect(Address), Options, 10000),
    Conn.

%% @doc Speaks TLS on a connection.
-spec over_tls(conn(), [ssl:tls_client_option()], timeout()) -> {ok, conn()} | {error, term()}.
over_tls(#{socket := Socket} = Conn, Options, Timeout) ->
    case ssl:connect(Socket, [{server_name_indication, "localhost"} | Options], Timeout) of
        {ok, Tls} -> {ok, Conn#{tls := Tls}};
        {error, Reason} -> {error, Reason}
    end.

-spec is_tls(conn()) -> boolean().
is_tls(#{tls := Tls}) -> Tls =/= none.

%% @doc The distribution's handshake up to a phase, as the hidden node Name.
-spec handshake(conn(), Name :: string(), Cookie :: string(), phase()) -> ok | {error, term()}.
handshake(Conn, Name, Cookie, Phase) ->
    try
        ok = send(Conn, name_frame(Name)),
        Phase =:= named andalso throw(ok),
        {ok, <<"sok", _/binary>>} = recv(Conn, 5000),
        {ok, <<$N, _:64, Challenge:32, _/binary>>} = recv(Conn, 5000),
        Phase =:= challenged andalso throw(ok),
        ok = send(Conn, [$r, <<1:32>>, erlang:md5([Cookie, integer_to_list(Challenge)])]),
        case recv(Conn, 5000) of
            {ok, <<$a, _:16/binary>>} -> ok;
            {error, Reason} -> {error, Reason}
        end
    catch
        throw:ok -> ok
    end.

%% @doc The first message of the handshake. Its sender is hidden, so that nobody else takes an interest in it.
-spec name_frame(Name :: iodata()) -> binary().
name_frame(Name) ->
    Flags = element(2, erts_internal:get_dflags()) band bnot 1,
    <<$N, Flags:64, 1:32, (iolist_size(Name)):16, (iolist_to_binary(Name))/binary>>.

%% @doc Sends a frame of the handshake.
-spec send(conn(), iodata()) -> ok | {error, term()}.
send(#{tls := none, socket := Socket}, Frame) ->
    gen_tcp:send(Socket, [<<(iolist_size(Frame)):16>>, Frame]);
send(#{tls := Tls}, Frame) ->
    ssl:send(Tls, [<<(iolist_size(Frame)):32>>, Frame]).

%% @doc The next frame of the handshake.
-spec recv(conn(), timeout()) -> {ok, binary()} | {error, term()}.
recv(#{tls := none, socket := Socket}, Timeout) ->
    case gen_tcp:recv(Socket, 2, Timeout) of
        {ok, <<Length:16>>} -> gen_tcp:recv(Socket, Length, Timeout);
        {error, Reason} -> {error, Reason}
    end;
recv(#{tls := Tls}, Timeout) ->
    case ssl:recv(Tls, 4, Timeout) of
        {ok, <<Length:32>>} -> ssl:recv(Tls, Length, Timeout);
        {error, Reason} -> {error, Reason}
    end.

%% @doc Puts bytes on the wire, below TLS.
-spec raw(conn(), iodata()) -> ok | {error, term()}.
raw(#{socket := Socket}, Bytes) ->
    gen_tcp:send(Socket, Bytes).

-spec close(conn()) -> ok.
close(#{tls := none, socket := Socket}) -> gen_tcp:close(Socket);
close(#{tls := Tls}) -> _ = ssl:close(Tls), ok.

%% @doc Ends a connection by a reset, which says nothing and leaves nothing.
-spec reset(conn()) -> ok.
reset(#{socket := Socket}) ->
    _ = inet:setopts(Socket, [{linger, {true, 0}}]),
    gen_tcp:close(Socket).

%% @doc Waits until the other side has closed.
-spec await_closed(conn(), Milliseconds :: non_neg_integer()) -> ok.
await_closed(Conn, Milliseconds) ->
    await_end(Conn, erlang:monotonic_time(millisecond) + Milliseconds).

await_end(Conn, Deadline) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    Received = case Conn of
                   #{tls := none, socket := Socket} -> gen_tcp:recv(Socket, 0, Left);
                   #{tls := Tls} -> ssl:recv(Tls, 0, Left)
               end,
    case Received of
        {ok, _} -> await_end(Conn, Deadline);
        {error, timeout} -> error({still_open, Conn});
        {error, _} -> close(Conn)
    end.

%% @doc A TLS handshake of which the first Limit bytes of the client get through and no more. What then: the connection is closed,
%% reset, or goes on in silence until the other side has had enough. How many bytes there were to pass on.
-spec truncated_tls(polydist_native:address(), [ssl:tls_client_option()], Limit :: non_neg_integer(), close | reset | silence) ->
    Passed :: non_neg_integer().
truncated_tls(Address, Options, Limit, Then) ->
    {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listener),
    Client = spawn_link(fun() -> over_tls(connect({{127, 0, 0, 1}, Port}), Options, 10000) end),
    {ok, Near} = gen_tcp:accept(Listener, 5000),
    #{socket := Far} = Conn = connect(Address),
    [ok = inet:setopts(Socket, [{active, true}]) || Socket <- [Near, Far]],
    Passed = pass(Near, Far, Limit, 0),
    _ = inet:setopts(Far, [{active, false}]), % an error if it is closed by now
    case Then of
        close -> close(Conn);
        reset -> reset(Conn);
        silence -> await_closed(Conn, 10000)
    end,
    unlink(Client),
    exit(Client, kill),
    ok = gen_tcp:close(Near),
    ok = gen_tcp:close(Listener),
    Passed.

%% Both directions, until the limit is reached or nothing comes for a while: the handshake is through, or one side has ended.
pass(Near, Far, Limit, Passed) ->
    receive
        {tcp, Near, Bytes} when Passed + byte_size(Bytes) < Limit ->
            _ = gen_tcp:send(Far, Bytes),
            pass(Near, Far, Limit, Passed + byte_size(Bytes));
        {tcp, Near, Bytes} ->
            _ = gen_tcp:send(Far, binary:part(Bytes, 0, Limit - Passed)),
            Limit;
        {tcp, Far, Bytes} ->
            _ = gen_tcp:send(Near, Bytes),
            pass(Near, Far, Limit, Passed);
        {tcp_closed, _} ->
            Passed;
        {tcp_error, _, _} ->
            pass(Near, Far, Limit, Passed)
    after 500 ->
        Passed
    end.
