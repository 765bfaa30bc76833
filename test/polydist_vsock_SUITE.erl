%%% Distribution over vsock, the transport of test/outside that takes a kernel with a vsock that leads back to it: what every
%%% transport must do is in polydist_transport_SUITE, and what is particular to this one here. Nothing leaves the machine: only
%%% CID 1 is bound and dialled.
-module(polydist_vsock_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("kernel/include/net_address.hrl").

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, anywhere}, {group, loopback}].

groups() ->
    [
        {anywhere, [parallel], [
            addresses_are_bytes,
            other_machines_are_refused,
            a_port_is_a_number,
            a_kernel_without_vsock_leaves_the_others
        ]},
        {loopback, [parallel], [
            nodes_with_nothing_else_meet,
            the_port_can_be_chosen,
            a_port_that_is_taken_is_tried_again,
            two_listeners_are_one_node,
            a_policy_names_it_like_any_other,
            nobody_at_a_port_is_one_attempt,
            a_registration_of_another_machine_is_not_dialled,
            many_nodes_dial_at_once,
            nothing_is_left_behind
        ]}
    ].

init_per_suite(Config) -> polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(loopback, Config) ->
    case polydist_ct:has_vsock() of
        true -> Config;
        false -> {skip, "this kernel has no vsock that leads back to it: modprobe vsock_loopback, or test/tools/vm-run"}
    end;
init_per_group(anywhere, Config) ->
    Config.

end_per_group(_, _) -> ok.

start(Config, Options) -> polydist_node:start(lab(Config), Options).

start_all(Config, Options) -> polydist_node:start_all(lab(Config), Options).

vsock(Port) -> #{listen => #{vsock => #{port => Port}}}.

