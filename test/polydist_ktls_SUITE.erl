%%% TLS in the kernel, {ktls, true}: what every transport must do is in polydist_transport_SUITE, and what is particular to this
%%% one here. Without a kernel that has TLS it is seen that nodes do without.
-module(polydist_ktls_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1]).
-import(polydist_node, [run/2, call/4]).

suite() -> [{timetrap, {minutes, 2}}].

all() -> [{group, anywhere}, {group, without}, {group, kernel}].

groups() ->
    [
        {anywhere, [], [tls12_stays_outside_the_kernel, an_end_without_the_option_does_it_itself]},
        {without, [], [a_kernel_without_tls_is_named_once_and_nothing_else_changes]},
        {kernel, [], [
            both_ends_in_the_kernel,
            one_end_in_the_kernel_and_tickets_all_the_same,
            everything_arrives_at_full_speed_both_ways,
            all_ciphers,
            a_stock_node_that_knows_nothing_of_it,
            the_end_of_a_connection_has_the_same_reasons,
            the_figures_count_what_the_nodes_say,
            nothing_is_left_behind
        ]}
    ].

init_per_suite(Config) -> polydist_ct:without_global(polydist_ct:open_lab(?MODULE, Config)).

end_per_suite(Config) -> polydist_ct:close_lab(Config).

init_per_group(kernel, Config) ->
    case polydist_ct:has_ktls() of
        true -> Config;
        false -> {skip, "this kernel has no TLS: modprobe tls, or test/tools/vm-run"}
    end;
init_per_group(without, Config) ->
    case polydist_ct:has_ktls() of
        true -> {skip, "this kernel has TLS"};
        false -> Config
    end;
init_per_group(anywhere, Config) ->
    Config.

end_per_group(_, _) -> ok.

%% A node that dials by TLS only and has further options for it.
node_with(Config, More) -> (options(Config, More))#{force => [tls]}.

options(Config, More) ->
    #{directory := Directory, certificates := Certificates} = lab(Config),
    File = filename:join(Directory, polydist_ct:unique("ktls") ++ ".conf"),
    ok = polydist_ct:write_tls_options(File, More ++ polydist_ct:tls_options(Certificates)),
    #{optfile => File}.

ktls() -> [{ktls, true}].

%% Two nodes with these options of TLS, connected: we dial.
pair(Config, Ours, Theirs) ->
    connected(Config, node_with(Config, Ours), node_with(Config, Theirs)).

connected(Config, Ours, Theirs) ->
    [Us, Them] = polydist_node:start_all(lab(Config), [Ours, Theirs]),
    polydist_node:connect(Us, Them),
    {Us, Them}.

%% What each end says of TLS.
tls(Us, Them) ->
    [maps:get(tls, polydist_node:connection(From, To)) || {From, To} <- [{Us, Them}, {Them, Us}]].

%% Messages of all sizes, there and back.
talk(Us, #{node := B} = Them) ->
    _ = run(Them, fun() -> whereis(echo) =/= undefined orelse polydist_traffic:start_echo(echo) end),
    Sizes = [0, 1, 1000, 16300, 16384, 16500, 70000, 1048576, 5000000],
    run(Us, fun() -> [ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(Size)) || Size <- Sizes] end),
    run(Us, fun() -> [ok = polydist_traffic:echo({echo, B}, Term) || Term <- polydist_traffic:payloads()] end).

%%
%% On every kernel
%%

