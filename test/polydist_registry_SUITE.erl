%%% Registries with real nodes: epmd, another epmd, written-down places, DNS (a real server) and directories, each alone and all
%%% of them together, when they hang, lie, crash, go and come back; a cluster without epmd; and the page doc/registries.md, whose
%%% configurations are used and whose module runs.
-module(polydist_registry_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("kernel/include/file.hrl").

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, call/4]).

-define(LOOPBACK, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).
-define(TRANSPORTS, [tcp, tcp6, tls, uds]).

%% How long the others have when one registry has found the node, and what a busy machine may add; milliseconds.
-define(GRACE, 250).
-define(SLACK, 400).

suite() -> [{timetrap, {minutes, 1}}].

%% What is measured in time runs alone.
all() -> [{group, side_by_side}, {group, directories}, {group, places}, {group, names}, {group, alone}].

groups() ->
    [
        {side_by_side, [parallel], [
            each_finds_a_node_alone_and_all_do_together,
            answers_are_merged_in_the_configured_order,
            a_rule_says_who_is_asked,
            one_that_lies_costs_an_attempt,
            one_that_crashes_is_named_and_registered_in_again,
            one_that_loses_the_node_gets_it_back,
            one_that_hangs_when_the_node_boots,
            epmd_and_a_site_s_come_back_each_by_itself,
            a_new_listener_is_registered_everywhere,
            names_are_those_of_all_registries,
            bad_configuration_stops_the_node_with_a_sentence
        ]},
        {directories, [parallel], [
            a_cluster_without_epmd,
            a_reader_sees_whole_records,
            a_file_goes_with_its_node,
            a_killed_node_s_file_is_stale_at_once,
            a_name_is_taken_once,
            a_directory_comes_back,
            directories_that_are_of_no_use
        ]},
        {places, [parallel], [
            written_down_in_a_map_or_a_list,
            written_down_in_a_file,
            the_page_s_configurations_are_right,
            the_page_s_own_registry_works
        ]},
        {names, [parallel], [
            by_service_records,
            by_ports_at_a_host_s_addresses,
            answers_live_as_long_as_they_say,
            a_server_that_is_silent_or_talks_rubbish
        ]},
        {alone, [], [
            one_that_hangs_costs_little,
            net_kernel_waits_for_no_registry
        ]}
    ].

%% The target is registered wherever one can be: in the suite's epmd, in another, and in a directory. Its socket is elsewhere.
init_per_suite(Config) ->
    #{directory := Directory, inetrc := Inetrc} = Lab = lab(polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config))),
    Hosts = [{host, {127, 0, 0, 2}, ["here"]}, {resolv_conf, ""}, {hosts_file, ""}],
    ok = file:write_file(Inetrc, [io_lib:format("~p.~n", [Each]) || Each <- Hosts], [append]),
    Site = polydist_ct:start_epmd(whereis(init)),
    Elsewhere = filename:join(Directory, "elsewhere"),
    Registries = [epmd, site(Site), {dir, directory(Lab, "nodes")}],
    Target = polydist_node:start(Lab, #{
        name => "target", owner => whereis(init), args => ["-hidden"],
        config => #{registries => Registries, listen => #{uds => #{dir => Elsewhere}}}
    }),
    [{target, Target}, {site, Site}, {registries, Registries} | polydist_ct:put_lab(Config, Lab)].

end_per_suite(Config) ->
    polydist_node:stop(proplists:get_value(target, Config)),
    polydist_ct:stop_epmd(proplists:get_value(site, Config)),
    polydist_ct:close_lab(Config).

init_per_group(names, Config) ->
    case polydist_dnsmasq:available() of
        true -> Config;
        false -> {skip, "there is no dnsmasq; run test/tools/setup"}
    end;
init_per_group(_, Config) ->
    Config.

end_per_group(_, Config) -> Config.

target(Config) -> proplists:get_value(target, Config).

