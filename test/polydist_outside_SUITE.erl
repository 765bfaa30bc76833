%%% Transports from outside, with the one of doc/transports.md and one that misbehaves on request. What every transport must do is
%%% in polydist_transport_SUITE, which runs with the former, too.
-module(polydist_outside_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("kernel/include/net_address.hrl").

-import(polydist_ct, [doc/1, lab/1, wait_until/1, wait_until/2]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, together}].

groups() ->
    [
        {together, [parallel], [
            the_page_shows_what_runs_here,
            nodes_with_nothing_else_meet,
            an_address_can_be_written_down,
            it_comes_after_uds_by_default,
            another_host_is_not_reached,
            listeners_come_and_go,
            a_name_that_is_taken_is_tried_again,
            a_listen_that_misbehaves,
            an_accept_that_misbehaves,
            a_connect_that_misbehaves,
            a_descriptor_of_something_else,
            a_registration_that_lies,
            descriptors_that_are_never_closed,
            a_faster_candidate_ends_a_connect,
            a_listener_whose_process_is_killed,
            a_listener_without_its_keeper,
            strangers_are_shown_out,
            what_runs_ends_with_the_distribution
        ]}
    ].

init_per_suite(Config) -> polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

start(Config, Options) -> polydist_node:start(lab(Config), Options).

start_all(Config, Options) -> polydist_node:start_all(lab(Config), Options).

