%%% Three hosts on one machine: network namespaces h1, h2 and h3 on a bridge, each with an IPv4 and an IPv6 address and an epmd on
%%% the usual port. Paths between them can be cut, for all or for one family or port, and healed.
%%%
%%% Hosts belong to a process and go when it ends, with all that runs in them, even if this whole VM is killed. Those of several
%%% VMs do not meet.
-module(polydist_hosts).

-export([available/0, open_lab/2, open/2, close/1, lab/2, start/2, start/3]).
-export([name/1, address/3, network/2, netns/2, write_inetrc/2, write_inetrc/3]).
-export([add_network/1, second_address/3, add_address/3, unplug/3, plug/3, sent/3, associations/2]).
-export([cut/5, heal/2, link_down/2, link_up/2, firewall/3, limit_rate/3, count/3, counted/2]).

-export_type([hosts/0, host/0, what/0, how/0, cut/0]).

-type host() :: 1..3.
-type hosts() :: #{prefix := string(), subnet := 1..99, directory := file:filename(), holder := pid(), lab := polydist_ct:lab()}.

%% What is kept from passing: all of TCP, that of one family, or that to a port.
-type what() :: tcp | ipv4 | ipv6 | {port, inet:port_number()}.
%% Silently, or with a reset.
-type how() :: drop | reset.
-opaque cut() :: {[host()], Table :: string()}.

-define(EPMD_PORT, 4369).

%% @doc Whether this machine can have network namespaces and a firewall for us, or why it cannot.
-spec available() -> ok | {skip, Sentence :: string()}.
available() ->
    Missing = [Program || Program <- ["ip", "nft"], os:find_executable(Program) =:= false],
    case {string:trim(os:cmd("id -u")), Missing} of
        {"0", []} -> may_add_namespaces();
        {"0", _} -> {skip, "network namespaces need " ++ lists:concat(lists:join(" and ", Missing)) ++ ": run test/tools/setup"};
        _ -> {skip, "network namespaces are for root alone: run the tests as root"}
    end.

may_add_namespaces() ->
    Script = "n=pd$PPID-; ip netns add $n && trap 'ip netns del $n' EXIT && ip -n $n link add br0 type bridge && "
        "ip -n $n link add eth0 type veth peer name eth1 && ip netns exec $n nft list tables",
    case sh(Script) of
        {0, _} -> ok;
        {_, Why} -> {skip, "this machine gives no network namespaces: " ++ string:trim(Why)}
    end.

