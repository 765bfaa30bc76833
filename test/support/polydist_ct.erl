%%% What every suite needs before its first node: an epmd of its own, a short directory for sockets, certificates,
%%% names that resolve to both address families, and a way to wait for what cannot be received as a message.
-module(polydist_ct).

-export([doc/1, open_lab/2, without_global/1, never/0, close_lab/1, lab/1, put_lab/2, put_release/2]).
-export([start_epmd/0, start_epmd/1, stop_epmd/1, epmd_names/1, epmd_lookup/2, tool/1]).
-export([cert/1, write_certificates/2, write_certificates/3, write_tls_options/2, tls_options/1, temporary_directory/0]).
-export([wait_until/1, wait_until/2, parallel/1, free_port/0, unique/1, root/0, slowness/0, has_vsock/0, has_sctp/0, has_ktls/0]).

-export_type([lab/0, epmd/0]).

-type epmd() :: #{port := inet:port_number(), holder := pid()}.
-type lab() :: #{
    suite := module(),
    directory := file:filename(),
    epmd := epmd(),
    inetrc := file:filename(),
    certificates := file:filename(),
    optfile := file:filename(),
    %% of every node's command line
    args => [string()]
}.

%% @doc Says in the log what a case shows; the first line of every case.
-spec doc(string()) -> ok.
doc(Text) ->
    ct:comment(Text),
    ct:log("~ts", [Text]).

%% @doc Sets a suite up: to be called from `init_per_suite', with {@link close_lab/1} in `end_per_suite'.
-spec open_lab(module(), [tuple()]) -> [tuple()].
open_lab(Suite, Config) ->
    Directory = temporary_directory(),
    Inetrc = filename:join(Directory, "inetrc"),
    ok = file:write_file(Inetrc, [
        "{host,{127,0,0,1},[\"localhost\"]}.\n",
        "{host,{0,0,0,0,0,0,0,1},[\"localhost\",\"localhost6\"]}.\n",
        "{lookup,[file]}.\n"
    ]),
    Certificates = filename:join(Directory, "certificates"),
    ok = write_certificates(Certificates, ["localhost", "localhost6"]),
    Optfile = filename:join(Directory, "dist_tls.conf"),
    ok = write_tls_options(Optfile, tls_options(Certificates)),
    put_lab(Config, #{
        suite => Suite,
        directory => Directory,
        epmd => start_epmd(whereis(init)),
        inetrc => Inetrc,
        certificates => Certificates,
        optfile => Optfile
    }).