directory(#{directory := Directory}, Name) -> filename:join(Directory, Name).

%% A directory, and what is below it, of this case's own.
own_directory(Config) -> directory(lab(Config), polydist_ct:unique("d")).

site(#{port := Port}) -> {site, epmd, #{host => "127.0.0.1", port => Port}}.

scripted(Name, Options) -> {Name, polydist_scripted_registry, Options#{key => Name}}.

%% A hidden node that says what it does. Patient with other addresses, so that the first is the one that is taken.
start(Config, Registries, Options) ->
    polydist_node:start(lab(Config), options(Registries, Options)).

options(Registries, Options) ->
    Args = ["-hidden", "-kernel", "logger_level", "info", "net_setuptime", "4"],
    Policy = [{any, #{transports => [tcp], stagger => 5000}}],
    maps:merge(#{policy => Policy}, Options#{
        args => Args ++ maps:get(args, Options, []),
        config => maps:merge(#{registries => Registries}, maps:get(config, Options, #{}))
    }).

%% A node with no epmd: there is none at that port.
without_epmd(Config, Registries, Options) ->
    start(Config, Registries, Options#{epmd_port => polydist_ct:free_port()}).

with_epmd_of_its_own(Config, Registries, Options) ->
    Epmd = new_epmd(),
    {polydist_node:start((lab(Config))#{epmd := Epmd}, options(Registries, Options)), Epmd}.

%% One after the other, or two cases would find the same port free.
new_epmd() ->
    Owner = self(),
    global:trans({?MODULE, self()}, fun() -> polydist_ct:start_epmd(Owner) end).

name(#{node := Node}) -> hd(string:split(atom_to_list(Node), "@")).

port(Node, Transport) ->
    [Port | _] = [Port || #{transport := Each, address := {_, Port}} <- all_addresses(Node), Each =:= Transport],
    Port.

path(Node) ->
    [Path | _] = [Path || #{address := {local, Path}} <- all_addresses(Node)],
    Path.

all_addresses(Node) ->
    [#{transport => Transport, address => Address}
     || #{transport := Transport, address := Addresses} <- call(Node, polydist, listeners, []),
        Address <- lists:flatten([Addresses])].

%% What the registries said of a node, as explain/1 has it.
asked(Us, Node) ->
    #{now := #{registries := Asked}} = call(Us, polydist, explain, [Node]),
    Asked.

answer(Us, Node, Registry) ->
    [Answer] = [Answer || #{registry := Each, answer := Answer} <- asked(Us, Node), Each =:= Registry],
    Answer.

%% What would be dialled, and by which registry's answer.
candidates(Us, Node) ->
    #{now := #{candidates := Candidates}} = call(Us, polydist, explain, [Node]),
    [{R, T, A} || #{registry := R, transport := T, address := A} <- Candidates].

says(Us, Node) ->
    Text = call(Us, polydist, explain_text, [Node]),
    true = is_binary(Text),
    Text.

contains(Text, Part) ->
    case string:find(Text, Part) of
        nomatch -> error({not_in, Text, Part});
        _ -> ok
    end.

set_policy(Us, Rules) -> ok = call(Us, polydist, set_policy, [Rules]).

connects(Us, Peer) ->
    polydist_node:connect(Us, Peer),
    #{transport := Transport} = polydist_node:connection(Us, Peer),
    polydist_node:disconnect(Us, Peer),
    Transport.

by_hand(Name) -> list_to_atom(Name ++ "@localhost").

%%
%% Side by side
%%

each_finds_a_node_alone_and_all_do_together(Config) ->
    doc("epmd, a site's epmd, a list, a file, DNS and a directory: a connection by the answer of each, then by all of them"),
    Lab = lab(Config),
    #{node := Node} = Target = target(Config),
    [_, Site, Dir] = proplists:get_value(registries, Config),
    Port = port(Target, tcp),
    File = directory(Lab, "places"),
    ok = file:write_file(File, io_lib:format("{\"target*@*\", [{tcp, ~p}]}.~n", [Port])),
    Dns = [begin
        Service = lists:concat([name(Target), "._erlang-dist._tcp.nodes.example"]),
        Server = polydist_dnsmasq:start([
            lists:concat(["srv-host=", Service, ",h.nodes.example,", Port, ",0,0"]), "host-record=h.nodes.example,127.0.0.1"
        ]),
        {dns, #{domain => "nodes.example", nameservers => [{?LOOPBACK, polydist_dnsmasq:port(Server)}]}}
    end || polydist_dnsmasq:available()],
    Registries = [epmd, Site, Dir, {static, [{Node, [{tcp, Port}]}]}, {file, static, File}] ++ Dns,
    Names = [epmd, site, dir, static, file] ++ [dns || Dns =/= []],
    Us = start(Config, [quoted(Each) || Each <- Registries], #{}),
    [begin
        set_policy(Us, [{any, #{transports => [tcp], registries => [Name]}}]),
        [#{registry := Name, answer := {record, [_ | _]}}] = asked(Us, Node),
        {Name, [{Name, tcp, {?LOOPBACK, Port}}], _} = {Name, candidates(Us, Node), says(Us, Node)},
        tcp = connects(Us, Target)
     end || Name <- Names],
    set_policy(Us, [{any, #{transports => [tcp]}}]),
    Asked = asked(Us, Node),
    Names = [Name || #{registry := Name, answer := {record, [_ | _]}, time := Time} <- Asked, is_integer(Time)],
    %% The same address from all of them is dialled once, by the first.
    [{epmd, tcp, {?LOOPBACK, Port}}] = candidates(Us, Node),
    tcp = connects(Us, Target).

%% A node's name as a pattern is text.
quoted({static, [{Node, Endpoints}]}) -> {static, [{atom_to_list(Node), Endpoints}]};
quoted(Registry) -> Registry.

answers_are_merged_in_the_configured_order(Config) ->
    doc("Each registry knows another port: they are dialled in the order of the key, whoever answers first; explain/1 has all"),
    Answer = fun(Port) -> {ok, #{endpoints => [{tcp, {?LOOPBACK, Port}}]}} end,
    Slowly = fun(_) -> receive after 100 -> {ok, #{endpoints => [{tcp, {{127, 0, 0, 1}, 1001}}]}} end end,
    Us = start(Config, [scripted(slow, #{}), {written, static, #{"x*@*" => [{tcp, "127.0.0.1", 1002}]}},
        scripted(quick, #{lookup => {answer, Answer(1003)}}), scripted(late, #{lookup => {answer, Answer(1002)}})], #{}),
    run(Us, fun() -> polydist_scripted_registry:tell(slow, Slowly) end),
    X = by_hand("x1"),
    [{slow, _, {_, 1001}}, {written, _, {_, 1002}}, {quick, _, {_, 1003}}] = candidates(Us, X),
    [#{registry := slow, time := Time}, #{registry := written}, #{registry := quick}, #{registry := late}] = asked(Us, X),
    true = Time >= 100,
    [contains(says(Us, X), atom_to_list(Name) ++ " said after ") || Name <- [slow, written, quick, late]],
    %% What a rule prefers goes before that.
    set_policy(Us, [{any, #{transports => [tcp], registries => [late, quick]}}]),
    [{quick, _, {_, 1003}}, {late, _, {_, 1002}}] = candidates(Us, X).

a_rule_says_who_is_asked(Config) ->
    doc("`registries' in a rule: those and no others, for the names that it fits; one that is not configured is a mistake"),
    Rules = [{"epmd*@*", #{transports => [tcp], registries => [epmd]}}, {"nobody*@*", #{transports => [tcp], registries => []}},
        {{host, "here"}, #{transports => [tcp], registries => [written, other]}}, {any, #{transports => [tcp]}}],
    Place = #{"*@*" => [{tcp, 1001}]},
    Us = start(Config, [epmd, {written, static, Place}, scripted(other, #{})], #{policy => Rules}),
    Asked = fun(Node) -> [Name || #{registry := Name} <- asked(Us, Node)] end,
    [epmd] = Asked(epmd1@here),
    [] = Asked(nobody@here),
    [written, other] = Asked(x@here),
    [epmd, written, other] = Asked(x@localhost),
    #{now := #{error := {not_asked, _}}} = call(Us, polydist, explain, [nobody@here]),
    {error, {bad_policy, Sentence}} = call(Us, polydist, set_policy, [[{any, #{transports => [tcp], registries => [dns]}}]]),
    contains(Sentence, "dns").

one_that_lies_costs_an_attempt(Config) ->
    doc("Answers of every shape that are none, a dead port, a server of something else: the node is reached by epmd's answer"),
    #{node := Node} = Target = target(Config),
    Us = start(Config, [scripted(liar, #{}), epmd], #{}),
    #{os_pid := _} = Us,
    Tell = fun(Answer) -> run(Us, fun() -> polydist_scripted_registry:tell(liar, {answer, Answer}) end) end,
    Before = run(Us, fun() -> whereis(polydist_registrars) end),
    [begin
        Tell(Answer),
        Said = says(Us, Node),
        Registered = answer(Us, Node, liar),
        ct:log("~tp~n~tp", [Answer, Registered]),
        %% Nothing of it is dialled.
        {Answer, [epmd]} = {Answer, lists:usort([Registry || {Registry, _, _} <- candidates(Us, Node)])},
        contains(Said, "liar said")
     end || Answer <- rubbish()],
    tcp = connects(Us, Target),
    Before = run(Us, fun() -> whereis(polydist_registrars) end),
    %% Nobody listens there.
    Dead = polydist_ct:free_port(),
    Tell({ok, #{endpoints => [{tcp, {?LOOPBACK, Dead}}]}}),
    tcp = connects(Us, Target),
    #{last := #{outcome := connected, attempts := [
        #{address := {_, Dead}, outcome := failed, reason := {econnrefused, _}}, #{outcome := connected}
    ]}} = call(Us, polydist, explain, [Node]),
    %% A server of something else takes the connection. After that it is the last to be asked.
    Http = web_server(),
    Tell({ok, #{endpoints => [{tcp, {?LOOPBACK, Http}}]}}),
    pang = call(Us, net_adm, ping, [Node]),
    %% Who keeps the failures hears of it at the same time as who asked for the connection.
    wait_until(fun() -> [Registry || {Registry, _, _} <- candidates(Us, Node)] =:= [epmd, liar] end),
    [{epmd, _, _}, {liar, _, {_, Http}}] = candidates(Us, Node),
    tcp = connects(Us, Target).

%% What may be in an answer: wrong shapes, wrong types, places that nobody dials.
rubbish() ->
    Ok = fun(Found) -> {ok, Found} end,
    [ok, [], <<"target">>, {ok, 17}, {ok, []}, {found, #{port => 1}}, {error, nonsense}, {error, {x, "no binary"}},
        {error, {x, <<255, 254>>}}, {error, {"x", <<"text">>}}, {error, {x, <<>>}}] ++
    [Ok(Each) || Each <- [
        #{}, #{place => here},
        #{record => 17}, #{record => <<>>}, #{record => <<"PLYD">>}, #{record => <<"PLYD", 1, 9, 9, 9>>},
        #{record => <<"PLYD", 1, 2, 255, 255, 0>>}, #{record => binary:copy(<<"PLYD", 1>>, 100000)},
        #{record => <<"x">>, port => x},
        #{port => -1}, #{port => 65536}, #{port => x}, #{port => 1.5}, #{port => 0},
        #{endpoints => nothing}, #{endpoints => []}, #{endpoints => [a | b]}, #{endpoints => [rubbish, {tcp}, {tcp, 17}, {}]},
        #{endpoints => [{smoke, {any4, 4000}}, {tcp, {any5, 4000}}, {tcp, {any4, 0}}, {tcp, {any4, -1}}, {tcp, {any4, 70000}}]},
        #{endpoints => [{tcp, {{1, 2, 3}, 4000}}, {tcp, {{256, 0, 0, 1}, 4000}}, {tcp, {"127.0.0.1", 4000}}]},
        #{endpoints => [{uds, {local, "/tmp/list"}}]},
        #{endpoints => [{tcp, {{0, 0, 0, 0}, 4000}}, {tcp, {{224, 0, 0, 1}, 4000}}, {tcp, {{255, 255, 255, 255}, 4000}}]},
        #{endpoints => [{uds, {local, Path}} || Path <- [<<"relative">>, <<"/tmp/../etc/x">>, <<255, 0>>]],
            trusted_paths => true},
        #{endpoints => [{uds, {local, <<"/etc/passwd">>}}]},
        #{endpoints => lists:duplicate(100000, {tcp, {any4, 4000}})},
        #{endpoints => [{tcp, {any4, 0}}], addresses => nothing}, #{endpoints => [], addresses => [{1, 2}]},
        #{endpoints => [], addresses => [?LOOPBACK | x]}, #{endpoints => [], trusted_paths => maybe_so}
    ]].

web_server() ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {ip, ?LOOPBACK}, {active, false}]),
    {ok, Port} = inet:port(Listen),
    Server = spawn_link(fun() -> receive start -> serve_web(Listen) end end),
    ok = gen_tcp:controlling_process(Listen, Server),
    Server ! start,
    Port.

serve_web(Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    _ = gen_tcp:recv(Socket, 0, 2000),
    _ = gen_tcp:send(Socket, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    ok = gen_tcp:close(Socket),
    serve_web(Listen).

one_that_crashes_is_named_and_registered_in_again(Config) ->
    doc("A crash in a lookup is in explain/1; one in a registration is in the log; a registrar that is killed registers again"),
    #{node := Node} = Target = target(Config),
    Us = start(Config, [scripted(broken, #{lookup => crash, registration => crash}), scripted(fine, #{}), epmd], #{}),
    {error, {crashed, Sentence}} = answer(Us, Node, broken),
    contains(Sentence, "broken"),
    contains(says(Us, Node), "the registry broken crashed"),
    tcp = connects(Us, Target),
    _ = polydist_node:await_console(Us, "the node is not registered in broken \\(broken crashed in register"),
    %% It is tried again and again.
    wait_until(fun() -> registrations(Us, broken) >= 2 end),
    1 = registrations(Us, fine),
    run(Us, fun() -> exit(whereis(polydist_registrar_fine), kill) end),
    _ = polydist_node:await_console(Us, "the registrar of fine was restarted"),
    wait_until(fun() -> registrations(Us, fine) =:= 2 end),
    tcp = connects(Us, Target).

registrations(Us, Key) -> call(Us, polydist_scripted_registry, registrations, [Key]).

one_that_loses_the_node_gets_it_back(Config) ->
    doc("A registry says that the registration is lost: one warning, and it is made again"),
    Us = without_epmd(Config, [scripted(forgetful, #{})], #{}),
    1 = registrations(Us, forgetful),
    run(Us, fun() -> polydist_registrar_forgetful ! lose end),
    _ = polydist_node:await_console(Us, "the node is not registered in forgetful \\(it was told to lose the node\\)"),
    wait_until(fun() -> registrations(Us, forgetful) =:= 2 end),
    _ = polydist_node:await_console(Us, "registered in forgetful").

one_that_hangs_when_the_node_boots(Config) ->
    doc("Two registries that never answer a registration cost a booting node five seconds, and the others nothing"),
    Dir = own_directory(Config),
    Hang = #{registration => hang},
    {Time, Us} = timer:tc(fun() -> start(Config, [scripted(one, Hang), epmd, {dir, Dir}, scripted(two, Hang)], #{}) end),
    true = Time > 4900000,
    true = Time < 9500000,
    #{port := _} = polydist_ct:epmd_lookup(maps:get(epmd, lab(Config)), name(Us)),
    {ok, _} = file:read_file(file_of(Dir, Us)),
    pong = call(Us, net_adm, ping, [maps:get(node, target(Config))]),
    ok = end_by_init(Us),
    {error, enoent} = file:read_file(file_of(Dir, Us)).

epmd_and_a_site_s_come_back_each_by_itself(Config) ->
    doc("A node in two epmds: each is killed and started again, the other one has the node all the while"),
    Site = new_epmd(),
    {Us, Own} = with_epmd_of_its_own(Config, [epmd, site(Site)], #{}),
    Name = name(Us),
    Found = fun(Epmd) -> wait_until(fun() -> is_map(polydist_ct:epmd_lookup(Epmd, Name)) end) end,
    Same = fun() -> {polydist_ct:epmd_lookup(Own, Name), polydist_ct:epmd_lookup(Site, Name)} end,
    %% The endpoints are in both.
    {#{port := Port, extra := Extra}, #{port := Port, extra := Extra}} = Same(),
    true = byte_size(Extra) > 0,
    ok = polydist_ct:stop_epmd(Site),
    _ = polydist_node:await_console(Us, "not registered in site"),
    #{extra := Extra} = polydist_ct:epmd_lookup(Own, Name),
    Site2 = polydist_ct:start_epmd(maps:get(port, Site)),
    Found(Site2),
    _ = polydist_node:await_console(Us, "registered in site"),
    ok = polydist_ct:stop_epmd(Own),
    _ = polydist_node:await_console(Us, "EPMD is gone"),
    #{extra := Extra} = polydist_ct:epmd_lookup(Site2, Name),
    %% Found in the other meanwhile.
    #{node := Node} = Us,
    Them = start(Config, [{epmd, epmd, #{port => maps:get(port, Own)}}, site(Site)], #{}),
    {error, _} = answer(Them, Node, epmd),
    {record, _} = answer(Them, Node, site),
    tcp = connects(Them, Us),
    Found(polydist_ct:start_epmd(maps:get(port, Own))),
    {record, _} = answer(Them, Node, epmd),
    {#{port := Port, extra := Extra}, #{port := Port, extra := Extra}} = Same().

a_new_listener_is_registered_everywhere(Config) ->
    doc("A listener is added, and removed: epmd, a site's epmd, a directory and a registry without update/2 follow"),
    Dir = own_directory(Config),
    Here = [epmd, site(proplists:get_value(site, Config)), {dir, Dir}],
    #{node := Node} = Us = start(Config, Here ++ [scripted(simple, #{})], #{}),
    Has = fun(Place) ->
        [Name || #{registry := Name, answer := {record, Places}} <- asked(Us, Node), lists:member(Place, Places)]
    end,
    {ok, Id} = call(Us, polydist, add_listener, [#{transport => tcp, ip => {127, 0, 0, 3}}]),
    [Place] = [{tcp, Address} || #{transport := tcp, address := {{127, 0, 0, 3}, _} = Address} <- all_addresses(Us)],
    wait_until(fun() -> Has(Place) =:= [epmd, site, dir] end),
    wait_until(fun() -> registrations(Us, simple) =:= 2 end),
    ok = call(Us, polydist, remove_listener, [Id]),
    wait_until(fun() -> Has(Place) =:= [] end),
    wait_until(fun() -> registrations(Us, simple) =:= 3 end),
    wait_until(fun() -> length([Name || #{registry := Name, answer := {record, _}} <- asked(Us, Node)]) =:= 3 end).

names_are_those_of_all_registries(Config) ->
    doc("net_adm:names/0: epmd's with their ports, those of a directory; a registry that hangs or crashes takes nothing away"),
    Us = start(Config, [epmd, {dir, directory(lab(Config), "nodes")}, scripted(slow, #{lookup => hang, timeout => 300}),
        scripted(broken, #{lookup => crash}), scripted(other, #{})], #{}),
    {Time, {ok, Names}} = timer:tc(fun() -> call(Us, net_adm, names, []) end),
    true = Time < 3000000,
    Target = name(target(Config)),
    Port = port(target(Config), tcp),
    [{Target, Port}] = [Each || {Name, _} = Each <- Names, Name =:= Target],
    [{"scripted", 0}] = [Each || {"scripted", _} = Each <- Names],
    true = lists:keymember(name(Us), 1, Names).

bad_configuration_stops_the_node_with_a_sentence(Config) ->
    doc("A mistake in the key registries, and one in a rule that names a registry, at boot; others: polydist_registry_tests"),
    Lab = lab(Config),
    {error, _, Printed} = polydist_node:boot(Lab, #{config => #{registries => [epmd, {dir, "run/app"}]}}),
    contains(Printed, "is not the absolute path of a directory"),
    Policy = [{any, #{transports => [tcp], registries => [dir]}}],
    {error, _, Printed2} = polydist_node:boot(Lab, #{config => #{registries => [epmd]}, policy => Policy}),
    contains(Printed2, "policy rule 1").

%%
%% Directories
%%

file_of(Dir, #{node := Node}) -> filename:join(Dir, atom_to_list(Node) ++ ".node").

%% Ends as an application ends it, and waits until its process is gone.
end_by_init(#{os_pid := OsPid} = Node) ->
    %% The answer may not come.
    _ = try call(Node, init, stop, []) catch _:_ -> ok end,
    wait_until(fun() -> not filelib:is_file("/proc/" ++ OsPid ++ "/exe") end, 20000).

a_cluster_without_epmd(Config) ->
    doc("The page's configuration: no epmd, no TCP port; two nodes find each other in a directory and speak over Unix sockets"),
    #{directory := Directory} = lab(Config),
    Dir = own_directory(Config),
    ok = file:make_dir(Dir),
    ok = file:change_mode(Dir, 8#700),
    [Text] = page("config=without_epmd"),
    File = filename:join(Directory, "without_epmd"),
    ok = file:write_file(File ++ ".config", string:replace(Text, "/run/app", Dir, all)),
    Options = #{carriers => [uds], optfile => false, epmd_port => polydist_ct:free_port(), args => ["-config", File]},
    [A, #{node := B} = Other] = polydist_node:start_all(lab(Config), [Options#{name => "a"}, Options#{name => "b"}]),
    %% No socket of theirs but Unix ones: what the page says of it.
    [] = [Line || #{os_pid := OsPid} <- [A, Other], Line <- sockets(OsPid)],
    [_ | _] = sockets(maps:get(os_pid, target(Config))),
    uds = connects(A, Other),
    true = call(A, erlang, system_info, [creation]) > 0,
    {ok, Names} = call(A, net_adm, names, []),
    [{_, 0}, {_, 0}] = [Each || {Name, _} = Each <- Names, lists:member(Name, [name(A), name(Other)])],
    %% As remsh does it: a node that nobody can dial, with a name from the one that it dials.
    Flags = ["-config", File, "-dist_listen", "false", "-hidden"],
    Remsh = polydist_node:start(lab(Config), Options#{name => dynamic, args => Flags}),
    true = call(Remsh, net_kernel, connect_node, [B]),
    B = call(Remsh, erpc, call, [B, erlang, node, []]),
    [] = sockets(maps:get(os_pid, Remsh)).

%% The process' sockets for IP.
sockets(OsPid) ->
    Found = os:cmd("ss -Haunpt 2>/dev/null"),
    [Line || Line <- string:lexemes(Found, "\n"), string:find(Line, "pid=" ++ OsPid ++ ",") =/= nomatch].

a_reader_sees_whole_records(Config) ->
    doc("Endpoints change five hundred times, a reader reads as fast as it can: each time all of one record or of the other"),
    Dir = own_directory(Config),
    Us = without_epmd(Config, [{dir, Dir}], #{carriers => [tcp, uds]}),
    File = file_of(Dir, Us),
    {Reads, Seen, Known} = run(Us, fun() -> change_and_read(File) end),
    ct:log("~p reads", [Reads]),
    true = Reads > 100,
    [] = Seen -- Known,
    3 = length(Known),
    %% The last one stays; nothing else is left there.
    wait_until(fun() -> {ok, Last} = file:read_file(File), Last =:= hd(Known) end),
    {ok, Files} = file:list_dir(Dir),
    true = [".lock", filename:basename(File)] =:= lists:sort(Files).

%% Runs on the node.
change_and_read(File) ->
    {ok, #{port := Port, endpoints := Endpoints, record := First}} = polydist_sup:lookup({registered, dir}),
    More = Endpoints ++ [#{transport => <<"tcp">>, flags => 0, address => {{10, 0, 0, N}, 4000}} || N <- lists:seq(1, 100)],
    Fewer = tl(Endpoints),
    Records = [polydist_epmd:record(Each) || Each <- [More, Fewer]],
    Reader = self(),
    {Writer, Monitor} = spawn_monitor(fun() ->
        [begin
            ok = polydist_registrars:update(Port, lists:nth(1 + N rem 2, [More, Fewer])),
            %% Until it is done.
            _ = sys:get_state(polydist_registrar_dir)
         end || N <- lists:seq(1, 500)],
        Reader ! written
    end),
    Seen = read_on(File, Writer, #{}),
    demonitor(Monitor, [flush]),
    ok = polydist_registrars:update(Port, Endpoints),
    {lists:sum(maps:values(Seen)), maps:keys(Seen), [First | Records]}.

read_on(File, Writer, Seen) ->
    {ok, Record} = file:read_file(File),
    Now = maps:update_with(Record, fun(N) -> N + 1 end, 1, Seen),
    receive written -> Now after 0 -> read_on(File, Writer, Now) end.

a_file_goes_with_its_node(Config) ->
    doc("init:stop/0, and net_kernel:stop/0 of a distribution that started at run time, remove the file"),
    Dir = own_directory(Config),
    Us = without_epmd(Config, [{dir, Dir}], #{}),
    Later = without_epmd(Config, [{dir, Dir}], #{name => none}),
    {ok, #file_info{type = directory, mode = Mode}} = file:read_file_info(Dir),
    8#700 = Mode band 8#777,
    [begin
        {ok, _} = call(Later, net_kernel, start, [later@localhost, #{name_domain => shortnames}]),
        {record, _} = answer(Us, later@localhost, dir),
        ok = call(Later, net_kernel, stop, []),
        {error, {not_found, _}} = answer(Us, later@localhost, dir),
        {error, enoent} = file:read_file_info(filename:join(Dir, "later@localhost.node"))
     end || _ <- [1, 2, 3]],
    {ok, _} = file:read_file(file_of(Dir, Us)),
    ok = end_by_init(Us),
    {error, enoent} = file:read_file(file_of(Dir, Us)),
    {ok, [".lock"]} = file:list_dir(Dir).

inode(File) ->
    {ok, #file_info{inode = Inode, mtime = Time}} = file:read_file_info(File),
    {Inode, Time}.

a_killed_node_s_file_is_stale_at_once(Config) ->
    doc("kill -9: the file stays, and is no longer believed; the name is free; the new node's file is"),
    Dir = own_directory(Config),
    Us = without_epmd(Config, [{dir, Dir}], #{}),
    #{node := Node} = Them = without_epmd(Config, [{dir, Dir}], #{}),
    {record, _} = answer(Us, Node, dir),
    polydist_node:stop(Them),
    {ok, _} = file:read_file(file_of(Dir, Them)),
    %% The first of its threads is gone; the files close with the last.
    wait_until(fun() -> element(1, answer(Us, Node, dir)) =:= error end),
    {error, {not_found, Sentence}} = answer(Us, Node, dir),
    contains(Sentence, "has ended"),
    {ok, Names} = call(Us, net_adm, names, []),
    [_] = Names,
    Again = without_epmd(Config, [{dir, Dir}], #{name => {exactly, name(Them)}}),
    {record, _} = answer(Us, Node, dir),
    tcp = connects(Us, Again).

a_name_is_taken_once(Config) ->
    doc("The second node of a name does not boot and says why; the first one's file stays as it is"),
    Dir = own_directory(Config),
    Us = without_epmd(Config, [{dir, Dir}], #{}),
    Before = inode(file_of(Dir, Us)),
    Same = options([{dir, Dir}], #{name => {exactly, name(Us)}, epmd_port => polydist_ct:free_port()}),
    {error, _, Printed} = polydist_node:boot(lab(Config), Same),
    contains(Printed, name(Us) ++ "@localhost"),
    contains(Printed, "in use"),
    Before = inode(file_of(Dir, Us)),
    {record, _} = answer(Us, maps:get(node, Us), dir),
    %% Two that take a name at the same moment: one gets it.
    Race = (maps:without([name], Same))#{name => {exactly, polydist_ct:unique("race")}, owner => self()},
    Results = polydist_ct:parallel([fun() -> polydist_node:boot(lab(Config), Race) end || _ <- [1, 2]]),
    [_] = [Node || {ok, Node} <- Results].

a_directory_comes_back(Config) ->
    doc("The directory is removed: a warning, and the node makes it again; its file alone: the same"),
    Dir = own_directory(Config),
    Us = without_epmd(Config, [{dir, Dir}], #{}),
    File = file_of(Dir, Us),
    ok = file:del_dir_r(Dir),
    {error, {enoent, _}} = answer(Us, maps:get(node, Us), dir),
    _ = polydist_node:await_console(Us, "the node is not registered in dir \\(cannot use .*no such file"),
    wait_until(fun() -> filelib:is_regular(File) end),
    {record, _} = answer(Us, maps:get(node, Us), dir),
    ok = file:write_file(File ++ ".other", <<"rubbish">>),
    ok = file:rename(File ++ ".other", File),
    %% Without a lock nobody believes it.
    {error, {not_found, _}} = answer(Us, maps:get(node, Us), dir),
    _ = polydist_node:await_console(Us, "the node is not registered in dir \\(.*which has ended"),
    wait_until(fun() -> is_found(answer(Us, maps:get(node, Us), dir)) end).

is_found({record, _}) -> true;
is_found({error, _}) -> false.

directories_that_are_of_no_use(Config) ->
    doc("Not writable, everybody's, somebody else's, a link, a file, a name too long: a sentence for each, and the node runs"),
    Base = own_directory(Config),
    ok = file:make_dir(Base),
    In = fun(Name) -> filename:join(Base, Name) end,
    Make = fun(Name, Mode) ->
        ok = file:make_dir(In(Name)),
        ok = file:change_mode(In(Name), Mode),
        In(Name)
    end,
    Root = string:trim(os:cmd("id -u")) =:= "0",
    ok = file:make_symlink(Make("real", 8#700), In("link")),
    ok = file:write_file(In("file"), <<>>),
    Others = Make("others", 8#755),
    Cases = [
        {unwritable, case Root of true -> "/proc/sys"; false -> Make("closed", 8#500) end, ""},
        {missing, In("missing/below"), "no such file"},
        {everybodys, Make("open", 8#777), "others can write to it"},
        {linked, In("link"), "symbolic link"},
        {a_file, In("file"), "it is no directory"},
        {long, In(lists:duplicate(300, $x)), "too long"}
    ] ++ [begin
        ok = file:change_owner(Others, 65534),
        {others, Others, "belongs to another user"}
    end || Root],
    Us = start(Config, [epmd | [{Name, dir, Path} || {Name, Path, _} <- Cases]], #{}),
    #{node := Node} = target(Config),
    [begin
        Printed = polydist_node:await_console(Us, ["the node is not registered in ", atom_to_list(Name), " \\("]),
        Parts = ["not registered in " ++ atom_to_list(Name), Part, Path],
        Has = fun(Line) -> lists:all(fun(Each) -> string:find(Line, Each) =/= nomatch end, Parts) end,
        true = lists:any(Has, string:split(Printed, "\n", all)),
        {error, {Kind, Sentence}} = answer(Us, Node, Name),
        true = is_atom(Kind),
        contains(Sentence, Path)
     end || {Name, Path, Part} <- Cases],
    tcp = connects(Us, target(Config)),
    %% What others can write to is not believed.
    ok = file:change_mode(In("real"), 8#700),
    Repaired = filename:join(In("open"), atom_to_list(maps:get(node, Us)) ++ ".node"),
    ok = file:change_mode(In("open"), 8#700),
    wait_until(fun() -> filelib:is_regular(Repaired) end, 20000),
    _ = polydist_node:await_console(Us, "registered in everybodys"),
    ok.

%%
%% Places
%%

written_down_in_a_map_or_a_list(Config) ->
    doc("Patterns, ports at the host's addresses, host names, addresses, a socket outside uds_dirs; the first that fits decides"),
    #{node := Node} = Target = target(Config),
    Name = atom_to_list(Node),
    [Tcp, Tcp6, Tls] = [port(Target, Each) || Each <- [tcp, tcp6, tls]],
    Dead = polydist_ct:free_port(),
    Cases = [
        {map, #{"other*@*" => [{tcp, Dead}], "target*@*" => [{tcp, Tcp}]}, tcp},
        {list, [{"other*@*", [{tcp, Dead}]}, {list_to_binary(Name), [{tls, Tls}]}, {"*@*", [{tcp, Dead}]}], tls},
        {none, [], none},
        {hosts, #{Name => [{tcp, "here", Tcp}]}, tcp},
        {hosts6, #{Name => [{tls, "localhost6", Tls}]}, tls},
        {addresses, #{Name => [{tcp6, ?LOOPBACK6, Tcp6}]}, tcp6},
        {text, #{Name => [{tcp, <<"127.0.0.1">>, Tcp}]}, tcp},
        {sockets, #{Name => [{uds, path(Target)}]}, uds},
        {unknown, #{Name => [{tcp, "nowhere", Tcp}]}, none}
    ],
    Us = start(Config, [{Each, static, Places} || {Each, Places, _} <- Cases], #{}),
    [begin
        set_policy(Us, [{any, #{transports => ?TRANSPORTS, stagger => 5000, registries => [Each]}}]),
        case Transport of
            none ->
                pang = call(Us, net_adm, ping, [Node]),
                #{now := #{error := {_, _}}} = call(Us, polydist, explain, [Node]);
            _ -> {Each, Transport} = {Each, connects(Us, Target)}
        end
     end || {Each, _, Transport} <- Cases],
    %% A record that names the same socket is not the user's word.
    {error, _} = call(start(Config, [epmd], #{policy => [{any, #{transports => [uds]}}]}), polydist, connect, [Node, #{}]).

written_down_in_a_file(Config) ->
    doc("Missing at boot, then there; changed; with a mistake, which leaves what was there; repaired; removed"),
    File = own_directory(Config),
    Us = start(Config, [{static, File}], #{}),
    X = by_hand("x1"),
    Write = fun(Text) -> ok = file:write_file(File, Text) end,
    Place = fun() -> [{Ip, Port} || {static, tcp, {Ip, Port}} <- candidates(Us, X)] end,
    [] = Place(),
    _ = polydist_node:await_console(Us, [File, " cannot be used \\(no such file"]),
    Write("{\"x*@*\", [{tcp, 1001}]}.\n"),
    [{?LOOPBACK, 1001}] = Place(),
    Write("%% The nodes\n{\"x*@*\", [{tcp, 1002}]}.\n{\"y@*\", [{tcp, \"here\", 1003}]}.\n"),
    [{?LOOPBACK, 1002}] = Place(),
    [begin
        Write(Mistake),
        [[{?LOOPBACK, 1002}] = Place() || _ <- [1, 2, 3]],
        _ = polydist_node:await_console(Us, Said)
     end || {Mistake, Said} <- [
        {"%% The nodes\n{\"x*@*\", [{tcp, 1004}]}.\n{\"y*@*\", [{tcp, 1003]}.\n",
            "cannot be used \\(line 3: .*; what was in it before stays"},
        {"{\"x*@*\", [{tcp, 1004}]}.\n\n\n{\"y*@*\"", "\\(line 4: "},
        {"{\"x*@*\", [{tcp, 1004}]}.\n\"open", "\\(line 2: "},
        {"{\"x*@*\", [{tcp, 70000}]}.\n", "\\{tcp,70000\\}"},
        {"{\"x*@*\", {tcp, 1004}}.\n", "is not \\{\"name@host\", \\[Endpoint\\]\\}"},
        {[<<255>>, "{\"x*@*\", [{tcp, 1004}]}.\n"], "it is not UTF-8"},
        {"#Pid{", "line 1"}
    ]],
    ok = file:delete(File),
    [{?LOOPBACK, 1002}] = Place(),
    Write("{\"x*@*\", [{tcp, 1005}]}.\n"),
    [{?LOOPBACK, 1005}] = Place(),
    %% No pattern is no mistake.
    Write(""),
    [] = Place(),
    _ = polydist_node:await_console(Us, "read .* 0 patterns"),
    %% Said once each, however often it is looked at.
    [] = Place(),
    4 = length(string:split(polydist_node:console(Us), "read " ++ File, all)) - 1,
    [_] = [Line || Line <- string:split(polydist_node:console(Us), "\n", all), string:find(Line, "line 3:") =/= nomatch].

%%
%% The page
%%

blocks() ->
    {ok, Page} = file:read_file(filename:join([polydist_ct:root(), "doc", "registries.md"])),
    {match, Blocks} = re:run(Page, "^```(\\w+) ?(\\S*)\n(.*?)^```$", [global, multiline, dotall, {capture, all_but_first, list}]),
    Blocks.

page(What) -> [Text || [_, Each, Text] <- blocks(), Each =:= What].

the_page_s_configurations_are_right(Config) ->
    doc("Blocks marked registries are values of that key, blocks marked places content of a file of places"),
    {module, _} = code:load_abs(filename:rootname(the_page_s_module(Config))),
    Registries = [term(Text) || Text <- page("registries")],
    true = length(Registries) > 4,
    [{ok, _} = polydist_registry:configure(Each) || Each <- Registries],
    [Places] = page("places"),
    {ok, Tokens, _} = erl_scan:string(Places),
    {Terms, []} = lists:foldl(fun
        ({dot, _} = Dot, {Before, Now}) ->
            {ok, Term} = erl_parse:parse_term(lists:reverse([Dot | Now])),
            {Before ++ [Term], []};
        (Token, {Before, Now}) -> {Before, [Token | Now]}
    end, {[], []}, Tokens),
    {ok, [_ | _]} = polydist_registry_static:check(Terms).

term(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

the_page_s_own_registry_works(Config) ->
    doc("The page's module is compiled, two nodes without epmd find each other by it; what the server forgets it gets again"),
    Dir = filename:dirname(the_page_s_module(Config)),
    {Cache, Port} = memcached(),
    [Registries] = [Text || Text <- page("registries"), string:find(Text, "memcached") =/= nomatch],
    [{memcached_registry, Options}] = term(Registries),
    Ours = [{memcached_registry, Options#{host := "localhost", port := Port}}],
    [A, #{node := B} = Other] = [without_epmd(Config, Ours, #{args => ["-pa", Dir]}) || _ <- [1, 2]],
    {record, _} = answer(A, B, memcached_registry),
    tcp = connects(A, Other),
    Cache ! {forget, self()},
    receive {Cache, forgotten} -> ok end,
    {error, {not_found, _}} = answer(A, B, memcached_registry),
    run(Other, fun() -> renew() end),
    wait_until(fun() -> is_found(answer(A, B, memcached_registry)) end),
    ok = end_by_init(Other),
    {error, {not_found, _}} = answer(A, B, memcached_registry).

the_page_s_module(Config) ->
    Dir = own_directory(Config),
    ok = file:make_dir(Dir),
    [Source] = page("module"),
    File = filename:join(Dir, "memcached_registry.erl"),
    ok = file:write_file(File, Source),
    {ok, memcached_registry} = compile:file(File, [{outdir, Dir}, warnings_as_errors, return_errors]),
    filename:join(Dir, "memcached_registry.beam").

%% Its time to renew the node's entry comes early.
renew() ->
    #{registered := {yes, #{timer := Timer}}} = sys:get_state(polydist_registrar_memcached_registry),
    polydist_registrar_memcached_registry ! {timeout, Timer, renew}.

%% What there is of memcached for that: get, set and delete of its text protocol.
memcached() ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {packet, line}, {active, false}, {reuseaddr, true}]),
    {ok, Port} = inet:port(Listen),
    Table = ets:new(memcached, [public]),
    Acceptor = spawn_link(fun() -> receive start -> memcached_accept(Listen, Table) end end),
    ok = gen_tcp:controlling_process(Listen, Acceptor),
    Acceptor ! start,
    Cache = spawn_link(fun() -> memcached_cache() end),
    true = ets:give_away(Table, Cache, table),
    {Cache, Port}.

memcached_cache() ->
    receive {'ETS-TRANSFER', Table, _, table} -> memcached_cache(Table) end.

memcached_cache(Table) ->
    receive
        {forget, From} ->
            true = ets:delete_all_objects(Table),
            From ! {self(), forgotten}
    end,
    memcached_cache(Table).

memcached_accept(Listen, Table) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    Server = spawn(fun() -> receive start -> memcached_serve(Socket, Table) end end),
    ok = gen_tcp:controlling_process(Socket, Server),
    Server ! start,
    memcached_accept(Listen, Table).

memcached_serve(Socket, Table) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Line} ->
            Answer = case string:lexemes(string:trim(Line), " ") of
                [<<"get">>, Key] ->
                    case ets:lookup(Table, Key) of
                        [{_, Data}] -> ["VALUE ", Key, " 0 ", integer_to_list(byte_size(Data)), "\r\n", Data, "\r\nEND\r\n"];
                        [] -> "END\r\n"
                    end;
                [<<"set">>, Key, <<"0">>, Seconds, Bytes] ->
                    true = binary_to_integer(Seconds) > 0,
                    {ok, Data} = gen_tcp:recv(Socket, 0),
                    Size = binary_to_integer(Bytes),
                    <<Value:Size/binary, "\r\n">> = Data,
                    true = ets:insert(Table, {Key, Value}),
                    "STORED\r\n";
                [<<"delete">>, Key] ->
                    true = ets:delete(Table, Key),
                    "DELETED\r\n"
            end,
            ok = gen_tcp:send(Socket, Answer),
            memcached_serve(Socket, Table);
        {error, _} -> ok
    end.

%%
%% DNS
%%

nameserver(Server) -> #{nameservers => [{?LOOPBACK, polydist_dnsmasq:port(Server)}]}.

srv(Name, Target, Port, Priority, Weight) ->
    lists:concat(["srv-host=", Name, ",", Target, ",", Port, ",", Priority, ",", Weight]).

by_service_records(Config) ->
    doc("By the node's own service, by its host's; by priority and weight; A and AAAA records of the targets; another domain"),
    [Instance, Solo] = polydist_node:start_all(lab(Config), [
        #{name => {exactly, "inst"}, host => "dnsa", args => ["-hidden"]},
        #{name => {exactly, "solo"}, host => "dnsb", args => ["-hidden"]}
    ]),
    Tcp = "_erlang-dist._tcp.",
    Tls = "_erlang-dist-tls._tcp.",
    Server = polydist_dnsmasq:start([
        "host-record=dnsa,127.0.0.1,::1", "host-record=dnsb,127.0.0.1",
        "host-record=many.dnsd,192.0.2.1,2001:db8::1", "host-record=four.dnsd,192.0.2.2", "host-record=six.dnsd,2001:db8::2",
        srv("inst." ++ Tcp ++ "dnsa", "dnsa", port(Instance, tcp), 0, 0),
        %% The host's own service is somebody else's.
        srv(Tcp ++ "dnsa", "dnsa", polydist_ct:free_port(), 0, 0),
        srv(Tcp ++ "dnsb", "dnsb", port(Solo, tcp), 0, 0),
        srv("prio." ++ Tcp ++ "dnsd", "four.dnsd", 4001, 10, 0),
        srv("prio." ++ Tcp ++ "dnsd", "four.dnsd", 4002, 5, 1),
        srv("prio." ++ Tcp ++ "dnsd", "four.dnsd", 4003, 5, 10),
        srv("both." ++ Tcp ++ "dnsd", "many.dnsd", 4004, 0, 0),
        srv("both." ++ Tls ++ "dnsd", "many.dnsd", 4005, 0, 0),
        srv("six." ++ Tcp ++ "dnsd", "six.dnsd", 4006, 0, 0),
        srv("lost." ++ Tcp ++ "dnsd", "lost.dnsd", 4007, 0, 0),
        srv("far._nodes._tcp.nodes.example", "four.dnsd", 4008, 0, 0)
    ]),
    Dns = nameserver(Server),
    Us = start(Config, [{dns, Dns}, {other, dns, Dns#{domain => "nodes.example", services => [{tcp, "_nodes._tcp"}]}}], #{
        policy => [{{host, "dnsd"}, #{transports => [tls, tcp6, tcp], registries => [dns]}},
            {"far@*", #{transports => [tcp], registries => [other]}},
            {any, #{transports => [tcp6, tcp], registries => [dns], stagger => 5000}}]
    }),
    tcp6 = connects(Us, Instance),
    [{dns, tcp6, {?LOOPBACK6, _}}, {dns, tcp, {?LOOPBACK, _}}] = candidates(Us, inst@dnsa),
    tcp = connects(Us, Solo),
    [4003, 4002, 4001] = [Port || {dns, tcp, {{192, 0, 2, 2}, Port}} <- candidates(Us, prio@dnsd)],
    [{_, tls, {{192, 0, 2, 1}, 4005}}, {_, tls, {{16#2001, 16#db8, _, _, _, _, _, 1}, 4005}},
        {_, tcp6, {{16#2001, _, _, _, _, _, _, _}, 4004}}, {_, tcp, {{192, 0, 2, 1}, 4004}}] = candidates(Us, both@dnsd),
    [{_, tcp6, {_, 4006}}] = candidates(Us, six@dnsd),
    [{other, tcp, {{192, 0, 2, 2}, 4008}}] = candidates(Us, far@anywhere),
    {error, {nxdomain, Lost}} = answer(Us, lost@dnsd, dns),
    contains(Lost, "lost.dnsd"),
    {error, {not_found, None}} = answer(Us, none@dnsd, dns),
    contains(None, "none").

by_ports_at_a_host_s_addresses(Config) ->
    doc("`ports': no service records, as with a headless service; each address of the name"),
    Head = polydist_node:start(lab(Config), #{name => "head", host => "dnsc", args => ["-hidden"]}),
    Server = polydist_dnsmasq:start(["host-record=dnsc,127.0.0.1", "address=/pods/192.0.2.3", "address=/pods/192.0.2.4",
        "address=/pods/2001:db8::3"]),
    Port = port(Head, tcp),
    Us = start(Config, [{dns, (nameserver(Server))#{ports => [{tls, 4001}, {tcp, Port}]}}], #{
        policy => [{{host, "pods"}, #{transports => [tls]}}, {any, #{transports => [tcp]}}]
    }),
    tcp = connects(Us, Head),
    [{dns, tcp, {?LOOPBACK, Port}}] = candidates(Us, maps:get(node, Head)),
    Ips = [Ip || {_, tls, {Ip, 4001}} <- candidates(Us, x@pods)],
    [{192, 0, 2, 3}, {192, 0, 2, 4}, {16#2001, 16#db8, 0, 0, 0, 0, 0, 3}] = lists:sort(Ips),
    {error, {nxdomain, _}} = answer(Us, x@nopods, dns).

answers_live_as_long_as_they_say(Config) ->
    doc("A time to live of two seconds: the records change, the old answer is good until it ends, the new one is seen then"),
    Records = fun(Port) -> ["local-ttl=2", "host-record=dnst,192.0.2.5", srv("x._erlang-dist._tcp.dnst", "dnst", Port, 0, 0)] end,
    Server = polydist_dnsmasq:start(Records(4001)),
    Us = start(Config, [{dns, (nameserver(Server))#{services => [{tcp, "_erlang-dist._tcp"}]}}], #{}),
    Ports = fun() -> [Port || {_, tcp, {_, Port}} <- candidates(Us, x@dnst)] end,
    Start = erlang:monotonic_time(millisecond),
    [4001] = Ports(),
    Asked = erlang:monotonic_time(millisecond),
    _ = polydist_dnsmasq:restart(Server, Records(4002)),
    Before = Ports(),
    Now = erlang:monotonic_time(millisecond),
    true = Before =:= [4001] orelse Now - Start >= 2000,
    wait_until(fun() -> Ports() =:= [4002] end),
    End = erlang:monotonic_time(millisecond),
    ct:log("~p then ~p, seen after ~p to ~p ms", [Before, [4002], End - Asked, End - Start]),
    true = End - Start >= 2000,
    true = End - Asked < 2000 + 3 * ?SLACK.

a_server_that_is_silent_or_talks_rubbish(Config) ->
    doc("No answer costs the registry's timeout; rubbish is no answer; the node is found elsewhere all the same"),
    {ok, Silent} = gen_udp:open(0, [{ip, ?LOOPBACK}]),
    {ok, SilentPort} = inet:port(Silent),
    RubbishPort = udp_server(),
    Dns = fun(Port) -> #{nameservers => [{?LOOPBACK, Port}], timeout => 500} end,
    Servers = [{silent, SilentPort}, {rubbish, RubbishPort}, {dead, polydist_ct:free_port()}],
    Us = start(Config, [epmd | [{Name, dns, Dns(Port)} || {Name, Port} <- Servers]], #{}),
    X = by_hand(polydist_ct:unique("x")),
    {Time, Asked} = timer:tc(fun() -> asked(Us, X) end),
    [#{answer := {error, _}}, #{answer := {error, _}, time := Waited}, #{answer := {error, _}}, #{answer := {error, _}}] = Asked,
    true = Waited >= 490,
    true = Time < 1000 * (500 + 2 * ?SLACK),
    tcp = connects(Us, target(Config)),
    true = call(Us, erlang, is_process_alive, [run(Us, fun() -> whereis(polydist_registrars) end)]).

%% Answers that are none: noise, the question itself, a head that promises records, an answer to something else.
udp_server() ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, ?LOOPBACK}, {active, false}]),
    {ok, Port} = inet:port(Socket),
    Server = spawn_link(fun() -> receive start -> talk_rubbish(Socket, 0) end end),
    ok = gen_udp:controlling_process(Socket, Server),
    Server ! start,
    Port.

talk_rubbish(Socket, N) ->
    {ok, {Ip, Port, <<Id:16, _:16, _/binary>> = Question}} = gen_udp:recv(Socket, 0),
    <<_:32, _:64, Asked/binary>> = Question,
    Answers = [rand:bytes(60), Question, <<Id:16, 16#8180:16, 65535:16, 65535:16, 0:32>>, <<Id:16>>, <<>>,
        <<Id:16, 16#8180:16, 1:16, 1:16, 0:32, Asked/binary, 16#c00c:16, 33:16, 1:16, 60:32, 4:16, 0:32>>,
        <<Id:16, 16#8180:16, 1:16, 1:16, 0:32, Asked/binary, 16#c0ff:16, 33:16, 1:16, 60:32, 8:16, 0:16, 0:16, 0:16, 16#c00c:16>>,
        <<(Id bxor 1):16, 16#8180:16, 0:64>>],
    ok = gen_udp:send(Socket, Ip, Port, lists:nth(1 + N rem length(Answers), Answers)),
    talk_rubbish(Socket, N + 1).

%%
%% Alone: what is measured
%%

one_that_hangs_costs_little(Config) ->
    doc("A registry that never answers: its timeout when nobody else knows the node, and a quarter of a second when one does"),
    #{node := Node} = Target = target(Config),
    Us = start(Config, [scripted(stuck, #{lookup => hang, timeout => 800}), epmd], #{}),
    set_policy(Us, [{"alone*@*", #{transports => [tcp], registries => [stuck]}}, {any, #{transports => [tcp]}}]),
    {Alone, [#{registry := stuck, time := Waited, answer := {error, {timeout, Sentence}}}]} =
        timer:tc(fun() -> asked(Us, by_hand("alone1")) end),
    contains(Sentence, "stuck"),
    true = Waited >= 800,
    true = Alone < 1000 * (800 + ?SLACK),
    [
        #{registry := stuck, time := Time, answer := {error, {timeout, _}}},
        #{registry := epmd, time := Quick, answer := {record, _}}
    ] = asked(Us, Node),
    true = Time >= Quick + ?GRACE,
    true = Time < Quick + ?GRACE + ?SLACK,
    contains(says(Us, Node), "stuck said after"),
    {Connected, tcp} = timer:tc(fun() -> connects(Us, Target) end),
    true = Connected < 1000 * (?GRACE + 2 * ?SLACK),
    %% Nobody else has found it: as long as the slowest.
    [#{time := Slow}, #{answer := {error, {not_found, _}}}] = asked(Us, by_hand(polydist_ct:unique("x"))),
    true = Slow >= 800,
    %% It leaves nothing.
    Before = polydist_node:resources(Us),
    _ = [asked(Us, Node) || _ <- lists:seq(1, 5)],
    _ = polydist_node:await_resources(Us, Before),
    ok.

net_kernel_waits_for_no_registry(Config) ->
    doc("Twenty connects to nodes whose registry hangs, or keeps computing: a connected node is served within 50 ms meanwhile"),
    #{node := Node} = target(Config),
    Us = start(Config, [scripted(stuck, #{lookup => hang, timeout => 3000}), scripted(busy, #{timeout => 3000}), epmd], #{
        policy => [{"stuck*@*", #{transports => [tcp], registries => [stuck]}},
            {"busy*@*", #{transports => [tcp], registries => [busy]}},
            {any, #{transports => [tcp], registries => [epmd]}}]
    }),
    polydist_node:connect(Us, target(Config)),
    run(Us, fun() -> polydist_scripted_registry:tell(busy, fun ?MODULE:compute/1) end),
    Stuck = [by_hand("stuck" ++ integer_to_list(N)) || N <- lists:seq(1, 17)] ++
        [by_hand("busy" ++ integer_to_list(N)) || N <- lists:seq(1, 3)],
    run(Us, fun() -> [spawn(fun() -> net_kernel:connect_node(Each) end) || Each <- Stuck] end),
    wait_until(fun() -> run(Us, fun() -> pending() end) =:= 20 end),
    %% What blocks net_kernel does so each time, and for three seconds; a busy machine now and then.
    Served = fun() ->
        pong = net_adm:ping(Node),
        net_kernel:get_net_ticktime()
    end,
    Times = [element(1, call(Us, timer, tc, [Served])) || _ <- lists:seq(1, 50)],
    20 = run(Us, fun() -> pending() end),
    ct:log("~p", [lists:sort(Times)]),
    true = lists:nth(45, lists:sort(Times)) < 250000,
    wait_until(fun() -> run(Us, fun() -> pending() end) =:= 0 end).

compute(Query) -> compute(Query).

%% Connections that net_kernel has under way.
pending() ->
    length([Each || Each <- ets:tab2list(sys_dist), element(1, Each) =:= connection, lists:member(pending, tuple_to_list(Each))]).
