%%% Runs transports from outside (polydist_transport) and keeps them at arm's length: what can wait or fail runs in a process of its
%%% own, and what they return is checked.
%%%
%%% A listener is a process that keeps the transport's socket, with one that waits in its accept/1 and feeds the library's listener,
%%% from which connections go the way of all others: the same limits, counters and acceptor.
-module(polydist_outside).

%% for polydist_sockets and polydist_listeners
-export([listen/3, watch/1, close/1]).

%% for polydist_dial
-export([dial/4, stop/1]).

%% for everybody
-export([reach/1, text/2, encode/2]).

%% internal, exported for proc_lib
-export([init/4, accept_one/3]).

-export_type([dial/0]).

-opaque dial() :: {outside, reference(), polydist_task:task(answered)}.

-type error() :: polydist_native:error().

%% How long a transport may take to open a socket, and to close one.
-define(LISTEN_TIME, 5000).
-define(CLOSE_TIME, 1000).

%% How long accepting rests after an error.
-define(BACK_OFF, 200).

%% How long the library may take to take up a socket that is connected.
-define(TAKE_UP, 1000).

%%
%% Listening
%%

%% @doc Opens a listener. Options as for polydist_native:listen/3.
-spec listen(polydist_native:transport(), polydist_place:place(), map()) ->
    {ok, polydist_native:listener(), polydist_native:address()} | error().