%% @doc For suites that watch who connects: after a disconnect global may have something left to send, which connects anew.
-spec without_global([tuple()]) -> [tuple()].
without_global(Config) ->
    put_lab(Config, (lab(Config))#{args => ["-connect_all", "false"]}).

%% @doc Arguments of a node that connects only when it is told to. Else what global, or rpc of OTP 25, still has to say to another
%% after a disconnect connects anew.
-spec never() -> [string()].
never() -> ["-kernel", "dist_auto_connect", "never"].

%% @doc For a group otp25, otp27 or otp29: the release of its stock nodes, under the key `release'.
-spec put_release(Group :: atom(), [tuple()]) -> [tuple()].
put_release(Group, Config) ->
    "otp" ++ Release = atom_to_list(Group),
    [{release, list_to_integer(Release)} | Config].

%% @doc Ends the suite's epmd and removes its directory. Nodes end with the process that started them.
-spec close_lab([tuple()]) -> ok.
close_lab(Config) ->
    #{directory := Directory, epmd := Epmd} = lab(Config),
    stop_epmd(Epmd),
    file:del_dir_r(Directory).

-spec lab([tuple()]) -> lab().
lab(Config) ->
    {lab, Lab} = lists:keyfind(lab, 1, Config),
    Lab.

-spec put_lab([tuple()], lab()) -> [tuple()].
put_lab(Config, Lab) ->
    lists:keystore(lab, 1, Config, {lab, Lab}).

%% @doc Starts an epmd on a free port; it ends with the calling process.
-spec start_epmd() -> epmd().
start_epmd() ->
    start_epmd(self()).

%% @doc Starts an epmd on a free port, or a given one; it ends with the owner.
-spec start_epmd(Owner :: pid() | inet:port_number()) -> epmd().
start_epmd(Owner) when is_pid(Owner) ->
    start_epmd(free_epmd_port(), Owner);
start_epmd(Port) ->
    start_epmd(Port, self()).

start_epmd(Port, Owner) ->
    Holder = spawn(fun() -> hold_epmd(Port, Owner) end),
    ok = wait_until(fun() -> is_open(Port) end),
    #{port => Port, holder => Holder}.

%% The shell outlives this VM just long enough to see its standard input end, and takes epmd with it.
hold_epmd(Port, Owner) ->
    Script = "\"$0\" -port $1 >/dev/null 2>&1 & epmd=$!; read _; kill -9 $epmd",
    Args = ["-c", Script, tool("epmd"), integer_to_list(Port)],
    Sh = open_port({spawn_executable, "/bin/sh"}, [{args, Args}, binary, exit_status]),
    Monitor = monitor(process, Owner),
    receive
        stop -> ok;
        {'DOWN', Monitor, process, Owner, _} -> ok;
        {Sh, {exit_status, Status}} -> exit({epmd, Port, Status})
    end,
    port_close(Sh).

%% @doc Kills an epmd, as `kill -9' does, and waits until its port is free.
-spec stop_epmd(epmd()) -> ok.
stop_epmd(#{port := Port, holder := Holder}) ->
    Holder ! stop,
    wait_until(fun() -> not is_open(Port) end).

is_open(Port) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, [], 1000) of
        {ok, Socket} -> gen_tcp:close(Socket) =:= ok;
        {error, _} -> false
    end.

%% 80 ports from 14420 on, entered at a different place by each VM, so that runs for several releases do not meet.
free_epmd_port() ->
    Offset = list_to_integer(os:getpid()) + erlang:unique_integer([positive]),
    Ports = [14420 + (Offset + N) rem 80 || N <- lists:seq(0, 79)],
    first_free(Ports).

first_free([Port | Ports]) ->
    case gen_tcp:listen(Port, [{reuseaddr, true}]) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            Port;
        {error, eaddrinuse} ->
            first_free(Ports)
    end.

%% @doc A TCP port that was free a moment ago.
-spec free_port() -> inet:port_number().
free_port() ->
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

%% @doc What `epmd -names' prints, as any other client of epmd would see it.
-spec epmd_names(epmd()) -> string().
epmd_names(#{port := Port}) ->
    os:cmd(tool("epmd") ++ " -port " ++ integer_to_list(Port) ++ " -names").

%% @doc Asks epmd about a name in its own protocol, with no code of ours: the answer after the type byte.
-spec epmd_lookup(epmd(), Name :: string()) -> map() | not_found.
epmd_lookup(#{port := Port}, Name) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}, {packet, 0}]),
    ok = gen_tcp:send(Socket, [<<(length(Name) + 1):16, $z>>, Name]),
    Reply = receive_all(Socket, <<>>),
    case Reply of
        <<119, 0, PortNo:16, Type, Protocol, High:16, Low:16, NameLength:16, _:NameLength/binary, Length:16,
            Extra:Length/binary>> ->
            #{port => PortNo, type => Type, protocol => Protocol, high => High, low => Low, extra => Extra};
        <<119, _>> ->
            not_found
    end.

receive_all(Socket, Read) ->
    case gen_tcp:recv(Socket, 0, 5000) of
        {ok, More} -> receive_all(Socket, <<Read/binary, More/binary>>);
        {error, closed} -> Read
    end.

%% @doc A program of the running release: epmd, erl, erl_call.
-spec tool(string()) -> file:filename().
tool(Name) ->
    Root = code:root_dir(),
    Places = [
        filename:join([Root, "bin", Name]),
        filename:join([Root, "erts-" ++ erlang:system_info(version), "bin", Name])
        | filelib:wildcard(filename:join([Root, "lib", "erl_interface-*", "bin", Name]))
    ],
    case [Place || Place <- Places, filelib:is_regular(Place)] of
        [Place | _] -> Place;
        [] -> found(os:find_executable(Name), Name)
    end.

found(false, Name) -> error({no_such_program, Name});
found(Place, _) -> Place.

%% @doc A new directory under /tmp with a short name: a socket's path has room for 107 bytes.
-spec temporary_directory() -> file:filename().
temporary_directory() ->
    Directory = lists:concat(["/tmp/pd", os:getpid(), "-", erlang:unique_integer([positive])]),
    case file:make_dir(Directory) of
        ok ->
            ok = file:change_mode(Directory, 8#700),
            Directory;
        {error, eexist} -> % of a process that had this number before and was killed
            temporary_directory()
    end.

%% @doc A throw-away authority, a certificate for the hosts and its key, made by our own polydist-cert.
-spec write_certificates(Directory :: file:filename(), Hosts :: [string()]) -> ok.
write_certificates(Directory, Hosts) ->
    write_certificates(Directory, Hosts, []).

%% @doc With other options of `polydist-cert init'.
-spec write_certificates(Directory :: file:filename(), Hosts :: [string()], Options :: [string()]) -> ok.
write_certificates(Directory, Hosts, Options) ->
    cert(["init", Directory | lists:append([["--host", Host] || Host <- Hosts])] ++ Options).

%% @doc Runs polydist-cert.
-spec cert(Args :: [string()]) -> ok.
cert(Args) ->
    Port = open_port({spawn_executable, polydist_cert()}, [{args, Args}, binary, exit_status, stderr_to_stdout]),
    wait_for_exit(Port, <<>>).

wait_for_exit(Port, Output) ->
    receive
        {Port, {data, Data}} -> wait_for_exit(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, 0}} -> ok;
        {Port, {exit_status, Status}} -> error({polydist_cert, Status, Output})
    after 20000 -> error({polydist_cert, timeout, Output})
    end.

