%%% Real nodes for the suites: ours with any carriers and policy, and stock ones of OTP 25, 27 and 29. They are driven over
%%% standard_io, so what a test asks of a node never travels over the connection under test.
%%%
%%% A node belongs to the process that started it (or to the owner named) and is killed when that ends, frozen or not.
-module(polydist_node).

-export([start/1, start/2, start_all/2, boot/2, stop/1, thaw/1]).
-export([run/2, run/3, call/4, eval/3, connect/2, disconnect/2, connection/2]).
-export([console/1, await_console/2, resources/1, await_resources/2, os_pid_memory/1, peak_memory/2]).

-export_type([handle/0, options/0]).

-type handle() :: #{node := node(), peer := pid(), os_pid := string(), holder := pid()}.
-type transport() :: tcp | tcp6 | tls | uds | atom().
-type options() :: #{
    %% a prefix to be made unique; or exactly this
    name => string() | {exactly, string()} | none | dynamic,
    host => string(),
    %% our carriers and those of test/outside in command-line order; the default is polydist's own
    carriers => [transport()],
    %% the only transports the node dials, or a whole policy
    force => [transport()],
    policy => term(),
    %% any other key of the polydist application
    config => #{atom() => term()},
    %% false: no -ssl_dist_optfile
    optfile => file:filename() | false,
    %% an unpatched node of another release, with stock carriers
    stock => 25 | 27 | 29,
    %% without our carriers or our epmd module, in the running release
    proto_dist => string(),
    epmd_module => string(),
    epmd_port => inet:port_number(),
    %% a network namespace, see polydist_hosts
    netns => string(),
    args => [string()],
    env => [{string(), string()}],
    cookie => string(),
    owner => pid()
}.

