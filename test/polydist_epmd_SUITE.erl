%%% The registration in a stock epmd, what the epmd module answers, and either half of polydist with a foreign other half.
-module(polydist_epmd_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() ->
    [
        names_are_those_of_epmd,
        epmds_own_command_shows_us,
        a_port_is_found_by_name,
        the_registered_record_is_what_the_listeners_are,
        a_long_name_is_registered,
        a_duplicate_name_is_refused_and_the_node_does_not_start,
        epmd_killed_and_restarted_has_us_again,
        a_node_boots_without_epmd_and_registers_when_it_comes,
        epmd_frozen_delays_nobody_who_is_connected,
        an_epmd_that_answers_nonsense_harms_nobody,
        a_forged_record_harms_nobody,
        a_stock_node_finds_our_port,
        the_legacy_port_can_be_the_tls_port,
        our_carriers_work_with_a_foreign_epmd_module,
        our_carriers_work_with_erl_epmd,
        our_epmd_module_works_with_a_stock_carrier,
        erl_call_talks_to_our_node
    ].

init_per_suite(Config) -> polydist_ct:open_lab(?MODULE, Config).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

name(#{node := Node}) -> hd(string:split(atom_to_list(Node), "@")).

listening(Node) ->
    lists:sort([Transport || #{transport := Transport, state := listening} <- call(Node, polydist, listeners, [])]).

port(Node, Transport) ->
    Listeners = call(Node, polydist, listeners, []),
    [Address | _] = lists:flatten([Address || #{transport := Each, address := Address} <- Listeners, Each =:= Transport]),
    element(2, Address).

%%
%% Names and lookups
%%

names_are_those_of_epmd(Config) ->
    doc("names/0,1 and net_adm:names/0,1, on a node with distribution and on one without"),
    Lab = lab(Config),
    [A, B, Nameless] = polydist_node:start_all(Lab, [#{}, #{}, #{name => none}]),
    Expected = lists:sort([{name(Each), port(Each, tcp)} || Each <- [A, B]]),
    Ours = fun({ok, Names}) -> lists:sort([Each || {Name, _} = Each <- Names, lists:keymember(Name, 1, Expected)]) end,
    Expected = Ours(call(A, polydist_epmd, names, [])),
    Expected = Ours(call(A, polydist_epmd, names, ["localhost"])),
    Expected = Ours(call(A, polydist_epmd, names, [localhost])),
    Expected = Ours(call(A, polydist_epmd, names, [{127, 0, 0, 1}])),
    Expected = Ours(call(A, net_adm, names, [localhost])),
    Expected = Ours(call(Nameless, net_adm, names, [localhost])).

epmds_own_command_shows_us(Config) ->
    doc("epmd -names"),
    #{epmd := Epmd} = Lab = lab(Config),
    Node = polydist_node:start(Lab),
    Line = lists:concat(["name ", name(Node), " at port ", port(Node, tcp)]),
    true = string:find(polydist_ct:epmd_names(Epmd), Line) =/= nomatch.

a_port_is_found_by_name(Config) ->
    doc("port_please/2,3 with an atom, a string, a host by name and by address; address_please/3; nobody of that name"),
    [A, B] = polydist_node:start_all(lab(Config), [#{}, #{}]),
    Port = port(B, tcp),
    [{port, Port, 6} = call(A, polydist_epmd, port_please, Args) || Args <- [
        [name(B), "localhost"], [list_to_atom(name(B)), localhost], [name(B), {127, 0, 0, 1}], [name(B), "localhost", 5000]
    ]],
    noport = call(A, polydist_epmd, port_please, ["nobody", "localhost"]),
    {ok, {127, 0, 0, 1}} = first(call(A, polydist_epmd, address_please, [name(B), "localhost", inet]), 2),
    {ok, {0, 0, 0, 0, 0, 0, 0, 1}} = first(call(A, polydist_epmd, address_please, [name(B), "localhost", inet6]), 2),
    {ok, 0} = call(A, polydist_epmd, listen_port_please, [b, "localhost"]).

%% address_please/3 may add the port and the version.
first(Tuple, Size) -> list_to_tuple(lists:sublist(tuple_to_list(Tuple), Size)).

the_registered_record_is_what_the_listeners_are(Config) ->
    doc("Every listener's address is in the record, and the record is in what epmd gives to anybody who asks"),
    #{epmd := Epmd} = Lab = lab(Config),
    Node = polydist_node:start(Lab),
    #{extra := Extra} = polydist_ct:epmd_lookup(Epmd, name(Node)),
    {ok, #{endpoints := Endpoints, host := Host}} = call(Node, polydist_native, record_decode, [Extra]),
    Host = call(Node, polydist_native, host_identity, []),
    [begin
        Found = [Where || #{transport := Name, address := Where} <- Endpoints, Name =:= atom_to_binary(Transport)],
        [true = lists:member(Where, Found) || Where <- wheres(Address)]
     end || #{transport := Transport, address := Address} <- call(Node, polydist, listeners, [])].

wheres(Addresses) when is_list(Addresses) -> lists:append([wheres(Address) || Address <- Addresses]);
wheres({{0, 0, 0, 0}, Port}) -> [{any4, Port}];
wheres({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) -> [{any6, Port}];
wheres(Address) -> [Address].

a_long_name_is_registered(Config) ->
    doc("A name of 200 letters, too long for a socket's path: registered with all that came up, and reached"),
    Lab = lab(Config),
    Name = lists:duplicate(200, $n),
    [A, #{node := B} = Long] = polydist_node:start_all(Lab, [#{}, #{name => {exactly, Name}}]),
    [tcp, tcp6, tls | _] = listening(Long),
    pong = call(A, net_adm, ping, [B]),
    {ok, Names} = call(A, net_adm, names, [localhost]),
    true = lists:keymember(Name, 1, Names).

a_duplicate_name_is_refused_and_the_node_does_not_start(Config) ->
    doc("The name is taken: the stock sentence, and no second node; the first goes on"),
    Lab = lab(Config),
    Name = {exactly, polydist_ct:unique("twice")},
    First = polydist_node:start(Lab, #{name => Name}),
    {error, _, Printed} = polydist_node:boot(Lab, #{name => Name}),
    true = string:find(Printed, "seems to be in use") =/= nomatch,
    [tcp, tcp6, tls, uds] = listening(First),
    #{node := A} = First,
    pong = call(polydist_node:start(Lab), net_adm, ping, [A]).

%%
%% epmd comes and goes
%%

epmd_killed_and_restarted_has_us_again(Config) ->
    doc("No node stops, no connection ends; the same record is registered again, under the same creation"),
    Epmd = polydist_ct:start_epmd(),
    #{port := Port} = Epmd,
    Lab = maps:put(epmd, Epmd, lab(Config)),
    [#{node := A} = Us, #{node := B} = Them] = polydist_node:start_all(Lab, [#{}, #{}]),
    polydist_node:connect(Us, Them),
    Record = polydist_ct:epmd_lookup(Epmd, name(Us)),
    Creation = call(Us, erlang, system_info, [creation]),
    run(Us, fun() -> register(watching, spawn(fun() -> polydist_traffic:watch_nodes(), receive Down -> exit(Down) end end)) end),
    ok = polydist_ct:stop_epmd(Epmd),
    pong = call(Us, net_adm, ping, [B]),
    Again = polydist_ct:start_epmd(Port),
    [wait_until(fun() -> polydist_ct:epmd_lookup(Again, name(Each)) =/= not_found end) || Each <- [Us, Them]],
    Record = polydist_ct:epmd_lookup(Again, name(Us)),
    Creation = call(Us, erlang, system_info, [creation]),
    true = is_pid(call(Us, erlang, whereis, [watching])),
    %% And it serves those who come now.
    Late = polydist_node:start(Lab#{epmd := Again}),
    pong = call(Late, net_adm, ping, [A]),
    polydist_ct:stop_epmd(Again).

a_node_boots_without_epmd_and_registers_when_it_comes(Config) ->
    doc("The node says once that no epmd answers, is reachable for those who know where, and registers later"),
    Epmd = polydist_ct:start_epmd(),
    #{port := Port} = Epmd,
    ok = polydist_ct:stop_epmd(Epmd),
    Lab = maps:put(epmd, Epmd, lab(Config)),
    Node = polydist_node:start(Lab),
    [tcp, tcp6, tls, uds] = listening(Node),
    _ = polydist_node:await_console(Node, "epmd"),
    Again = polydist_ct:start_epmd(Port),
    wait_until(fun() -> polydist_ct:epmd_lookup(Again, name(Node)) =/= not_found end),
    #{node := A} = Node,
    pong = call(polydist_node:start(Lab#{epmd := Again}), net_adm, ping, [A]),
    polydist_ct:stop_epmd(Again).

epmd_frozen_delays_nobody_who_is_connected(Config) ->
    doc("Something listens on epmd's port and never answers: connected nodes talk on, a lookup ends in time"),
    Epmd = polydist_ct:start_epmd(),
    #{port := Port} = Epmd,
    Lab = maps:put(epmd, Epmd, lab(Config)),
    [Us, #{node := B} = Them] = polydist_node:start_all(Lab, [#{args => ["-kernel", "net_setuptime", "2"]}, #{}]),
    polydist_node:connect(Us, Them),
    ok = polydist_ct:stop_epmd(Epmd),
    {ok, Mute} = gen_tcp:listen(Port, [{reuseaddr, true}]),
    Started = erlang:monotonic_time(millisecond),
    [pang, pong] = polydist_ct:parallel([
        fun() -> call(Us, net_adm, ping, ['nobody@localhost']) end,
        fun() -> call(Us, net_adm, ping, [B]) end
    ]),
    true = erlang:monotonic_time(millisecond) - Started < 8000,
    gen_tcp:close(Mute).

an_epmd_that_answers_nonsense_harms_nobody(Config) ->
    doc("Empty, cut, endless and absurd answers to lookups and to names/1: pang and an error, in time, with bounded memory"),
    Epmd = polydist_ct:start_epmd(),
    #{port := Port} = Epmd,
    Us = polydist_node:start(maps:put(epmd, Epmd, lab(Config)), #{args => ["-kernel", "net_setuptime", "2"]}),
    ok = polydist_ct:stop_epmd(Epmd),
    {ok, Listen} = gen_tcp:listen(Port, [binary, {active, false}, {reuseaddr, true}, {backlog, 100}]),
    Name = <<"anyone">>,
    Answers = [
        <<>>, <<119>>, <<119, 0>>, <<119, 0, 1:16, 77, 0, 6:16, 5:16, 6:16, "any">>, <<1, 2, 3>>,
        <<119, 0, 1:16, 77, 9, 6:16, 5:16, 6:16, Name/binary, 0:16>>,
        <<119, 0, 1:16, 77, 0, 6:16, 5:16, 16#ffff:16, Name/binary>>,
        <<119, 0, 1:16, 77, 0, 6:16, 5:16, 6:16, Name/binary, 16#ffff:16, "PLYD">>,
        <<119, 0, 1:16, 77, 0, 6:16, 5:16, 6:16, Name/binary, 9:16, "PLYD", 1, 2, 16#ffff:16>>,
        binary:copy(<<"name a at port 1\n">>, 500000)
    ],
    Memory = polydist_node:os_pid_memory(Us),
    [begin
        Server = spawn_link(fun() -> answer_all(Listen, Answer) end),
        pang = call(Us, net_adm, ping, ['anyone@localhost']),
        _ = call(Us, polydist_epmd, port_please, ["anyone", "localhost"]),
        case call(Us, polydist_epmd, names, ["localhost"]) of
            {ok, Names} -> true = is_list(Names);
            {error, _} -> ok
        end,
        unlink(Server),
        exit(Server, kill)
     end || Answer <- Answers],
    true = polydist_node:os_pid_memory(Us) - Memory < 64 * 1048576,
    gen_tcp:close(Listen).

answer_all(Listen, Answer) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    _ = spawn(fun() ->
        {ok, _} = gen_tcp:recv(Socket, 0, 5000),
        _ = gen_tcp:send(Socket, Answer),
        gen_tcp:close(Socket)
    end),
    answer_all(Listen, Answer).

a_forged_record_harms_nobody(Config) ->
    doc("Somebody registers a record that lies, or is none: a ping of that name is pang within net_setuptime"),
    #{epmd := #{port := Port}} = Lab = lab(Config),
    Us = polydist_node:start(Lab, #{args => ["-kernel", "net_setuptime", "2"]}),
    {ok, Mute} = gen_tcp:listen(0, []),
    {ok, MutePort} = inet:port(Mute),
    Host = call(Us, polydist_native, host_identity, []),
    Encode = fun(Endpoints) ->
        Record = #{host => Host, endpoints => [maps:put(flags, 0, Endpoint) || Endpoint <- Endpoints]},
        {ok, Extra} = call(Us, polydist_native, record_encode, [Record]),
        Extra
    end,
    Extras = [
        <<>>, <<"PLYD">>, <<"PLYD", 99>>, <<"PLYD", 1, 2, 0, 5, 1>>, <<"somebody else's">>, binary:copy(<<255>>, 1020),
        Encode([]),
        Encode([#{transport => <<"carrier_pigeon">>, address => {any4, 1}}]),
        Encode([#{transport => <<"uds">>, address => {local, <<"/dev/null">>}}, #{transport => <<"tcp">>, address => {any4, 1}}]),
        Encode([#{transport => <<"tls">>, address => {any4, MutePort}}, #{transport => <<"tcp">>, address => {any4, MutePort}}]),
        Encode([#{transport => <<"uds">>, address => {any4, MutePort}}, #{transport => <<"tcp6">>, address => {local, <<"/x">>}}])
    ],
    [begin
        Name = list_to_binary(polydist_ct:unique("liar")),
        {ok, Epmd} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
        Named = <<(byte_size(Name)):16, Name/binary, (byte_size(Extra)):16, Extra/binary>>,
        Alive = <<120, 1:16, 77, 0, 6:16, 5:16, Named/binary>>,
        ok = gen_tcp:send(Epmd, <<(byte_size(Alive)):16, Alive/binary>>),
        {ok, <<118, 0, _:32>>} = gen_tcp:recv(Epmd, 0, 5000),
        Started = erlang:monotonic_time(millisecond),
        pang = call(Us, net_adm, ping, [binary_to_atom(<<Name/binary, "@localhost">>)]),
        true = erlang:monotonic_time(millisecond) - Started < 6000,
        gen_tcp:close(Epmd)
     end || Extra <- Extras],
    [tcp, tcp6, tls, uds] = listening(Us).

%%
%% Halves of polydist with other halves
%%

a_stock_node_finds_our_port(Config) ->
    doc("erl_epmd of a stock node gets the port it can use"),
    Lab = lab(Config),
    [Ours, Stock] = polydist_node:start_all(Lab, [#{}, #{proto_dist => "inet_tcp"}]),
    Port = port(Ours, tcp),
    {port, Port, _} = call(Stock, erl_epmd, port_please, [name(Ours), "localhost"]).

the_legacy_port_can_be_the_tls_port(Config) ->
    doc("legacy => tls registers the TLS port; ours still find every transport"),
    #{epmd := Epmd} = Lab = lab(Config),
    [Ours, Other] = polydist_node:start_all(Lab, [#{config => #{legacy => tls}}, #{force => [tcp]}]),
    Port = port(Ours, tls),
    #{port := Port} = polydist_ct:epmd_lookup(Epmd, name(Ours)),
    polydist_node:connect(Other, Ours),
    #{transport := tcp} = polydist_node:connection(Other, Ours).

our_carriers_work_with_a_foreign_epmd_module(Config) ->
    doc("A small epmd module with no daemon behind it: the legacy port is registered, and nodes meet over it"),
    #{directory := Directory} = Lab = lab(Config),
    Names = filename:join(Directory, "names"),
    ok = file:make_dir(Names),
    Options = #{epmd_module => "polydist_foreign_epmd", args => ["-foreign_epmd", Names], epmd_port => 1},
    [Us, #{node := B} = Them] = polydist_node:start_all(Lab, [Options, Options]),
    {ok, Registered} = file:read_file(filename:join(Names, name(Us))),
    Registered = integer_to_binary(port(Us, tcp)),
    pong = call(Us, net_adm, ping, [B]),
    #{transport := Transport} = polydist_node:connection(Us, Them),
    true = lists:member(Transport, [tcp, tcp6]).

our_carriers_work_with_erl_epmd(Config) ->
    doc("-proto_dist polydist_tcp polydist_uds without our epmd module"),
    Lab = lab(Config),
    Options = #{carriers => [tcp, uds], epmd_module => "erl_epmd"},
    [Us, #{node := B}] = polydist_node:start_all(Lab, [Options, Options]),
    [tcp, uds] = listening(Us),
    pong = call(Us, net_adm, ping, [B]).

our_epmd_module_works_with_a_stock_carrier(Config) ->
    doc("-epmd_module polydist_epmd -proto_dist inet_tcp"),
    #{epmd := Epmd} = Lab = lab(Config),
    Mixed = #{proto_dist => "inet_tcp", epmd_module => "polydist_epmd"},
    [Dials, #{node := A} = Accepts, #{node := B} = Ours] = polydist_node:start_all(Lab, [Mixed, Mixed, #{}]),
    #{} = polydist_ct:epmd_lookup(Epmd, name(Accepts)),
    pong = call(Dials, net_adm, ping, [B]),
    pong = call(Ours, net_adm, ping, [A]).

erl_call_talks_to_our_node(Config) ->
    doc("The C client of erl_interface, which speaks plain TCP at the port that epmd names"),
    #{epmd := #{port := Port}} = Lab = lab(Config),
    #{node := A} = polydist_node:start(Lab),
    Command = "ERL_EPMD_PORT=~b ~s -c polydist -name ~s -a 'erlang node' 2>&1",
    Answer = os:cmd(lists:flatten(io_lib:format(Command, [Port, polydist_ct:tool("erl_call"), A]))),
    true = string:find(Answer, atom_to_list(A)) =/= nomatch orelse Answer.