%% @doc As {@link polydist_ct:open_lab/2}, with certificates for the hosts; or why there can be none.
-spec open_lab(module(), [tuple()]) -> [tuple()] | {skip, Sentence :: string()}.
open_lab(Suite, Config) ->
    case available() of
        ok ->
            Opened = polydist_ct:without_global(polydist_ct:open_lab(Suite, Config)),
            #{directory := Directory, optfile := Optfile} = Lab = polydist_ct:lab(Opened),
            Certificates = filename:join(Directory, "certificates-of-hosts"),
            ok = polydist_ct:write_certificates(Certificates, ["localhost" | [name(N) || N <- [1, 2, 3]]]),
            ok = polydist_ct:write_tls_options(Optfile, polydist_ct:tls_options(Certificates)),
            polydist_ct:put_lab(Opened, Lab#{certificates := Certificates});
        Skip ->
            Skip
    end.

%% @doc Makes three hosts for a process, in a lab of {@link open_lab/2}.
-spec open(polydist_ct:lab(), Owner :: pid()) -> hosts().
open(#{directory := Parent} = Lab, Owner) ->
    %% Process ids and the VM's own count keep prefixes apart; the subnet makes addresses differ where they are looked at.
    Number = erlang:unique_integer([positive]),
    Prefix = lists:concat(["pd", string:to_lower(integer_to_list(list_to_integer(os:getpid()), 36)), "-", Number, "-"]),
    Subnet = 1 + Number rem 99,
    Caller = self(),
    {Holder, Monitor} = spawn_monitor(fun() -> hold(Caller, Owner, Prefix, Subnet) end),
    receive
        {Holder, up} -> demonitor(Monitor, [flush]);
        {'DOWN', Monitor, process, Holder, Reason} -> error({no_hosts, Reason})
    end,
    Directory = filename:join(Parent, polydist_ct:unique("hosts")),
    Hosts = #{prefix => Prefix, subnet => Subnet, directory => Directory, holder => Holder, lab => Lab},
    [begin
        ok = filelib:ensure_dir(filename:join([Directory, name(N), "."])),
        ok = file:change_mode(filename:join(Directory, name(N)), 8#700)
     end || N <- [1, 2, 3]],
    ok = write_inetrc(Hosts, filename:join(Directory, "inetrc")),
    [ok = polydist_ct:wait_until(fun() -> is_epmd_up(Hosts, N) end) || N <- [1, 2, 3]],
    Hosts.

%% @doc Removes the hosts with all that runs in them.
-spec close(hosts()) -> ok.
close(#{holder := Holder}) ->
    Monitor = monitor(process, Holder),
    Holder ! close,
    receive {'DOWN', Monitor, process, Holder, _} -> ok end.

%% The shell outlives this VM just long enough to see its standard input end, and takes the hosts with it.
hold(Caller, Owner, Prefix, Subnet) ->
    Args = ["-c", script(), "hosts", Prefix, integer_to_list(Subnet), polydist_ct:tool("epmd"), integer_to_list(?EPMD_PORT)],
    Sh = open_port({spawn_executable, "/bin/sh"}, [{args, Args}, binary, exit_status, stderr_to_stdout]),
    Monitor = monitor(process, Owner),
    hold(#{sh => Sh, caller => Caller, owner => Monitor, said => <<>>}).

hold(#{sh := Sh, caller := Caller, owner := Owner, said := Said} = Hold) ->
    receive
        {Sh, {data, Data}} ->
            string:find(Data, "all up") =/= nomatch andalso (Caller ! {self(), up}),
            hold(Hold#{said := <<Said/binary, Data/binary>>});
        {Sh, {exit_status, Status}} ->
            exit({Status, Said});
        close ->
            true = port_command(Sh, "\n"),
            receive {Sh, {exit_status, _}} -> ok end;
        {'DOWN', Owner, process, _, _} ->
            port_close(Sh)
    end.

script() ->
    "set -e; p=$1 subnet=$2 epmd=$3 port=$4
    clean() {
        set +e; trap - EXIT HUP INT TERM
        for n in 1 2 3 s; do
            ip netns pids $p$n 2>/dev/null | xargs -r kill -9
            ip netns del $p$n
        done >/dev/null 2>&1
    }
    trap clean EXIT; trap exit HUP INT TERM
    ip netns add ${p}s
    printf '%s\\n' 'link add br0 type bridge' 'link set br0 up' | ip -n ${p}s -batch -
    for n in 1 2 3; do
        ip netns add $p$n
        printf '%s\\n' 'link set lo up' \"link add eth0 type veth peer name h$n netns ${p}s\" \\
            \"addr add 10.99.$subnet.$n/24 dev eth0\" \"addr add fd99:$subnet::$n/64 dev eth0 nodad\" \\
            'link set eth0 up' | ip -n $p$n -batch -
        printf '%s\\n' \"link set h$n master br0\" \"link set h$n up\" | ip -n ${p}s -batch -
        ip netns exec $p$n \"$epmd\" -port $port </dev/null >/dev/null 2>&1 &
    done
    echo all up; read _ || :".

is_epmd_up(Hosts, Number) ->
    case gen_tcp:connect({127, 0, 0, 1}, ?EPMD_PORT, [{netns, netns_file(Hosts, Number)}], 1000) of
        {ok, Socket} -> gen_tcp:close(Socket) =:= ok;
        {error, _} -> false
    end.

%% @doc The host's name: "h1", "h2", "h3".
-spec name(host()) -> string().
name(Number) ->
    "h" ++ integer_to_list(Number).

-spec address(hosts(), host(), inet | inet6) -> inet:ip_address().
address(#{subnet := Subnet}, Number, inet) ->
    {10, 99, Subnet, Number};
address(Hosts, Number, inet6) ->
    setelement(8, element(2, {ok, _} = inet:parse_address(network6(Hosts))), Number).

%% @doc The network of all three, as a policy's `{net, Text}' takes it.
-spec network(hosts(), inet | inet6) -> string().
network(#{subnet := Subnet}, inet) -> lists:concat(["10.99.", Subnet, ".0/24"]);
network(Hosts, inet6) -> network6(Hosts) ++ "/64".

network6(#{subnet := Subnet}) -> lists:concat(["fd99:", Subnet, "::"]).

%% @doc The network namespace's name, for `ip netns exec'.
-spec netns(hosts(), host()) -> string().
netns(#{prefix := Prefix}, Number) ->
    Prefix ++ integer_to_list(Number).

netns_file(Hosts, Number) -> filename:join("/run/netns", netns(Hosts, Number)).

%% @doc Writes a resolver file in which each host has its address of either family.
-spec write_inetrc(hosts(), file:filename()) -> ok.
write_inetrc(Hosts, File) ->
    write_inetrc(Hosts, File, #{}).

%% @doc Writes a resolver file with the addresses given, in this order; hosts that are not named have their own.
-spec write_inetrc(hosts(), file:filename(), #{Host :: string() => [inet:ip_address()]}) -> ok.
write_inetrc(Hosts, File, Names) ->
    file:write_file(File, [
        [io_lib:format("~p.~n", [{host, Ip, [Name]}]) || {Name, Ips} <- maps:to_list(Names), Ip <- Ips],
        [io_lib:format("~p.~n", [{host, address(Hosts, N, Family), [name(N)]}])
         || N <- [1, 2, 3], not is_map_key(name(N), Names), Family <- [inet, inet6]],
        "{lookup,[file]}.\n"
    ]).

%% @doc The lab as a node on that host sees it: a home and runtime directory of its own, the host's epmd.
-spec lab(hosts(), host()) -> polydist_ct:lab().
lab(#{lab := Lab, directory := Directory, holder := Holder}, Number) ->
    Lab#{
        directory := filename:join(Directory, name(Number)),
        epmd := #{port => ?EPMD_PORT, holder => Holder},
        inetrc := filename:join(Directory, "inetrc")
    }.

%% @doc Starts a node on a host.
-spec start(hosts(), host(), polydist_node:options()) -> polydist_node:handle().
start(Hosts, Number, Options) ->
    polydist_node:start(lab(Hosts, Number), maps:merge(options(Hosts, Number), Options)).

%% @doc Starts several nodes at the same time, for the calling process.
-spec start(hosts(), [{host(), polydist_node:options()}]) -> [polydist_node:handle()].
start(Hosts, Nodes) ->
    Owner = self(),
    polydist_ct:parallel([fun() -> start(Hosts, N, maps:merge(#{owner => Owner}, Each)) end || {N, Each} <- Nodes]).

options(Hosts, Number) ->
    #{netns => netns(Hosts, Number), host => name(Number)}.

%% @doc Keeps something from passing between two hosts, in both directions, until {@link heal/2}.
-spec cut(hosts(), host(), host(), what(), how()) -> cut().
cut(Hosts, A, B, What, How) ->
    Table = polydist_ct:unique("cut"),
    [firewall(Hosts, To, [
        "table inet ", Table, " { chain input { type filter hook input priority 0;\n",
        [[matching(Hosts, From, Each), verdict(How), "\n"] || Each <- families(What)],
        "}\n}\n"
    ]) || {From, To} <- [{A, B}, {B, A}]],
    {[A, B], Table}.

families(tcp) -> [ipv4, ipv6];
families({port, Port}) -> [{ipv4, Port}, {ipv6, Port}];
families(Family) -> [Family].

matching(Hosts, From, {Family, Port}) ->
    [matching(Hosts, From, Family), "tcp dport ", integer_to_list(Port), " "];
matching(Hosts, From, ipv4) ->
    ["ip saddr ", inet:ntoa(address(Hosts, From, inet)), " meta l4proto tcp "];
matching(Hosts, From, ipv6) ->
    ["ip6 saddr ", inet:ntoa(address(Hosts, From, inet6)), " meta l4proto tcp "].

verdict(drop) -> "drop";
verdict(reset) -> "tcp flags & rst == 0 reject with tcp reset". % the other side's resets pass

%% @doc Takes a cut back.
-spec heal(hosts(), cut()) -> ok.
heal(Hosts, {Numbers, Table}) ->
    [firewall(Hosts, N, ["delete table inet ", Table]) || N <- Numbers],
    ok.

%% @doc Pulls a host's cable. It keeps its addresses.
-spec link_down(hosts(), host()) -> ok.
link_down(Hosts, Number) -> link(Hosts, Number, "down").

-spec link_up(hosts(), host()) -> ok.
link_up(Hosts, Number) -> link(Hosts, Number, "up").

link(#{prefix := Prefix}, Number, State) ->
    done(["ip -n ", Prefix, "s link set h", integer_to_list(Number), " ", State]).

%% @doc Gives each host a second interface, eth1, on a bridge of its own.
-spec add_network(hosts()) -> ok.
add_network(#{prefix := Prefix, subnet := Subnet}) ->
    done(["set -e; p=", Prefix, " subnet=", integer_to_list(Subnet), "
    printf '%s\\n' 'link add br1 type bridge' 'link set br1 up' | ip -n ${p}s -batch -
    for n in 1 2 3; do
        printf '%s\\n' \"link add eth1 type veth peer name k$n netns ${p}s\" \\
            \"addr add 10.98.$subnet.$n/24 dev eth1\" \"addr add fd98:$subnet::$n/64 dev eth1 nodad\" \\
            'link set eth1 up' | ip -n $p$n -batch -
        printf '%s\\n' \"link set k$n master br1\" \"link set k$n up\" | ip -n ${p}s -batch -
    done"]).

%% @doc A host's address on the second network.
-spec second_address(hosts(), host(), inet | inet6) -> inet:ip_address().
second_address(Hosts, Number, inet) -> setelement(2, address(Hosts, Number, inet), 98);
second_address(Hosts, Number, inet6) -> setelement(1, address(Hosts, Number, inet6), 16#fd98).

%% @doc Gives a host one more address on the second network.
-spec add_address(hosts(), host(), inet:ip4_address()) -> ok.
add_address(Hosts, Number, Ip) ->
    _ = inside(Hosts, Number, ["ip addr add ", inet:ntoa(Ip), "/24 dev eth1"]),
    ok.

%% @doc Takes a host off its first or second network, which it does not notice: what it sends gets nowhere.
-spec unplug(hosts(), host(), 1 | 2) -> ok.
unplug(Hosts, Number, Network) -> port(Hosts, Number, Network, "nomaster").

-spec plug(hosts(), host(), 1 | 2) -> ok.
plug(Hosts, Number, Network) -> port(Hosts, Number, Network, ["master br", integer_to_list(Network - 1)]).

port(#{prefix := Prefix}, Number, Network, Change) ->
    done(["ip -n ", Prefix, "s link set ", lists:nth(Network, ["h", "k"]), integer_to_list(Number), " ", Change]).

%% @doc The bytes that a host has sent on its first or second network.
-spec sent(hosts(), host(), 1 | 2) -> non_neg_integer().
sent(Hosts, Number, Network) ->
    File = ["/sys/class/net/eth", integer_to_list(Network - 1), "/statistics/tx_bytes"],
    list_to_integer(string:trim(inside(Hosts, Number, ["cat ", File]))).

%% @doc How many associations of SCTP a host has.
-spec associations(hosts(), host()) -> non_neg_integer().
associations(Hosts, Number) ->
    length(string:lexemes(inside(Hosts, Number, "cat /proc/net/sctp/assocs"), "\n")) - 1.

inside(Hosts, Number, Command) ->
    {0, Said} = sh(["ip netns exec ", netns(Hosts, Number), " ", Command]),
    Said.

%% @doc Loads nft's rules on a host.
-spec firewall(hosts(), host(), Rules :: iodata()) -> ok.
firewall(#{directory := Directory} = Hosts, Number, Rules) ->
    File = filename:join(Directory, polydist_ct:unique("nft")),
    ok = file:write_file(File, Rules),
    done(["ip netns exec ", netns(Hosts, Number), " nft -f ", File]).

%% @doc Makes the line from a host slow, or says why that cannot be.
-spec limit_rate(hosts(), host(), Rate :: string()) -> ok | {skip, Sentence :: string()}.
limit_rate(Hosts, Number, Rate) ->
    case sh(["tc -n ", netns(Hosts, Number), " qdisc replace dev eth0 root tbf rate ", Rate, " burst 16kb latency 400ms"]) of
        {0, _} -> ok;
        {_, Why} -> {skip, "this machine cannot make a line slow: " ++ string:trim(Why)}
    end.

%% @doc Counts, from now on, packets that leave a host and match nft's expression: what {@link counted/2} tells.
-spec count(hosts(), host(), Expression :: string()) -> {host(), Table :: string()}.
count(Hosts, Number, Expression) ->
    Table = polydist_ct:unique("count"),
    ok = firewall(Hosts, Number, [
        "table inet ", Table, " { chain output { type filter hook output priority 0;\n", Expression, " counter\n}\n}\n"
    ]),
    {Number, Table}.

-spec counted(hosts(), {host(), Table :: string()}) -> non_neg_integer().
counted(Hosts, {Number, Table}) ->
    {0, Text} = sh(["ip netns exec ", netns(Hosts, Number), " nft list table inet ", Table]),
    {match, [Packets]} = re:run(Text, "counter packets (\\d+)", [{capture, all_but_first, list}]),
    list_to_integer(Packets).

done(Command) ->
    case sh(Command) of
        {0, _} -> ok;
        {Status, Said} -> error({lists:flatten(Command), Status, Said})
    end.

sh(Command) ->
    Port = open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Command]}, exit_status, stderr_to_stdout, in]),
    collect(Port, []).

collect(Port, Said) ->
    receive
        {Port, {data, Data}} -> collect(Port, [Said | Data]);
        {Port, {exit_status, Status}} -> {Status, lists:flatten(Said)}
    end.
