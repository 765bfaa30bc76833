%%% doc/policies.md does what it says: its configurations run, each in the situation it is for, with real nodes on three
%%% hosts; its rules are rules; and what it shows of a node's answers is what a node answers.
%%%
%%% The page's blocks of code are found by their first line: ```erlang policy=NAME is a whole sys.config, ```nft firewall=NAME
%%% goes with it, ```erlang rules is a policy, ```erlang session=NAME is typed and the answers are compared.
-module(polydist_recipes_SUITE).

-compile([export_all, nowarn_export_all]).

-import(polydist_ct, [doc/1, lab/1, wait_until/2]).
-import(polydist_node, [call/4]).

suite() -> [{timetrap, {minutes, 1}}].

all() -> [{group, page}, {group, recipes}].

groups() ->
    [
        {page, [parallel], [
            every_recipe_is_run_here,
            every_policy_on_the_page_is_accepted,
            the_page_shows_what_a_node_answers
        ]},
        {recipes, [parallel], [
            tls_elsewhere_sockets_here, ipv6_first, stock_peers, sidecar, static_ports, slow_link
        ]}
    ].

init_per_suite(Config) ->
    case polydist_hosts:open_lab(?MODULE, Config) of
        {skip, _} = Skip -> Skip;
        Opened -> [{blocks, blocks()} | Opened]
    end.

end_per_suite(Config) -> polydist_ct:close_lab(Config).

%% Longer than a stagger and a handshake, shorter than anything that waits for an answer that does not come; milliseconds.
-define(SOON, 2000).

%%
%% The page
%%

blocks() ->
    {ok, Page} = file:read_file(filename:join([polydist_ct:root(), "doc", "policies.md"])),
    {match, Blocks} = re:run(Page, "^```(\\w+) ?(\\S*)\n(.*?)^```$", [global, multiline, dotall, {capture, all_but_first, list}]),
    [{Language, What, Text} || [Language, What, Text] <- Blocks].

blocks(Config, Language, What) ->
    [Text || {L, W, Text} <- proplists:get_value(blocks, Config), L =:= Language, W =:= What].

block(Config, Language, What) ->
    [Text] = blocks(Config, Language, What),
    Text.

every_recipe_is_run_here(Config) ->
    doc("Each block policy=NAME has a case of that name, and each case a block"),
    {recipes, _, Cases} = lists:keyfind(recipes, 1, groups()),
    Names = [list_to_atom(Name) || {"erlang", "policy=" ++ Name, _} <- proplists:get_value(blocks, Config)],
    Cases = Names.

every_policy_on_the_page_is_accepted(Config) ->
    doc("Blocks marked rules, and the policies of the recipes"),
    Rules = [Term || Text <- blocks(Config, "erlang", "rules"), Term <- terms(Text)],
    Policies = [Policy || {"erlang", "policy=" ++ _, Text} <- proplists:get_value(blocks, Config),
        Environments <- terms(Text), {polydist, Environment} <- Environments, {policy, Policy} <- Environment],
    true = length(Rules) > 1,
    6 = length(Policies),
    [{ok, _} = polydist_policy:compile(Policy) || Policy <- Rules ++ Policies].