listener(Node, Id) ->
    hd([Each || #{id := Other} = Each <- call(Node, polydist, listeners, []), Other =:= Id]).

ping(From, #{node := Node}) -> call(From, net_adm, ping, [Node]).

attempts(From, #{node := Node}) ->
    #{last := #{attempts := Attempts}} = call(From, polydist, explain, [Node]),
    Attempts.

%% The vsock addresses that another node finds a node registered with.
registered(Us, #{node := Node}) ->
    #{now := #{registries := Registries}} = call(Us, polydist, explain, [Node]),
    [Bytes || #{answer := {record, Endpoints}} <- Registries, {vsock, {opaque, Bytes}} <- Endpoints].

bytes(Port) -> vsock_transport:encode({vsock, 1, Port}).

%% A port that was free a moment ago.
free_port() ->
    {ok, Socket, {vsock, 1, Port}} = vsock_transport:listen(#{}, node()),
    ok = vsock_transport:close(Socket),
    Port.

%%
%% On every kernel
%%

addresses_are_bytes(_) ->
    doc("What encode/1 makes of an address decode/1 takes, and nothing else"),
    _ = [{ok, {vsock, 1, Port}} = vsock_transport:decode(bytes(Port)) || Port <- [1, 1023, 1024, 65536, 16#fffffffe]],
    _ = [{error, [_ | _]} = vsock_transport:decode(Bytes)
     || Bytes <- [<<>>, <<1>>, bytes(0), bytes(16#ffffffff), <<(bytes(5000))/binary, 0>>, binary:copy(<<0, 0, 0, 1>>, 60)]].

other_machines_are_refused(_) ->
    doc("The hypervisor, a virtual machine's host, virtual machines, any: a sentence with the CID"),
    _ = [
        begin
            {error, Sentence} = vsock_transport:decode(<<Cid:32, 5000:32>>),
            {match, _} = re:run(Sentence, "^CID " ++ integer_to_list(Cid) ++ " leads out of this machine")
        end
     || Cid <- [0, 2, 3, 4, 16#01000000, 16#ffffffff]
    ].

a_port_is_a_number(Config) ->
    doc("Without one that a socket can have a node does not boot if it has nothing else, and says why"),
    _ = [
        begin
            {error, _, Printed} = polydist_node:boot(lab(Config), #{carriers => [vsock], config => vsock(Port)}),
            {match, _} = re:run(Printed, "vsock cannot listen: the port is not a number from 1 to 4294967294")
        end
     || Port <- [0, -1, 16#ffffffff, "5000"]
    ].

a_kernel_without_vsock_leaves_the_others(Config) ->
    doc("The node runs over tcp, and says what failed"),
    case polydist_ct:has_vsock() of
        true ->
            {skip, "this kernel has it"};
        false ->
            Carriers = [tcp, vsock],
            [Us, #{node := B} = Them] = start_all(Config, [#{carriers => Carriers}, #{carriers => Carriers}]),
            #{state := failed, reason := <<"vsock cannot listen: ", _/binary>>} = listener(Us, vsock),
            pong = ping(Us, Them),
            #{transport := tcp} = polydist_node:connection(Us, Them),
            {match, _} = re:run(call(Us, polydist, explain_text, [B]), "not vsock: the peer did not register it")
    end.

%%
%% Between nodes
%%

nodes_with_nothing_else_meet(Config) ->
    doc("The port that the kernel chose is in the record, in listeners/0, in connections/0, in explain_text/1"),
    [Us, #{node := B} = Them] = start_all(Config, [#{carriers => [vsock]}, #{carriers => [vsock]}]),
    #{state := listening, transport := vsock, address := {opaque, Bytes}} = listener(Them, vsock),
    {ok, {vsock, 1, Port}} = vsock_transport:decode(Bytes),
    true = Port >= 1024,
    [Bytes] = registered(Us, Them),
    pong = ping(Us, Them),
    #{transport := vsock, direction := out, peer := {opaque, Bytes}} = polydist_node:connection(Us, Them),
    #{transport := vsock, direction := in, listener := vsock, peer := {opaque, From}} = polydist_node:connection(Them, Us),
    {ok, {vsock, 1, _}} = vsock_transport:decode(From),
    {match, _} = re:run(call(Us, polydist, explain_text, [B]),
        ["connected over vsock, CID 1 port ", integer_to_list(Port)]),
    {ok, #net_address{protocol = vsock, family = vsock}} = call(Us, net_kernel, node_info, [B, address]).

the_port_can_be_chosen(Config) ->
    doc("A port of the key listen, below 1024 as well since the test is root; a TCP port of the same number is another"),
    Ports = [free_port(), 77],
    Nodes = start_all(Config, [#{carriers => [vsock], config => vsock(Port)} || Port <- Ports]),
    _ = [
        begin
            Bytes = bytes(Port),
            #{state := listening, address := {opaque, Bytes}} = listener(Node, vsock)
        end
     || {Node, Port} <- lists:zip(Nodes, Ports)
    ],
    [Us, Them] = Nodes,
    pong = ping(Us, Them).

a_port_that_is_taken_is_tried_again(Config) ->
    doc("The second node goes on without it, and has it when the first has ended"),
    Port = free_port(),
    Options = #{carriers => [tcp, vsock], config => vsock(Port)},
    First = start(Config, Options),
    Second = start(Config, Options),
    #{state := failed, reason := <<"vsock cannot listen: address already in use (eaddrinuse)">>} = listener(Second, vsock),
    [] = registered(First, Second),
    polydist_node:stop(First),
    wait_until(fun() -> maps:get(state, listener(Second, vsock)) =:= listening end, 20000),
    Third = start(Config, #{carriers => [vsock]}),
    wait_until(fun() -> registered(Third, Second) =:= [bytes(Port)] end),
    pong = ping(Third, Second).

two_listeners_are_one_node(Config) ->
    doc("Both are registered and take connections; what came in over one that is removed stays"),
    Port = free_port(),
    [Us, Them] = start_all(Config, [#{carriers => [vsock]}, #{carriers => [vsock]}]),
    pong = ping(Us, Them),
    {ok, second} = call(Them, polydist, add_listener, [#{transport => vsock, name => second, port => Port}]),
    {error, {eaddrinuse, _}} = call(Them, polydist, add_listener, [#{transport => vsock, name => third, port => Port}]),
    wait_until(fun() -> length(registered(Us, Them)) =:= 2 end),
    ok = call(Them, polydist, remove_listener, [vsock]),
    wait_until(fun() -> registered(Us, Them) =:= [bytes(Port)] end),
    pong = ping(Us, Them),
    #{listener := vsock} = polydist_node:connection(Them, Us),
    polydist_node:disconnect(Us, Them),
    pong = ping(Us, Them),
    #{listener := second} = polydist_node:connection(Them, Us),
    {match, _} = re:run(call(Us, polydist, explain_text, [maps:get(node, Them)]), ["CID 1 port ", integer_to_list(Port)]).

a_policy_names_it_like_any_other(Config) ->
    doc("By default it comes before the network's on the same host; a rule puts tcp first, or gives its sockets options"),
    Carriers = [tcp, vsock],
    Options = #{keepalive => true, sndbuf => 100000, nodelay => true},
    Rules = [
        {vsock, #{}},
        {tcp, #{policy => patient(same_host, #{transports => [tcp, vsock]})}},
        {vsock, #{policy => patient(same_host, #{transports => [vsock, tcp], socket => Options})}},
        {tcp, #{policy => patient(same_host, #{transports => [tcp]})}}
    ],
    [Them | Nodes] = start_all(Config, [#{carriers => Carriers} | [Policy#{carriers => Carriers} || {_, Policy} <- Rules]]),
    _ = [
        begin
            pong = ping(Us, Them),
            [#{transport := First} | _] = attempts(Us, Them),
            #{transport := Transport} = polydist_node:connection(Us, Them),
            #{transport := Transport} = polydist_node:connection(Them, Us),
            %% By default the second may still be faster.
            true = Transport =:= First orelse Policy =:= #{}
        end
     || {Us, {First, Policy}} <- lists:zip(Nodes, Rules)
    ].

%% The second transport waits: a virtual machine that shares its processor may take longer than the default stagger for anything.
patient(Match, Options) -> [{Match, Options#{stagger => 20000}}].

%%
%% Addresses that are wrong
%%

%% A node that finds another, of the same host, registered at these addresses.
misled(Config, Carriers, Endpoints) ->
    Registry = {liar, polydist_scripted_registry, #{key => liar}},
    Rules = patient(any, #{transports => [vsock, tcp]}),
    Us = start(Config, #{carriers => Carriers, policy => Rules, config => #{registries => [Registry]}}),
    {ok, Record} = call(Us, polydist_native, record_encode, [#{
        host => call(Us, polydist_native, host_identity, []),
        machine => call(Us, polydist_native, machine_identity, []),
        endpoints => [#{transport => atom_to_binary(T), flags => 0, address => Address} || {T, Address} <- Endpoints]
    }]),
    ok = call(Us, polydist_scripted_registry, tell, [liar, {answer, {ok, #{record => Record}}}]),
    Us.

nobody_at_a_port_is_one_attempt(Config) ->
    doc("The kernel says so at once (as econnreset), and tcp is next"),
    Them = start(Config, #{carriers => [tcp, vsock]}),
    #{address := {_, TcpPort}} = listener(Them, tcp),
    Endpoints = [{vsock, {opaque, bytes(free_port())}}, {tcp, {{127, 0, 0, 1}, TcpPort}}],
    Us = misled(Config, [tcp, vsock], Endpoints),
    pong = ping(Us, Them),
    [#{transport := vsock, outcome := failed, time := Time, reason := {econnreset, _}}, #{transport := tcp, outcome := connected}] =
        attempts(Us, Them),
    true = Time < 2000.

a_registration_of_another_machine_is_not_dialled(Config) ->
    doc("Its CID is named, in explain, and the next address is dialled"),
    #{node := B} = Them = start(Config, #{carriers => [vsock]}),
    [Right] = [Each || #{address := Each} <- call(Them, polydist, listeners, [])],
    Us = misled(Config, [vsock], [{vsock, {opaque, <<2:32, 5000:32>>}}, {vsock, Right}]),
    {opaque, <<1:32, Port:32>>} = Right,
    {pong, [Port]} = run(Us, fun() ->
        _ = erlang:trace(all, true, [call]),
        _ = erlang:trace_pattern({socket, connect, 3}, true, [local]),
        Pong = net_adm:ping(B),
        Delivered = erlang:trace_delivered(all),
        receive {trace_delivered, all, Delivered} -> {Pong, receive_dialled()} end
    end),
    [#{outcome := failed, reason := {bad_address, Sentence}}, #{outcome := connected}] = attempts(Us, Them),
    {match, _} = re:run(Sentence, "CID 2 leads out of this machine"),
    {match, _} = re:run(call(Us, polydist, explain_text, [B]), "CID 2 leads out of this machine").

%% The ports at CID 1 that were dialled; another CID is no match.
receive_dialled() ->
    receive
        {trace, _, call, {socket, connect, [_, #{addr := <<0:16, Port:32/native, 1:32/native, _/binary>>}, _]}} ->
            [Port | receive_dialled()]
    after 0 -> []
    end.

%%
%% In numbers
%%

many_nodes_dial_at_once(Config) ->
    doc("Four nodes that dial each other, all at the same time, some from both sides: each pair has one connection"),
    Nodes = start_all(Config, lists:duplicate(4, #{carriers => [vsock]})),
    Pairs = [{From, To} || From <- Nodes, To <- Nodes, From =/= To],
    _ = [pong = Pong || Pong <- polydist_ct:parallel([fun() -> ping(From, To) end || {From, To} <- Pairs])],
    _ = [#{transport := vsock} = polydist_node:connection(From, To) || {From, To} <- Pairs].

nothing_is_left_behind(Config) ->
    doc("Fifty connections that come and go, and fifty attempts where nobody listens"),
    OnlyThese = #{carriers => [vsock], args => polydist_ct:never()},
    [Us, Them] = start_all(Config, [OnlyThese, OnlyThese]),
    Nobody = free_port(),
    Round = fun() ->
        polydist_node:connect(Us, Them),
        polydist_node:disconnect(Us, Them),
        {error, econnreset} = run(Us, fun() -> vsock_transport:connect({vsock, 1, Nobody}, 1000) end)
    end,
    Round(),
    Before = {polydist_node:resources(Us), polydist_node:resources(Them)},
    _ = [Round() || _ <- lists:seq(1, 50)],
    _ = polydist_node:await_resources(Us, element(1, Before)),
    _ = polydist_node:await_resources(Them, element(2, Before)).