polydist_cert() ->
    case os:getenv("POLYDIST_CERT") of
        false -> filename:join([root(), "target", "release", "polydist-cert"]);
        Program -> Program
    end.

%% @doc The repository. This module's source lies in it, or in a copy that rebar3 made below its _build.
-spec root() -> file:filename().
root() ->
    Source = proplists:get_value(source, ?MODULE:module_info(compile)),
    root(filename:dirname(filename:absname(Source))).

root("/") ->
    error("polydist's Cargo.toml was not found above the tests; set POLYDIST_CERT to the polydist-cert program");
root(Directory) ->
    case filelib:is_regular(filename:join(Directory, "Cargo.toml")) of
        true -> Directory;
        false -> root(filename:dirname(Directory))
    end.

%% @doc The options that both ends of a connection use: mutual authentication, as by default.
-spec tls_options(Certificates :: file:filename()) -> [{atom(), term()}].
tls_options(Certificates) ->
    [
        {certfile, filename:join(Certificates, "cert.pem")},
        {keyfile, filename:join(Certificates, "key.pem")},
        {cacertfile, filename:join(Certificates, "ca.pem")},
        {verify, verify_peer}
    ].

%% @doc Writes a file for `-ssl_dist_optfile'.
-spec write_tls_options(file:filename(), [{atom(), term()}]) -> ok.
write_tls_options(File, Options) ->
    Terms = [{server, [{fail_if_no_peer_cert, true} | Options]}, {client, Options}],
    file:write_file(File, io_lib:format("~p.~n", [Terms])).

%% @doc Waits for a condition that nobody announces; {@link wait_until/2} with half a minute, as a machine may have
%% much else to do.
-spec wait_until(fun(() -> boolean())) -> ok.
wait_until(Condition) ->
    wait_until(Condition, 30000).

-spec wait_until(fun(() -> boolean()), Milliseconds :: non_neg_integer()) -> ok.
wait_until(Condition, Milliseconds) ->
    wait_until_deadline(Condition, erlang:monotonic_time(millisecond) + Milliseconds).

wait_until_deadline(Condition, Deadline) ->
    case Condition() of
        true ->
            ok;
        false ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({never_became_true, Condition}),
            receive after 10 -> wait_until_deadline(Condition, Deadline) end
    end.

%% @doc Runs the functions at the same time and returns their results in order; a crash of one is a crash here.
-spec parallel([fun(() -> Result)]) -> [Result].
parallel(Functions) ->
    Caller = self(),
    Start = fun(Function) -> spawn_monitor(fun() -> exit({result, Caller, Function()}) end) end,
    Started = [Start(Function) || Function <- Functions],
    [receive {'DOWN', Monitor, process, _, Exit} -> result(Exit) end || {_, Monitor} <- Started].

result({result, _, Result}) -> Result;
result(Reason) -> error(Reason).

%% @doc A node's short name nobody else has.
-spec unique(string()) -> string().
unique(Prefix) ->
    lists:concat([Prefix, erlang:unique_integer([positive])]).

%% @doc The seconds for which a node may stand still where the tests run: 1, or what POLYDIST_SLOWNESS says.
-spec slowness() -> pos_integer().
slowness() -> list_to_integer(os:getenv("POLYDIST_SLOWNESS", "1")).

%% @doc Whether this kernel has a vsock that leads back to it (CID 1), which a small virtual machine has and most others do not.
-spec has_vsock() -> boolean().
has_vsock() ->
    case socket:open(40, stream, 0) of
        {ok, Socket} ->
            Bound = socket:bind(Socket, #{family => 40, addr => <<0:16, 16#ffffffff:32, 1:32/native, 0:32>>}),
            ok = socket:close(Socket),
            Bound =:= ok;
        {error, _} ->
            false
    end.

%% @doc Whether this kernel has SCTP, perhaps in a module that it loads now.
-spec has_sctp() -> boolean().
has_sctp() ->
    case socket:open(inet, stream, sctp) of
        {ok, Socket} -> socket:close(Socket) =:= ok;
        {error, _} -> false
    end.

%% @doc Whether this kernel has TLS, perhaps in a module that it loads now.
-spec has_ktls() -> boolean().
has_ktls() ->
    {ok, Listener} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listener),
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, []),
    %% TCP_ULP; setting it says ok in any case.
    ok = inet:setopts(Socket, [{raw, 6, 31, <<"tls">>}]),
    Set = inet:getopts(Socket, [{raw, 6, 31, 16}]),
    _ = [ok = gen_tcp:close(Each) || Each <- [Socket, Listener]],
    case Set of
        {ok, [{raw, 6, 31, <<"tls", _/binary>>}]} -> true;
        {ok, _} -> false
    end.
