%%% A small real DNS server, dnsmasq, on a port of its own.
-module(polydist_dnsmasq).

-export([available/0, start/1, stop/1, restart/2, port/1]).

-export_type([server/0]).

-type server() :: #{port := inet:port_number(), holder := pid()}.

%% @doc Whether the program is on this machine.
-spec available() -> boolean().
available() ->
    program() =/= false.

program() ->
    os:find_executable("dnsmasq", os:getenv("PATH", "") ++ ":/usr/sbin:/usr/local/sbin").

%% @doc Starts a server that knows these records, options of dnsmasq without their dashes, and nothing else. It ends with the
%% caller.
-spec start([string()]) -> server().
start(Records) ->
    start(polydist_ct:free_port(), Records).

start(Port, Records) ->
    Owner = self(),
    Options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--local=//",
        "--bind-interfaces", "--listen-address=127.0.0.1", "--port=" ++ integer_to_list(Port)],
    Args = Options ++ ["--user=" ++ string:trim(os:cmd("id -un"))] ++ ["--" ++ Record || Record <- Records],
    Holder = spawn(fun() -> hold(Args, Owner) end),
    ok = polydist_ct:wait_until(fun() -> is_open(Port) end),
    #{port => Port, holder => Holder}.

%% The shell sees its standard input end when this VM does, and takes the server with it.
hold(Args, Owner) ->
    Script = "\"$0\" \"$@\" </dev/null & server=$!; read _; kill -9 $server",
    Sh = open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Script, program() | Args]}, exit_status, stderr_to_stdout]),
    Monitor = monitor(process, Owner),
    receive
        stop -> ok;
        {'DOWN', Monitor, process, Owner, _} -> ok;
        {Sh, {exit_status, Status}} -> exit({dnsmasq, Status});
        {Sh, {data, Complaint}} -> exit({dnsmasq, Complaint})
    end,
    port_close(Sh).

%% It takes questions over TCP from the moment when it does over UDP.
is_open(Port) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, [], 1000) of
        {ok, Socket} -> gen_tcp:close(Socket) =:= ok;
        {error, _} -> false
    end.

-spec stop(server()) -> ok.
stop(#{port := Port, holder := Holder}) ->
    Holder ! stop,
    polydist_ct:wait_until(fun() -> not is_open(Port) end).

%% @doc The same server with other records.
-spec restart(server(), [string()]) -> server().
restart(#{port := Port} = Server, Records) ->
    ok = stop(Server),
    start(Port, Records).

-spec port(server()) -> inet:port_number().
port(#{port := Port}) -> Port.
