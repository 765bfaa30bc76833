%%% Certificates change under running nodes. What a listener shows is read by OTP's own ssl, as any other peer would see it.
-module(polydist_reload_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/1]).
-import(polydist_node, [run/2, call/4]).

-include_lib("public_key/include/public_key.hrl").

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, load}, {group, files}, {group, dates}, {group, age}].

groups() ->
    [
        {load, [], [
            certificates_change_under_load_when_asked_to,
            certificates_change_under_load_with_their_files
        ]},
        {files, [parallel], [
            a_mistake_changes_nothing_and_is_an_error,
            an_ended_certificate_replaces_none,
            rubbish_is_told_once_and_so_is_its_end,
            the_key_may_come_before_the_certificate,
            a_half_written_file_is_waited_for,
            a_link_to_another_directory_is_followed,
            the_option_file_may_name_other_files,
            listeners_without_certificates_get_them_by_a_call,
            listeners_without_certificates_get_them_from_files_that_appear,
            nobody_looks_where_that_is_switched_off,
            a_killed_polydist_tls_goes_on_from_there,
            a_node_without_the_carrier_says_so,
            whom_a_new_file_does_not_trust_comes_in_no_more,
            nothing_that_is_kept_is_secret
        ]},
        {dates, [parallel], [
            a_certificate_that_ends_soon_is_told_once,
            a_certificate_that_has_ended_is_told_and_the_node_boots,
            connections_show_when_their_certificates_end
        ]},
        {age, [parallel], [
            old_connections_are_renewed_one_at_a_time,
            under_load_a_renewal_loses_what_a_reconnect_does,
            two_nodes_do_not_renew_each_others_connections,
            a_renewal_that_fails_leaves_the_connection,
            a_hidden_connection_is_renewed_as_one
        ]}
    ].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(ssl),
    polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%%
%% Certificates
%%

%% A new directory with a certificate of the lab's authority.
issue(Config) -> issue(Config, 365).

issue(Config, Days) ->
    #{directory := Lab, certificates := Authority} = lab(Config),
    Directory = filename:join(Lab, polydist_ct:unique("tls")),
    ok = polydist_ct:write_certificates(Directory, ["localhost"], ["--days", integer_to_list(Days), "--ca", Authority]),
    Directory.

%% Puts other files in the place of those in a directory, in this order, one write each.
replace(Directory, Other, Files) ->
    lists:foreach(fun(File) -> {ok, _} = file:copy(filename:join(Other, File), filename:join(Directory, File)) end, Files).

write(Directory, File, Text) -> ok = file:write_file(filename:join(Directory, File), Text).

read(Directory, File) ->
    {ok, Text} = file:read_file(filename:join(Directory, File)),
    Text.

der(Directory) ->
    [{'Certificate', Der, not_encrypted} | _] = public_key:pem_decode(read(Directory, "cert.pem")),
    Der.

%% What the node's listener shows to anybody.
shown(Config, Node) ->
    #{certificates := Authority} = lab(Config),
    [Port | _] = [Port || #{transport := tls, address := Addresses} <- call(Node, polydist, listeners, []),
                          {{_, _, _, _}, Port} <- Addresses],
    Options = lists:keyreplace(verify, 1, polydist_ct:tls_options(Authority), {verify, verify_none}),
    {ok, Socket} = ssl:connect({127, 0, 0, 1}, Port, Options, 10000),
    {ok, Der} = ssl:peercert(Socket),
    ok = ssl:close(Socket),
    Der.

await_shown(Config, Node, Directory) ->
    Der = der(Directory),
    wait_until(fun() -> shown(Config, Node) =:= Der end).