terms(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {Rest, Terms} = lists:foldl(fun
        ({dot, _} = Dot, {Before, Terms}) ->
            {ok, Term} = erl_parse:parse_term(lists:reverse([Dot | Before])),
            {[], [Term | Terms]};
        (Token, {Before, Terms}) ->
            {[Token | Before], Terms}
    end, {[], []}, Tokens),
    [] = Rest,
    lists:reverse(Terms).

the_page_shows_what_a_node_answers(Config) ->
    doc("The sessions of the page: TLS to h2 is refused, later it is not; figures may differ, nothing else"),
    Hosts = hosts(Config),
    %% Patient, so that a machine that is busy makes no difference.
    Options = #{carriers => [tcp, tcp6, tls], policy => [{any, #{transports => [tls, tcp6], stagger => 5000}}]},
    [Us, Them] = polydist_hosts:start(Hosts, [{1, Options#{name => {exactly, "web"}}}, {2, Options#{name => {exactly, "db"}}}]),
    Cuts = [polydist_hosts:cut(Hosts, 1, 2, {port, Port}, reset) || Port <- lists:usort([P || {_, P} <- addresses(Them, tls)])],
    Refused = blocks(Config, "erlang", "session=refused"),
    Healed = blocks(Config, "erlang", "session=healed"),
    {true, true} = {Refused =/= [], Healed =/= []},
    Bindings = lists:foldl(fun(Text, Before) -> session(Hosts, Us, Text, Before) end, [], Refused),
    [polydist_hosts:heal(Hosts, Cut) || Cut <- Cuts],
    lists:foldl(fun(Text, Before) -> session(Hosts, Us, Text, Before) end, Bindings, Healed).

%% Steps are numbered as in a shell; the answer follows, as far as the next number.
session(Hosts, Us, Text, Bindings) ->
    Steps = tl(re:split(Text, "^\\d+> ", [multiline, {return, list}])),
    lists:foldl(fun(Step, Before) ->
        [Expression, Expected] = string:split(Step, ".\n"),
        {Got, After} = call(Us, ?MODULE, type, [Expression ++ ".", Before]),
        compare(Hosts, Expression, Expected, Got),
        After
    end, Bindings, Steps).

%% Runs on the node: what a shell would show.
type(Text, Bindings) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    Print = {value, fun
        ({io, put_chars}, [Chars]) -> {printed, Chars};
        ({Module, Function}, Args) -> apply(Module, Function, Args)
    end},
    case erl_eval:exprs(Forms, Bindings, none, Print) of
        {value, {printed, Chars}, After} -> {unicode:characters_to_list([Chars, "ok"]), After};
        {value, Value, After} -> {lists:flatten(io_lib:format("~tp", [Value])), After}
    end.

compare(Hosts, Expression, Expected, Got) ->
    case {neutral(Expected), neutral(shown(Hosts, Got))} of
        {Same, Same} -> ok;
        {Page, Node} ->
            ct:pal("~ts~nthe page:~n~ts~nthe node:~n~ts", [Expression, Expected, Got]),
            error({not_what_the_page_says, Page, Node})
    end.

%% The page has addresses for documentation.
shown(Hosts, Text) ->
    Addresses = [{polydist_hosts:address(Hosts, 2, inet), "192.0.2.2"}, {polydist_hosts:address(Hosts, 2, inet6), "2001:db8::2"}],
    lists:foldl(fun({Ip, Instead}, Each) -> string:replace(Each, inet:ntoa(Ip), Instead, all) end, Text, Addresses).

%% Times, amounts and ports differ, and where lines are broken is a matter of the page's width.
neutral(Text) ->
    Replace = fun({Pattern, Instead}, Each) -> re:replace(Each, Pattern, Instead, [global, {return, list}]) end,
    lists:foldl(Replace, lists:flatten(Text), [
        {"192\\.0\\.2\\.2", "IPv_4"}, {"2001:db8::2", "IPv_6"}, {"\\d{4}-\\d\\d-\\d\\d [0-9:]{8}[+-][0-9:]{5}", "TIME"},
        {"(?<![\\w])\\d+(\\.\\d+)?(?!\\w)", "N"}, {"\\s+", ""}
    ]).

%%
%% Recipes
%%

hosts(Config) -> polydist_hosts:open(lab(Config), self()).

%% Starts nodes with the page's sys.config, in which directories of this test stand for those of the page.
start(Config, Hosts, Recipe, Nodes) ->
    #{directory := Directory} = Hosts,
    Shared = filename:join(Directory, "run"),
    _ = file:make_dir(Shared),
    ok = file:change_mode(Shared, 8#700),
    File = filename:join(Directory, atom_to_list(Recipe)),
    Text = block(Config, "erlang", "policy=" ++ atom_to_list(Recipe)),
    ok = file:write_file(File ++ ".config", string:replace(Text, "/run/polydist", Shared, all)),
    %% Hidden, so that nobody is told of anybody.
    polydist_hosts:start(Hosts, [{N, with_args(["-hidden", "-config", File], Options)} || {N, Options} <- Nodes]).

with_args(_, #{stock := _} = Options) -> Options;
with_args(_, #{policy := _} = Options) -> Options;
with_args(Args, Options) -> Options#{args => Args ++ maps:get(args, Options, [])}.

transport(From, To) -> maps:get(transport, polydist_node:connection(From, To)).

addresses(Node, Transport) ->
    Listeners = call(Node, polydist, listeners, []),
    lists:flatten([Address || #{transport := Each, address := Address} <- Listeners, Each =:= Transport]).

tls_elsewhere_sockets_here(Config) ->
    doc("Two nodes of a host by a Unix socket, the third's by TLS; with TLS blocked there is no connection"),
    Hosts = hosts(Config),
    [A, B, #{node := C} = Far] = start(Config, Hosts, tls_elsewhere_sockets_here, [
        {1, #{args => ["-kernel", "net_setuptime", "2"]}}, {1, #{}}, {2, #{}}
    ]),
    polydist_node:connect(A, B),
    polydist_node:connect(A, Far),
    {uds, tls} = {transport(A, B), transport(A, Far)},
    polydist_node:disconnect(A, Far),
    _ = [polydist_hosts:cut(Hosts, 1, 2, {port, Port}, reset) || {_, Port} <- addresses(Far, tls)],
    pang = call(A, net_adm, ping, [C]),
    uds = transport(A, B).

ipv6_first(Config) ->
    doc("TLS over IPv6; over IPv4 when that is silent; back when it is not"),
    Hosts = hosts(Config),
    [A, #{node := Name} = B] = start(Config, Hosts, ipv6_first, [{1, #{}}, {2, #{}}]),
    Peer = fun() ->
        #{transport := tls, peer := {Ip, _}} = polydist_node:connection(A, B),
        Ip
    end,
    polydist_node:connect(A, B),
    Ip6 = polydist_hosts:address(Hosts, 2, inet6),
    Ip6 = Peer(),
    Cut = polydist_hosts:cut(Hosts, 1, 2, ipv6, drop),
    {Time, {ok, #{from := tls, to := tls}}} = call(A, timer, tc, [polydist, reconnect, [Name, #{}]]),
    true = Time < 1000 * (1000 + ?SOON),
    polydist_node:connect(A, B),
    Ip4 = polydist_hosts:address(Hosts, 2, inet),
    Ip4 = Peer(),
    polydist_hosts:heal(Hosts, Cut),
    {ok, _} = call(A, polydist, reconnect, [Name, #{}]),
    polydist_node:connect(A, B),
    Ip6 = Peer().

stock_peers(Config) ->
    doc("Stock inet_tls both ways; a stock tool with inet_tcp both ways, by the port it is told; a node of ours by TLS"),
    Hosts = hosts(Config),
    #{optfile := Optfile} = lab(Config),
    Stock = #{stock => 25, proto_dist => "inet_tls", args => ["-ssl_dist_optfile", Optfile]},
    Tool = #{stock => 25, proto_dist => "inet_tcp"},
    Told = Tool#{args => ["-dist_listen", "false", "-erl_epmd_port", "9100"]},
    [A, B, Db, Tcp, Told9100] = start(Config, Hosts, stock_peers, [
        {1, #{}}, {3, #{}}, {2, Stock#{name => "db"}}, {3, Tool#{name => "tool"}}, {2, Told#{name => "tool"}}
    ]),
    Both = fun(#{node := Us} = Ours, #{node := Them} = Theirs, Transport) ->
        pong = call(Ours, net_adm, ping, [Them]),
        #{transport := Transport, direction := out} = polydist_node:connection(Ours, Theirs),
        polydist_node:disconnect(Ours, Theirs),
        pong = call(Theirs, net_adm, ping, [Us]),
        #{transport := Transport, direction := in} = polydist_node:connection(Ours, Theirs)
    end,
    Both(A, Db, tls),
    pong = call(A, net_adm, ping, [maps:get(node, Tcp)]),
    tcp = transport(A, Tcp),
    pong = call(Told9100, net_adm, ping, [maps:get(node, A)]),
    #{transport := tcp, direction := in} = polydist_node:connection(A, Told9100),
    polydist_node:connect(A, B),
    tls = transport(A, B).

sidecar(Config) ->
    doc("Two containers, each with a network of its own, share a directory: a Unix socket; the third host: TLS"),
    Hosts = hosts(Config),
    [App, Sidecar] = start(Config, Hosts, sidecar, [{1, #{name => "app"}}, {2, #{name => "sidecar"}}]),
    Far = polydist_hosts:start(Hosts, 3, #{force => [tls]}),
    polydist_node:connect(App, Sidecar),
    polydist_node:connect(App, Far),
    {uds, tls} = {transport(App, Sidecar), transport(App, Far)}.

static_ports(Config) ->
    doc("Both hosts let in epmd and the ports of the page: TLS both ways; a node on another port is not reached"),
    Hosts = hosts(Config),
    Firewall = block(Config, "nft", "firewall=static_ports"),
    [ok = polydist_hosts:firewall(Hosts, N, Firewall) || N <- [1, 2]],
    [A, B] = start(Config, Hosts, static_ports, [{1, #{args => ["-kernel", "net_setuptime", "2"]}}, {2, #{}}]),
    #{node := Outside} = polydist_hosts:start(Hosts, 2, #{config => #{listen => #{tls => #{port => 9300}}}}),
    [begin
        polydist_node:connect(From, To),
        tls = transport(From, To),
        polydist_node:disconnect(From, To)
     end || {From, To} <- [{A, B}, {B, A}]],
    [] = [Port || Node <- [A, B], {_, Port} <- addresses(Node, tls), Port < 9200 orelse Port > 9209],
    pang = call(A, net_adm, ping, [Outside]).

slow_link(Config) ->
    doc("A line of a megabit, cut for longer than the kernel's net_ticktime: the page's nodes stay connected, others do not"),
    Hosts = hosts(Config),
    case [Skip || N <- [1, 2], {skip, _} = Skip <- [polydist_hosts:limit_rate(Hosts, N, "1mbit")]] of
        [] -> over_a_slow_link(Config, Hosts);
        [Skip | _] -> Skip
    end.

over_a_slow_link(Config, Hosts) ->
    Args = ["-kernel", "net_ticktime", "2"],
    [Here, #{node := B} = There, Base, #{node := D} = Other] = start(Config, Hosts, slow_link, [
        {1, #{args => Args}}, {2, #{args => Args}},
        {1, #{args => Args, policy => [{any, #{transports => [tls]}}]}},
        {2, #{args => Args, policy => [{any, #{transports => [tls]}}]}}
    ]),
    polydist_node:connect(Here, There),
    polydist_node:connect(Base, Other),
    #{since := Since, ticktime := 120000} = polydist_node:connection(Here, There),
    #{ticktime := kernel} = polydist_node:connection(Base, Other),
    polydist_hosts:link_down(Hosts, 2),
    wait_until(fun() -> not lists:member(D, call(Base, erlang, nodes, [connected])) end, 5000),
    %% The kernel's longest patience is 1.25 * 2 s.
    receive after 2500 -> ok end,
    polydist_hosts:link_up(Hosts, 2),
    polydist_node:run(There, fun() -> polydist_traffic:start_echo(echo) end),
    polydist_node:run(Here, fun() -> ok = polydist_traffic:echo({echo, B}, polydist_traffic:payload(50000)) end),
    [#{since := Since}] = [C || #{node := Node} = C <- call(Here, polydist, connections, []), Node =:= B].
