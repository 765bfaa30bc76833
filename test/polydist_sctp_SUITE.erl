%%% SCTP: ends with several addresses, of which one may fail, between hosts with two networks. Where the kernel has no SCTP, what a
%%% node says of that; test/tools/vm-run has such a kernel.
-module(polydist_sctp_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1]).
-import(polydist_node, [call/4, run/2]).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, anywhere}, {group, hosts}].

groups() ->
    [
        {anywhere, [], [
            a_kernel_without_sctp_is_told_and_left,
            options_of_sctp_are_ignored_by_others
        ]},
        {hosts, [], [
            all_addresses_of_both_ends_are_told,
            an_end_may_have_addresses_of_both_families,
            any_address_is_all_addresses,
            a_path_that_is_cut_under_load_loses_nothing,
            an_idle_connection_outlives_a_path,
            options_of_the_policy_reach_both_ends,
            without_any_path_the_connection_ends_as_its_options_say,
            a_silent_address_costs_a_stagger,
            losers_of_a_race_leave_nothing,
            another_cookie_is_refused,
            a_killed_node_is_down_at_once,
            an_address_of_nobody_keeps_the_listener_waiting
        ]}
    ].

init_per_suite(Config) -> polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(anywhere, Config) ->
    Config;
init_per_group(hosts, Config) ->
    case {polydist_ct:has_sctp(), polydist_hosts:available()} of
        {true, ok} -> Config;
        {false, _} -> {skip, "this kernel has no SCTP: modprobe sctp, or test/tools/vm-run"};
        {true, Skip} -> Skip
    end.

end_per_group(_, _) -> ok.

%% Longer than a stagger and a handshake, shorter than anything that waits for an answer that does not come.
-define(SOON, 2000).