tls_node(Directory, Options) ->
    Given = maps:get(config, Options, #{}),
    maps:merge(
        #{force => [tls], optfile => filename:join(Directory, "dist_tls.conf"), args => ["-kernel", "logger_level", "info"]},
        Options#{config => maps:merge(#{tls_watch => 0.1}, Given)}
    ).

start(Config, Directory) -> start(Config, Directory, #{}).

start(Config, Directory, Options) -> polydist_node:start(lab(Config), tls_node(Directory, Options)).

reload(Node) -> call(Node, polydist, reload_tls, []).

printed_times(Node, Pattern) ->
    case re:run(polydist_node:console(Node), Pattern, [global]) of
        {match, Matches} -> length(Matches);
        nomatch -> 0
    end.

said(Sentence, Part) ->
    case string:find(Sentence, Part) of
        nomatch -> error({not_said, Part, Sentence});
        _ -> ok
    end.

%%
%% Under load
%%

certificates_change_under_load_when_asked_to(Config) ->
    doc("Two nodes send each other all the while; only a third one, and they themselves when they connect anew, see what is new"),
    under_load(Config, #{tls_watch => false}, fun(Node, _) -> ok = reload(Node) end).

certificates_change_under_load_with_their_files(Config) ->
    doc("The same, and nobody says a word"),
    under_load(Config, #{}, fun(Node, New) -> await_shown(Config, Node, New) end).

under_load(Config, Keys, Take) ->
    [Directory | News] = [issue(Config) || _ <- lists:seq(1, 4)],
    Options = tls_node(Directory, #{config => Keys}),
    [Us, Them, Third] = polydist_node:start_all(lab(Config), [Options, Options, Options]),
    polydist_node:connect(Us, Them),
    Before = both_ways(Us, Them),
    Traffic = [spawn_monitor(fun() -> traffic(From, To) end) || {From, To} <- [{Us, Them}, {Them, Us}]],
    lists:foreach(
        fun(New) ->
            replace(Directory, New, ["cert.pem", "key.pem"]),
            Der = der(New),
            [begin
                ok = Take(Node, New),
                Der = shown(Config, Node)
             end || Node <- [Us, Them]],
            Number = number(New),
            polydist_node:connect(Third, Us),
            {_, Number} = numbers(Third, Us),
            {Number, _} = numbers(Us, Third),
            polydist_node:disconnect(Third, Us),
            polydist_node:connect(Us, Third),
            {Number, _} = numbers(Us, Third),
            {_, Number} = numbers(Third, Us),
            polydist_node:disconnect(Third, Us)
        end,
        News
    ),
    [Pid ! stop || {Pid, _} <- Traffic],
    Rounds = [receive {'DOWN', Monitor, process, _, Reason} -> {all_there, _} = Reason end || {_, Monitor} <- Traffic],
    ct:log("~p", [Rounds]),
    Before = both_ways(Us, Them),
    [0, 0] = [printed_times(Node, "cannot be used") || Node <- [Us, Them]].

%% The numbers of the certificates that a connection was made with: our own and the peer's.
numbers(From, To) ->
    #{tls := #{own := Own, peer := Peer}} = polydist_node:connection(From, To),
    {number_of(Own), number_of(Peer)}.

number_of(#{serial := Serial}) -> binary_to_integer(Serial, 16).

number(Directory) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{serialNumber = Number}} =
        public_key:pkix_decode_cert(der(Directory), otp),
    Number.

%% What does not change while a connection lives.
both_ways(Us, Them) ->
    [maps:with([node, since, direction, peer, local, tls], polydist_node:connection(From, To))
     || {From, To} <- [{Us, Them}, {Them, Us}]].

%% Numbered messages of several senders, all of which must arrive in their order, round after round.
traffic(From, To) -> traffic(From, To, 1).

traffic(From, #{node := Node} = To, Round) ->
    Name = list_to_atom(polydist_ct:unique("sink")),
    {Sink, Monitor} = spawn_monitor(fun() ->
        polydist_node:run(To, fun() -> polydist_traffic:await_sink(polydist_traffic:start_sink(Name, 4, 100)) end)
    end),
    wait_until(fun() -> is_pid(call(To, erlang, whereis, [Name])) end),
    ok = polydist_node:run(From, fun() -> polydist_traffic:send_all({Name, Node}, 4, 100, [10, 3000, 70000]) end),
    receive {'DOWN', Monitor, process, Sink, normal} -> ok end,
    receive
        stop -> exit({all_there, Round})
    after 0 -> traffic(From, To, Round + 1)
    end.

%%
%% Files
%%

a_mistake_changes_nothing_and_is_an_error(Config) ->
    doc("By a call: the sentence names the file; new handshakes are as they were"),
    [Directory, New] = [issue(Config), issue(Config)],
    Old = der(Directory),
    [#{node := A} = Us, Them] = Both = [start(Config, Directory, #{config => #{tls_watch => false}}) || _ <- [1, 2]],
    polydist_node:connect(Us, Them),
    Breaks = [
        {"cert.pem", <<"rubbish">>},
        {"cert.pem", binary:part(read(New, "cert.pem"), 0, 200)},
        {"cert.pem", read(New, "cert.pem")},
        {"key.pem", read(New, "key.pem")},
        {"dist_tls.conf", <<"[{server, []">>}
    ],
    [begin
        Good = read(Directory, File),
        write(Directory, File, Text),
        {error, {tls, Sentence}} = reload(Us),
        ct:log("~ts", [Sentence]),
        said(Sentence, File),
        Old = shown(Config, Us),
        write(Directory, File, Good),
        ok = reload(Us)
     end || {File, Text} <- Breaks],
    ok = file:delete(filename:join(Directory, "ca.pem")),
    {error, {tls, Gone}} = reload(Us),
    said(Gone, "ca.pem"),
    [A] = call(Them, erlang, nodes, []),
    Third = start(Config, New),
    polydist_node:connect(Third, Us),
    2 = length(Both).

an_ended_certificate_replaces_none(Config) ->
    doc("Neither when asked nor by itself, and a warning says why"),
    [Directory, Ended] = [issue(Config), issue(Config, -2)],
    Old = der(Directory),
    Us = start(Config, Directory),
    replace(Directory, Ended, ["cert.pem", "key.pem"]),
    {error, {tls, Sentence}} = reload(Us),
    said(Sentence, "ended on"),
    polydist_node:await_console(Us, "cannot be used[^\n]*\n?[^\n]*ended on"),
    Old = shown(Config, Us).

rubbish_is_told_once_and_so_is_its_end(Config) ->
    doc("A warning that names the file, once for each change; what is mended is told"),
    Directory = issue(Config),
    [Good, Old] = [read(Directory, "cert.pem"), der(Directory)],
    Us = start(Config, Directory),
    write(Directory, "cert.pem", "rubbish"),
    polydist_node:await_console(Us, "stays in use: [^\n]*cert.pem"),
    Old = shown(Config, Us),
    write(Directory, "cert.pem", "other rubbish"),
    wait_until(fun() -> printed_times(Us, "stays in use") =:= 2 end),
    write(Directory, "cert.pem", Good),
    polydist_node:await_console(Us, "again as they were read"),
    2 = printed_times(Us, "stays in use"),
    Old = shown(Config, Us).

the_key_may_come_before_the_certificate(Config) ->
    doc("In between they do not belong together, which is no mistake unless it stays so"),
    [Directory, First, Second] = [issue(Config) || _ <- [1, 2, 3]],
    Us = start(Config, Directory),
    replace(Directory, First, ["key.pem", "cert.pem"]),
    await_shown(Config, Us, First),
    replace(Directory, Second, ["cert.pem", "key.pem"]),
    await_shown(Config, Us, Second),
    0 = printed_times(Us, "stays in use"),
    replace(Directory, First, ["key.pem"]),
    polydist_node:await_console(Us, "stays in use: [^\n]*key"),
    replace(Directory, First, ["cert.pem"]),
    await_shown(Config, Us, First),
    1 = printed_times(Us, "stays in use").

a_half_written_file_is_waited_for(Config) ->
    doc("The node looks at it after each line that is written"),
    [Directory, New] = [issue(Config), issue(Config)],
    Us = start(Config, Directory, #{config => #{tls_watch => 0.05}}),
    Old = der(Directory),
    replace(Directory, New, ["key.pem"]),
    Lines = binary:split(read(New, "cert.pem"), <<"\n">>, [global, trim]),
    lists:foldl(
        fun(Line, Written) ->
            Old = shown(Config, Us),
            write(Directory, "cert.pem", Written),
            await_look(Us),
            [Written, Line, "\n"]
        end,
        [], Lines
    ),
    Old = shown(Config, Us),
    replace(Directory, New, ["cert.pem"]),
    await_shown(Config, Us, New).

%% Waits until the node has seen what its files hold now.
await_look(Node) ->
    wait_until(fun() ->
        run(Node, fun() ->
            #{looked := Looked} = sys:get_state(polydist_tls),
            {ok, #{files := Files}} = ets:lookup_element(polydist, tls, 2),
            polydist_tls_files:contents(polydist_tls_files:look(Files, Looked)) =:= polydist_tls_files:contents(Looked)
        end)
    end).

a_link_to_another_directory_is_followed(Config) ->
    doc("As a volume of Kubernetes changes: the files are links through a link, which is replaced"),
    [First, Second] = [issue(Config), issue(Config)],
    Directory = issue(Config),
    Link = fun(Target, Name) -> ok = file:make_symlink(Target, filename:join(Directory, Name)) end,
    Link(First, "..data"),
    [begin
        ok = file:delete(filename:join(Directory, File)),
        Link(filename:join("..data", File), File)
     end || File <- ["ca.pem", "cert.pem", "key.pem"]],
    Us = start(Config, Directory),
    wait_until(fun() -> shown(Config, Us) =:= der(First) end),
    Link(Second, "..data_tmp"),
    ok = file:rename(filename:join(Directory, "..data_tmp"), filename:join(Directory, "..data")),
    await_shown(Config, Us, Second),
    0 = printed_times(Us, "stays in use").

the_option_file_may_name_other_files(Config) ->
    doc("From then on it is those that are looked at"),
    [Directory, Second, Third] = [issue(Config) || _ <- [1, 2, 3]],
    Us = start(Config, Directory),
    replace(Directory, Second, ["dist_tls.conf"]),
    await_shown(Config, Us, Second),
    replace(Second, Third, ["cert.pem", "key.pem"]),
    await_shown(Config, Us, Third).

late(Config, Watch) ->
    [Directory, Files] = [issue(Config), issue(Config)],
    [ok = file:delete(filename:join(Directory, File)) || File <- ["cert.pem", "key.pem"]],
    Us = start(Config, Directory, #{force => [tls, uds], config => #{tls_watch => Watch}}),
    [failed] = [State || #{transport := tls, state := State} <- call(Us, polydist, listeners, [])],
    {Us, Directory, Files}.

listeners_without_certificates_get_them_by_a_call(Config) ->
    doc("The listener opens before the call returns"),
    {Us, Directory, Files} = late(Config, false),
    {error, {tls, Sentence}} = reload(Us),
    said(Sentence, "cert.pem"),
    replace(Directory, Files, ["cert.pem", "key.pem"]),
    ok = reload(Us),
    [listening] = [State || #{transport := tls, state := State} <- call(Us, polydist, listeners, [])],
    true = shown(Config, Us) =:= der(Files).

listeners_without_certificates_get_them_from_files_that_appear(Config) ->
    doc("And who dials has them as well"),
    {#{node := A} = Us, Directory, Files} = late(Config, 0.1),
    Them = start(Config, Files),
    replace(Directory, Files, ["key.pem", "cert.pem"]),
    wait_until(fun() -> call(Them, net_kernel, connect_node, [A]) end),
    polydist_node:disconnect(Them, Us),
    polydist_node:connect(Us, Them),
    #{transport := tls} = polydist_node:connection(Us, Them),
    0 = printed_times(Us, "stays in use").

nobody_looks_where_that_is_switched_off(Config) ->
    doc("tls_watch is false: what the files hold is taken up by a call only"),
    [Directory, New] = [issue(Config), issue(Config)],
    [Us, Them] = [start(Config, Directory, #{config => #{tls_watch => Watch}}) || Watch <- [false, 0.1]],
    Old = der(Directory),
    replace(Directory, New, ["cert.pem", "key.pem"]),
    await_shown(Config, Them, New), % so there was the time for it
    Old = shown(Config, Us),
    ok = reload(Us),
    true = shown(Config, Us) =:= der(New).

a_killed_polydist_tls_goes_on_from_there(Config) ->
    doc("Files that change while nobody looks are seen by the next one; rubbish leaves what there was"),
    [Directory, New] = [issue(Config), issue(Config)],
    Us = start(Config, Directory),
    kill(Us, polydist_tls),
    replace(Directory, New, ["cert.pem", "key.pem"]),
    await_shown(Config, Us, New),
    write(Directory, "cert.pem", "rubbish"),
    kill(Us, polydist_tls),
    polydist_node:await_console(Us, "stays in use"),
    true = shown(Config, Us) =:= der(New),
    kill(Us, polydist_listeners),
    true = shown(Config, Us) =:= der(New).

kill(Node, Name) ->
    Pid = call(Node, erlang, whereis, [Name]),
    true = call(Node, erlang, exit, [Pid, kill]),
    wait_until(fun() ->
        case call(Node, erlang, whereis, [Name]) of
            New when is_pid(New) -> New =/= Pid;
            undefined -> false
        end
    end).

a_node_without_the_carrier_says_so(Config) ->
    doc("Nor is there anything to reload on a node that is not distributed"),
    Us = polydist_node:start(lab(Config), #{carriers => [tcp, uds]}),
    {error, {tls, Sentence}} = reload(Us),
    said(Sentence, "speaks TLS"),
    {error, {not_running, _}} = polydist:reload_tls().

whom_a_new_file_does_not_trust_comes_in_no_more(Config) ->
    doc("A peer that had been there before is refused from the reload on; its connection stays"),
    #{directory := Lab} = lab(Config),
    Directory = issue(Config),
    Other = filename:join(Lab, polydist_ct:unique("tls")),
    ok = polydist_ct:write_certificates(Other, ["localhost"]),
    Both = [read(Directory, "ca.pem"), read(Other, "ca.pem")],
    write(Directory, "both.pem", Both),
    write(Other, "ca.pem", Both),
    Options = fun(Ca) ->
        lists:keyreplace(cacertfile, 1, polydist_ct:tls_options(Directory), {cacertfile, filename:join(Directory, Ca)})
    end,
    File = filename:join(Directory, "dist_tls.conf"),
    ok = polydist_ct:write_tls_options(File, Options("both.pem")),
    [#{node := A} = Us, Them, Stays] = polydist_node:start_all(lab(Config), [
        tls_node(Directory, #{config => #{tls_watch => false}}) | lists:duplicate(2, tls_node(Other, #{}))
    ]),
    [polydist_node:connect(Each, Us) || Each <- [Them, Stays]],
    polydist_node:disconnect(Them, Us),
    ok = polydist_ct:write_tls_options(File, Options("ca.pem")),
    ok = reload(Us),
    pang = call(Them, net_adm, ping, [A]),
    pong = call(Stays, net_adm, ping, [A]).

nothing_that_is_kept_is_secret(Config) ->
    doc("Neither the table nor a state has the key, nor the terms of the configuration, which might"),
    Directory = issue(Config),
    [_, Line | _] = binary:split(read(Directory, "key.pem"), <<"\n">>, [global]),
    Terms = [{server, polydist_ct:tls_options(Directory)}],
    Us = start(Config, Directory, #{optfile => false, config => #{tls => Terms}}),
    true = shown(Config, Us) =:= der(Directory),
    Kept = call(Us, ets, tab2list, [polydist]) ++ [call(Us, sys, get_state, [polydist_tls])],
    Words = [Line, base64:decode(Line), <<"PRIVATE KEY">>, <<"verify_peer">>],
    [nomatch = binary:match(term_to_binary(Kept), Word) || Word <- Words].

%%
%% Dates
%%

a_certificate_that_ends_soon_is_told_once(Config) ->
    doc("When it is taken up, and not again: not an hour later, nor when all is read anew; of its successor nothing is said"),
    [Directory, Short, New] = [issue(Config), issue(Config, 7), issue(Config)],
    Us = start(Config, Directory),
    replace(Directory, Short, ["cert.pem", "key.pem"]),
    polydist_node:await_console(Us, "the certificate of [^\n]*cert.pem[^\n]*ends on[^\n]*put a new one"),
    call(Us, erlang, send, [polydist_tls, hour]),
    ok = reload(Us),
    wait_until(fun() -> printed_times(Us, "read anew") =:= 2 end),
    1 = printed_times(Us, "put a new one"),
    replace(Directory, New, ["cert.pem", "key.pem"]),
    wait_until(fun() -> printed_times(Us, "read anew") =:= 3 end),
    Shown = shown(Config, Us),
    Shown = der(New),
    1 = printed_times(Us, "put a new one").

a_certificate_that_has_ended_is_told_and_the_node_boots(Config) ->
    doc("It listens, as a node with inet_tls would, and says why nobody comes; the next certificate is taken up"),
    [Directory, New] = [issue(Config, -2), issue(Config)],
    Us = start(Config, Directory),
    polydist_node:await_console(Us, "ended on"),
    [listening] = [State || #{transport := tls, state := State} <- call(Us, polydist, listeners, [])],
    replace(Directory, New, ["cert.pem", "key.pem"]),
    await_shown(Config, Us, New).

connections_show_when_their_certificates_end(Config) ->
    doc("Both ends', in seconds"),
    [Us, Them] = [start(Config, issue(Config, Days)) || Days <- [100, 200]],
    polydist_node:connect(Us, Them),
    #{tls := #{own := #{not_after := Ours}, peer := #{not_after := Theirs}} = Tls} = polydist_node:connection(Us, Them),
    [100, 200] = [round((End - erlang:system_time(second)) / 86400) || End <- [Ours, Theirs]],
    false = is_map_key(chain, Tls).

%%
%% Age
%%

aged(Us, Them) ->
    #{since := Since} = polydist_node:connection(Us, Them),
    Since.

policy(Age) -> [{any, #{transports => [tcp], max_age => Age}}].

old_connections_are_renewed_one_at_a_time(Config) ->
    doc("Five peers of one node: each comes back a second later, and never are two of them away"),
    [Us | Peers] = polydist_node:start_all(
        lab(Config), [#{policy => policy(3)} | [#{force => [tcp]} || _ <- lists:seq(1, 5)]]
    ),
    Nodes = [Node || #{node := Node} <- Peers],
    Watch = run(Us, fun() -> watch(Nodes) end),
    [polydist_node:connect(Us, Each) || Each <- Peers],
    wait_until(fun() -> lists:all(fun(Ups) -> Ups >= 3 end, maps:values(ups(Us, Watch))) end, 60000),
    1 = most_down(Us, Watch).

wait_until(Condition, Time) -> polydist_ct:wait_until(Condition, Time).

%% A process that counts how often each node came up, and how many of them were down at one moment after they all had been up.
watch(Nodes) ->
    Caller = self(),
    Pid = spawn(fun() ->
        ok = net_kernel:monitor_nodes(true),
        Caller ! {self(), ready},
        watch_loop(maps:from_list([{Node, 0} || Node <- Nodes]), [], 0)
    end),
    receive {Pid, ready} -> Pid end.

watch_loop(Ups, Down, Most) ->
    receive
        {nodeup, Node} when is_map_key(Node, Ups) -> watch_loop(Ups#{Node := map_get(Node, Ups) + 1}, Down -- [Node], Most);
        {nodedown, Node} when is_map_key(Node, Ups) -> watch_loop(Ups, [Node | Down], max(Most, length(Down) + 1));
        {ask, From} ->
            From ! {watched, Ups, Most},
            watch_loop(Ups, Down, Most);
        _ -> watch_loop(Ups, Down, Most)
    end.

ups(Node, Watch) ->
    {Ups, _} = watched(Node, Watch),
    Ups.

most_down(Node, Watch) ->
    {_, Most} = watched(Node, Watch),
    Most.

watched(Node, Watch) ->
    run(Node, fun() ->
        Watch ! {ask, self()},
        receive {watched, Ups, Most} -> {Ups, Most} end
    end).

under_load_a_renewal_loses_what_a_reconnect_does(Config) ->
    doc("Calls are made without a pause: some in the gap fail as they do when a node goes down, none is answered wrongly or hangs"),
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [#{policy => policy(2)}, #{force => [tcp]}]),
    run(Them, fun() -> polydist_traffic:start_echo(echo) end),
    polydist_node:connect(Us, Them),
    Watch = run(Us, fun() -> watch([B]) end),
    {Answered, Down} = run(Us, fun() -> ask_on(B, erlang:monotonic_time(millisecond) + 9000, 0, 0) end),
    ct:log("~p answers, ~p calls that saw the node down", [Answered, Down]),
    #{B := Ups} = ups(Us, Watch),
    true = Ups >= 3,
    true = Down =< Ups,
    true = Answered > 100.

ask_on(Node, End, Answered, Down) ->
    case erlang:monotonic_time(millisecond) > End of
        true -> {Answered, Down};
        false ->
            Monitor = monitor(process, {echo, Node}),
            {echo, Node} ! {self(), Monitor, Answered},
            receive
                {Monitor, Answered} ->
                    demonitor(Monitor, [flush]),
                    ask_on(Node, End, Answered + 1, Down);
                {'DOWN', Monitor, process, _, noconnection} -> ask_on(Node, End, Answered, Down + 1)
            end
    end.

two_nodes_do_not_renew_each_others_connections(Config) ->
    doc("Both have the same max_age: the one that dialled renews, and stays the one that dialled"),
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [#{policy => policy(3)}, #{policy => policy(3)}]),
    polydist_node:connect(Us, Them),
    #{direction := out} = polydist_node:connection(Us, Them),
    Watch = run(Us, fun() -> watch([B]) end),
    wait_until(fun() -> maps:get(B, ups(Us, Watch)) >= 5 end, 60000),
    wait_until(fun() -> polydist_node:connection(Us, Them) =/= none end),
    #{direction := out, since := Since} = polydist_node:connection(Us, Them),
    ct:log("since ~p", [Since]),
    [0, 0] = [printed_times(Node, "cannot be|failed") || Node <- [Us, Them]].

a_renewal_that_fails_leaves_the_connection(Config) ->
    doc("The peer can no longer be dialled: one line, and the connection is renewed when it can be again"),
    [Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [#{policy => policy(2)}, #{force => [tcp]}]),
    polydist_node:connect(Us, Them),
    Watch = run(Us, fun() -> watch([B]) end),
    ok = call(Them, polydist, remove_listener, [tcp]),
    polydist_node:await_console(Us, "due to be renewed[^\n]*cannot be"),
    Since = aged(Us, Them),
    {ok, _} = call(Them, polydist, add_listener, [#{transport => tcp}]),
    wait_until(fun() -> maps:get(B, ups(Us, Watch)) >= 1 end, 60000),
    polydist_node:await_console(Us, "is renewed after"),
    wait_until(fun() -> polydist_node:connection(Us, Them) =/= none end),
    true = aged(Us, Them) > Since,
    1 = printed_times(Us, "due to be renewed").

a_hidden_connection_is_renewed_as_one(Config) ->
    doc("Neither node lists the other among those that everybody sees"),
    [#{node := A} = Us, #{node := B} = Them] = polydist_node:start_all(lab(Config), [#{policy => policy(2)}, #{force => [tcp]}]),
    true = call(Us, net_kernel, hidden_connect_node, [B]),
    pong = call(Us, net_adm, ping, [B]),
    Since = aged(Us, Them),
    wait_until(fun() ->
        case polydist_node:connection(Us, Them) of
            #{since := Later} -> Later > Since;
            none -> false
        end
    end),
    pong = call(Us, net_adm, ping, [B]),
    [{[B], []}, {[A], []}] = [{call(Each, erlang, nodes, [hidden]), call(Each, erlang, nodes, [])} || Each <- [Us, Them]].
