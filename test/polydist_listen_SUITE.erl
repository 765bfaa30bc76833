%%% Listening: four sockets at once, what stands in the way of one of them, starting and stopping at run time, and what
%%% strangers may do to a port.
-module(polydist_listen_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, listeners}, {group, faults}, {group, life}, {group, trust}, {group, strangers}].

groups() ->
    [
        {listeners, [], [
            four_listeners_come_up_and_all_are_registered,
            a_node_without_one_carrier_registers_the_others,
            ports_keep_to_inet_dist_listen_min_and_max,
            the_tcp6_listener_takes_the_tcp_listeners_port,
            inet_dist_use_interface_names_the_address,
            ports_and_addresses_can_be_configured,
            an_unknown_listen_option_is_a_warning,
            the_socket_and_its_directory_are_the_owners_alone,
            accepted_connections_are_counted
        ]},
        {faults, [], [
            a_taken_port_fails_one_carrier,
            a_bad_certificate_fails_one_carrier,
            a_missing_option_file_fails_one_carrier,
            no_tls_options_at_all_fail_one_carrier,
            an_unsupported_tls_option_fails_one_carrier_by_its_name,
            an_unsafe_socket_directory_fails_one_carrier,
            a_symbolic_link_as_socket_directory_fails_one_carrier,
            a_path_too_long_for_a_socket_fails_one_carrier,
            a_live_socket_is_not_stolen,
            a_node_none_of_whose_carriers_can_listen_does_not_boot
        ]},
        {life, [], [
            a_killed_nodes_name_and_socket_are_free_at_once,
            distribution_starts_and_stops_at_run_time,
            a_node_that_does_not_listen_dials,
            a_dynamic_name_is_given_by_the_first_peer,
            a_hidden_node_stays_hidden,
            our_processes_may_crash,
            twelve_nodes_of_all_kinds_form_a_mesh
        ]},
        {trust, [], [
            a_wrong_cookie_is_refused,
            a_certificate_of_another_authority_is_refused,
            a_peer_without_a_certificate_is_refused,
            a_certificate_for_another_host_is_refused,
            tls_1_2_will_do_where_it_is_allowed,
            peers_without_a_common_tls_version_do_not_connect
        ]},
        {strangers, [], [
            strangers_on_any_port_are_gone_after_net_setuptime,
            a_peer_that_turns_bad_is_cut_off,
            a_frame_only_announced_costs_no_memory,
            an_endless_frame_costs_no_memory,
            many_silent_strangers_do_not_keep_a_peer_out
        ]}
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

listeners(Node) -> call(Node, polydist, listeners, []).

listener(Node, Transport) ->
    [Listener] = [Each || #{transport := Each_} = Each <- listeners(Node), Each_ =:= Transport],
    Listener.

%% A listener has one address, or a list where it has one in each family.
addresses(#{address := Addresses}) when is_list(Addresses) -> Addresses;
addresses(#{address := Address}) -> [Address].

address(Node, Transport) -> hd(addresses(listener(Node, Transport))).

all_addresses(Node) -> lists:append([addresses(Listener) || Listener <- listeners(Node)]).

%% One address is dialled and no second one beside it, however busy this machine is.
patient(Transports) -> [{any, #{transports => Transports, stagger => 5000}}].

name(#{node := Node}) -> hd(string:split(atom_to_list(Node), "@")).

%%
%% Listeners
%%

four_listeners_come_up_and_all_are_registered(Config) ->
    doc("Four listeners, one registration: epmd's record names them all, PortNo is the tcp port, each accepts"),
    #{epmd := Epmd} = Lab = lab(Config),
    Node = polydist_node:start(Lab),
    [tcp, tcp6, tls, uds] = lists:sort([Transport || #{transport := Transport, state := listening} <- listeners(Node)]),
    #{port := Port, type := 77, protocol := 0, high := 6, extra := Extra} = polydist_ct:epmd_lookup(Epmd, name(Node)),
    {_, Port} = address(Node, tcp),
    {ok, #{host := <<_:16/binary>>, endpoints := Endpoints}} = call(Node, polydist_native, record_decode, [Extra]),
    [tcp, tcp6, tls, uds] = lists:usort([binary_to_atom(Transport) || #{transport := Transport} <- Endpoints]),
    [{uds, {local, Path}}] = [{uds, Where} || #{transport := <<"uds">>, address := Where} <- Endpoints],
    {local, Path} = address(Node, uds),
    [begin {ok, Socket} = connect(Address), ok = gen_tcp:close(Socket) end || Address <- all_addresses(Node)].

a_node_without_one_carrier_registers_the_others(Config) ->
    doc("Only tls and uds: the record has two transports"),
    #{epmd := Epmd} = Lab = lab(Config),
    Node = polydist_node:start(Lab, #{carriers => [tls, uds]}),
    #{extra := Extra, port := Port} = polydist_ct:epmd_lookup(Epmd, name(Node)),
    {ok, #{endpoints := Endpoints}} = call(Node, polydist_native, record_decode, [Extra]),
    [<<"tls">>, <<"uds">>] = lists:usort([Transport || #{transport := Transport} <- Endpoints]),
    {_, Port} = address(Node, tls).

ports_keep_to_inet_dist_listen_min_and_max(Config) ->
    doc("Two nodes in a range of ports; each of tcp, tcp6 and tls finds its own in it"),
    Low = polydist_ct:free_port(),
    High = Low + 9,
    Args = ["-kernel", "inet_dist_listen_min", integer_to_list(Low), "inet_dist_listen_max", integer_to_list(High)],
    Nodes = [polydist_node:start(lab(Config), #{args => Args}) || _ <- [1, 2]],
    [begin
        {_, Port} = address(Node, Transport),
        true = Port >= Low andalso Port =< High
     end || Node <- Nodes, Transport <- [tcp, tcp6, tls]].

the_tcp6_listener_takes_the_tcp_listeners_port(Config) ->
    doc("A stock inet6_tcp peer dials the one port that is registered, so tcp6 listens on it too"),
    Node = polydist_node:start(lab(Config), #{carriers => [tcp6, tcp]}),
    {_, Port} = address(Node, tcp),
    {_, Port} = address(Node, tcp6).

inet_dist_use_interface_names_the_address(Config) ->
    doc("tcp listens on the address that stock would; a loopback address keeps the other family on its loopback too"),
    Node = polydist_node:start(lab(Config), #{args => ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]}),
    {{127, 0, 0, 1}, _} = address(Node, tcp),
    Loopbacks = [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}],
    [] = [Ip || Transport <- [tcp, tcp6, tls], {Ip, _} <- addresses(listener(Node, Transport)), not lists:member(Ip, Loopbacks)].

ports_and_addresses_can_be_configured(Config) ->
    doc("The key listen: an address and a port for tcp, a range for tls, a directory for uds"),
    #{directory := Directory} = Lab = lab(Config),
    Port = polydist_ct:free_port(),
    Sockets = filename:join(Directory, "sockets"),
    Node = polydist_node:start(Lab, #{config => #{listen => #{
        tcp => #{ip => {127, 0, 0, 1}, port => Port},
        tls => #{ports => {Port + 1, Port + 20}},
        uds => #{dir => Sockets}
    }}}),
    {{127, 0, 0, 1}, Port} = address(Node, tcp),
    {_, TlsPort} = address(Node, tls),
    true = TlsPort > Port andalso TlsPort =< Port + 20,
    {local, Path} = address(Node, uds),
    Sockets = filename:dirname(binary_to_list(Path)).

an_unknown_listen_option_is_a_warning(Config) ->
    doc("What inet_dist_listen_options has that we cannot use is named, and the node boots"),
    Args = ["-kernel", "inet_dist_listen_options", "[{delay_send,true},{nodelay,true}]"],
    Node = polydist_node:start(lab(Config), #{args => Args}),
    _ = polydist_node:await_console(Node, "delay_send"),
    listening = maps:get(state, listener(Node, tcp)).

the_socket_and_its_directory_are_the_owners_alone(Config) ->
    doc("The directory is made with mode 0700, the socket with 0600"),
    Node = polydist_node:start(lab(Config)),
    {local, Path} = address(Node, uds),
    8#600 = mode(Path),
    8#700 = mode(filename:dirname(Path)).

mode(Path) ->
    {ok, Info} = file:read_file_info(Path),
    element(8, Info) band 8#777.

accepted_connections_are_counted(Config) ->
    doc("listeners/0 counts the connections that each socket accepted"),
    [Us, Them] = polydist_node:start_all(lab(Config), [#{}, #{policy => patient([tls])}]),
    #{accepted := 0} = listener(Us, tls),
    polydist_node:connect(Them, Us),
    #{accepted := 1} = listener(Us, tls),
    #{accepted := 0} = listener(Us, tcp).

%%
%% One carrier that cannot listen
%%

a_taken_port_fails_one_carrier(Config) ->
    doc("The port that tcp must have belongs to somebody"),
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    Reason = reason_of_failure(Config, tcp, #{config => #{listen => #{tcp => #{port => Port}}}}),
    contains(Reason, integer_to_list(Port)),
    gen_tcp:close(Socket).

a_bad_certificate_fails_one_carrier(Config) ->
    doc("The file named certfile holds no certificate"),
    #{directory := Directory, certificates := Certificates} = lab(Config),
    Bad = filename:join(Directory, "bad.pem"),
    ok = file:write_file(Bad, "this is not a certificate\n"),
    Options = lists:keyreplace(certfile, 1, polydist_ct:tls_options(Certificates), {certfile, Bad}),
    contains(reason_of_tls_failure(Config, Options), "bad.pem").

a_missing_option_file_fails_one_carrier(Config) ->
    doc("-ssl_dist_optfile names a file that is not there"),
    contains(reason_of_failure(Config, tls, #{optfile => "/nowhere/dist_tls.conf"}), "/nowhere/dist_tls.conf").

no_tls_options_at_all_fail_one_carrier(Config) ->
    doc("tls without a word on certificates says how to name them"),
    contains(reason_of_failure(Config, tls, #{optfile => false}), "ssl_dist_optfile").

an_unsupported_tls_option_fails_one_carrier_by_its_name(Config) ->
    doc("An option that would be ignored is worse than none"),
    #{certificates := Certificates} = lab(Config),
    Options = [{psk_identity, "someone"} | polydist_ct:tls_options(Certificates)],
    contains(reason_of_tls_failure(Config, Options), "psk_identity").

an_unsafe_socket_directory_fails_one_carrier(Config) ->
    doc("Others may write to the directory"),
    #{directory := Directory} = lab(Config),
    Unsafe = filename:join(Directory, "unsafe"),
    ok = file:make_dir(Unsafe),
    ok = file:change_mode(Unsafe, 8#777),
    contains(reason_of_failure(Config, uds, uds_directory(Unsafe)), Unsafe).

a_symbolic_link_as_socket_directory_fails_one_carrier(Config) ->
    doc("Somebody could turn it elsewhere"),
    #{directory := Directory} = lab(Config),
    Link = filename:join(Directory, "link"),
    ok = file:make_symlink(Directory, Link),
    contains(reason_of_failure(Config, uds, uds_directory(Link)), Link).

a_path_too_long_for_a_socket_fails_one_carrier(Config) ->
    doc("107 bytes are all the kernel takes"),
    #{directory := Directory} = lab(Config),
    Long = filename:join(Directory, lists:duplicate(110, $x)),
    contains(reason_of_failure(Config, uds, uds_directory(Long)), "107").

a_live_socket_is_not_stolen(Config) ->
    doc("Another process listens on the path: it keeps it, and still answers"),
    Lab = lab(Config),
    Name = {exactly, polydist_ct:unique("live")},
    First = polydist_node:start(Lab, #{name => Name}),
    {local, Path} = address(First, uds),
    polydist_node:stop(First),
    wait_until(fun() -> polydist_ct:epmd_lookup(maps:get(epmd, Lab), element(2, Name)) =:= not_found end),
    _ = file:delete(Path),
    {ok, Socket} = gen_tcp:listen(0, [{ifaddr, {local, Path}}]),
    contains(reason_of_failure(Config, uds, #{name => Name}), Path),
    {ok, _} = connect({local, Path}),
    {ok, _} = gen_tcp:accept(Socket, 1000).

a_node_none_of_whose_carriers_can_listen_does_not_boot(Config) ->
    doc("As with a stock carrier: the node ends, and says why"),
    {error, _, Printed} = polydist_node:boot(lab(Config), #{carriers => [tls], optfile => "/nowhere/dist_tls.conf"}),
    contains(Printed, "/nowhere/dist_tls.conf").

uds_directory(Directory) -> #{config => #{listen => #{uds => #{dir => Directory}}}}.

reason_of_tls_failure(Config, Options) ->
    #{directory := Directory} = lab(Config),
    File = filename:join(Directory, polydist_ct:unique("dist_tls")),
    ok = polydist_ct:write_tls_options(File, Options),
    reason_of_failure(Config, tls, #{optfile => File}).

%% The node boots, one listener has failed and says so on the console too, the others work.
reason_of_failure(Config, Transport, Options) ->
    Node = polydist_node:start(lab(Config), Options),
    #{state := failed, reason := Reason} = listener(Node, Transport),
    ct:log("~ts", [Reason]),
    Others = [tcp, tcp6, tls, uds] -- [Transport],
    Others = lists:sort([Each || #{transport := Each, state := listening} <- listeners(Node)]),
    #{node := Name} = Node,
    [begin
        Peer = polydist_node:start(lab(Config), #{force => [Other]}),
        pong = call(Peer, net_adm, ping, [Name]),
        polydist_node:stop(Peer)
     end || Other <- [lists:last(Others)]],
    _ = polydist_node:await_console(Node, io_lib:format("~p", [Transport])),
    Reason.

contains(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_said, Part, Text});
        _ -> ok
    end.

%%
%% Starting, stopping, names
%%

a_killed_nodes_name_and_socket_are_free_at_once(Config) ->
    doc("kill -9 leaves a socket file behind; the next node of that name replaces it, ten times"),
    Lab = lab(Config),
    Name = {exactly, polydist_ct:unique("again")},
    Paths = [begin
        Node = polydist_node:start(Lab, #{name => Name}),
        4 = length([listening || #{state := listening} <- listeners(Node)]),
        {local, Path} = address(Node, uds),
        polydist_node:stop(Node),
        {ok, _} = file:read_link_info(Path),
        Path
    end || _ <- lists:seq(1, 10)],
    [_] = lists:usort(Paths).

distribution_starts_and_stops_at_run_time(Config) ->
    doc("net_kernel:start/2 and stop/0: all is up, all is gone, and nothing is left over, twenty times"),
    Lab = lab(Config),
    [#{node := B} = Them, Us] = polydist_node:start_all(Lab, [#{}, #{name => none}]),
    Name = list_to_atom(polydist_ct:unique("later") ++ "@localhost"),
    start_and_stop(Lab, Us, Name, B),
    start_and_stop(Lab, Us, Name, B),
    {Ours, Theirs} = {polydist_node:resources(Us), polydist_node:resources(Them)},
    [start_and_stop(Lab, Us, Name, B) || _ <- lists:seq(1, 18)],
    _ = polydist_node:await_resources(Us, Ours),
    _ = polydist_node:await_resources(Them, Theirs).

start_and_stop(#{epmd := Epmd}, Us, Name, Peer) ->
    {ok, _} = call(Us, net_kernel, start, [Name, #{name_domain => shortnames}]),
    true = erlang:node(call(Us, erlang, self, [])) =/= nonode@nohost,
    4 = length([listening || #{state := listening} <- listeners(Us)]),
    Addresses = all_addresses(Us),
    pong = call(Us, net_adm, ping, [Peer]),
    ok = call(Us, net_kernel, stop, []),
    [{error, _} = connect(Address) || Address <- Addresses],
    [{error, enoent} = file:read_link_info(Path) || {local, Path} <- Addresses],
    [] = [Listener || #{state := listening} = Listener <- listeners(Us)],
    wait_until(fun() -> polydist_ct:epmd_lookup(Epmd, hd(string:split(atom_to_list(Name), "@"))) =:= not_found end).

a_node_that_does_not_listen_dials(Config) ->
    doc("-dist_listen false: no listener, no registration, but every transport to dial by"),
    #{epmd := Epmd} = Lab = lab(Config),
    Options = #{args => ["-dist_listen", "false"]},
    Silent = polydist_node:start_all(Lab, [Options#{force => [Transport]} || Transport <- [tcp, tcp6, tls, uds]]),
    #{node := B} = Them = polydist_node:start(Lab),
    [begin
        not_found = polydist_ct:epmd_lookup(Epmd, name(Node)),
        [] = [Listener || #{state := listening} = Listener <- listeners(Node)],
        pong = call(Node, net_adm, ping, [B]),
        A = maps:get(node, Node),
        wait_until(fun() -> call(Them, erlang, nodes, [hidden]) =:= [A] end),
        polydist_node:disconnect(Node, Them)
     end || Node <- Silent].

a_dynamic_name_is_given_by_the_first_peer(Config) ->
    doc("-sname undefined: nameless until it dials, named by the peer, nameless again when that one ends"),
    [Us, #{node := B} = Them, #{node := C}] = polydist_node:start_all(lab(Config), [#{name => dynamic}, #{}, #{}]),
    nonode@nohost = call(Us, erlang, node, []),
    true = call(Us, net_kernel, connect_node, [B]),
    Name = call(Us, erlang, node, []),
    true = Name =/= nonode@nohost,
    wait_until(fun() -> lists:member(Name, call(Them, erlang, nodes, [connected])) end),
    polydist_node:stop(Them),
    wait_until(fun() -> call(Us, erlang, node, []) =:= nonode@nohost end),
    wait_until(fun() -> call(Us, net_kernel, connect_node, [C]) =:= true end),
    true = call(Us, erlang, node, []) =/= nonode@nohost.

a_hidden_node_stays_hidden(Config) ->
    doc("-hidden: in nodes(hidden) only; in epmd it is like any other, as erl_epmd has it"),
    #{epmd := Epmd} = Lab = lab(Config),
    [#{node := A} = Hidden, #{node := B} = Them] = polydist_node:start_all(Lab, [#{args => ["-hidden"]}, #{}]),
    #{type := 77} = polydist_ct:epmd_lookup(Epmd, name(Hidden)),
    polydist_node:connect(Them, Hidden),
    [] = call(Them, erlang, nodes, []),
    [A] = call(Them, erlang, nodes, [hidden]),
    [B] = call(Hidden, erlang, nodes, [hidden]).

our_processes_may_crash(Config) ->
    doc("Each of our processes is killed: listeners, connections and the registration are there as before"),
    #{epmd := Epmd} = Lab = lab(Config),
    [#{node := A} = Us, #{node := B} = Them] = polydist_node:start_all(Lab, [#{force => [tls]}, #{}]),
    polydist_node:connect(Us, Them),
    Listeners = addressed(Us),
    Connections = lasting(Us),
    Sup = call(Us, erlang, whereis, [polydist_sup]),
    Ours = [Pid || {_, Pid, _, _} <- call(Us, supervisor, which_children, [Sup]), is_pid(Pid)],
    true = length(Ours) > 1,
    [begin
        call(Us, erlang, exit, [Pid, kill]),
        wait_until(fun() -> Now = which_pids(Us, Sup), not lists:member(Pid, Now) andalso length(Now) =:= length(Ours) end)
     end || Pid <- Ours],
    Sup = call(Us, erlang, whereis, [polydist_sup]),
    Listeners = addressed(Us),
    Connections = lasting(Us),
    pong = call(Us, net_adm, ping, [B]),
    wait_until(fun() -> polydist_ct:epmd_lookup(Epmd, name(Us)) =/= not_found end),
    [pong = call(polydist_node:start(Lab, #{force => [Transport]}), net_adm, ping, [A]) || Transport <- [tcp, uds]].

which_pids(Node, Sup) ->
    [Pid || {_, Pid, _, _} <- call(Node, supervisor, which_children, [Sup]), is_pid(Pid)].

%% What does not change while messages and ticks pass.
lasting(Node) ->
    Keys = [node, transport, direction, since, peer, local, tls, rule, ticktime, handshake_time],
    [maps:with(Keys, Each) || Each <- call(Node, polydist, connections, [])].

addressed(Node) -> [{Transport, addresses(Listener)} || #{transport := Transport} = Listener <- listeners(Node)].

twelve_nodes_of_all_kinds_form_a_mesh(Config) ->
    doc("Nodes with other carriers and policies, and stock ones, all see each other"),
    Kinds = [
        #{}, #{force => [tcp]}, #{force => [tcp6, tcp]}, #{carriers => [tcp]}, #{carriers => [tcp, uds]},
        #{proto_dist => "inet_tcp"}
    ],
    [First | _] = Nodes = polydist_node:start_all(lab(Config), Kinds ++ Kinds),
    Names = lists:sort([Name || #{node := Name} <- Nodes]),
    [pong = call(First, net_adm, ping, [Name]) || Name <- Names],
    [wait_until(fun() -> lists:sort([Self | call(Node, erlang, nodes, [])]) =:= Names end) || #{node := Self} = Node <- Nodes].

%%
%% Trust
%%

a_certificate_of_another_authority_is_refused(Config) ->
    doc("Both ways: neither is the stranger let in, nor do we go on with it"),
    #{directory := Directory, certificates := Certificates} = lab(Config),
    OtherCertificates = filename:join(Directory, "other_authority"),
    ok = polydist_ct:write_certificates(OtherCertificates, ["localhost"]),
    [Ours, Others] = [polydist_ct:tls_options(Each) || Each <- [Certificates, OtherCertificates]],
    [#{node := A} = Us, #{node := B} = Them] = tls_nodes(Config, [{Ours, Ours}, {Others, Others}]),
    pang = call(Us, net_adm, ping, [B]),
    pang = call(Them, net_adm, ping, [A]),
    [[], []] = [call(Each, polydist, connections, []) || Each <- [Us, Them]].

a_peer_without_a_certificate_is_refused(Config) ->
    doc("Mutual authentication is the default"),
    #{certificates := Certificates} = lab(Config),
    Options = polydist_ct:tls_options(Certificates),
    Client = [Option || {Key, _} = Option <- Options, Key =:= cacertfile orelse Key =:= verify],
    [Us, #{node := B} = Them] = tls_nodes(Config, [{Options, Client}, {Options, Options}]),
    pang = call(Us, net_adm, ping, [B]),
    [] = call(Them, polydist, connections, []).

a_certificate_for_another_host_is_refused(Config) ->
    doc("The peer's authority is ours but its certificate names another host than the node's name does"),
    #{directory := Directory} = lab(Config),
    Elsewhere = filename:join(Directory, "elsewhere"),
    ok = polydist_ct:write_certificates(Elsewhere, ["elsewhere.example"]),
    Options = polydist_ct:tls_options(Elsewhere),
    [Us, #{node := B}] = tls_nodes(Config, [{Options, Options}, {Options, Options}]),
    pang = call(Us, net_adm, ping, [B]).

tls_1_2_will_do_where_it_is_allowed(Config) ->
    doc("versions of one peer is TLS 1.2 alone"),
    #{certificates := Certificates} = lab(Config),
    Options = polydist_ct:tls_options(Certificates),
    Old = [{versions, ['tlsv1.2']} | Options],
    [Us, Them, Both] = tls_nodes(Config, [{Old, Old}, {Old, Old}, {Options, Options}]),
    [begin
        polydist_node:connect(From, To),
        #{tls := #{version := 'tlsv1.2', cipher := Cipher}} = polydist_node:connection(From, To),
        ct:log("~ts", [Cipher])
     end || {From, To} <- [{Us, Them}, {Us, Both}, {Both, Them}]],
    polydist_node:run(Them, fun() -> polydist_traffic:start_echo(echo) end),
    #{node := B} = Them,
    polydist_node:run(Us, fun() -> ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(5000000)) end).

peers_without_a_common_tls_version_do_not_connect(Config) ->
    doc("TLS 1.2 alone here, 1.3 alone there: pang, and both live on"),
    #{certificates := Certificates} = lab(Config),
    Options = polydist_ct:tls_options(Certificates),
    [Old, New] = [[{versions, [Version]} | Options] || Version <- ['tlsv1.2', 'tlsv1.3']],
    [#{node := A} = Us, #{node := B} = Them] = tls_nodes(Config, [{Old, Old}, {New, New}]),
    pang = call(Us, net_adm, ping, [B]),
    pang = call(Them, net_adm, ping, [A]).

%% A node for each pair of a server's and a client's options.
tls_nodes(Config, Roles) ->
    polydist_node:start_all(lab(Config), [tls_node(Config, Server, Client) || {Server, Client} <- Roles]).

tls_node(Config, Server, Client) ->
    #{directory := Directory} = lab(Config),
    File = filename:join(Directory, polydist_ct:unique("dist_tls")),
    ok = file:write_file(File, io_lib:format("~p.~n", [[{server, Server}, {client, Client}]])),
    #{force => [tls], optfile => File}.

a_wrong_cookie_is_refused(Config) ->
    doc("Over every transport: pang, and the connection is gone on both sides"),
    Lab = lab(Config),
    #{node := B} = Them = polydist_node:start(Lab),
    Strangers = polydist_node:start_all(Lab, [#{policy => patient([Each]), cookie => "wrong"} || Each <- [tcp, tcp6, tls, uds]]),
    [begin
        pang = call(Stranger, net_adm, ping, [B]),
        [] = call(Stranger, polydist, connections, [])
     end || Stranger <- Strangers],
    wait_until(fun() -> call(Them, erlang, nodes, [connected]) =:= [] andalso call(Them, polydist, connections, []) =:= [] end),
    [1, 1, 1, 1] = [maps:get(accepted, listener(Them, Transport)) || Transport <- [tcp, tcp6, tls, uds]].

%%
%% Strangers
%%

strangers_on_any_port_are_gone_after_net_setuptime(Config) ->
    doc("Silence, garbage, half a handshake, absurd lengths, a slow drip: each ends in time, and a peer notices nothing"),
    Lab = lab(Config),
    Args = ["-kernel", "net_setuptime", "2"],
    [Node, #{node := B} = Peer] = polydist_node:start_all(Lab, [#{args => Args}, #{}]),
    polydist_node:connect(Node, Peer),
    Before = polydist_node:resources(Node),
    Started = erlang:monotonic_time(millisecond),
    Strangers = [{Address, Kind} || Address <- all_addresses(Node), Kind <- bad_beginnings()],
    polydist_ct:parallel([fun() -> be_stranger(Address, Kind) end || {Address, Kind} <- Strangers]),
    Took = erlang:monotonic_time(millisecond) - Started,
    ct:comment("~b strangers gone after ~b ms", [length(Strangers), Took]),
    true = Took < 5000,
    pong = call(Node, net_adm, ping, [B]),
    [#{node := B}] = call(Node, polydist, connections, []),
    _ = polydist_node:await_resources(Node, Before).

a_peer_that_turns_bad_is_cut_off(Config) ->
    doc("A stock node connects as it should, then writes nonsense to its socket: only that connection ends"),
    Lab = lab(Config),
    [#{node := A} = Us, #{node := B} = Friend] = polydist_node:start_all(Lab, [#{}, #{}]),
    polydist_node:connect(Us, Friend),
    Before = polydist_node:resources(Us),
    [begin
        #{node := C} = Bad = bad_peer(Lab),
        pong = call(Bad, net_adm, ping, [A]),
        ok = polydist_node:eval(Bad, "
            [Port] = [Port || {_, Port} <- erlang:system_info(dist_ctrl)],
            ok = inet:setopts(Port, [{packet, 0}]),
            prim_inet:send(Port, Bytes)", #{'Bytes' => Bytes}),
        wait_until(fun() -> not lists:member(C, call(Us, erlang, nodes, [connected])) end),
        polydist_node:stop(Bad)
     end || Bytes <- [
        <<16#ffffffff:32, "more">>, <<5:32, "nonse">>, <<3:32, 131, 68, 255>>, <<1000:32, 131, 69, 0:7984>>,
        <<10:32, 131, 70, 0:64>>, <<2:32, 112, 131>>
     ]],
    [B] = call(Us, erlang, nodes, []),
    pong = call(Us, net_adm, ping, [B]),
    _ = polydist_node:await_resources(Us, Before).

%% Hidden, so that nothing comes in while it has no idea of frames.
bad_peer(Lab) ->
    polydist_node:start(Lab, #{stock => 25, proto_dist => "inet_tcp", args => ["-hidden"]}).

bad_beginnings() ->
    SendName = <<$N, 0:64, 1:32, 9:16, "x@localhost">>,
    [
        {silence, []},
        {garbage, [polydist_traffic:payload(5000)]},
        {http, [<<"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n">>]},
        {half_a_length, [<<0>>]},
        {half_a_frame, [<<0, 50, $N, 0, 0>>]},
        {a_frame_of_4_gib, [<<16#ffffffff:32>>]},
        {a_frame_of_64_kib_and_silence, [<<16#ffff:16, $N>>]},
        {empty_frames, [binary:copy(<<0, 0>>, 1000)]},
        {a_name_and_silence, [<<(byte_size(SendName)):16, SendName/binary>>]},
        {half_a_client_hello, [<<22, 3, 1, 2, 0, 1, 0, 1, 252>>]},
        {a_tls_record_too_long, [<<22, 3, 3, 255, 255>>, polydist_traffic:payload(65535)]},
        {drip, drip}
    ].

be_stranger(Address, {_, drip}) ->
    {ok, Socket} = connect(Address),
    drip(Socket);
be_stranger(Address, {Kind, Pieces}) ->
    {ok, Socket} = connect(Address),
    %% It may be cut while it still sends.
    _ = [gen_tcp:send(Socket, Piece) || Piece <- Pieces],
    await_closed(Socket, Kind).

%% One byte of a long frame every tenth of a second would keep a time-out alive that starts anew with each.
drip(Socket) ->
    case gen_tcp:send(Socket, <<1>>) of
        ok ->
            case gen_tcp:recv(Socket, 0, 100) of
                {error, timeout} -> drip(Socket);
                {error, _} -> ok;
                {ok, _} -> drip(Socket)
            end;
        {error, _} ->
            ok
    end.

await_closed(Socket, Kind) ->
    case gen_tcp:recv(Socket, 0, 10000) of
        {ok, _} -> await_closed(Socket, Kind);
        {error, timeout} -> error({still_there, Kind});
        {error, _} -> gen_tcp:close(Socket)
    end.

a_frame_only_announced_costs_no_memory(Config) ->
    doc("A connected peer announces 2 GiB and sends little of it: memory grows with what came, not with what was said"),
    Lab = lab(Config),
    #{node := A} = Us = polydist_node:start(Lab),
    #{node := C} = Bad = bad_peer(Lab),
    pong = call(Bad, net_adm, ping, [A]),
    Before = polydist_node:os_pid_memory(Us),
    ok = polydist_node:eval(Bad, "
        [Port] = [Port || {_, Port} <- erlang:system_info(dist_ctrl)],
        ok = inet:setopts(Port, [{packet, 0}]),
        prim_inet:send(Port, [<<16#7fffff00:32, 131, 70>>, binary:copy(<<0>>, 1000000)])", #{}),
    %% Long enough for a megabyte; nobody tells when the last of it is read.
    receive after 300 -> ok end,
    [C] = call(Us, erlang, nodes, [hidden]),
    true = polydist_node:os_pid_memory(Us) - Before < 32 * 1048576,
    polydist_node:stop(Bad),
    wait_until(fun() -> call(Us, erlang, nodes, [connected]) =:= [] end).

an_endless_frame_costs_no_memory(Config) ->
    doc("Twenty strangers on every port each announce 4 GiB and send as much of it as they are let"),
    Node = polydist_node:start(lab(Config), #{args => ["-kernel", "net_setuptime", "2"]}),
    Before = polydist_node:os_pid_memory(Node),
    Mebibyte = polydist_traffic:payload(1048576),
    Prefixes = [<<16#ffffffff:32>>, <<16#ffff:16>>, <<22, 3, 3, 64, 0>>],
    {_, Most} = polydist_node:peak_memory(Node, fun() ->
        polydist_ct:parallel([
            fun() -> flood(Address, Prefix, Mebibyte) end
         || Address <- all_addresses(Node), Prefix <- Prefixes, _ <- lists:seq(1, 7)
        ])
    end),
    ct:comment("at most ~b KiB more", [(Most - Before) div 1024]),
    true = Most - Before < 32 * 1048576.

flood(Address, Prefix, Piece) ->
    {ok, Socket} = connect(Address),
    _ = gen_tcp:send(Socket, Prefix),
    flood_on(Socket, Piece, 64).

flood_on(Socket, _, 0) ->
    await_closed(Socket, flood);
flood_on(Socket, Piece, Left) ->
    case gen_tcp:send(Socket, Piece) of
        ok -> flood_on(Socket, Piece, Left - 1);
        {error, _} -> gen_tcp:close(Socket)
    end.

many_silent_strangers_do_not_keep_a_peer_out(Config) ->
    doc("A hundred silent connections on every port: a peer's ping over each transport still is answered"),
    Lab = lab(Config),
    #{node := A} = Node = polydist_node:start(Lab, #{args => ["-kernel", "net_setuptime", "4"]}),
    Peers = polydist_node:start_all(Lab, [#{force => [Transport]} || Transport <- [tcp, tcp6, tls, uds]]),
    Sockets = [begin {ok, Socket} = connect(Address), Socket end || Address <- all_addresses(Node), _ <- lists:seq(1, 100)],
    [pong = call(Peer, net_adm, ping, [A]) || Peer <- Peers],
    [await_closed(Socket, silence) || Socket <- Sockets],
    ok.

connect({local, Path}) ->
    gen_tcp:connect({local, Path}, 0, [binary, {active, false}], 5000);
connect({{0, 0, 0, 0}, Port}) ->
    connect({{127, 0, 0, 1}, Port});
connect({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) ->
    connect({{0, 0, 0, 0, 0, 0, 0, 1}, Port});
connect({Ip, Port}) ->
    gen_tcp:connect(Ip, Port, [binary, {active, false}, {send_timeout, 8000}], 5000).