listen(Transport, Place, Options) ->
    OfTransport = maps:get(options, Place, #{}),
    case proc_lib:start(?MODULE, init, [self(), Transport, OfTransport, Options], ?LISTEN_TIME) of
        {ok, Pid, Listener, Address} ->
            polydist_sup:store({outside, Listener}, Pid),
            watch(Listener),
            {ok, Listener, Address};
        {error, {Kind, Sentence}} when is_atom(Kind), is_binary(Sentence) -> {error, {Kind, Sentence}};
        {error, timeout} -> fails(timeout, "~ts:listen/2 did not return within ~p ms", [name(Transport), ?LISTEN_TIME]);
        {error, Reason} -> fails(crashed, "~ts:listen/2 ended its process: ~0tP", [name(Transport), Reason, 20])
    end.

%% @doc Has the caller get `{{polydist_outside, Listener}, Monitor, process, Pid, Reason}' when the process behind a listener ends.
-spec watch(polydist_native:listener()) -> ok.
watch(Listener) ->
    case polydist_sup:lookup({outside, Listener}) of
        {ok, Pid} ->
            _ = monitor(process, Pid, [{tag, {?MODULE, Listener}}]),
            ok;
        error -> ok % one of the library's alone
    end.

%% @doc Closes the transport's own socket, if it is a listener of one from outside.
-spec close(polydist_native:listener()) -> ok.
close(Listener) ->
    case polydist_sup:lookup({outside, Listener}) of
        {ok, Pid} ->
            Monitor = monitor(process, Pid),
            Pid ! close,
            receive
                {'DOWN', Monitor, process, Pid, _} -> ok
            after ?CLOSE_TIME ->
                exit(Pid, kill),
                demonitor(Monitor, [flush]),
                ok
            end,
            polydist_sup:delete({outside, Listener});
        error -> ok
    end.

-spec init(pid(), polydist_native:transport(), map(), map()) -> no_return().
init(Parent, Transport, OfTransport, Options) ->
    process_flag(trap_exit, true),
    Opened = case call(Transport, listen, [OfTransport, node_name()]) of
                 {ok, {ok, Listening, Address}} -> opened(Transport, Listening, Address, Options);
                 {ok, {error, Reason}} -> fails(kind(Reason), "~ts cannot listen: ~ts", [Transport, reason(Reason)]);
                 {ok, Other} -> returned(Transport, listen, 2, Other, "{ok, Listening, Address}");
                 Error -> Error
             end,
    case Opened of
        {ok, Listener, At, Socket} ->
            ok = proc_lib:init_ack(Parent, {ok, self(), Listener, At}),
            Sup = monitor(process, polydist_sup),
            keep(#{transport => Transport, socket => Socket, listener => Listener, sup => Sup, said => none,
                   acceptor => accept(Transport, Socket, Listener)});
        {error, _} ->
            proc_lib:init_ack(Parent, Opened)
    end.

opened(Transport, Listening, Address, Options) ->
    Opened = case encode(Transport, Address) of
                 {ok, Bytes} -> listener(Transport, {opaque, Bytes}, Listening, Options);
                 Error -> Error
             end,
    element(1, Opened) =:= ok orelse call(Transport, close, [Listening]),
    Opened.

listener(Transport, Address, Listening, Options) ->
    case polydist_native:outside_listen(Transport, Address, Options) of
        {ok, Listener} -> {ok, Listener, Address, Listening};
        Error -> Error
    end.

%% Each connection is accepted in a process of its own: what the transport forgets to close is closed with it.
accept(Transport, Socket, Listener) ->
    proc_lib:spawn_link(?MODULE, accept_one, [Transport, Socket, Listener]).

-spec accept_one(polydist_native:transport(), polydist_transport:listening(), polydist_native:listener()) -> no_return().
accept_one(Transport, Socket, Listener) ->
    exit({shutdown, accepted(Transport, Listener, call(Transport, accept, [Socket]))}).

%% Has the socket. It goes with polydist_sup, under which no process of a transport's code has a place. `said' is the last error
%% that was logged: the same one over and over is one line.
keep(#{sup := Sup, acceptor := Acceptor} = State) ->
    receive
        close -> closed(State);
        {'DOWN', Sup, process, _, _} -> closed(State);
        {'EXIT', Acceptor, {shutdown, ok}} -> keep(accepting(State#{said := none}));
        {'EXIT', Acceptor, {shutdown, {ok, {error, {_, Sentence}}}}} -> keep(accepting(say(Sentence, State)));
        {'EXIT', Acceptor, {shutdown, {error, {closed, _}}}} -> keep(State); % and is about to be told
        {'EXIT', Acceptor, {shutdown, {error, {_, Sentence}}}} -> keep(failed(Sentence, State));
        {'EXIT', Acceptor, Reason} ->
            keep(failed(polydist_log:text("the process that accepts was ended: ~0tP", [Reason, 20]), State));
        accept -> keep(accepting(State));
        _ -> keep(State)
    end.

accepting(#{transport := Transport, socket := Socket, listener := Listener} = State) ->
    State#{acceptor := accept(Transport, Socket, Listener)}.

failed(Sentence, State) ->
    _ = erlang:send_after(?BACK_OFF, self(), accept),
    say(Sentence, State).

say(Sentence, #{transport := Transport, said := Said} = State) ->
    Said =:= Sentence orelse polydist_log:say(warning, "~p, which goes on listening: ~ts", [Transport, Sentence]),
    State#{said := Sentence}.

closed(#{transport := Transport, socket := Socket, acceptor := Acceptor}) ->
    exit(Acceptor, kill),
    call(Transport, close, [Socket]).

accepted(Transport, Listener, {ok, {ok, Stream, Peer}}) ->
    Ref = make_ref(),
    {Told, Bytes} = shown(encode(Transport, Peer)),
    Feed = fun(Fd) -> polydist_native:outside_feed(Listener, Fd, {opaque, Bytes}, Ref) end,
    case descriptor(Transport, Stream, Feed) of
        ok -> awaited(polydist_native:await(Ref, infinity), Told); % until there is a place for it
        Error -> Error
    end;
accepted(Transport, _, {ok, {error, Reason}}) ->
    fails(kind(Reason), "~ts cannot accept: ~ts", [Transport, reason(Reason)]);
accepted(Transport, _, {ok, Other}) ->
    returned(Transport, accept, 1, Other, "{ok, Stream, Peer}");
accepted(_, _, Error) ->
    Error.

%% The address of a peer that connects is only shown: what is wrong with it is said, and the connection goes on.
shown({ok, Bytes}) -> {ok, Bytes};
shown({error, _} = Error) -> {{ok, Error}, <<>>}.

awaited(ok, Told) -> Told;
awaited(Error, _) -> Error.

%%
%% Dialling
%%

%% @doc Starts to connect. Options: `timeout', `socket'. The caller gets `{polydist, Ref, Answer}': `{connected, Conn, Info}', and
%% owns the connection, or an error. It must call stop/1 in any case.
-spec dial(polydist_native:transport(), polydist_native:address(), map(), Ref :: reference()) -> {ok, dial()}.
dial(Transport, Address, #{timeout := Timeout} = Options, Ref) ->
    Caller = self(),
    Work = fun() -> connect(Transport, Address, Options, Caller) end,
    %% One process waits while another works, so that there is an answer whatever becomes of the latter.
    Task = polydist_task:start(
             fun() ->
                 Answer = case polydist_task:await([polydist_task:start(Work)], Timeout) of
                              {_, crashed} -> fails(crashed, "~ts:connect/2 ended its process", [name(Transport)]);
                              {_, Result} -> Result;
                              timeout -> fails(timeout, "~ts did not connect within ~p ms", [Transport, Timeout])
                          end,
                 Caller ! {polydist, Ref, Answer},
                 answered
             end),
    {ok, {outside, Ref, Task}}.

%% @doc Ends a dial and leaves no message of it. A connection that it has made and nobody has taken is closed.
-spec stop(dial()) -> ok.
stop({outside, Ref, Task}) ->
    ok = polydist_task:stop(Task),
    receive
        {polydist, Ref, {connected, Conn, _}} -> polydist_native:close(Conn);
        {polydist, Ref, _} -> ok
    after 0 -> ok
    end.

connect(Transport, {opaque, Bytes} = Peer, #{timeout := Timeout, socket := Socket}, Caller) ->
    case connected(Transport, Bytes, Timeout) of
        {ok, Stream} ->
            Ref = make_ref(),
            Dial = fun(Fd) -> polydist_native:outside_dial(Transport, Fd, Peer, #{socket => Socket}, Ref) end,
            case descriptor(Transport, Stream, Dial) of
                {ok, Conn} -> taken_up(Conn, polydist_native:await(Ref, ?TAKE_UP), Caller);
                Error -> Error
            end;
        Error -> Error
    end.

taken_up(Conn, {connected, Info}, Caller) ->
    case polydist_native:controlling_process(Conn, Caller) of
        ok -> {connected, Conn, Info};
        {error, closed} -> {error, {closed, <<"the connection is closed">>}}
    end;
taken_up(_, Error, _) ->
    Error.

connected(Transport, Bytes, Timeout) ->
    case call(Transport, decode, [Bytes]) of
        {ok, {ok, Address}} ->
            case call(Transport, connect, [Address, Timeout]) of
                {ok, {ok, Stream}} -> {ok, Stream};
                {ok, {error, Reason}} ->
                    fails(kind(Reason), "cannot connect to ~ts ~ts: ~ts", [Transport, text(Transport, Bytes), reason(Reason)]);
                {ok, Other} -> returned(Transport, connect, 2, Other, "{ok, Stream}");
                Error -> Error
            end;
        {ok, {error, Reason}} ->
            fails(bad_address, "the peer registered ~0tp for ~ts, which is no address of it: ~ts",
                  [Bytes, Transport, reason(Reason)]);
        {ok, Other} -> returned(Transport, decode, 1, Other, "{ok, Address}");
        Error -> Error
    end.

%% The transport's own descriptor is closed, whatever came of it.
descriptor(Transport, Stream, Use) ->
    Used = case call(Transport, fd, [Stream]) of
               {ok, {ok, Fd}} when is_integer(Fd) -> Use(Fd);
               {ok, {error, Reason}} -> fails(fd, "~ts:fd/1 has no descriptor: ~ts", [name(Transport), reason(Reason)]);
               {ok, Other} -> returned(Transport, fd, 1, Other, "{ok, Descriptor}");
               Error -> Error
           end,
    _ = call(Transport, close, [Stream]),
    Used.

%%
%% Addresses
%%

%% @doc Whether a transport leads to other hosts.
-spec reach(polydist_native:transport()) -> host | network.
reach(Transport) ->
    case optional(Transport, reach, []) of
        {ok, host} -> host;
        _ -> network
    end.

%% @doc An address of a transport, as it registered it, for people.
-spec text(polydist_native:transport(), binary()) -> binary().
text(Transport, Bytes) ->
    case polydist_log:chars(written(Transport, call(Transport, decode, [Bytes]))) of
        {ok, Text} -> unicode:characters_to_binary(Text);
        error -> polydist_log:text("~0tp", [Bytes])
    end.

written(Transport, {ok, {ok, Address}}) ->
    case optional(Transport, text, [Address]) of
        {ok, Text} -> Text;
        _ -> io_lib:format("~0tp", [Address])
    end;
written(_, _) ->
    none.

%% @doc An address of a transport as it is registered.
-spec encode(polydist_native:transport(), polydist_transport:address()) -> {ok, binary()} | error().
encode(Transport, Address) ->
    case call(Transport, encode, [Address]) of
        {ok, Bytes} when is_binary(Bytes), byte_size(Bytes) >= 1, byte_size(Bytes) =< 255 -> {ok, Bytes};
        {ok, Other} -> returned(Transport, encode, 1, Other, "1 to 255 bytes");
        Error -> Error
    end.

%%
%% Calls
%%

optional(Transport, Function, Args) ->
    Module = name(Transport),
    _ = code:ensure_loaded(Module),
    case erlang:function_exported(Module, Function, length(Args)) of
        true -> call(Transport, Function, Args);
        false -> none
    end.

call(Transport, Function, Args) ->
    try
        {ok, apply(name(Transport), Function, Args)}
    catch
        Class:Reason:Stack ->
            Where = [Frame || {_, _, _, _} = Frame <- lists:sublist(Stack, 1)],
            fails(crashed, "~ts:~ts/~b crashed: ~0tp ~0tP ~0tP",
                  [name(Transport), Function, length(Args), Class, Reason, 20, Where, 20])
    end.

returned(Transport, Function, Arity, Returned, Expected) ->
    fails(bad_answer, "~ts:~ts/~b returned ~0tP, which is neither ~ts nor {error, Reason}",
          [name(Transport), Function, Arity, Returned, 20, Expected]).

name(Transport) ->
    polydist_carrier:implementation(Transport).

%% Errors of the system keep their names.
kind(Reason) when is_atom(Reason), Reason =/= closed -> Reason;
kind(_) -> failed.

reason(Reason) ->
    case {polydist_log:chars(Reason), is_atom(Reason) andalso inet:format_error(Reason)} of
        {{ok, Chars}, _} -> Chars;
        {error, [_ | _] = Text} when Text =/= "unknown POSIX error" -> io_lib:format("~ts (~p)", [Text, Reason]);
        {error, _} -> io_lib:format("~0tP", [Reason, 20])
    end.

-spec fails(atom(), string(), [term()]) -> error().
fails(Kind, Format, Args) ->
    {error, {Kind, polydist_log:text(Format, Args)}}.

node_name() ->
    {ok, {Name, Host}} = polydist_sup:lookup(node),
    list_to_atom(Name ++ "@" ++ Host). % it is net_kernel's own