%% A path is given up after three sendings without an answer: in less than a second.
-define(QUICK, #{heartbeat => 300, path_max_retrans => 2, max_retrans => 20, rto_initial => 200, rto_min => 100, rto_max => 300}).

%%
%% Anywhere
%%

a_kernel_without_sctp_is_told_and_left(Config) ->
    doc("The node runs over tcp, and has said once why sctp does not listen and how to mend that"),
    case polydist_ct:has_sctp() of
        true ->
            {skip, "this kernel has it"};
        false ->
            Options = #{carriers => [tcp, sctp], policy => [{any, #{transports => [sctp, tcp]}}]},
            [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [Options, Options]),
            [#{transport := sctp, state := failed, reason := Reason}] =
                [Each || #{transport := sctp} = Each <- call(Us, polydist, listeners, [])],
            contains(Reason, "the kernel of this host has no SCTP; load it with `modprobe sctp`"),
            polydist_node:connect(Us, Them),
            #{transport := tcp} = polydist_node:connection(Us, Them),
            contains(call(Us, polydist, explain_text, [B]), "not sctp: the peer did not register it"),
            %% OTP repeats what is logged before its handlers are there, with the time it had; trying again says nothing new.
            wait_until(fun() -> [] =/= [A || #{attempts := A} <- call(Us, polydist, listeners, []), A > 1] end),
            Pattern = "=ERROR REPORT=+ (\\S+) =+\\s+polydist: sctp does not listen, and tries again: ",
            {match, Said} = re:run(polydist_node:console(Us), Pattern, [global, {capture, all_but_first, binary}]),
            [_] = lists:usort(Said),
            {error, {eprotonosupport, _}} = call(Us, polydist, add_listener, [#{transport => sctp, ip => "127.0.0.1"}])
    end.

options_of_sctp_are_ignored_by_others(Config) ->
    doc("A rule for all transports may have them"),
    Options = #{carriers => [tcp], policy => [{any, #{transports => [tcp], socket => #{keepalive => true, sctp => ?QUICK}}}]},
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [Options, Options]),
    polydist_node:connect(Us, Them),
    {ok, [{keepalive, true}]} = call(Us, net_kernel, getopts, [B, [keepalive, sctp]]),
    ok = call(Us, net_kernel, setopts, [B, [{sctp, ?QUICK}]]),
    {error, _} = call(Us, net_kernel, setopts, [B, [{sctp, #{heartbeat => 0}}]]).

%%
%% Between hosts with two networks
%%

hosts(Config) ->
    Hosts = polydist_hosts:open(lab(Config), self()),
    ok = polydist_hosts:add_network(Hosts),
    Hosts.

ips(Hosts, N, Families) ->
    [Ip || Family <- Families,
        Ip <- [polydist_hosts:address(Hosts, N, Family), polydist_hosts:second_address(Hosts, N, Family)]].

%% A node with its addresses of both networks.
at(Hosts, N, Families, Options) -> at_ips(N, ips(Hosts, N, Families), Options).

at_ips(N, Ips, Options) ->
    Config = maps:merge(#{listen => #{sctp => #{ip => Ips}}}, maps:get(config, Options, #{})),
    {N, maps:merge(#{carriers => [sctp], args => polydist_ct:never()}, Options#{config => Config})}.

start(Hosts, Options) ->
    polydist_hosts:start(Hosts, [at(Hosts, N, [inet], Options) || N <- [1, 2]]).

policy(Sctp) -> [{any, #{transports => [sctp], socket => #{sctp => Sctp}}}].

listener(Node) ->
    [Listener] = [Each || #{transport := sctp} = Each <- call(Node, polydist, listeners, [])],
    Listener.

candidates(From, #{node := B}) ->
    {ok, Candidates, _} = call(From, polydist, candidates, [B]),
    [Address || #{address := Address} <- Candidates].

sorted(Addresses) -> lists:sort([Ip || {Ip, _} <- Addresses]).

since(From, To) -> maps:get(since, polydist_node:connection(From, To)).

contains(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_said, Part, Text});
        _ -> ok
    end.

all_addresses_of_both_ends_are_told(Config) ->
    doc("In listeners/0, in the record, in connections/0 of either side and in explain_text/1; for either family"),
    Hosts = hosts(Config),
    [begin
        [Us, #{node := B} = Them] = polydist_hosts:start(Hosts, [at(Hosts, N, [Family], #{}) || N <- [1, 2]]),
        [Ours, Theirs] = [ips(Hosts, N, [Family]) || N <- [1, 2]],
        #{address := [{_, Port} | _] = Listens} = listener(Them),
        Listens = [{Ip, Port} || Ip <- Theirs],
        Listens = candidates(Us, Them),
        polydist_node:connect(Us, Them),
        #{transport := sctp, direction := out, peer := {Peer, Port}, local := Local, addresses := Addresses} =
            polydist_node:connection(Us, Them),
        Peer = hd(Theirs),
        {true, true} = {lists:sort(Listens) =:= lists:sort(maps:get(peer, Addresses)),
            lists:sort(Ours) =:= sorted(maps:get(local, Addresses))},
        #{direction := in, peer := Local, addresses := #{local := TheirLocal, peer := TheirPeer}} =
            polydist_node:connection(Them, Us),
        {true, true} = {lists:sort(TheirLocal) =:= lists:sort(Listens), sorted(TheirPeer) =:= lists:sort(Ours)},
        Text = call(Us, polydist, explain_text, [B]),
        [contains(Text, inet:ntoa(Ip)) || Ip <- Ours ++ Theirs],
        [polydist_node:stop(Node) || Node <- [Us, Them]]
     end || Family <- [inet, inet6]].

an_end_may_have_addresses_of_both_families(Config) ->
    doc("One network of IPv4, one of IPv6, and the connection has both"),
    Hosts = hosts(Config),
    Ips = fun(N) -> [polydist_hosts:address(Hosts, N, inet), polydist_hosts:second_address(Hosts, N, inet6)] end,
    [Us, Them] = polydist_hosts:start(Hosts, [at_ips(N, Ips(N), #{policy => policy(?QUICK)}) || N <- [1, 2]]),
    polydist_node:connect(Us, Them),
    #{since := Since, addresses := #{local := Local, peer := Peer}} = polydist_node:connection(Us, Them),
    {true, true} = {sorted(Local) =:= lists:sort(Ips(1)), sorted(Peer) =:= lists:sort(Ips(2))},
    polydist_hosts:unplug(Hosts, 2, 1),
    echo(Us, Them),
    Since = since(Us, Them).

any_address_is_all_addresses(Config) ->
    doc("Without an address, as with ip => any, the host's own are told: those of the family that was dialled"),
    Hosts = hosts(Config),
    [Us, Them] = polydist_hosts:start(Hosts, [{N, #{carriers => [sctp]}} || N <- [1, 2]]),
    #{address := [{{0, 0, 0, 0}, Port}, {{0, 0, 0, 0, 0, 0, 0, 0}, Port}]} = listener(Them),
    {Ip4, Ip6} = {polydist_hosts:address(Hosts, 2, inet), polydist_hosts:address(Hosts, 2, inet6)},
    [{Ip4, Port}, {Ip6, Port}] = candidates(Us, Them),
    polydist_node:connect(Us, Them),
    #{addresses := #{local := Local, peer := Peer}} = polydist_node:connection(Us, Them),
    [true = lists:member(Ip, sorted(Peer)) || Ip <- ips(Hosts, 2, [inet])],
    [true = lists:member(Ip, sorted(Local)) || Ip <- ips(Hosts, 1, [inet])].

a_path_that_is_cut_under_load_loses_nothing(Config) ->
    doc("Both ends send; the network that carries it is cut, then healed, and the other one is: all arrives, once, in order"),
    Hosts = hosts(Config),
    [Us, Them] = start(Hosts, #{policy => policy(?QUICK)}),
    polydist_node:connect(Us, Them),
    Since = since(Us, Them),
    [begin
        Before = polydist_hosts:sent(Hosts, 1, Other),
        under_load(Us, Them, fun() -> polydist_hosts:unplug(Hosts, 2, Cut) end),
        true = polydist_hosts:sent(Hosts, 1, Other) > Before + 1000000,
        polydist_hosts:plug(Hosts, 2, Cut),
        echo(Us, Them),
        %% A path is tried again at each heartbeat.
        receive after 3 * maps:get(heartbeat, ?QUICK) -> ok end
     end || {Cut, Other} <- [{1, 2}, {2, 1}, {1, 2}]],
    Since = since(Us, Them),
    #{ticks_missed := 0} = polydist_node:connection(Us, Them).

-define(SENDERS, 5).
-define(COUNT, 800).

%% Does something while both send, when they have begun and are far from their end.
under_load(#{node := A} = Us, #{node := B} = Them, Do) ->
    Sizes = [0, 100, 1000, 10000],
    Caller = self(),
    Sinks = [spawn_link(fun() ->
        Bytes = run(Node, fun() -> polydist_traffic:await_sink(polydist_traffic:start_sink(load, ?SENDERS, ?COUNT)) end),
        Caller ! {self(), Bytes}
    end) || Node <- [Us, Them]],
    [wait_until(fun() -> is_pid(call(Node, erlang, whereis, [load])) end) || Node <- [Us, Them]],
    Frames = fun() -> maps:get(frames_in, polydist_node:connection(Them, Us)) end,
    Start = Frames(),
    Sent = [spawn_link(fun() ->
        ok = run(From, fun() -> polydist_traffic:send_all({load, To}, ?SENDERS, ?COUNT, Sizes) end),
        Caller ! {self(), sent}
    end) || {From, To} <- [{Us, B}, {Them, A}]],
    wait_until(fun() -> Frames() - Start > 100 end),
    ok = Do(),
    true = Frames() - Start < ?SENDERS * ?COUNT div 2,
    [receive {Pid, _} -> ok after 60000 -> error(never_arrived) end || Pid <- Sent ++ Sinks],
    ok.

an_idle_connection_outlives_a_path(Config) ->
    doc("Heartbeats find out: what is sent later goes another way at once; with the kernel's options it takes its second or more"),
    Hosts = hosts(Config),
    [Us, #{node := B} = Them] = start(Hosts, #{policy => policy(?QUICK)}),
    polydist_node:connect(Us, Them),
    ok = run(Them, fun() -> _ = polydist_traffic:start_echo(echo), ok end),
    polydist_hosts:unplug(Hosts, 2, 1),
    receive after 3000 -> ok end,
    {Time, ok} = run(Us, fun() -> timer:tc(polydist_traffic, echo, [{echo, B}, late]) end),
    true = Time < 100000.

echo(Us, #{node := B} = Them) ->
    _ = run(Them, fun() -> whereis(echo) =:= undefined andalso polydist_traffic:start_echo(echo) end),
    ok = run(Us, fun() -> polydist_traffic:echo({echo, B}, polydist_traffic:payload(100000)) end).

options_of_the_policy_reach_both_ends(Config) ->
    doc("Who dials and who accepts has them; net_kernel:getopts/2 shows them and setopts/2 changes them"),
    Hosts = hosts(Config),
    [#{node := A} = Us, #{node := B} = Them] = start(Hosts, #{policy => policy(?QUICK)}),
    polydist_node:connect(Us, Them),
    Wanted = ?QUICK,
    [{ok, [{nodelay, true}, {sctp, Wanted}]} = call(Node, net_kernel, getopts, [Other, [nodelay, sctp]])
     || {Node, Other} <- [{Us, B}, {Them, A}]],
    ok = call(Us, net_kernel, setopts, [B, [{sctp, #{heartbeat => 900, rto_min => 40, rto_max => 50}}]]),
    Changed = Wanted#{heartbeat := 900, rto_min := 40, rto_max := 50},
    {ok, [{sctp, Changed}]} = call(Us, net_kernel, getopts, [B, [sctp]]),
    {error, {badopts, [{sctp, #{rto := 5}}]}} = call(Us, net_kernel, setopts, [B, [{sctp, #{rto => 5}}]]).

without_any_path_the_connection_ends_as_its_options_say(Config) ->
    doc("Both networks cut: long before the tick time is over"),
    Hosts = hosts(Config),
    [Us, Them] = start(Hosts, #{policy => policy(?QUICK)}),
    polydist_node:connect(Us, Them),
    [polydist_hosts:unplug(Hosts, 2, Network) || Network <- [1, 2]],
    wait_until(fun() -> call(Us, erlang, nodes, [connected]) =:= [] end),
    wait_until(fun() -> polydist_hosts:associations(Hosts, 1) =:= 0 end).

a_silent_address_costs_a_stagger(Config) ->
    doc("The peer's first address swallows SCTP: the second one is dialled beside it, and wins"),
    Hosts = hosts(Config),
    [First, Second] = ips(Hosts, 2, [inet]),
    %% Its epmd is found.
    #{inetrc := Inetrc} = polydist_hosts:lab(Hosts, 1),
    ok = polydist_hosts:write_inetrc(Hosts, Inetrc, #{"h2" => [Second]}),
    [Us, #{node := B} = Them] = start(Hosts, #{}),
    polydist_hosts:unplug(Hosts, 2, 1),
    {Time, true} = call(Us, timer, tc, [net_kernel, connect_node, [B]]),
    true = Time > 250000 andalso Time < 1000 * ?SOON,
    #{peer := {Second, _}} = polydist_node:connection(Us, Them),
    #{last := #{attempts := [#{address := {First, _}, outcome := cancelled}, #{address := {Second, _}, outcome := connected}]}} =
        call(Us, polydist, explain, [B]).

losers_of_a_race_leave_nothing(Config) ->
    doc("Both addresses are dialled at once, again and again: each time one association is left, and none afterwards"),
    Hosts = hosts(Config),
    [Us, Them] = start(Hosts, #{policy => [{any, #{transports => [sctp], stagger => 0}}]}),
    [begin
        polydist_node:connect(Us, Them),
        [wait_until(fun() -> polydist_hosts:associations(Hosts, N) =:= 1 end) || N <- [1, 2]],
        polydist_node:disconnect(Us, Them),
        [wait_until(fun() -> polydist_hosts:associations(Hosts, N) =:= 0 end) || N <- [1, 2]]
     end || _ <- lists:seq(1, 5)].

another_cookie_is_refused(Config) ->
    doc("As over any other transport, and nothing of it is left"),
    Hosts = hosts(Config),
    [Us, Them] = polydist_hosts:start(Hosts, [at(Hosts, 1, [inet], #{}), at(Hosts, 2, [inet], #{cookie => "another"})]),
    [begin
        pang = call(From, net_adm, ping, [maps:get(node, To)]),
        none = polydist_node:connection(From, To)
     end || {From, To} <- [{Us, Them}, {Them, Us}]],
    [wait_until(fun() -> polydist_hosts:associations(Hosts, N) =:= 0 end) || N <- [1, 2]].

a_killed_node_is_down_at_once(Config) ->
    doc("kill -9 with the connection full: the other end is told by the kernel, on whichever path there is"),
    Hosts = hosts(Config),
    [Us, #{node := B} = Them] = start(Hosts, #{policy => policy(?QUICK)}),
    polydist_node:connect(Us, Them),
    polydist_hosts:unplug(Hosts, 2, 1),
    echo(Us, Them),
    polydist_node:stop(Them),
    wait_until(fun() -> not lists:member(B, call(Us, erlang, nodes, [connected])) end),
    wait_until(fun() -> polydist_hosts:associations(Hosts, 1) =:= 0 end).

an_address_of_nobody_keeps_the_listener_waiting(Config) ->
    doc("It listens at all of its addresses or not at all; when the last is there, it does, and registers"),
    Hosts = hosts(Config),
    {10, A, B, _} = polydist_hosts:second_address(Hosts, 2, inet),
    Late = {10, A, B, 77},
    Ips = ips(Hosts, 2, [inet]) ++ [Late],
    Both = #{carriers => [tcp, sctp]},
    [Us, Them] = polydist_hosts:start(Hosts, [at(Hosts, 1, [inet], Both), at_ips(2, Ips, Both)]),
    #{state := failed, reason := Reason} = listener(Them),
    contains(Reason, inet:ntoa(Late)),
    ok = polydist_hosts:add_address(Hosts, 2, Late),
    wait_until(fun() -> maps:get(state, listener(Them)) =:= listening end),
    wait_until(fun() -> [Ip || {Ip, _} <- candidates(Us, Them), Ip =:= Late] =/= [] end).
