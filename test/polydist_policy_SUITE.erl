%%% Policies with real nodes: which way a rule sends a connection, what happens when the first address does not answer, what
%%% explain/1 tells of it, connections made and moved by hand, and registrations that lie.
%%%
%%% A case with addresses of its own making has an epmd of its own, where it registers a target's name by hand with a record that
%%% it writes byte by byte. The two targets, nodes with all four transports, are everybody's; like all nodes here they are hidden,
%%% so that nobody is told of anybody.
-module(polydist_policy_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1]).
-import(polydist_node, [run/2, call/4]).

-define(TRANSPORTS, [tcp, tcp6, tls, uds]).
-define(LOOPBACK, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).

suite() -> [{timetrap, {minutes, 1}}].

%% What is measured in time runs alone.
all() -> [{group, rules}, {group, failures}, {group, fallback}, {group, by_hand}, {group, alone}].

groups() ->
    [
        {rules, [parallel], [
            every_match_decides,
            each_address_falls_under_its_own_rule,
            a_new_policy_is_for_new_connections,
            rubbish_changes_nothing,
            a_bad_policy_at_boot_stops_the_node,
            a_policy_in_sys_config_counts_and_a_flag_wins,
            sockets_in_other_directories_need_uds_dirs,
            socket_options_of_a_rule_are_set_on_both_sides,
            legacy_tls_dials_stock_inet_tls,
            legacy_tcp_dials_stock_inet_tcp,
            legacy_none_dials_no_stock_node,
            a_stock_tls_peer_never_hears_plain_text
        ]},
        {failures, [parallel], [
            a_host_without_an_address,
            a_name_nobody_registered,
            a_host_without_epmd,
            a_port_where_nobody_listens,
            a_port_that_never_answers,
            a_rule_may_be_less_patient,
            a_rule_may_ask_no_registry,
            a_peer_that_says_nothing,
            a_peer_that_dies_in_the_handshake,
            a_peer_that_answers_something_else,
            a_peer_with_another_cookie,
            a_peer_with_a_certificate_of_others,
            a_peer_that_the_rule_forbids,
            a_peer_without_a_transport_that_the_rule_allows,
            a_node_never_tried,
            a_failure_is_known_when_connect_returns
        ]},
        {fallback, [], [
            the_next_address_is_tried_after_a_moment,
            the_next_transport_is_tried_after_a_moment,
            losers_leave_nothing_behind,
            a_node_none_of_whose_addresses_answers_fails_in_time
        ]},
        {by_hand, [parallel], [
            connect_takes_the_transport_that_it_is_told,
            connect_keeps_to_the_rule,
            a_choice_ends_with_the_one_who_made_it,
            reconnect_moves_a_connection,
            reconnect_moves_a_connection_under_traffic,
            reconnect_against_traffic_of_the_peer,
            reconnect_where_it_cannot_leaves_a_connection,
            addresses_that_nobody_has_are_not_dialled,
            records_that_are_none_are_stock_ports,
            a_socket_of_somebody_else_costs_one_attempt,
            a_server_of_something_else_costs_one_attempt
        ]},
        {alone, [], [
            net_kernel_waits_for_nobody
        ]}
    ].