tls12_stays_outside_the_kernel(Config) ->
    doc("The node says so, once for many connections, if its kernel could do it at all"),
    Old = [{versions, ['tlsv1.2']} | ktls()],
    {Us, Them} = pair(Config, Old, Old),
    [#{version := 'tlsv1.2', ktls := false}, #{version := 'tlsv1.2', ktls := false}] = tls(Us, Them),
    talk(Us, Them),
    again(Us, Them),
    1 = warnings(Us, "a peer speaks TLS 1.2").

an_end_without_the_option_does_it_itself(Config) ->
    doc("ktls false, as by default: no word of the kernel"),
    {Us, Them} = pair(Config, [], [{ktls, false}]),
    [#{ktls := false}, #{ktls := false}] = tls(Us, Them),
    0 = warnings(Us, "ktls").

%%
%% On a kernel without it
%%

a_kernel_without_tls_is_named_once_and_nothing_else_changes(Config) ->
    doc("One warning with the cure, and TLS as ever"),
    {Us, Them} = pair(Config, ktls(), ktls()),
    [#{version := 'tlsv1.3', ktls := false}, #{version := 'tlsv1.3', ktls := false}] = tls(Us, Them),
    talk(Us, Them),
    again(Us, Them),
    [1 = warnings(Each, "this kernel has no TLS.*modprobe tls") || Each <- [Us, Them]].

again(Us, Them) ->
    polydist_node:disconnect(Us, Them),
    polydist_node:connect(Us, Them).

%% How often the node's console has this.
warnings(Node, Pattern) ->
    case re:run(polydist_node:console(Node), Pattern, [global, dotall]) of
        {match, Matches} -> length(Matches);
        nomatch -> 0
    end.

%%
%% In the kernel
%%

both_ends_in_the_kernel(Config) ->
    doc("connections/0 says so on both ends; nothing is logged"),
    {Us, Them} = pair(Config, ktls(), ktls()),
    [#{version := 'tlsv1.3', ktls := true}, #{version := 'tlsv1.3', ktls := true}] = tls(Us, Them),
    talk(Us, Them),
    talk(Them, Us),
    again(Us, Them),
    [#{ktls := true}, #{ktls := true}] = tls(Us, Them),
    0 = warnings(Us, "ktls").

one_end_in_the_kernel_and_tickets_all_the_same(Config) ->
    doc("Either end; a server without ktls gives tickets, which are kept, so that the next connection resumes"),
    {A, B} = pair(Config, ktls(), []),
    [#{ktls := true, resumed := false}, #{ktls := false}] = tls(A, B),
    talk(A, B),
    talk(B, A),
    again(A, B),
    [#{ktls := true, resumed := true}, #{ktls := false, resumed := true}] = tls(A, B),
    talk(A, B),
    {C, D} = pair(Config, [], ktls()),
    [#{ktls := false}, #{ktls := true}] = tls(C, D),
    talk(C, D),
    talk(D, C).

everything_arrives_at_full_speed_both_ways(Config) ->
    doc("Eight senders each way, small messages and big ones; each arrives once and in order"),
    {Us, Them} = pair(Config, ktls(), ktls()),
    Sizes = [10, 300, 70000, 5, 20000, 1, 200000],
    Flood = fun(#{node := To} = Receiver, Sender) ->
        polydist_ct:parallel([
            fun() -> run(Receiver, fun() -> polydist_traffic:await_sink(polydist_traffic:start_sink(sink, 8, 200)) end) end,
            fun() ->
                polydist_ct:wait_until(fun() -> is_pid(call(Receiver, erlang, whereis, [sink])) end),
                run(Sender, fun() -> polydist_traffic:send_all({sink, To}, 8, 200, Sizes) end)
            end
        ])
    end,
    [[Bytes, ok], [Bytes, ok]] = polydist_ct:parallel([fun() -> Flood(Them, Us) end, fun() -> Flood(Us, Them) end]),
    [#{ktls := true}, #{ktls := true}] = tls(Us, Them).

all_ciphers(Config) ->
    doc("Those of TLS 1.3"),
    [
        begin
            {Us, Them} = pair(Config, [{ciphers, [Cipher]} | ktls()], ktls()),
            Name = list_to_binary(Cipher),
            [#{ktls := true, cipher := Name}, #{ktls := true}] = tls(Us, Them),
            talk(Us, Them),
            [polydist_node:stop(Each) || Each <- [Us, Them]]
        end
     || Cipher <- ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
    ].

a_stock_node_that_knows_nothing_of_it(Config) ->
    doc("inet_tls of the running release dials us, in TLS 1.3"),
    #{optfile := Optfile} = Options = options(Config, [{versions, ['tlsv1.3']}]),
    Ours = (node_with(Config, ktls()))#{config => #{legacy => tls}},
    Stock = #{proto_dist => "inet_tls", epmd_module => "erl_epmd", carriers => [], args => ["-ssl_dist_optfile", Optfile]},
    [#{node := A} = Us, Them] = polydist_node:start_all(lab(Config), [Ours, maps:merge(Options, Stock)]),
    pong = call(Them, net_adm, ping, [A]),
    #{tls := #{version := 'tlsv1.3', ktls := true}} = polydist_node:connection(Us, Them),
    talk(Us, Them).

the_end_of_a_connection_has_the_same_reasons(Config) ->
    doc("disconnect, and connection_closed for a node that halts: its goodbye comes beside the data"),
    {Us, #{node := B} = Them} = pair(Config, ktls(), []),
    Down = fun(Cause) ->
        run(Us, fun() ->
            ok = polydist_traffic:watch_nodes(),
            _ = Cause(),
            polydist_traffic:await_nodedown(B)
        end)
    end,
    disconnect = Down(fun() -> erlang:disconnect_node(B) end),
    polydist_node:connect(Us, Them),
    connection_closed = Down(fun() -> erpc:cast(B, erlang, halt, [0]) end).

the_figures_count_what_the_nodes_say(Config) ->
    doc("Both ends agree on messages and bytes; of the wire they see what the kernel takes and gives"),
    {Us, Them} = pair(Config, ktls(), ktls()),
    talk(Us, Them),
    polydist_ct:wait_until(fun() ->
        #{bytes_out := Sent, wire_out := Taken} = polydist_node:connection(Us, Them),
        #{bytes_in := Received, wire_in := Given} = polydist_node:connection(Them, Us),
        Sent =:= Received andalso Sent > 6000000 andalso abs(Taken - Given) < 5000
    end).

nothing_is_left_behind(Config) ->
    doc("Fifty connections leave no descriptor, port or memory"),
    Alone = (node_with(Config, ktls()))#{args => polydist_ct:never()},
    {Us, Them} = connected(Config, Alone, Alone),
    again(Us, Them),
    polydist_node:disconnect(Us, Them),
    Before = polydist_node:resources(Us),
    _ = [begin polydist_node:connect(Us, Them), polydist_node:disconnect(Us, Them) end || _ <- lists:seq(1, 50)],
    _ = polydist_node:await_resources(Us, Before),
    ok.
