%%% A cluster of five that moves from stock inet_tcp to TLS alone, a node at a time, while every node sends to every other.
%%%
%%% What touches one node costs the others nothing: no message between them is lost or late, none of them sees another go down.
-module(polydist_rolling_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [call/4]).

-define(NODES, 5).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [from_stock_inet_tcp_to_tls_alone, from_any_release_by_restarts].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

from_stock_inet_tcp_to_tls_alone(Config) ->
    doc("inet_tcp, polydist with a shared port; then, without a restart, TLS preferred and TLS alone"),
    %% By default global takes a connection that is ended on purpose, as by polydist:reconnect/2, for the beginning of a partition:
    %% all others then disconnect from both of its nodes.
    Common = #{args => ["-kernel", "prevent_overlapping_partitions", "false"]},
    Stock = stock_cluster(Config, lists:duplicate(?NODES, list_to_integer(erlang:system_info(otp_release))), Common),
    Ours = each(Stock, restarted(Config, maps:merge(Common, shared([tcp, tls])))),
    [tcp] = transports(Ours),
    each(Ours, fun prefer_tls/2),
    [tls] = transports(Ours),
    Ports = [registered_port(Config, Node) || Node <- maps:keys(Ours)],
    each(Ours, fun tls_alone/2),
    [tls] = transports(Ours),
    [{error, econnrefused} = gen_tcp:connect({127, 0, 0, 1}, Port, []) || Port <- Ports],
    [hears_nothing(other_port(Config, Node, Ports)) || Node <- maps:keys(Ours)],
    ok.

from_any_release_by_restarts(Config) ->
    doc("The same from nodes of three releases, with global as it is by default: each step restarts a node"),
    Stock = stock_cluster(Config, [25, 27, 29, 25, 27], #{}),
    Shared = each(Stock, restarted(Config, shared([tcp, tls]))),
    [tcp] = transports(Shared),
    Preferring = each(Shared, restarted(Config, shared([tls, tcp]))),
    [tls] = transports(Preferring),
    Alone = each(Preferring, restarted(Config, #{carriers => [tls], policy => policy([tls])})),
    [tls] = transports(Alone),
    [hears_nothing(registered_port(Config, Node)) || Node <- maps:keys(Alone)],
    ok.

stock_cluster(Config, Releases, Options) ->
    Names = [polydist_ct:unique("r") || _ <- Releases],
    Stock = polydist_node:start_all(lab(Config), [
        Options#{name => {exactly, Name}, stock => Release, proto_dist => "inet_tcp"}
     || {Name, Release} <- lists:zip(Names, Releases)
    ]),
    Cluster = maps:from_list([{Node, Handle} || #{node := Node} = Handle <- Stock]),
    [loaded(Handle, Cluster) || Handle <- Stock],
    settle(Cluster, none),
    Cluster.

shared(Transports) ->
    #{carriers => [tcp, tls], policy => policy(Transports), config => #{listen => #{tcp => #{shared => [tcp, tls]}}}}.

%% One step touches one node, and leaves the cluster whole.
each(Cluster, Step) ->
    lists:foldl(fun(Node, Now) ->
        Next = Step(Node, Now),
        settle(Next, Node),
        Next
    end, Cluster, maps:keys(Cluster)).

%%
%% The steps
%%

restarted(Config, Options) ->
    fun(Node, Cluster) ->
        ok = polydist_node:stop(maps:get(Node, Cluster)),
        [Name, _] = string:split(atom_to_list(Node), "@"),
        Started = polydist_node:start(lab(Config), Options#{name => {exactly, Name}}),
        Next = Cluster#{Node := Started},
        loaded(Started, Next),
        Next
    end.

%% A peer that still prefers tcp may connect first; when its turn comes both prefer TLS.
prefer_tls(Node, Cluster) ->
    #{Node := Handle} = Cluster,
    ok = call(Handle, polydist, set_policy, [policy([tls, tcp])]),
    [{ok, #{from := _, to := _}} = call(Handle, polydist, reconnect, [Other, #{}]) || Other <- maps:keys(Cluster), Other =/= Node],
    Cluster.

tls_alone(Node, Cluster) ->
    #{Node := Handle} = Cluster,
    ok = call(Handle, polydist, set_policy, [policy([tls])]),
    ok = call(Handle, polydist, remove_listener, [tcp]),
    Cluster.

policy(Transports) -> [{any, #{transports => Transports}}].

%%
%% Seen from outside
%%

%% Compiled there: what this release makes need not load on an older one.
loaded(Handle, Cluster) ->
    {Module, Beam, File} = code:get_object_code(polydist_load),
    {ok, {Module, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(Beam, [abstract_code]),
    {ok, Module, Binary} = call(Handle, compile, forms, [Forms]),
    {module, Module} = call(Handle, code, load_binary, [Module, File, Binary]),
    ok = call(Handle, Module, start, [maps:keys(Cluster)]).

transports(Cluster) ->
    lists:usort([T || Handle <- maps:values(Cluster), #{transport := T} <- connections(Handle)]).

connections(Handle) ->
    Connections = call(Handle, polydist, connections, []),
    ?NODES = length(Connections) + 1,
    Connections.

%% Waits until all that was sent by the end of a step has come, and looks at what the step did to whom.
settle(Cluster, Touched) ->
    settle(Cluster, Touched, reports(Cluster, Touched), erlang:monotonic_time(millisecond) + 20000).

settle(Cluster, Touched, Sent, Deadline) ->
    case outstanding(Sent, reports(Cluster, Touched)) of
        [] -> ok;
        Outstanding ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({never_came, Touched, Outstanding}),
            receive after 50 -> settle(Cluster, Touched, Sent, Deadline) end
    end.

reports(Cluster, Touched) ->
    maps:map(fun(Node, Handle) ->
        Report = call(Handle, polydist_load, take, []),
        unharmed(Node, Report, Touched),
        Report
    end, Cluster).

outstanding(Sent, Reports) ->
    [{From, To, Number} || {From, #{run := Run, sent := Numbers}} <- maps:to_list(Sent), {To, Number} <- maps:to_list(Numbers),
        not has_come(maps:get(To, Reports), From, Run, Number)].

has_come(#{received := Received}, From, Run, Number) ->
    case Received of
        #{From := {Run, Last}} -> Last >= Number;
        _ -> false
    end.

unharmed(Touched, #{wrong := []}, Touched) ->
    ok;
unharmed(Node, #{wrong := [], missing := Missing, down := Down}, Touched) ->
    {Node, [], []} = {Node, [Each || {From, _, _} = Each <- Missing, From =/= Touched], Down -- [Touched || _ <- Down]}.

registered_port(Config, Node) ->
    #{port := Port} = registered(Config, Node),
    Port.

registered(Config, Node) ->
    [Name, _] = string:split(atom_to_list(Node), "@"),
    polydist_ct:epmd_lookup(maps:get(epmd, lab(Config)), Name).

%% What is registered follows the listeners, in its own time.
other_port(Config, Node, Ports) ->
    polydist_ct:wait_until(fun() ->
        case registered(Config, Node) of
            #{port := Port} -> not lists:member(Port, Ports);
            not_found -> false
        end
    end),
    registered_port(Config, Node).

%% A stock node of another name begins, in the clear.
hears_nothing(Port) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}, {packet, 2}]),
    ok = gen_tcp:send(Socket, <<$N, 16#d07df7fbd:64, 1:32, 5:16, "x@abc">>),
    {error, closed} = gen_tcp:recv(Socket, 0, 20000),
    ok = gen_tcp:close(Socket).