%% epmd on 127.0.0.1 alone: the hosts noepmd and dead1 to dead10 have other addresses of the loopback.
init_per_suite(Config) ->
    true = os:putenv("ERL_EPMD_ADDRESS", "127.0.0.1"),
    #{inetrc := Inetrc} = Lab = lab(polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config))),
    Dead = [{host, dead(N), [lists:concat(["dead", N])]} || N <- lists:seq(1, 10)],
    Hosts = [{resolv_conf, ""}, {hosts_file, ""}, {host, {127, 0, 0, 77}, ["noepmd"]} | Dead],
    ok = file:write_file(Inetrc, [io_lib:format("~p.~n", [Each]) || Each <- Hosts], [append]),
    Hidden = #{owner => whereis(init), args => ["-hidden"]},
    [Target, Other] = Targets = polydist_node:start_all(Lab, [Hidden#{name => "target"}, Hidden#{name => "other"}]),
    Ids = #{
        host => call(Target, polydist_native, host_identity, []),
        machine => call(Target, polydist_native, machine_identity, [])
    },
    [{ok, _} = call(Each, gen_server, start, [{local, adder}, ?MODULE, [], []]) || Each <- Targets],
    [{target, Target}, {other, Other}, {ids, Ids} | polydist_ct:put_lab(Config, Lab)].

end_per_suite(Config) ->
    [polydist_node:stop(proplists:get_value(Key, Config)) || Key <- [target, other]],
    polydist_ct:close_lab(Config),
    os:unsetenv("ERL_EPMD_ADDRESS").

%% One node for all failures; every case has a name of its own to fail at.
init_per_group(failures, Config) ->
    Policy = [
        {"forbidden*@*", #{transports => []}},
        {"untrusted*@*", #{transports => [tls]}},
        {"local*@*", #{transports => [uds]}},
        {"brief*@*", #{transports => [tcp], connect_timeout => 300}},
        {"unasked*@*", #{transports => [tcp], registries => []}},
        {any, #{transports => [tcp]}}
    ],
    [{us, start(lab(Config), #{policy => Policy, owner => whereis(init)})} | Config];
init_per_group(_, Config) ->
    Config.

end_per_group(failures, Config) ->
    polydist_node:stop(proplists:get_value(us, Config));
end_per_group(_, _) ->
    ok.

%% A gen_server for traffic.
init([]) -> {ok, 0}.

handle_call({add, Number}, _, Sum) -> {reply, Number + 1, Sum + Number}.

handle_cast(_, Sum) -> {noreply, Sum}.

dead(N) -> {127, 0, 1, N}.

target(Config) -> proplists:get_value(target, Config).

other(Config) -> proplists:get_value(other, Config).

ids(Config) -> proplists:get_value(ids, Config).

name(#{node := Node}) -> hd(string:split(atom_to_list(Node), "@")).

%% A node that dials. Whatever it logs is on its console.
start(Lab, Options) ->
    Args = ["-hidden", "-kernel", "logger_level", "info", "net_setuptime", "2"],
    polydist_node:start(Lab, Options#{args => Args ++ maps:get(args, Options, [])}).

%% The node alone with an epmd of its own. One after the other, or two cases would find the same port free.
start_apart(Config, Options) ->
    Epmd = global:trans({?MODULE, self()}, fun polydist_ct:start_epmd/0),
    {start((lab(Config))#{epmd := Epmd}, Options), Epmd}.

%% The port or the path of a listener.
where(Node, Transport) ->
    [Address | _] = lists:flatten([Address || #{transport := Each, address := Address} <- call(Node, polydist, listeners, []),
                                              Each =:= Transport]),
    case Address of
        {local, Path} -> Path;
        {_, Port} -> Port
    end.

%% With more patience than a busy machine needs, so that the first transport is the one that is taken.
rule(Transports) -> [{any, #{transports => Transports, stagger => 5000}}].

patient(Rules) -> [{Match, Options#{stagger => 5000}} || {Match, Options} <- Rules].

set_policy(Us, Rules) ->
    ok = call(Us, polydist, set_policy, [Rules]).

%% Connects, and says how.
connected(Us, Peer) ->
    polydist_node:connect(Us, Peer),
    polydist_node:connection(Us, Peer).

%%
%% Records and registrations by hand
%%

%% The layout that native/proto describes, in our own words.
record(Entries) -> iolist_to_binary(["PLYD", 1 | Entries]).

here(#{host := Host, machine := Machine}) -> [entry(1, Host), entry(3, Machine)].

entry(Type, Value) -> <<Type, (byte_size(Value)):16, Value/binary>>.

endpoint({Transport, Where}) ->
    Name = atom_to_binary(Transport),
    entry(2, <<(byte_size(Name)), Name/binary, 0, (place(Where))/binary>>).

place({any4, Port}) -> <<1, Port:16>>;
place({any6, Port}) -> <<2, Port:16>>;
place({local, Path}) -> <<5, (iolist_to_binary(Path))/binary>>;
place({{A, B, C, D}, Port}) -> <<3, A, B, C, D, Port:16>>;
place({Ip, Port}) -> <<4, <<<<Word:16>> || Word <- tuple_to_list(Ip)>>/binary, Port:16>>.

%% The record of a node on this host.
endpoints(Config, Endpoints) ->
    record([here(ids(Config)) | [endpoint(Each) || Each <- Endpoints]]).

%% Registers until the socket is closed, or the caller ends.
register(#{port := EpmdPort}, Name, Port, Extra) ->
    {ok, Socket} = gen_tcp:connect(?LOOPBACK, EpmdPort, [binary, {active, false}]),
    Text = list_to_binary(Name),
    Request = <<120, Port:16, 77, 0, 6:16, 5:16, (byte_size(Text)):16, Text/binary, (byte_size(Extra)):16, Extra/binary>>,
    ok = gen_tcp:send(Socket, <<(byte_size(Request)):16, Request/binary>>),
    {ok, <<118, 0, _:32>>} = gen_tcp:recv(Socket, 0, 5000),
    Socket.

unregister(Epmd, Name, Socket) ->
    ok = gen_tcp:close(Socket),
    wait_until(fun() -> polydist_ct:epmd_lookup(Epmd, Name) =:= not_found end).

node_name(Name) -> list_to_atom(Name ++ "@localhost").

%%
%% Servers that are no nodes
%%

%% Nobody answers a SYN here, for the backlog is full.
full_listener() -> full_listener(?LOOPBACK, 0).

full_listener(Ip, Port) ->
    {ok, Listen} = gen_tcp:listen(Port, [{ip, Ip}, {backlog, 0}]),
    {ok, Bound} = inet:port(Listen),
    fill(Ip, Bound),
    Bound.

fill(Ip, Port) ->
    case gen_tcp:connect(Ip, Port, [], 200) of
        {ok, _} -> fill(Ip, Port);
        {error, timeout} -> full
    end.

%% Calls the function for each connection, with the socket; it ends with the caller.
server(Serve) ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {ip, ?LOOPBACK}, {active, false}]),
    serve(Listen, Serve).

serve(Listen, Serve) ->
    {ok, Port} = inet:port(Listen),
    Acceptor = spawn_link(fun() -> receive listen -> accept_all(Listen, Serve) end end),
    ok = gen_tcp:controlling_process(Listen, Acceptor),
    Acceptor ! listen,
    Port.

accept_all(Listen, Serve) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    Child = spawn_link(fun() -> receive serve -> Serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Child),
    Child ! serve,
    accept_all(Listen, Serve).

%%
%% Rules
%%

every_match_decides(Config) ->
    doc("A glob, a host, a network, the same host, any, and what is made of them: the first rule that fits names the transport"),
    Target = target(Config),
    Us = start(lab(Config), #{}),
    Name = atom_to_list(maps:get(node, Target)),
    Else = {any, #{transports => [uds]}},
    Cases = [
        {[{"target*@*", #{transports => [tls]}}, Else], tls},
        {[{<<"t?rget*">>, #{transports => [tcp6]}}, Else], tcp6},
        {[{Name, #{transports => [tcp]}}, Else], tcp},
        {[{"source*@*", #{transports => [tls]}}, Else], uds},
        {[{{host, "local*"}, #{transports => [tls]}}, Else], tls},
        {[{{host, <<"remote*">>}, #{transports => [tls]}}, Else], uds},
        {[{{host, "target*"}, #{transports => [tls]}}, Else], uds},
        {[{{net, "127.0.0.0/8"}, #{transports => [tcp]}}, Else], tcp},
        {[{{net, "127.0.0.1"}, #{transports => [tls]}}, Else], tls},
        {[{{net, "::1"}, #{transports => [tcp6]}}, Else], tcp6},
        {[{{net, "10.0.0.0/8"}, #{transports => [tls]}}, Else], uds},
        {[{same_host, #{transports => [tcp6, tcp]}}, Else], tcp6},
        {[{{'not', same_host}, #{transports => [tcp]}}, Else], uds},
        {[{{'not', {net, "127.0.0.0/8"}}, #{transports => [tcp6]}}, Else], tcp6},
        {[{{all, [same_host, {host, "localhost"}, "target*@*"]}, #{transports => [tls]}}, Else], tls},
        {[{{all, [same_host, {host, "elsewhere"}]}, #{transports => [tls]}}, Else], uds},
        {[{{all, [{'not', "other*@*"}, {net, "127.0.0.0/8"}]}, #{transports => [tcp]}}, Else], tcp},
        {[Else], uds},
        {[], uds}
    ],
    [begin
        Rules = patient(Short),
        set_policy(Us, Rules),
        Rules = call(Us, polydist, policy, []),
        #{transport := Transport} = Connection = connected(Us, Target),
        {Rules, Transport, Transport} = {Rules, Expected, Transport},
        decided(Rules, Connection),
        polydist_node:disconnect(Us, Target)
     end || {Short, Expected} <- Cases].

%% The connection names its rule by number: the only one with its transport.
decided([], _) ->
    ok;
decided(Rules, #{transport := Transport, rule := Rule}) ->
    [Number] = [N || {N, {_, #{transports := Transports}}} <- lists:zip(lists:seq(1, length(Rules)), Rules),
                     lists:member(Transport, Transports)],
    said(Rule, ["rule ", integer_to_list(Number)]).

each_address_falls_under_its_own_rule(Config) ->
    doc("A rule for IPv4's loopback and one for IPv6's: candidates in the order of the rules, each with a transport of its own"),
    Target = target(Config),
    Us = start(lab(Config), #{}),
    V4 = {{net, "127.0.0.0/8"}, #{transports => [tcp]}},
    V6 = {{net, "::1"}, #{transports => [tls]}},
    set_policy(Us, patient([V4, V6])),
    {ok, Candidates, [{tcp6, Why}]} = call(Us, polydist, candidates, [maps:get(node, Target)]),
    %% The socket has no address: no rule is for it, so the default ones are.
    [{tcp, {?LOOPBACK, _}}, {tls, {?LOOPBACK6, _}}, {uds, {local, _}}] =
        [{Transport, Address} || #{transport := Transport, address := Address} <- Candidates],
    said(Why, "rule 2"),
    #{transport := tcp, peer := {?LOOPBACK, _}} = connected(Us, Target),
    polydist_node:disconnect(Us, Target),
    set_policy(Us, patient([V6, V4])),
    #{transport := tls, peer := {?LOOPBACK6, _}} = connected(Us, Target).

a_new_policy_is_for_new_connections(Config) ->
    doc("set_policy/1 leaves what is connected as it is; the next connection goes by it"),
    [Target, Other] = [target(Config), other(Config)],
    Old = rule([tcp]),
    Us = start(lab(Config), #{policy => Old}),
    Old = call(Us, polydist, policy, []),
    #{since := Since} = connected(Us, Target),
    New = [{any, #{transports => [tls]}}],
    ok = call(Us, polydist, check_policy, [New]),
    Old = call(Us, polydist, policy, []),
    set_policy(Us, New),
    New = call(Us, polydist, policy, []),
    #{transport := tls} = connected(Us, Other),
    %% Also when the process that keeps it dies.
    Keeper = call(Us, erlang, whereis, [polydist_listeners]),
    call(Us, erlang, exit, [Keeper, kill]),
    wait_until(fun() -> not lists:member(call(Us, erlang, whereis, [polydist_listeners]), [Keeper, undefined]) end),
    New = call(Us, polydist, policy, []),
    #{transport := tcp, since := Since} = polydist_node:connection(Us, Target),
    pong = call(Us, net_adm, ping, [maps:get(node, Target)]),
    polydist_node:disconnect(Us, Target),
    #{transport := tls} = connected(Us, Target),
    set_policy(Us, []),
    [] = call(Us, polydist, policy, []),
    polydist_node:disconnect(Us, Target),
    #{transport := uds} = connected(Us, Target).

rubbish_changes_nothing(Config) ->
    doc("Every kind of bad policy: a sentence that says which rule, and the policy and its connections are what they were"),
    Target = target(Config),
    Policy = rule([tls]),
    Us = start(lab(Config), #{policy => Policy}),
    #{transport := tls} = connected(Us, Target),
    [begin
        [{error, {Kind, Sentence}}, {error, {Kind, Sentence}}] =
            [call(Us, polydist, Function, [Rules]) || Function <- [check_policy, set_policy]],
        ct:log("~0p~n~ts", [Rules, Sentence]),
        {Rules, true} = {Rules, is_atom(Kind)},
        said(Sentence, Part),
        printable(Sentence)
     end || {Rules, Part} <- rubbish()],
    Policy = call(Us, polydist, policy, []),
    #{transport := tls} = polydist_node:connection(Us, Target),
    #{transport := tls} = connected(Us, other(Config)).

rubbish() ->
    Good = {"good@*", #{transports => [tcp, tls]}},
    Second = fun(Rule) -> {[Good, Rule, Good], "rule 2"} end,
    With = fun(Key, Value) -> Second({"*b*", #{transports => [tcp, tls], Key => Value}}) end,
    [
        {not_a_list, "policy"}, {[Good | improper], "policy"}, {#{}, "policy"}, {"a string", "rule 1"}, {[[]], "rule 1"},
        {[Good, Good, {any, #{}}], "rule 3"}, {[{any, #{transports => [tcp]}}, Good], "rule"}
    ] ++ [Second(Rule) || Rule <- [
        rule, {}, {any}, {any, [tcp]}, {any, tcp}, {any, #{transports => tcp}}, {any, #{transports => [tcp, pigeon]}},
        {any, #{transports => [tcp, tcp]}}, {any, #{transports => [tcp | tls]}}, {any, #{transports => [tcp], colour => red}},
        {same_host, #{transports => [uds], legacy => tls}}, {same_host, #{transports => [uds, tls], legacy => tcp}}
    ]] ++ [Second({Match, #{transports => [tcp]}}) || Match <- [
        some, 12, "", <<>>, <<255, 254>>, [a, b], {host, 12}, {host, ""}, {hosts, "a"}, {net, "10.0.0.0/33"}, {net, "10.0.0/8"},
        {net, "fd00::/129"}, {net, "localhost"}, {net, "10.0.0.0/-1"}, {net, "10.0.0.0/8/8"}, {net, "10.0.0.1/8"}, {net, "/8"},
        {net, {10, 0, 0, 0}, 8}, {net, {10, 0, 0, 0}}, {all, any}, {all, []}, {all, [any | any]}, {all, [{net, "x"}]},
        {'not', nothing}, {'not', any}, {'not', {'not', {net, ""}}}
    ]] ++ [With(Key, Value) || {Key, Value} <- [
        {ticktime, 0}, {ticktime, -1}, {ticktime, "60"}, {ticktime, {99, ms}}, {ticktime, {60, s}}, {ticktime, 0.05},
        {legacy, udp}, {legacy, uds}, {connect_timeout, 0}, {connect_timeout, soon}, {stagger, -1}, {stagger, half},
        {registries, epmd}, {registries, [dns]}, {registries, [epmd | epmd]}, {socket, nodelay}, {socket, #{colour => red}},
        {socket, #{nodelay => 1}}, {socket, #{sndbuf => 0}}, {socket, #{recbuf => big}}, {socket, #{priority => -1}},
        {socket, #{tos => high}}, {socket, #{user_timeout => -5}}, {socket, [{nodelay, true} | x]}, {socket, [{keepalive, 3}]}
    ]].

a_bad_policy_at_boot_stops_the_node(Config) ->
    doc("As a flag, in sys.config, and as no term at all: the sentence on the console, and no node"),
    #{directory := Directory} = Lab = lab(Config),
    Bad = [{"good@*", #{transports => [tls]}}, {any, #{transports => [pigeon]}}],
    File = filename:join(Directory, polydist_ct:unique("bad")),
    ok = file:write_file(File ++ ".config", io_lib:format("~p.~n", [[{polydist, [{policy, Bad}]}]])),
    Boots = [
        {#{policy => Bad}, ["rule 2", "pigeon"]},
        {#{args => ["-config", File]}, ["rule 2", "pigeon"]},
        {#{args => ["-polydist", "policy", "[{any,"]}, ["policy", "term"]}
    ],
    polydist_ct:parallel([fun() ->
        {error, _, Printed} = polydist_node:boot(Lab, Options),
        [said(Printed, Part) || Part <- Parts]
     end || {Options, Parts} <- Boots]).

a_policy_in_sys_config_counts_and_a_flag_wins(Config) ->
    doc("A policy in sys.config is the node's; where a flag gives another, that one is"),
    #{directory := Directory} = Lab = lab(Config),
    File = filename:join(Directory, polydist_ct:unique("good")),
    Filed = rule([tls]),
    ok = file:write_file(File ++ ".config", io_lib:format("~p.~n", [[{polydist, [{policy, Filed}]}]])),
    Options = #{args => ["-hidden", "-config", File]},
    [ByFile, ByFlag] = polydist_node:start_all(Lab, [Options, Options#{force => [tcp]}]),
    Filed = call(ByFile, polydist, policy, []),
    #{transport := tls} = connected(ByFile, target(Config)),
    #{transport := tcp} = connected(ByFlag, target(Config)).

sockets_in_other_directories_need_uds_dirs(Config) ->
    doc("A peer whose socket lies elsewhere: left out with a reason, unless uds_dirs names the place"),
    #{directory := Directory} = Lab = lab(Config),
    Elsewhere = filename:join(Directory, "elsewhere"),
    Hidden = ["-hidden"],
    [Peer, Us, Told] = polydist_node:start_all(Lab, [
        #{config => #{listen => #{uds => #{dir => Elsewhere}}}, args => Hidden},
        #{force => [uds], args => Hidden},
        #{force => [uds], config => #{uds_dirs => [Elsewhere]}, args => Hidden}
    ]),
    #{node := B} = Peer,
    false = call(Us, net_kernel, connect_node, [B]),
    #{now := #{candidates := [], skipped := Skipped}} = call(Us, polydist, explain, [B]),
    [_ | _] = [Why || {uds, Why} <- Skipped, string:find(Why, Elsewhere) =/= nomatch, string:find(Why, "uds_dirs") =/= nomatch],
    #{transport := uds} = connected(Told, Peer).

socket_options_of_a_rule_are_set_on_both_sides(Config) ->
    doc("Buffers, keepalive, nodelay, priority, type of service, user timeout: of what is dialled and of what is accepted"),
    [Us, Them] = polydist_node:start_all(lab(Config), [#{args => ["-hidden"]}, #{args => ["-hidden"]}]),
    Ours = #{
        sndbuf => 70000, recbuf => 90000, keepalive => true, nodelay => false, priority => 3, tos => 16#10, user_timeout => 7000
    },
    Theirs = #{
        sndbuf => 50000, recbuf => 110000, keepalive => false, nodelay => true, priority => 5, tos => 16#08, user_timeout => 9000
    },
    [begin
        set_policy(Us, [{any, #{transports => [Transport], socket => Ours}}]),
        set_policy(Them, [{any, #{transports => [Transport], socket => maps:to_list(Theirs)}}]),
        #{transport := Transport} = connected(Us, Them),
        has_options(Us, Them, Transport, Ours),
        has_options(Them, Us, Transport, Theirs),
        polydist_node:disconnect(Us, Them)
     end || Transport <- ?TRANSPORTS].

has_options(Node, #{node := Peer}, Transport, Wanted) ->
    Names = case Transport of
        uds -> [sndbuf, recbuf];
        _ -> maps:keys(Wanted)
    end,
    {ok, Set} = call(Node, net_kernel, getopts, [Peer, Names]),
    ct:log("~p at ~p: ~p", [Transport, maps:get(node, Node), Set]),
    Names = [Name || Name <- Names, {Key, Value} <- Set, Key =:= Name, fits(Name, Value, maps:get(Name, Wanted))].

%% The kernel doubles what it is asked for, to have room for its own.
fits(Buffer, Value, Wanted) when Buffer =:= sndbuf; Buffer =:= recbuf -> Value >= Wanted andalso Value =< 2 * Wanted;
fits(_, Value, Wanted) -> Value =:= Wanted.

%%
%% Stock peers
%%

stock_nodes(Config, Proto, Args) ->
    Options = #{proto_dist => Proto, args => ["-hidden" | Args]},
    polydist_node:start_all(lab(Config), [Options#{stock => Release} || Release <- [25, 27, 29]]).

legacy_tls_dials_stock_inet_tls(Config) ->
    doc("Stock inet_tls of OTP 25, 27 and 29 is dialled by TLS, with mutual authentication"),
    #{optfile := Optfile} = lab(Config),
    Us = start(lab(Config), #{policy => [{any, #{transports => [uds, tls, tcp6, tcp], legacy => tls}}]}),
    [begin
        #{transport := tls, tls := #{version := Version}} = connected(Us, Stock),
        ct:log("~p ~p", [maps:get(node, Stock), Version]),
        #{node := B} = Stock,
        B = call(Us, rpc, call, [B, erlang, node, []])
     end || Stock <- stock_nodes(Config, "inet_tls", ["-ssl_dist_optfile", Optfile])].

legacy_tcp_dials_stock_inet_tcp(Config) ->
    doc("Stock inet_tcp of OTP 25, 27 and 29 is dialled by plain TCP where the rule says so, and where it says nothing"),
    Us = start(lab(Config), #{}),
    Stock = stock_nodes(Config, "inet_tcp", []),
    [begin
        set_policy(Us, Rules),
        [begin
            #{transport := tcp} = connected(Us, Each),
            polydist_node:disconnect(Us, Each)
         end || Each <- Stock]
     end || Rules <- [[{any, #{transports => [uds, tls, tcp], legacy => tcp}}], rule([tls, tcp])]].

legacy_none_dials_no_stock_node(Config) ->
    doc("Neither by TCP nor by TLS, and the reason is told; nor is it dialled by a transport that the rule does not name"),
    #{optfile := Optfile} = lab(Config),
    Us = start(lab(Config), #{}),
    Peers = polydist_node:start_all(lab(Config), [
        #{stock => 27, proto_dist => "inet_tcp", args => ["-hidden"]},
        #{stock => 27, proto_dist => "inet_tls", args => ["-hidden", "-ssl_dist_optfile", Optfile]}
    ]),
    Policies = [[{any, #{transports => [uds, tls, tcp6, tcp], legacy => none}}], rule([uds, tls])],
    [begin
        set_policy(Us, Policy),
        false = call(Us, net_kernel, connect_node, [B]),
        #{last := Last, now := #{candidates := [], skipped := Skipped}} = call(Us, polydist, explain, [B]),
        #{outcome := failed, attempts := [], reason := {no_candidate, Sentence}} = Last,
        ct:log("~ts~n~p", [Sentence, Skipped]),
        ?TRANSPORTS = lists:usort([Transport || {Transport, _} <- Skipped]),
        [said(Why, "stock") || {Transport, Why} <- Skipped, Transport =:= tls]
     end || #{node := B} <- Peers, Policy <- Policies].

a_stock_tls_peer_never_hears_plain_text(Config) ->
    doc("Something registers a port and no record; legacy => tls: all that ever arrives there begins a TLS handshake"),
    Case = self(),
    Port = server(fun(Socket) ->
        {ok, <<First, _/binary>>} = gen_tcp:recv(Socket, 0, 5000),
        Case ! {first, First},
        gen_tcp:close(Socket)
    end),
    {Us, Epmd} = start_apart(Config, #{policy => [{any, #{transports => [tcp, tcp6, uds, tls], legacy => tls}}]}),
    _ = register(Epmd, "stocktls", Port, <<>>),
    Node = node_name("stocktls"),
    [begin
        false = call(Us, net_kernel, connect_node, [Node]),
        receive {first, 22} -> ok end
     end || _ <- [1, 2]],
    receive {first, Other} -> error({heard, Other}) after 0 -> ok end,
    #{last := #{attempts := Attempts}} = call(Us, polydist, explain, [Node]),
    [tls] = lists:usort([Transport || #{transport := Transport} <- Attempts]).

%%
%% How a connect fails
%%

%% Fails, and leaves one line on the console and all there is to know in explain/1.
fails(Config, Node, Kind) -> fails(Config, Node, Kind, Kind).

fails(Config, Node, Kind, AttemptKind) ->
    Us = proplists:get_value(us, Config),
    Started = erlang:monotonic_time(millisecond),
    false = call(Us, net_kernel, connect_node, [Node]),
    Took = erlang:monotonic_time(millisecond) - Started,
    #{node := Node, connection := none, last := Last} = Explained = call(Us, polydist, explain, [Node]),
    ct:log("~p ms~n~p", [Took, Explained]),
    #{at := At, outcome := failed, time := Time, reason := {Kind, Sentence}, attempts := Attempts} = Last,
    true = erlang:system_time(millisecond) - At < 20000,
    true = Time < 3000 andalso Took < 3000,
    [AttemptKind = Each || #{outcome := failed, reason := {Each, _}} <- Attempts],
    Text = call(Us, polydist, explain_text, [Node]),
    ct:log("~ts", [Text]),
    printable(Text),
    said(Text, atom_to_list(Node)),
    [begin
        said(Text, Reason),
        said(Text, atom_to_list(Transport))
     end || #{transport := Transport, reason := {_, Reason}} <- Attempts],
    [said(Text, Why) || #{why := Why} <- maps:get(candidates, Last, [])],
    Line = the_line(Us, Node),
    [said(Line, Reason) || #{reason := {_, Reason}} <- Attempts],
    {Last, Sentence}.

%% All that polydist logged about the node; what was logged before this is on the console then.
the_line(Us, Node) ->
    %% Who logs it shows the failure first.
    _ = call(Us, sys, get_state, [polydist_attempts]),
    Mark = polydist_ct:unique("mark"),
    ok = call(Us, logger, error, [Mark]),
    Console = polydist_node:await_console(Us, Mark),
    [Line] = [Line || Line <- string:split(Console, "\n", all), string:find(Line, "polydist: ") =/= nomatch,
                      string:find(Line, atom_to_list(Node)) =/= nomatch],
    ct:log("~ts", [Line]),
    Line.

said(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_said, Part, Text});
        _ -> ok
    end.

printable(Text) ->
    true = is_binary(Text),
    true = io_lib:printable_unicode_list(unicode:characters_to_list(Text)).

%% Registers a name with these endpoints for the node that fails.
failing_name(Config, Name, Endpoints) ->
    #{epmd := Epmd} = lab(Config),
    _ = register(Epmd, Name, 1, endpoints(Config, Endpoints)),
    node_name(Name).

a_host_without_an_address(Config) ->
    doc("nxdomain"),
    {#{attempts := []}, Sentence} = fails(Config, 'anyone@nowhere', nxdomain),
    said(Sentence, "nowhere").

a_name_nobody_registered(Config) ->
    doc("not_found"),
    {#{attempts := []}, Sentence} = fails(Config, 'nobody@localhost', not_found),
    said(Sentence, "nobody").

a_host_without_epmd(Config) ->
    doc("econnrefused, and no attempt: it is epmd that refuses"),
    #{epmd := #{port := Port}} = lab(Config),
    {#{attempts := []}, Sentence} = fails(Config, 'anyone@noepmd', econnrefused),
    said(Sentence, integer_to_list(Port)).

a_port_where_nobody_listens(Config) ->
    doc("econnrefused, by the one attempt"),
    Port = polydist_ct:free_port(),
    Node = failing_name(Config, "gone", [{tcp, {any4, Port}}]),
    {#{attempts := [#{transport := tcp, address := {?LOOPBACK, Port}}]}, _} = fails(Config, Node, econnrefused).

a_port_that_never_answers(Config) ->
    doc("timeout, before the kernel's own timer"),
    Port = full_listener(),
    Node = failing_name(Config, "hangs", [{tcp, {any4, Port}}]),
    {#{attempts := [#{outcome := failed, time := Time}]}, _} = fails(Config, Node, timeout),
    true = Time > 500.

a_rule_may_be_less_patient(Config) ->
    doc("timeout, after the rule's connect_timeout"),
    Node = failing_name(Config, "brief", [{tcp, {any4, full_listener()}}]),
    {#{attempts := [#{outcome := failed, time := Time}], time := All}, Sentence} = fails(Config, Node, timeout),
    said(Sentence, "300"),
    true = Time >= 300 andalso All < 1500.

a_rule_may_ask_no_registry(Config) ->
    doc("not_asked: the name is registered, and nobody looks"),
    Node = failing_name(Config, "unasked", [{tcp, {any4, polydist_ct:free_port()}}]),
    {#{attempts := [], registries := []}, _} = fails(Config, Node, not_asked).

a_peer_that_says_nothing(Config) ->
    doc("silent: it accepted, took our name, and that was all"),
    Port = server(fun(Socket) -> _ = gen_tcp:recv(Socket, 100000, 20000) end),
    Node = failing_name(Config, "mute", [{tcp, {any4, Port}}]),
    {#{attempts := [#{transport := tcp, address := {?LOOPBACK, Port}}]}, _} = fails(Config, Node, silent).

a_peer_that_dies_in_the_handshake(Config) ->
    doc("closed: before we have said who we are, and after"),
    Heard = fun(Socket) ->
        {ok, _} = gen_tcp:recv(Socket, 2, 5000),
        gen_tcp:close(Socket)
    end,
    [begin
        Node = failing_name(Config, Name, [{tcp, {any4, server(End)}}]),
        {#{attempts := [_]}, _} = fails(Config, Node, closed)
     end || {Name, End} <- [{"dies", fun gen_tcp:close/1}, {"diesknowing", Heard}]],
    %% The first refused, the second accepted.
    Node = failing_name(Config, "diesthen", [{tcp, {any4, polydist_ct:free_port()}}, {tcp, {any4, server(Heard)}}]),
    {#{attempts := [_, #{outcome := connected}]}, _} = fails(Config, Node, closed, econnrefused).

a_peer_that_answers_something_else(Config) ->
    doc("An HTTP server: a kind of its own among the known ones, and its reason"),
    Node = failing_name(Config, "http", [{tcp, {any4, server(fun answer_http/1)}}]),
    {#{attempts := [_]}, Sentence} = fails(Config, Node, bad_message),
    ct:log("~ts", [Sentence]).

answer_http(Socket) ->
    _ = gen_tcp:recv(Socket, 0, 5000),
    _ = gen_tcp:send(Socket, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
    gen_tcp:close(Socket).

a_peer_with_another_cookie(Config) ->
    doc("The peer ends the handshake when it sees our digest"),
    #{node := Node} = polydist_node:start(lab(Config), #{cookie => "another", args => ["-hidden"]}),
    {#{attempts := [_]}, Sentence} = fails(Config, Node, closed),
    said(Sentence, "cookie").

a_peer_with_a_certificate_of_others(Config) ->
    doc("tls: the authority is not ours"),
    #{directory := Directory} = Lab = lab(Config),
    Certificates = filename:join(Directory, "others"),
    ok = polydist_ct:write_certificates(Certificates, ["localhost"]),
    Optfile = filename:join(Directory, "others.conf"),
    ok = polydist_ct:write_tls_options(Optfile, polydist_ct:tls_options(Certificates)),
    #{node := Node} = polydist_node:start(Lab, #{name => "untrusted", optfile => Optfile, args => ["-hidden"]}),
    {#{attempts := [#{transport := tls} | _]}, _} = fails(Config, Node, tls).

a_peer_that_the_rule_forbids(Config) ->
    doc("no_candidate: the rule has no transport"),
    Us = proplists:get_value(us, Config),
    Node = failing_name(Config, "forbidden1", [{tcp, {any4, 1}}]),
    false = call(Us, net_kernel, connect_node, [Node]),
    #{now := Now, last := Last} = call(Us, polydist, explain, [Node]),
    ct:log("~p~n~p~n~ts", [Now, Last, call(Us, polydist, explain_text, [Node])]),
    #{error := {no_candidate, Sentence}} = Now,
    said(Sentence, "rule 1"),
    said(call(Us, polydist, explain_text, [Node]), "rule 1"),
    {ok, [], [_ | _]} = call(Us, polydist, candidates, [Node]),
    {error, {no_candidate, _}} = call(Us, polydist, connect, [Node, #{transports => [tcp]}]).

a_peer_without_a_transport_that_the_rule_allows(Config) ->
    doc("no_candidate: the rule wants uds, the peer has tcp and a socket that is out of place"),
    Node = failing_name(Config, "local1", [{tcp, {any4, polydist_ct:free_port()}}, {uds, {local, "/nowhere/x"}}]),
    {#{attempts := [], skipped := Skipped}, Sentence} = fails(Config, Node, no_candidate),
    ct:log("~ts~n~p", [Sentence, Skipped]),
    [said(Why, "/nowhere/x") || {uds, Why} <- Skipped],
    [said(Why, "rule 3") || {tcp, Why} <- Skipped].

a_node_never_tried(Config) ->
    doc("explain/1 of a node that nobody tried: no last, no connection, what would be done now; and of what is no node's name"),
    Us = proplists:get_value(us, Config),
    Port = polydist_ct:free_port(),
    Node = failing_name(Config, "untried", [{tcp, {any4, Port}}]),
    #{node := Node, connection := none, last := none, now := Now} = call(Us, polydist, explain, [Node]),
    #{candidates := [#{transport := tcp, address := {?LOOPBACK, Port}}], same_host := true} = Now,
    #{registries := [#{registry := epmd, time := _, answer := _}]} = Now,
    Text = call(Us, polydist, explain_text, [Node]),
    printable(Text),
    said(Text, "untried@localhost"),
    [begin
        #{connection := none, last := none, now := #{error := {_, Sentence}}} = call(Us, polydist, explain, [Bad]),
        printable(Sentence),
        printable(call(Us, polydist, explain_text, [Bad]))
     end || Bad <- [nonsense, '@', 'ünï@nowhere']].

a_failure_is_known_when_connect_returns(Config) ->
    doc("explain/1 and connect/2 have the reason at once, two hundred times"),
    Us = proplists:get_value(us, Config),
    Known = run(Us, fun() ->
        [begin
            Node = list_to_atom(lists:concat(["x", N, "@", Host])),
            false = net_kernel:connect_node(Node),
            #{last := #{outcome := Outcome}} = polydist:explain(Node),
            {error, {Kind, _} = Reason} = polydist:connect(Node, #{transports => [tcp]}),
            #{last := #{outcome := failed, reason := Reason}} = polydist:explain(Node),
            {Host, Outcome, Kind}
         end || N <- lists:seq(1, 100), Host <- [nowhere, noepmd]]
    end),
    [{noepmd, failed, econnrefused}, {nowhere, failed, nxdomain}] = lists:usort(Known).

%%
%% One address after the other
%%

the_next_address_is_tried_after_a_moment(Config) ->
    doc("A port that refuses, one that never answers, a good one: connected after one stagger, and explain/1 tells all three"),
    Target = target(Config),
    {Us, Epmd} = start_apart(Config, #{policy => [{any, #{transports => [tcp], stagger => 250}}]}),
    [Gone, Full, Good] = [polydist_ct:free_port(), full_listener(), where(Target, tcp)],
    _ = register(Epmd, name(Target), Good, endpoints(Config, [{tcp, {any4, Port}} || Port <- [Gone, Full, Good]])),
    #{node := B} = Target,
    {Time, true} = timer:tc(fun() -> call(Us, net_kernel, connect_node, [B]) end),
    ct:comment("connected after ~b ms", [Time div 1000]),
    true = Time < 1000000,
    #{transport := tcp, peer := {_, Good}} = polydist_node:connection(Us, Target),
    #{connection := #{transport := tcp}, last := Last} = call(Us, polydist, explain, [B]),
    #{outcome := connected, attempts := Attempts} = Last,
    ct:log("~p", [Attempts]),
    [
        #{address := {_, Gone}, outcome := failed, reason := {econnrefused, _}},
        #{address := {_, Full}, outcome := cancelled, 'after' := Second},
        #{address := {_, Good}, outcome := connected, 'after' := Third}
    ] = Attempts,
    %% A failure is not waited for: the second starts at once, the third a stagger later.
    true = Second < 240 andalso Third - Second >= 240,
    Text = call(Us, polydist, explain_text, [B]),
    [said(Text, integer_to_list(Port)) || Port <- [Gone, Full, Good]],
    %% The other side of it.
    #{node := A} = Us,
    #{connection := #{direction := in}, last := none} = call(Target, polydist, explain, [A]),
    printable(call(Target, polydist, explain_text, [A])).

the_next_transport_is_tried_after_a_moment(Config) ->
    doc("A socket that is not there, a TLS port that is silent, one that never answers, then plain TCP"),
    Target = target(Config),
    #{directory := Directory} = lab(Config),
    {Us, Epmd} = start_apart(Config, #{policy => [{any, #{transports => [uds, tls, tcp], stagger => 150}}]}),
    Path = filename:join([Directory, "polydist", "notthere"]),
    Silent = server(fun(Socket) -> _ = gen_tcp:recv(Socket, 100000, 20000) end),
    Endpoints = [{uds, {local, Path}}, {tls, {any4, Silent}}, {tls, {any4, full_listener()}}, {tcp, {any4, where(Target, tcp)}}],
    _ = register(Epmd, name(Target), 1, endpoints(Config, Endpoints)),
    #{node := B} = Target,
    {Time, true} = timer:tc(fun() -> call(Us, net_kernel, connect_node, [B]) end),
    ct:comment("connected after ~b ms", [Time div 1000]),
    true = Time < 1000000,
    #{last := #{outcome := connected, attempts := Attempts}} = call(Us, polydist, explain, [B]),
    [{uds, failed}, {tls, cancelled}, {tls, cancelled}, {tcp, connected}] =
        [{Transport, Outcome} || #{transport := Transport, outcome := Outcome} <- Attempts],
    [#{reason := {enoent, _}} | _] = Attempts.

losers_leave_nothing_behind(Config) ->
    doc("Fifty connections, each won by the last of three: no descriptor, port, process or message is left of the others"),
    Target = target(Config),
    {Us, Epmd} = start_apart(Config, #{policy => [{any, #{transports => [tls, tcp], stagger => 10}}]}),
    Endpoints = [{tls, {any4, full_listener()}}, {tcp, {any4, full_listener()}}, {tcp, {any4, where(Target, tcp)}}],
    _ = register(Epmd, name(Target), 1, endpoints(Config, Endpoints)),
    Round = fun() ->
        #{transport := tcp} = connected(Us, Target),
        0 = waiting_messages(Us, Target),
        polydist_node:disconnect(Us, Target)
    end,
    [Round() || _ <- [1, 2, 3]],
    {Ours, Theirs} = {polydist_node:resources(Us), polydist_node:resources(Target)},
    [Round() || _ <- lists:seq(1, 50)],
    _ = polydist_node:await_resources(Us, Ours),
    _ = polydist_node:await_resources(Target, Theirs),
    %% And none while one is up.
    _ = connected(Us, Target),
    pong = call(Us, net_adm, ping, [maps:get(node, Target)]),
    0 = waiting_messages(Us, Target).

%% In the process of the connection, which opened its port.
waiting_messages(Us, #{node := B}) ->
    run(Us, fun() ->
        {B, Port} = lists:keyfind(B, 1, erlang:system_info(dist_ctrl)),
        {connected, Pid} = erlang:port_info(Port, connected),
        {message_queue_len, Messages} = process_info(Pid, message_queue_len),
        Messages
    end).

a_node_none_of_whose_addresses_answers_fails_in_time(Config) ->
    doc("Four ports that never answer and two that refuse: over within net_setuptime, by our reason, nothing left"),
    {Us, Epmd} = start_apart(Config, #{policy => [{any, #{transports => [tcp, tls], stagger => 100}}]}),
    Full = [{Transport, {any4, full_listener()}} || Transport <- [tcp, tls, tcp, tls]],
    Gone = [{Transport, {any4, polydist_ct:free_port()}} || Transport <- [tcp, tls]],
    _ = register(Epmd, "dead", 1, endpoints(Config, Full ++ Gone)),
    Node = node_name("dead"),
    Before = polydist_node:resources(Us),
    Case = self(),
    _ = spawn_link(fun() -> Case ! timer:tc(fun() -> call(Us, net_kernel, connect_node, [Node]) end) end),
    wait_until(fun() -> under_way(Us, [Node]) end),
    #{connection := none, last := #{outcome := under_way}} = call(Us, polydist, explain, [Node]),
    printable(call(Us, polydist, explain_text, [Node])),
    receive {Time, false} -> ok end,
    ct:comment("failed after ~b ms", [Time div 1000]),
    true = Time < 2500000,
    #{last := #{outcome := failed, attempts := Attempts, reason := {_, _}}} = call(Us, polydist, explain, [Node]),
    ct:log("~p", [Attempts]),
    [econnrefused, econnrefused, timeout, timeout, timeout, timeout] =
        lists:sort([Kind || #{outcome := failed, reason := {Kind, _}} <- Attempts]),
    _ = the_line(Us, Node),
    _ = polydist_node:await_resources(Us, Before).

%%
%% connect/2 and reconnect/2
%%

connect_takes_the_transport_that_it_is_told(Config) ->
    doc("Over each transport by choice, and by none of them what the peer does not have"),
    Target = target(Config),
    Us = start(lab(Config), #{}),
    #{node := B} = Target,
    [begin
        {ok, #{node := B, transport := Transport}} = call(Us, polydist, connect, [B, #{transports => [Transport]}]),
        #{transport := Transport} = polydist_node:connection(Us, Target),
        polydist_node:disconnect(Us, Target)
     end || Transport <- ?TRANSPORTS],
    {ok, #{transport := tcp}} = call(Us, polydist, connect, [B, #{transports => [tcp, tls]}]),
    %% What is connected stays so, whatever is asked for.
    {error, {other_transport, Sentence}} = call(Us, polydist, connect, [B, #{transports => [tls]}]),
    said(Sentence, "reconnect"),
    {ok, #{transport := tcp}} = call(Us, polydist, connect, [B, #{transports => [tcp]}]),
    [begin
        {error, {Kind, Reason}} = call(Us, polydist, connect, Arguments),
        ct:log("~p: ~p ~ts", [Arguments, Kind, Reason]),
        printable(Reason)
     end || Arguments <- [
        ['nobody@localhost', #{transports => [tcp]}], ['anyone@nowhere', #{transports => [tcp]}],
        [nonsense, #{transports => [tcp]}], [B, #{transports => [pigeon]}], [B, #{transports => []}], [B, #{colour => red}],
        [B, nonsense]
    ]],
    #{transport := tcp} = polydist_node:connection(Us, Target).

connect_keeps_to_the_rule(Config) ->
    doc("What the rule does not allow is refused with a reason, and nothing is connected"),
    Us = start(lab(Config), #{policy => rule([tcp6, uds])}),
    #{node := B} = Target = target(Config),
    [begin
        {error, {no_candidate, Sentence}} = call(Us, polydist, connect, [B, #{transports => [Transport]}]),
        said(Sentence, "rule 1")
     end || Transport <- [tcp, tls]],
    none = polydist_node:connection(Us, Target),
    {ok, #{transport := uds}} = call(Us, polydist, connect, [B, #{transports => [tcp, tls, uds]}]),
    {error, {no_candidate, _}} = call(Us, polydist, reconnect, [B, #{transports => [tls]}]),
    #{transport := uds} = polydist_node:connection(Us, Target).

a_choice_ends_with_the_one_who_made_it(Config) ->
    doc("Somebody connects on purpose to what never shakes hands, and is killed: later connections go by the policy of then"),
    Target = target(Config),
    {Us, Epmd} = start_apart(Config, #{force => [tcp]}),
    #{node := B} = Target,
    Silent = server(fun(Socket) -> _ = gen_tcp:recv(Socket, 100000, 20000) end),
    Registered = register(Epmd, name(Target), 1, endpoints(Config, [{tcp, {any4, Silent}}])),
    Before = polydist_node:resources(Us),
    Chooser = run(Us, fun() -> spawn(fun() -> polydist:connect(B, #{transports => [tcp]}) end) end),
    wait_until(fun() -> under_way(Us, [B]) end),
    call(Us, erlang, exit, [Chooser, kill]),
    {error, {Kind, Sentence}} = call(Us, polydist, connect, [B, #{transports => [tcp]}]),
    ct:log("~p ~ts", [Kind, Sentence]),
    wait_until(fun() -> not under_way(Us, [B]) end),
    unregister(Epmd, name(Target), Registered),
    _ = polydist_node:await_resources(Us, Before),
    _ = register(Epmd, name(Target), 1, endpoints(Config, [{Each, {any4, where(Target, Each)}} || Each <- [tcp, tls]])),
    set_policy(Us, rule([tls])),
    #{transport := tls} = connected(Us, Target),
    {ok, #{transport := tls}} = call(Us, polydist, connect, [B, #{transports => [tls]}]).

reconnect_moves_a_connection(Config) ->
    doc("tcp to uds to tls and by the policy again; the gap is returned"),
    Target = target(Config),
    Us = start(lab(Config), #{policy => rule([uds, tls, tcp6, tcp])}),
    #{node := B} = Target,
    {error, {not_connected, _}} = call(Us, polydist, reconnect, [B, #{transports => [tcp]}]),
    {ok, #{transport := tcp}} = call(Us, polydist, connect, [B, #{transports => [tcp]}]),
    [begin
        {ok, #{gap := Gap, from := From, to := To}} = call(Us, polydist, reconnect, [B, Options]),
        ct:log("~p to ~p: ~p us", [From, To, Gap]),
        true = is_integer(Gap) andalso Gap > 0 andalso Gap < 2000000,
        #{transport := To} = polydist_node:connection(Us, Target),
        pong = call(Us, net_adm, ping, [B])
     end || {From, To, Options} <- [
        {tcp, uds, #{transports => [uds]}}, {uds, tls, #{transports => [tls]}}, {tls, uds, #{}},
        {uds, tcp6, #{transports => [tcp6]}}
    ]],
    {error, {_, _}} = call(Us, polydist, reconnect, ['nobody@localhost', #{}]).

reconnect_moves_a_connection_under_traffic(Config) ->
    doc("Five processes call a gen_server without a pause: each call has its answer or ends with the connection, and it goes on"),
    Target = target(Config),
    %% Its answers make the peer connect as well. Of two connections at once the greater name's stays.
    Us = start(lab(Config), #{name => "zmover", policy => rule([uds, tls, tcp6, tcp])}),
    #{node := B} = Target,
    {ok, #{transport := tcp}} = call(Us, polydist, connect, [B, #{transports => [tcp]}]),
    Call = fun() -> keep_calling({adder, B}, 1, #{done => 0, lost => 0}) end,
    Callers = run(Us, fun() -> [spawn(Call) || _ <- lists:seq(1, 5)] end),
    [begin
        {ok, #{gap := Gap, to := Transport}} = call(Us, polydist, reconnect, [B, #{transports => [Transport]}]),
        ct:log("~p: ~p us", [Transport, Gap]),
        #{transport := Transport} = polydist_node:connection(Us, Target),
        more_calls(Us, Callers)
     end || Transport <- [uds, tls, tcp, uds, tls]],
    Results = [ask_caller(Us, Caller, stop) || Caller <- Callers],
    ct:log("~p", [Results]),
    %% Each of the five moves costs a caller a call: the next one waits for the connection.
    [true = Lost =< 10 || #{lost := Lost} <- Results].

reconnect_against_traffic_of_the_peer(Config) ->
    doc("The peer calls as well, and connects by its own policy when it is cut off: moved, or told what came first; all goes on"),
    Options = fun(Name, Transport) -> #{name => Name, args => ["-hidden"], policy => rule([Transport, tls, uds])} end,
    [Us, Them] = polydist_node:start_all(lab(Config), [Options("a", tcp), Options("b", tcp6)]),
    [#{node := A}, #{node := B}] = [Us, Them],
    Started = [begin
        {ok, _} = call(Node, gen_server, start, [{local, adder}, ?MODULE, [], []]),
        Call = fun() -> keep_calling({adder, Peer}, 1, #{done => 0, lost => 0}) end,
        {Node, run(Node, fun() -> [spawn(Call) || _ <- [1, 2]] end)}
     end || {Node, Peer} <- [{Us, B}, {Them, A}]],
    [more_calls(Node, Callers) || {Node, Callers} <- Started],
    [begin
        case call(Us, polydist, reconnect, [B, #{transports => [Transport]}]) of
            {ok, #{to := Transport}} -> #{transport := Transport} = polydist_node:connection(Us, Them);
            {error, {other_transport, Sentence}} ->
                ct:log("~ts", [Sentence]),
                #{direction := in} = polydist_node:connection(Us, Them)
        end,
        [more_calls(Node, Callers) || {Node, Callers} <- Started]
     end || Transport <- [uds, tls, tcp, uds, tls, tcp]],
    ct:log("~p", [[ask_caller(Node, Caller, stop) || {Node, Callers} <- Started, Caller <- Callers]]).

keep_calling(Server, Number, #{done := Done, lost := Lost} = Counts) ->
    receive
        {From, stop} -> From ! {self(), Counts};
        {From, count} ->
            From ! {self(), Counts},
            keep_calling(Server, Number, Counts)
    after 0 ->
        Next = Number + 1,
        try gen_server:call(Server, {add, Number}, 5000) of
            Next -> keep_calling(Server, Next, Counts#{done := Done + 1})
        catch
            exit:{{nodedown, _}, _} ->
                receive after 1 -> keep_calling(Server, Next, Counts#{lost := Lost + 1}) end
        end
    end.

ask_caller(Us, Caller, Question) ->
    run(Us, fun() ->
        Monitor = monitor(process, Caller),
        Caller ! {self(), Question},
        receive
            {Caller, Counts} ->
                demonitor(Monitor, [flush]),
                Counts;
            {'DOWN', Monitor, process, _, Reason} -> error({caller, Reason})
        end
    end).

%% Every caller gets on.
more_calls(Us, Callers) ->
    Done = fun(Caller) -> maps:get(done, ask_caller(Us, Caller, count)) end,
    [begin
        Before = Done(Caller),
        wait_until(fun() -> Done(Caller) > Before + 5 end)
     end || Caller <- Callers].

reconnect_where_it_cannot_leaves_a_connection(Config) ->
    doc("The peer has no uds, or its socket is gone, or its TLS port never answers: connected as before, and told why"),
    Target = target(Config),
    {Us, Epmd} = start_apart(Config, #{policy => rule([tcp, tls, uds, tcp6])}),
    #{directory := Directory} = lab(Config),
    #{node := B} = Target,
    Tcp = {tcp, {any4, where(Target, tcp)}},
    Path = filename:join([Directory, "polydist", "gone"]),
    [begin
        Registered = register(Epmd, name(Target), 1, endpoints(Config, [Tcp | Endpoints])),
        #{transport := tcp, since := Since} = connected(Us, Target),
        {error, {Kind, Sentence}} = call(Us, polydist, reconnect, [B, #{transports => [Transport]}]),
        ct:log("~p ~ts", [Kind, Sentence]),
        printable(Sentence),
        said(Sentence, atom_to_list(Transport)),
        #{transport := tcp, since := Since} = polydist_node:connection(Us, Target),
        pong = call(Us, net_adm, ping, [B]),
        polydist_node:disconnect(Us, Target),
        unregister(Epmd, name(Target), Registered)
     end || {Transport, Endpoints} <- [{uds, []}, {uds, [{uds, {local, Path}}]}, {tls, [{tls, {any4, full_listener()}}]}]],
    %% What is found out only when the old connection has ended: this server of TCP knows nothing of a handshake.
    _ = register(Epmd, name(Target), 1, endpoints(Config, [Tcp, {tcp6, {any6, http6()}}])),
    #{transport := tcp} = connected(Us, Target),
    {error, {_, Lost}} = call(Us, polydist, reconnect, [B, #{transports => [tcp6]}]),
    said(Lost, "it is connected again over tcp"),
    #{transport := tcp} = polydist_node:connection(Us, Target),
    pong = call(Us, net_adm, ping, [B]).

http6() ->
    {ok, Listen} = gen_tcp:listen(0, [binary, inet6, {ip, ?LOOPBACK6}, {active, false}]),
    serve(Listen, fun answer_http/1).

%%
%% Registrations that lie
%%

%% With a good address after the lie, the node is connected by that one. Nothing of polydist crashes.
lies(Config, Lies) ->
    Target = target(Config),
    {Us, Epmd} = start_apart(Config, #{policy => rule([uds, tls, tcp6, tcp])}),
    Children = children(Us),
    #{node := B} = Target,
    [begin
        Registered = register(Epmd, name(Target), Port, Extra),
        Result = call(Us, net_kernel, connect_node, [B]),
        #{last := Last} = call(Us, polydist, explain, [B]),
        ct:log("~0p~n~p: ~p", [Lie, Result, Last]),
        printable(call(Us, polydist, explain_text, [B])),
        Check(Result, Last),
        [true = call(Us, net_kernel, connect_node, [B]) || Check =:= fun costs_one/2],
        polydist_node:disconnect(Us, Target),
        unregister(Epmd, name(Target), Registered)
     end || {Lie, Port, Extra, Check} <- Lies],
    _ = register(Epmd, name(Target), 1, endpoints(Config, [{tcp, {any4, where(Target, tcp)}}])),
    #{transport := tcp} = connected(Us, Target),
    Children = children(Us),
    Console = polydist_node:console(Us),
    [nomatch = string:find(Console, Crash) || Crash <- ["CRASH", "crasher", "Error in process", "SUPERVISOR", "exception"]].

children(Us) -> lists:sort(call(Us, supervisor, which_children, [polydist_sup])).

%% The good address is the only one that is tried.
only_good(true, #{outcome := connected, attempts := [#{transport := tcp, outcome := connected}]}) -> ok.

good_at_last(true, #{outcome := connected, attempts := Attempts}) ->
    #{transport := tcp, address := {?LOOPBACK, _}, outcome := connected} = lists:last(Attempts).

%% What takes the connection and is not the node costs a connect, and goes last from then on.
costs_one(false, #{outcome := failed, attempts := Attempts}) ->
    #{outcome := connected, transport := Transport} = lists:last(Attempts),
    ct:log("~p", [Transport]).

addresses_that_nobody_has_are_not_dialled(Config) ->
    doc("Port 0, no address, multicast, link-local, mapped, others' loopbacks, sockets out of place: never tried"),
    Target = target(Config),
    #{directory := Directory} = lab(Config),
    Port = where(Target, tcp),
    Ips4 = [{0, 0, 0, 0}, {224, 0, 0, 1}, {239, 255, 255, 255}, {255, 255, 255, 255}, {8, 8, 8, 8}],
    Ips6 = [
        {0, 0, 0, 0, 0, 0, 0, 0}, {16#ff02, 0, 0, 0, 0, 0, 0, 1}, {16#fe80, 0, 0, 0, 0, 0, 0, 1},
        {0, 0, 0, 0, 0, 16#ffff, 16#7f00, 1}
    ],
    Ours = filename:join(Directory, "polydist"),
    Paths = [
        "/etc/passwd", "/dev/null", "/", "relative", "./polydist/x", filename:join(Directory, "x"), Ours, Ours ++ "x/y",
        Ours ++ "/../x", Ours ++ "/./../x", "\xff\xfe"
    ],
    Untried =
        [{tcp, {any4, 0}}, {tls, {any6, 0}}, {tcp, {?LOOPBACK, 0}}] ++
        [{Transport, {Ip, Port}} || Transport <- [tcp, tls], Ip <- Ips4] ++
        [{Transport, {Ip, Port}} || Transport <- [tcp6, tls], Ip <- Ips6] ++
        [{uds, {local, Path}} || Path <- Paths],
    %% These are found out when they are tried.
    Tried = [
        {tcp6, {?LOOPBACK, Port}}, {tcp, {?LOOPBACK6, Port}}, {uds, {any4, Port}}, {tcp, {local, Ours ++ "/x"}},
        {uds, {local, Ours ++ "/" ++ lists:duplicate(106 - length(Ours), $x)}}
    ],
    Good = {tcp, {?LOOPBACK, Port}},
    Many = lists:sublist(Untried, 31),
    %% Of another host, by its own account.
    Foreign = fun(Lie) -> record([entry(1, <<"another host....">>), entry(3, <<"another machine.">>), endpoint(Lie)]) end,
    NoWay = fun(false, #{reason := {no_candidate, _}, attempts := []}) -> ok end,
    lies(Config,
        [{Lie, 1, endpoints(Config, [Lie, Good]), fun only_good/2} || Lie <- Untried] ++
        [{Lie, 1, endpoints(Config, [Lie, Good]), fun good_at_last/2} || Lie <- Tried] ++
        [{Many, 1, endpoints(Config, Many ++ [Good]), fun only_good/2}] ++
        [{Lie, 1, Foreign(Lie), NoWay} || Lie <- [Good, {uds, {local, where(Target, uds)}}]]).

records_that_are_none_are_stock_ports(Config) ->
    doc("Cut, endless, absurd and crowded records: the registered port is all there is, and is dialled as a stock node's"),
    Target = target(Config),
    Port = where(Target, tcp),
    Good = endpoints(Config, [{tcp, {any4, Port}}, {uds, {local, where(Target, uds)}}]),
    Cut = [binary:part(Good, 0, Size) || Size <- [4, 5, 6, 8, byte_size(Good) - 1]],
    Path = entry(2, <<3, "uds", 0, 5, (binary:copy(<<"/x">>, 100))/binary>>),
    Extras = Cut ++ [
        <<"PLYD", (binary:copy(<<255>>, 1020 - 4))/binary>>, <<"PLYD", 1, (polydist_traffic:payload(1015))/binary>>,
        <<"PLYD", 1, 2, 255, 255>>, <<"PLYD", 99>>, <<"XLYD", 1>>, binary:copy(<<0>>, 1020),
        record([Path]), record([endpoint({tcp, {any4, Port}}), Path]), record([entry(1, <<"short">>)]),
        record([entry(2, <<3, "uds", 0, 5, "/tmp/a", 0, "b">>)]), endpoints(Config, [{tcp, {any4, N}} || N <- lists:seq(1, 33)]),
        record([entry(2, <<>>)]), record([entry(2, <<9, "tcp">>)])
    ],
    Check = fun
        (true, #{outcome := connected, attempts := [#{transport := Transport}]}) when Transport =/= tls, Transport =/= uds -> ok;
        (false, #{outcome := failed, attempts := []}) -> ok
    end,
    lies(Config, [{Extra, Port, Extra, Check} || Extra <- Extras]).

a_socket_of_somebody_else_costs_one_attempt(Config) ->
    doc("The path is another node's, or another program's, in the very directory: that connect fails, and no more"),
    #{directory := Directory} = lab(Config),
    Path = filename:join([Directory, "polydist", "nobody"]),
    {ok, Silent} = gen_tcp:listen(0, [{ifaddr, {local, Path}}]),
    File = filename:join([Directory, "polydist", "file"]),
    ok = file:write_file(File, "no socket\n"),
    Good = {tcp, {any4, where(target(Config), tcp)}},
    lies(Config, [{Place, 1, endpoints(Config, [{uds, {local, Place}}, Good]), Check} || {Place, Check} <- [
        {where(other(Config), uds), fun costs_one/2}, {Path, fun costs_one/2}, {File, fun good_at_last/2}
    ]]),
    gen_tcp:close(Silent).

a_server_of_something_else_costs_one_attempt(Config) ->
    doc("An HTTP server where TLS should be: the next address; where TCP should be, or another node: that connect, and no more"),
    Http = server(fun answer_http/1),
    Good = {tcp, {any4, where(target(Config), tcp)}},
    lies(Config, [{Lie, 1, endpoints(Config, [Lie, Good]), Check} || {Lie, Check} <- [
        {{tls, {any4, Http}}, fun good_at_last/2}, {{tls, {any4, where(other(Config), tcp)}}, fun good_at_last/2},
        {{tcp, {any4, Http}}, fun costs_one/2}, {{tcp, {any4, where(other(Config), tcp)}}, fun costs_one/2},
        {{tls, {any4, where(other(Config), tls)}}, fun costs_one/2}
    ]]).

%%
%% net_kernel
%%

net_kernel_waits_for_nobody(Config) ->
    doc("Twenty connects to hosts that do not answer and names that no name server knows: others are served at once meanwhile"),
    #{directory := Directory, inetrc := Inetrc, epmd := #{port := EpmdPort}} = Lab = lab(Config),
    %% A server that takes the question and is silent.
    {ok, Dns} = gen_udp:open(0, [{ip, {127, 0, 0, 9}}, {active, true}]),
    {ok, DnsPort} = inet:port(Dns),
    {ok, Known} = file:read_file(Inetrc),
    Slow = filename:join(Directory, "inetrc_dns"),
    Asks = [{nameserver, {127, 0, 0, 9}, DnsPort}, {lookup, [file, dns]}],
    ok = file:write_file(Slow, [Known | [io_lib:format("~p.~n", [Each]) || Each <- Asks]]),
    [EpmdPort = full_listener(dead(N), EpmdPort) || N <- lists:seq(1, 10)],
    Args = ["-hidden", "-kernel", "net_setuptime", "4"],
    Us = polydist_node:start(Lab#{inetrc := Slow}, #{args => Args, policy => rule([tls, tcp])}),
    [#{node := A}, #{node := B}] = [target(Config), other(Config)],
    #{transport := tls} = connected(Us, target(Config)),
    %% What blocks net_kernel does so each time, a busy machine now and then: so up to three times.
    {Dead, Dialler} = served_meanwhile(Us, A, 3),
    %% net_kernel has them all under way before the first of them asks.
    receive {udp, Dns, _, _, _} -> ok after 3000 -> error(no_question) end,
    {Time, true} = timer:tc(fun() -> call(Us, net_kernel, connect_node, [B]) end),
    ct:log("connected after ~b us", [Time]),
    true = Time < 1000000,
    true = under_way(Us, Dead),
    Results = run(Us, fun() -> Dialler ! {self(), results}, receive {Dialler, Results} -> Results end end),
    [false] = lists:usort(Results),
    Lasts = run(Us, fun() -> [polydist_attempts:last(Node) || Node <- Dead] end),
    [timeout] = lists:usort([Kind || #{outcome := failed, reason := {Kind, _}} <- Lasts]),
    20 = length(Lasts).

%% All of them, as net_kernel sees it.
under_way(Us, Nodes) ->
    Pending = run(Us, fun() ->
        [element(2, Each) || Each <- ets:tab2list(sys_dist), element(1, Each) =:= connection,
                             lists:member(pending, tuple_to_list(Each))]
    end),
    Nodes -- Pending =:= [].

%% Pings from before the first of the connects until all are under way, a hundred at least.
served_meanwhile(Us, Peer, Times) ->
    Dead = [list_to_atom(lists:concat(["x", Times, "@", Host, N])) || Host <- ["dead", "unheard"], N <- lists:seq(1, 10)],
    Pinger = run(Us, fun() -> spawn(fun() -> ping_on(Peer, []) end) end),
    Dialler = run(Us, fun() ->
        spawn(fun() ->
            Results = polydist_ct:parallel([fun() -> net_kernel:connect_node(Node) end || Node <- Dead]),
            receive {From, results} -> From ! {self(), Results} end
        end)
    end),
    wait_until(fun() -> under_way(Us, Dead) end),
    Pings = run(Us, fun() -> Pinger ! {self(), stop}, receive {Pinger, Pings} -> Pings end end),
    Most = lists:max(Pings),
    ct:comment("~b pings took ~b us at most", [length(Pings), Most]),
    case Most < 50000 of
        true -> {Dead, Dialler};
        false when Times > 1 -> served_meanwhile(Us, Peer, Times - 1)
    end.

%% Each takes both net_kernels.
ping_on(Peer, Pings) ->
    receive
        {From, stop} when length(Pings) >= 100 -> From ! {self(), Pings}
    after 0 ->
        {Time, pong} = timer:tc(fun() -> _ = net_kernel:get_net_ticktime(), net_adm:ping(Peer) end),
        ping_on(Peer, [Time | Pings])
    end.