-spec start(polydist_ct:lab()) -> handle().
start(Lab) ->
    start(Lab, #{}).

%% @doc Starts a node and waits until it has booted; one that does not boot is an error with all it printed.
-spec start(polydist_ct:lab(), options()) -> handle().
start(Lab, Options) ->
    case boot(Lab, Options) of
        {ok, Node} -> Node;
        {error, Reason, Printed} ->
            error({node_did_not_boot, Reason, Printed})
    end.

%% @doc Starts several nodes at the same time, for the calling process.
-spec start_all(polydist_ct:lab(), [options()]) -> [handle()].
start_all(Lab, Options) ->
    Owner = self(),
    polydist_ct:parallel([fun() -> start(Lab, maps:merge(#{owner => Owner}, Each)) end || Each <- Options]).

%% @doc Starts a node that may fail to boot.
-spec boot(polydist_ct:lab(), options()) -> {ok, handle()} | {error, Reason :: term(), Printed :: binary()}.
boot(Lab, Options) ->
    Caller = self(),
    Owner = maps:get(owner, Options, Caller),
    {Holder, Monitor} = spawn_monitor(fun() -> hold(Caller, Owner, peer_options(Lab, Options)) end),
    receive
        {Holder, {ok, Node}} ->
            demonitor(Monitor, [flush]),
            report_start(Node),
            {ok, Node};
        {Holder, {error, Reason, Printed}} ->
            demonitor(Monitor, [flush]),
            {error, Reason, Printed};
        {'DOWN', Monitor, process, Holder, Reason} ->
            {error, Reason, <<>>}
    end.

report_start(#{node := Name, os_pid := OsPid}) ->
    ct:log("node ~p is process ~s", [Name, OsPid]).

peer_options(Lab, Options) ->
    maps:merge(name_options(Options), #{
        connection => standard_io,
        %% What a booting node complains of goes to standard error.
        exec => {"/bin/sh", ["-c", "exec \"$0\" \"$@\" 2>&1" | program(Options)]},
        args => arguments(Lab, Options),
        env => environment(Lab, Options),
        wait_boot => {self(), booted},
        peer_down => stop
    }).

name_options(#{name := none}) -> #{};
name_options(#{name := dynamic}) -> #{name => undefined, longnames => false};
name_options(#{name := {exactly, Name}} = Options) -> host(Name, Options);
name_options(Options) -> host(polydist_ct:unique(maps:get(name, Options, "n")), Options).

host(Name, Options) ->
    #{name => Name, host => maps:get(host, Options, "localhost"), longnames => false}.

program(#{netns := Name} = Options) -> ["ip", "netns", "exec", Name, erl(Options)];
program(Options) -> [erl(Options)].

erl(#{stock := Release}) ->
    Erl = filename:join(prefix(Release), "usr/lib/erlang/bin/erl"),
    filelib:is_regular(Erl) orelse
        error({no_stock_release, Release, "run test/tools/otp-get, or name its prefix in POLYDIST_OTP" ++
            integer_to_list(Release)}),
    Erl;
erl(_) ->
    polydist_ct:tool("erl").

prefix(Release) ->
    Number = integer_to_list(Release),
    case {os:getenv("POLYDIST_OTP" ++ Number), Release} of
        {false, 25} -> "/";
        {false, _} -> filename:join(cache(), "otp" ++ Number);
        {Prefix, _} -> Prefix
    end.

cache() ->
    case os:getenv("POLYDIST_CACHE") of
        false -> filename:join([os:getenv("HOME"), ".cache", "polydist"]);
        Cache -> Cache
    end.

arguments(Lab, Options) ->
    ["-start_epmd", "false", "-setcookie", maps:get(cookie, Options, "polydist")] ++
        code_path(Lab, Options) ++
        distribution(Lab, Options) ++
        maps:get(args, Lab, []) ++
        maps:get(args, Options, []).

%% Beams of this release do not load on every other, so a stock node of another one gets none.
code_path(_, #{stock := _}) ->
    [];
code_path(#{suite := Suite}, _) ->
    Beams = ["polydist_epmd.beam", ?MODULE_STRING ".beam", "abstract_dist.beam", atom_to_list(Suite) ++ ".beam"],
    lists:append([["-pa", filename:dirname(filename:absname(code:where_is_file(Beam)))] || Beam <- Beams]).

distribution(_, #{stock := _, proto_dist := Proto}) ->
    ["-proto_dist", Proto];
distribution(_, #{proto_dist := Proto} = Options) ->
    ["-proto_dist", Proto] ++ epmd_module(maps:get(epmd_module, Options, "erl_epmd"));
distribution(Lab, Options) ->
    Carriers = maps:get(carriers, Options, [tcp, tcp6, tls, uds]),
    epmd_module(maps:get(epmd_module, Options, "polydist_epmd")) ++
        ["-proto_dist" | [carrier(Carrier) || Carrier <- Carriers]] ++
        optfile(maps:get(optfile, Options, maps:get(optfile, Lab))) ++
        policy(Options) ++
        lists:append([flag(Key, Value) || {Key, Value} <- maps:to_list(maps:get(config, Options, #{}))]).

carrier(Transport) ->
    Own = "polydist_" ++ atom_to_list(Transport),
    case code:which(list_to_atom(Own ++ "_dist")) of
        non_existing -> atom_to_list(Transport);
        _ -> Own
    end.

epmd_module(Module) -> ["-epmd_module", Module].

optfile(false) -> [];
optfile(File) -> ["-ssl_dist_optfile", File].

policy(#{force := Transports}) -> flag(policy, [{any, #{transports => Transports}}]);
policy(#{policy := Policy}) -> flag(policy, Policy);
policy(_) -> [].

flag(Key, Value) ->
    ["-polydist", atom_to_list(Key), lists:flatten(io_lib:format("~0p", [Value]))].

environment(#{directory := Directory, inetrc := Inetrc, epmd := #{port := Port}}, Options) ->
    [
        {"ERL_EPMD_PORT", integer_to_list(maps:get(epmd_port, Options, Port))},
        {"ERL_INETRC", Inetrc},
        {"ERL_CRASH_DUMP", filename:join(Directory, "erl_crash.dump")},
        {"HOME", Directory},
        {"XDG_RUNTIME_DIR", Directory},
        {"ERL_LIBS", false},
        {"ERL_FLAGS", false},
        {"ERL_AFLAGS", false},
        {"ERL_ZFLAGS", false}
        | maps:get(env, Options, [])
    ].

%% The holder is the node's console and its end.
hold(Caller, Owner, PeerOptions) ->
    Monitor = monitor(process, Owner),
    group_leader(self(), self()),
    process_flag(trap_exit, true),
    {ok, Peer} = start_link_peer(PeerOptions),
    hold(#{
        caller => Caller, owner => Monitor, peer => Peer, state => booting, printed => [], waiting => [], os_pid => none
    }).

start_link_peer(PeerOptions) ->
    case peer:start_link(PeerOptions) of
        {ok, Peer, _Node} -> {ok, Peer};
        {ok, Peer} -> {ok, Peer}
    end.

hold(#{caller := Caller, owner := Owner, peer := Peer, state := State} = Hold) ->
    receive
        {booted, {started, Node, Peer}} ->
            %% Asked in another process, for the answer may come after more output.
            Holder = self(),
            _ = spawn_link(fun() -> Holder ! {os_pid, Node, peer:call(Peer, os, getpid, [])} end),
            hold(Hold);
        {os_pid, Node, OsPid} ->
            Caller ! {self(), {ok, #{node => Node, peer => Peer, os_pid => OsPid, holder => self()}}},
            hold(Hold#{state := running, os_pid := OsPid});
        {booted, {boot_failed, Reason, Peer}} ->
            hold(Hold#{state := {failed, Reason}});
        {'EXIT', Peer, Reason} when State =:= running ->
            hold(Hold#{state := {down, Reason}, os_pid := none});
        {'EXIT', Peer, Reason} ->
            Caller ! {self(), {error, boot_failure(State, Reason), printed(Hold)}};
        {'EXIT', _, _} ->
            hold(Hold);
        {'DOWN', Owner, process, _, _} ->
            end_node(Hold);
        {stop, From, Tag} ->
            end_node(Hold),
            From ! {Tag, ok};
        {console, From, Tag} ->
            From ! {Tag, printed(Hold)},
            hold(Hold);
        {await_console, From, Tag, Pattern} ->
            hold(wake(Hold#{waiting := [{From, Tag, Pattern} | maps:get(waiting, Hold)]}));
        {io_request, From, ReplyAs, Request} ->
            {Reply, Text} = console_request(Request),
            From ! {io_reply, ReplyAs, Reply},
            hold(wake(Hold#{printed := [maps:get(printed, Hold) | Text]}));
        Other ->
            hold(Hold#{printed := [maps:get(printed, Hold) | io_lib:format("~p~n", [Other])]})
    end.

boot_failure({failed, Reason}, _) -> Reason;
boot_failure(_, Reason) -> Reason.

%% The peer process goes first: it complains when a node dies in the middle of its last words.
end_node(#{os_pid := none}) ->
    ok;
end_node(#{os_pid := OsPid, peer := Peer}) ->
    exit(Peer, kill),
    signal("KILL", OsPid),
    polydist_ct:wait_until(fun() -> is_gone(OsPid) end).

%% Gone, or a zombie that nobody has waited for. Its first thread may be one while others still hold its files.
is_gone(OsPid) ->
    case {file:list_dir("/proc/" ++ OsPid ++ "/task"), file:read_file("/proc/" ++ OsPid ++ "/stat")} of
        {{ok, [_, _ | _]}, _} -> false;
        {_, {ok, Stat}} -> re:run(Stat, "\\) [ZX] ", [{capture, none}]) =:= match;
        {_, {error, _}} -> true
    end.

signal(Signal, OsPid) ->
    _ = os:cmd("kill -" ++ Signal ++ " " ++ OsPid),
    ok.

console_request({put_chars, _Encoding, Chars}) -> {ok, Chars};
console_request({put_chars, _Encoding, Module, Function, Args}) -> {ok, apply(Module, Function, Args)};
console_request({setopts, _}) -> {ok, []};
console_request(_) -> {{error, enotsup}, []}.

printed(#{printed := Printed}) -> unicode:characters_to_binary(Printed).

wake(#{waiting := []} = Hold) ->
    Hold;
wake(#{waiting := Waiting} = Hold) ->
    Printed = printed(Hold),
    Seen = fun({_, _, Pattern}) -> re:run(Printed, Pattern, [{capture, none}]) =:= match end,
    {Now, Later} = lists:partition(Seen, Waiting),
    _ = [From ! {Tag, Printed} || {From, Tag, _} <- Now],
    Hold#{waiting := Later}.

%% @doc Kills the node as `kill -9' does, and waits until its process is gone.
-spec stop(handle()) -> ok.
stop(#{holder := Holder}) ->
    {ok, ok} = ask(Holder, fun(Tag) -> {stop, self(), Tag} end, 30000),
    ok.

%% @doc Wakes a node that a case stopped with SIGSTOP.
-spec thaw(handle()) -> ok.
thaw(#{os_pid := OsPid}) ->
    signal("CONT", OsPid).

%% @doc All the node has printed so far.
-spec console(handle()) -> binary().
console(#{holder := Holder}) ->
    {ok, Printed} = ask(Holder, fun(Tag) -> {console, self(), Tag} end, 30000),
    Printed.

%% @doc Waits until what the node has printed matches the regular expression.
-spec await_console(handle(), Pattern :: iodata()) -> binary().
await_console(#{holder := Holder} = Node, Pattern) ->
    case ask(Holder, fun(Tag) -> {await_console, self(), Tag, Pattern} end, 30000) of
        {ok, Printed} -> Printed;
        timeout -> error({never_printed, Pattern, console(Node)})
    end.

ask(Holder, Request, Timeout) ->
    Tag = monitor(process, Holder),
    Holder ! Request(Tag),
    receive
        {Tag, Answer} ->
            demonitor(Tag, [flush]),
            {ok, Answer};
        {'DOWN', Tag, process, Holder, Reason} ->
            error({node_ended, Reason})
    after Timeout ->
        demonitor(Tag, [flush]),
        timeout
    end.

%% @doc Runs a function of the suite on a node of ours, in a process of its own; {@link run/3} with a minute.
-spec run(handle(), fun(() -> Result)) -> Result.
run(Node, Function) ->
    run(Node, Function, 60000).

-spec run(handle(), fun(() -> Result), timeout()) -> Result.
run(#{peer := Peer}, Function, Timeout) ->
    peer:call(Peer, erlang, apply, [Function, []], Timeout).

%% @doc Calls a function on any node.
-spec call(handle(), module(), atom(), [term()]) -> term().
call(#{peer := Peer}, Module, Function, Args) ->
    peer:call(Peer, Module, Function, Args, 30000).

%% @doc Evaluates expressions on a node of any release, where this release's modules would not load.
-spec eval(handle(), Expressions :: string(), #{atom() => term()}) -> term().
eval(Node, Expressions, Bindings) ->
    %% In a fun, or all the variables would come back as well.
    {ok, Tokens, _} = erl_scan:string("(fun() -> " ++ Expressions ++ " end)()."),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = call(Node, erl_eval, exprs, [Forms, maps:to_list(Bindings)]),
    Value.

%% @doc Connects two unconnected nodes by a dial of the first, and waits until both sides are through with it: the node that
%% accepts is up a moment after the one that dials.
-spec connect(handle(), handle()) -> ok.
connect(From, #{node := B}) ->
    true = call(From, net_kernel, connect_node, [B]),
    pong = call(From, net_adm, ping, [B]),
    ok.

%% @doc Disconnects the nodes, and waits until neither lists the other. Asked again and again: messages may pass a moment before
%% net_kernel has the node as up, and until then it does not disconnect it.
-spec disconnect(handle(), handle()) -> ok.
disconnect(#{node := A} = From, #{node := B} = To) ->
    polydist_ct:wait_until(fun() ->
        _ = call(From, erlang, disconnect_node, [B]),
        not lists:member(A, call(To, erlang, nodes, [connected])) andalso
            not lists:member(B, call(From, erlang, nodes, [connected]))
    end).

%% @doc The node's only connection to the other, as `polydist:connections/0' shows it.
-spec connection(handle(), handle()) -> map() | none.
connection(Node, #{node := Other}) ->
    case [Each || #{node := Name} = Each <- call(Node, polydist, connections, []), Name =:= Other] of
        [Connection] -> Connection;
        [] -> none
    end.

%% @doc What a node holds of everything that can leak. Binaries are counted after a collection of every process.
-spec resources(handle()) -> #{fds | ports | processes | binary_memory := non_neg_integer()}.
resources(#{os_pid := OsPid} = Node) ->
    {Ports, Processes, Binary} = run(Node, fun() ->
        _ = [erlang:garbage_collect(Pid) || Pid <- processes()],
        {length(erlang:ports()), length(processes()), erlang:memory(binary)}
    end),
    {ok, Fds} = file:list_dir("/proc/" ++ OsPid ++ "/fd"),
    #{fds => length(Fds), ports => Ports, processes => Processes, binary_memory => Binary}.

%% @doc Waits until the node holds no more than it did; a little binary memory and a passing process are allowed for.
-spec await_resources(handle(), Before :: map()) -> map().
await_resources(Node, Before) ->
    await_resources(Node, Before, erlang:monotonic_time(millisecond) + 30000).

await_resources(Node, Before, Deadline) ->
    Now = resources(Node),
    case exceeds(Now, Before) of
        [] ->
            Now;
        More ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({leaked, More, #{before => Before, now => Now}}),
            receive after 50 -> await_resources(Node, Before, Deadline) end
    end.

exceeds(Now, Before) ->
    [Key || {Key, Value} <- maps:to_list(Now), Value > maps:get(Key, Before) + allowance(Key)].

allowance(binary_memory) -> 1024 * 1024;
allowance(_) -> 0.

%% @doc Resident memory of the node's operating system process, in bytes.
-spec os_pid_memory(handle()) -> non_neg_integer().
os_pid_memory(#{os_pid := OsPid}) ->
    {ok, Status} = file:read_file("/proc/" ++ OsPid ++ "/status"),
    {match, [KiB]} = re:run(Status, "VmRSS:\\s+(\\d+) kB", [{capture, all_but_first, binary}]),
    binary_to_integer(KiB) * 1024.

%% @doc Does something, and says as well how much memory the node's process had at most meanwhile, in bytes.
-spec peak_memory(handle(), fun(() -> Result)) -> {Result, Bytes :: non_neg_integer()}.
peak_memory(Node, Fun) ->
    Watch = spawn_link(fun() -> watch_memory(Node, os_pid_memory(Node)) end),
    Result = Fun(),
    Watch ! {self(), most},
    receive {Watch, Most} -> {Result, Most} end.

watch_memory(Node, Most) ->
    receive
        {From, most} -> From ! {self(), Most}
    after 5 ->
        watch_memory(Node, max(Most, os_pid_memory(Node)))
    end.