%% Two nodes, the first of which dials by a policy of these transports.
pair(Config, Carriers, Transports) ->
    start_all(Config, [#{name => "us", carriers => Carriers, force => Transports}, #{name => "them", carriers => Carriers}]).

script(Node, Callback, What) -> call(Node, scripted_transport, script, [Callback, What]).

listener(Node, Id) ->
    hd([Each || #{id := Other} = Each <- call(Node, polydist, listeners, []), Other =:= Id]).

ping(From, #{node := Node}) -> call(From, net_adm, ping, [Node]).

last_attempts(From, #{node := Node}) ->
    #{last := #{attempts := Attempts}} = call(From, polydist, explain, [Node]),
    Attempts.

says(Text, Pattern) ->
    case re:run(Text, Pattern, [{capture, none}]) of
        match -> ok;
        nomatch -> {says, Text, instead_of, Pattern}
    end.

%%
%% The page
%%

the_page_shows_what_runs_here(Config) ->
    doc("The example is test/outside; its configurations are right"),
    {ok, Page} = file:read_file(filename:join([polydist_ct:root(), "doc", "transports.md"])),
    {match, Blocks} = re:run(Page, "^```erlang (\\S*)\n(.*?)^```$", [global, multiline, dotall, {capture, all_but_first, list}]),
    ["abstract_dist", "abstract_transport", "listen", "policy"] = [What || [What, _] <- Blocks],
    _ = [
        {ok, Text} = file:read_file(filename:join([polydist_ct:root(), "test", "outside", Module ++ ".erl"]))
     || ["abstract_" ++ _ = Module, Listing] <- Blocks, Text <- [list_to_binary(Listing)]
    ],
    [Listen, Policy] = [term(Text) || [What, Text] <- Blocks, What =:= "listen" orelse What =:= "policy"],
    Node = start(Config, #{carriers => [tcp, abstract], config => #{listen => Listen}, policy => Policy}),
    #{state := listening, address := {opaque, <<"cluster/a">>}} = listener(Node, abstract).

term(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

%%
%% In a cluster
%%

nodes_with_nothing_else_meet(Config) ->
    doc("No other carrier; found through epmd, and through a directory without any epmd"),
    #{directory := Directory} = lab(Config),
    Dir = #{carriers => [abstract], config => #{registries => [{dir, filename:join(Directory, "abstract")}]}},
    _ = [
        begin
            [#{node := A} = Us, #{node := B} = Them] = start_all(Config, [Options, Options]),
            pong = ping(Us, Them),
            #{transport := abstract, peer := {opaque, Bytes}, direction := out} = polydist_node:connection(Us, Them),
            Bytes = atom_to_binary(B),
            #{transport := abstract, direction := in, listener := abstract} = polydist_node:connection(Them, Us),
            Text = call(Us, polydist, explain_text, [B]),
            ok = says(Text, ["connected over abstract, @polydist/", atom_to_list(B)]),
            #net_address{protocol = abstract, family = abstract} = net_address(Us, B),
            true = lists:member(A, call(Them, erlang, nodes, []))
        end
     || Options <- [#{carriers => [abstract]}, Dir]
    ].

net_address(Us, Node) ->
    {ok, Address} = call(Us, net_kernel, node_info, [Node, address]),
    Address.

an_address_can_be_written_down(Config) ->
    doc("The registry static takes the transport's own addresses, and says which it cannot"),
    Options = #{carriers => [abstract], config => #{listen => #{abstract => #{socket => "written/down"}}}},
    #{node := B} = Them = start(Config, Options),
    Static = fun(Address) ->
        #{carriers => [abstract], config => #{registries => [{static, #{atom_to_list(B) => [{abstract, Address}]}}]}}
    end,
    Us = start(Config, Static(<<"written/down">>)),
    pong = ping(Us, Them),
    {error, _, Printed} = polydist_node:boot(lab(Config), Static(here)),
    ok = says(Printed, "abstract_transport:encode/1 returned here").

it_comes_after_uds_by_default(Config) ->
    doc("Before the network's, and before what is from outside and for the network"),
    Carriers = [tcp, scripted, uds, abstract, tls],
    Us = start(Config, #{carriers => Carriers, args => ["-scripted", "reach", "crash"]}),
    #{node := B} = start(Config, #{carriers => Carriers}),
    {ok, Candidates, _} = call(Us, polydist, candidates, [B]),
    [uds, abstract, tls, tcp, scripted] = lists:uniq([T || #{transport := T} <- Candidates]).

another_host_is_not_reached(Config) ->
    doc("A peer that says it is elsewhere"),
    Elsewhere = #{"db@*" => [{tcp, {192, 0, 2, 1}, 4370}]},
    Us = start(Config, #{carriers => [abstract, tcp], config => #{registries => [{static, Elsewhere}]}}),
    {ok, [#{transport := tcp}], Skipped} = call(Us, polydist, candidates, ['db@there']),
    {abstract, _} = lists:keyfind(abstract, 1, Skipped).

listeners_come_and_go(Config) ->
    doc("Several of one transport, under names of their own, registered; connections outlive them"),
    [Us, #{node := B} = Them] = pair(Config, [tcp, abstract], [abstract]),
    {ok, inner} = call(Them, polydist, add_listener, [
        #{transport => abstract, name => inner, socket => "inner/" ++ atom_to_list(B)}
    ]),
    ok = call(Them, polydist, remove_listener, [abstract]),
    wait_until(fun() -> registered(Us, B) =:= [<<"inner/", (atom_to_binary(B))/binary>>] end),
    pong = ping(Us, Them),
    #{listener := inner} = polydist_node:connection(Them, Us),
    ok = call(Them, polydist, remove_listener, [inner]),
    wait_until(fun() -> registered(Us, B) =:= [] end),
    pong = ping(Us, Them),
    #{transport := abstract} = polydist_node:connection(Us, Them),
    Taken = #{transport => abstract, socket => atom_to_list(maps:get(node, Us))},
    {error, {eaddrinuse, <<"abstract cannot listen: address already in use (eaddrinuse)">>}} =
        call(Them, polydist, add_listener, [Taken]).

registered(Us, Node) ->
    #{now := Plan} = call(Us, polydist, explain, [Node]),
    [Bytes || #{answer := {record, Endpoints}} <- maps:get(registries, Plan), {abstract, {opaque, Bytes}} <- Endpoints].

a_name_that_is_taken_is_tried_again(Config) ->
    doc("The node goes on without it, and has it when it is free"),
    Name = polydist_ct:unique("taken"),
    Options = #{carriers => [tcp, abstract], config => #{listen => #{abstract => #{socket => Name}}}},
    First = start(Config, Options),
    Second = start(Config, Options),
    #{state := failed, reason := Reason} = listener(Second, abstract),
    <<"abstract cannot listen: ", _/binary>> = Reason,
    polydist_node:stop(First),
    wait_until(fun() -> maps:get(state, listener(Second, abstract)) =:= listening end, 20000).

%%
%% Misbehaviour
%%

a_listen_that_misbehaves(Config) ->
    doc("It crashes, dies, hangs, or returns rubbish: the node boots over tcp and says why; later it listens"),
    Expected = [{"crash", "scripted_transport:listen/2 crashed: error scripted"},
                {"die", "scripted_transport:listen/2 ended its process: killed"},
                {"hang", "scripted_transport:listen/2 did not return within 5000 ms"},
                {"rubbish", "scripted_transport:listen/2 returned rubbish, which is neither"}],
    polydist_ct:parallel([
        fun() ->
            Node = start(Config, #{carriers => [tcp, scripted], args => ["-scripted", "listen", What]}),
            #{state := failed, reason := Reason} = listener(Node, scripted),
            ok = says(Reason, Sentence),
            _ = polydist_node:await_console(Node, Sentence),
            #{state := listening} = listener(Node, tcp),
            script(Node, listen, normal),
            wait_until(fun() -> maps:get(state, listener(Node, scripted)) =:= listening end, 20000)
        end
     || {What, Sentence} <- Expected
    ]).

an_accept_that_misbehaves(Config) ->
    doc("One line says what it did; when it is well again connections come in"),
    [Us, Them] = pair(Config, [scripted], [scripted]),
    pong = ping(Us, Them),
    polydist_node:disconnect(Us, Them),
    %% One that waits is not disturbed: each takes effect with the next connection.
    _ = [
        begin
            script(Them, accept, What),
            _ = ping(Us, Them),
            _ = polydist_node:await_console(Them, Sentence),
            script(Them, accept, normal),
            wait_until(fun() -> ping(Us, Them) =:= pong end, 20000),
            polydist_node:disconnect(Us, Them)
        end
     || {What, Sentence} <- [{crash, "scripted_transport:accept/1 crashed: error scripted"},
                             {die, "the process that accepts was ended: killed"},
                             {{return, {error, emfile}}, "scripted cannot accept: too many open files"},
                             {{return, ok}, "scripted_transport:accept/1 returned ok, which is neither"}]
    ].

a_connect_that_misbehaves(Config) ->
    doc("The next candidate is dialled within the same connect; explain says what the transport did"),
    [Us, Them] = pair(Config, [scripted, tcp], [scripted, tcp]),
    _ = [
        begin
            script(Us, connect, What),
            pong = ping(Us, Them),
            #{transport := tcp} = polydist_node:connection(Us, Them),
            [#{transport := scripted, outcome := Outcome} = Attempt, #{transport := tcp, outcome := connected}] =
                last_attempts(Us, Them),
            {_, Reason} = maps:get(reason, Attempt, {none, <<>>}),
            ok = says(Reason, Sentence),
            polydist_node:disconnect(Us, Them)
        end
     || {What, Outcome, Sentence} <- [{crash, failed, "scripted_transport:connect/2 crashed: error scripted"},
                                      {die, failed, "scripted_transport:connect/2 ended its process"},
                                      {hang, cancelled, ""},
                                      {{return, {error, econnrefused}}, failed, "cannot connect to scripted .*connection refused"},
                                      {{return, rubbish}, failed, "scripted_transport:connect/2 returned rubbish"},
                                      {{return, {ok, rubbish}}, failed, "scripted_transport:fd/1 "}]
    ].

a_descriptor_of_something_else(Config) ->
    doc("What is no descriptor, or is that of a file, a datagram socket, or a socket that is not connected, is refused by name"),
    [Us, Them] = pair(Config, [scripted, tcp], [scripted, tcp]),
    _ = [
        begin
            script(Us, fd, {return, {ok, Descriptor}}),
            pong = ping(Us, Them),
            #{transport := tcp} = polydist_node:connection(Us, Them),
            [#{transport := scripted, outcome := failed, reason := {_, Sentence}} | _] = last_attempts(Us, Them),
            ok = says(Sentence, Why),
            polydist_node:disconnect(Us, Them)
        end
     || {Descriptor, Why} <- [{-1, "below 0"}, {1000000, "1000000"}, {0, "socket"},
                              {socket(Us, dgram), "stream"}, {socket(Us, stream), "connected"}]
    ].

%% The descriptor of a socket that lives as long as the node.
socket(Node, Type) ->
    run(Node, fun() ->
        Caller = self(),
        _ = spawn(fun() ->
            {ok, Socket} = socket:open(inet, Type),
            Caller ! {opened, socket:getopt(Socket, {otp, fd})},
            receive never -> ok end
        end),
        receive {opened, {ok, Descriptor}} -> Descriptor end
    end).

a_registration_that_lies(Config) ->
    doc("Bytes that are no address of the transport cost one attempt"),
    #{directory := Directory} = lab(Config),
    Dir = filename:join(Directory, polydist_ct:unique("lies")),
    Options = #{carriers => [scripted, tcp], config => #{registries => [{dir, Dir}]}},
    Us = start(Config, Options#{force => [scripted, tcp]}),
    #{node := B} = Them = start(Config, Options#{args => ["-scripted", "encode", "normal"]}),
    script(Us, decode, {return, {error, "it looks odd"}}),
    pong = ping(Us, Them),
    [#{transport := scripted, outcome := failed, reason := {bad_address, Sentence}} | _] = last_attempts(Us, Them),
    ok = says(Sentence, "it looks odd"),
    ok = says(call(Us, polydist, explain_text, [B]), "it looks odd").

descriptors_that_are_never_closed(Config) ->
    doc("close/1 does nothing, on both sides: what was made is closed with the process it was made in"),
    [Us, Them] = pair(Config, [scripted], [scripted]),
    pong = ping(Us, Them),
    _ = [script(Each, close, {return, ok}) || Each <- [Us, Them]],
    Round = fun() ->
        polydist_node:disconnect(Us, Them),
        pong = ping(Us, Them)
    end,
    Round(),
    Before = {polydist_node:resources(Us), polydist_node:resources(Them)},
    _ = [Round() || _ <- lists:seq(1, 50)],
    _ = polydist_node:await_resources(Us, element(1, Before)),
    _ = polydist_node:await_resources(Them, element(2, Before)).

a_faster_candidate_ends_a_connect(Config) ->
    doc("A connect that hangs leaves no process and no message when tcp has won"),
    [Us, Them] = pair(Config, [scripted, tcp], [scripted, tcp]),
    pong = ping(Us, Them),
    script(Us, connect, hang),
    polydist_node:disconnect(Us, Them),
    pong = ping(Us, Them),
    Before = polydist_node:resources(Us),
    _ = [begin polydist_node:disconnect(Us, Them), pong = ping(Us, Them) end || _ <- lists:seq(1, 5)],
    _ = polydist_node:await_resources(Us, Before),
    run(Us, fun() ->
        [] = [Pid || Pid <- processes(), {current_function, {scripted_transport, _, _}} <- [process_info(Pid, current_function)]]
    end).

a_listener_whose_process_is_killed(Config) ->
    doc("It is a listener that failed, is tried again, and the registration follows"),
    [Us, #{node := B} = Them] = pair(Config, [tcp, abstract], [abstract]),
    run(Them, fun() ->
        [Pid] = keepers(),
        exit(Pid, kill)
    end),
    _ = polydist_node:await_console(Them, "abstract does not listen, and tries again: the process that had the socket"),
    wait_until(fun() -> maps:get(state, listener(Them, abstract)) =:= listening end, 20000),
    wait_until(fun() -> registered(Us, B) =/= [] end),
    pong = ping(Us, Them).

a_listener_without_its_keeper(Config) ->
    doc("polydist_listeners is killed: the listener goes on, and its end is still seen"),
    [Us, Them] = pair(Config, [tcp, abstract], [abstract]),
    run(Them, fun() ->
        Old = whereis(polydist_listeners),
        exit(Old, kill),
        wait_until(fun() -> is_pid(whereis(polydist_listeners)) andalso whereis(polydist_listeners) =/= Old end)
    end),
    pong = ping(Us, Them),
    polydist_node:disconnect(Us, Them),
    ok = call(Them, polydist, remove_listener, [abstract]),
    {ok, _} = call(Them, polydist, add_listener, [#{transport => abstract}]),
    wait_until(fun() -> ping(Us, Them) =:= pong end).

strangers_are_shown_out(Config) ->
    doc("Garbage, and silence: counted, and closed within net_setuptime"),
    #{node := Node} = Us = start(Config, #{carriers => [tcp, abstract], args => ["-kernel", "net_setuptime", "1"]}),
    Name = <<0, "polydist/", (atom_to_binary(Node))/binary>>,
    Dial = fun() ->
        {ok, Socket} = socket:open(local, stream),
        ok = socket:connect(Socket, #{family => local, path => Name}),
        Socket
    end,
    [Garbage, Silent] = [Dial(), Dial()],
    ok = socket:send(Garbage, binary:copy(<<255>>, 5000)),
    _ = [{error, closed} = read_to_end(Each) || Each <- [Garbage, Silent]],
    wait_until(fun() -> maps:with([failed, pending], listener(Us, abstract)) =:= #{failed => 2, pending => 0} end).

read_to_end(Socket) ->
    case socket:recv(Socket, 0, 10000) of
        {ok, _} -> read_to_end(Socket);
        {error, econnreset} -> {error, closed};
        {error, _} = Error -> Error
    end.

what_runs_ends_with_the_distribution(Config) ->
    doc("net_kernel:stop/0 closes the socket and ends its process; started again, the node listens again"),
    Node = start(Config, #{name => none, carriers => [abstract]}),
    run(Node, fun() ->
        Start = fun() -> {ok, _} = net_kernel:start(list_to_atom(polydist_ct:unique("late")), #{name_domain => shortnames}) end,
        Start(),
        [Pid] = keepers(),
        Monitor = monitor(process, Pid),
        ok = net_kernel:stop(),
        receive {'DOWN', Monitor, process, Pid, _} -> ok end,
        Start(),
        [_] = keepers()
    end).

%% The processes that have the sockets of transports from outside.
keepers() ->
    [Pid || Pid <- processes(), {current_function, {polydist_outside, keep, 1}} <- [process_info(Pid, current_function)]].
