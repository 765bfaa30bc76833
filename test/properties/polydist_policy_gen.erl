%%% Policies and peers at random: few names and networks, so that they meet; and registrations that lie.
-module(polydist_policy_gen).

-include_lib("proper/include/proper.hrl").

-export([rules/0, some_rules/0, certain_rules/0, rule/0, match/0, carriers/0, peer/0, stock_peer/0, node_name/0, ip/0, glob/0]).
-export([wrong_match/0, wrong_option/0, wrong_rule/0]).

-import(polydist_properties, [anything/0]).

-define(TRANSPORTS, [tcp, tcp6, tls, uds, sctp]).

%% Rules that are all right: only the last may fit whatever comes.
rules() ->
    rules(rule()).

%% Rules that look at the name only.
certain_rules() ->
    rules(?LET(Match, certain_match(), {Match, options()})).

rules(Rule) ->
    ?LET({Some, Last}, {some(Rule), oneof([[], [{catch_all(), options()}]])}, Some ++ Last).

%% Rules of which none fits whatever comes.
some_rules() ->
    some(rule()).

some(Rule) ->
    ?SIZED(Size, resize(Size div 4, list(Rule))).

rule() ->
    ?LET(Match, match(), {Match, options()}).

catch_all() ->
    oneof([any, "*", <<"*">>, {host, "*"}, {all, [any, any]}]).

match() ->
    ?SIZED(Size, match(min(Size, 8), [same_host, {net, text(net())}])).

certain_match() ->
    ?SIZED(Size, match(min(Size, 8), [])).

match(0, More) ->
    oneof([glob(), {host, host_glob()} | More ++ More]);
match(Size, More) ->
    Smaller = ?LAZY(match(Size div 2, More)),
    frequency([
        {4, match(0, More)},
        {1, {all, ?LET(Some, vector(2, Smaller), [any | Some])}},
        {1, ?LET(N, range(1, 3), {all, vector(N, Smaller)})},
        {1, {'not', Smaller}}
    ]).

%% What is written may be a string or a binary.
text(Generator) ->
    ?LET({Chars, IsBinary}, {Generator, boolean()}, text(IsBinary, Chars)).

text(true, Chars) -> unicode:characters_to_binary(Chars);
text(false, Chars) -> Chars.

%% A name or a part of one with some of it replaced by * and ?.
glob() ->
    text(pattern(?LET(Node, node_name(), atom_to_list(Node)))).

host_glob() ->
    text(pattern(host())).

%% As it fits everything, a pattern of nothing but * is for catch_all/0.
pattern(Name) ->
    ?SUCHTHAT(
        Glob,
        ?LET(
            {Chars, From, Length, Wild},
            {Name, range(0, 12), range(0, 8), oneof(["*", "?", "", "**", "*b*"])},
            begin
                {Before, Rest} = lists:split(min(From, length(Chars)), Chars),
                Before ++ Wild ++ lists:nthtail(min(Length, length(Rest)), Rest)
            end
        ),
        Glob =/= [] andalso lists:any(fun(C) -> C =/= $* end, Glob)
    ).

node_name() ->
    ?LET({Name, Host}, {oneof(["a", "b", "db1", "db2", "web", [$n, 16#153, $d]]), host()}, list_to_atom(Name ++ "@" ++ Host)).

host() ->
    oneof(["h", "alpha", "beta.example", "gamma.beta.example", "10.1.2.3", [16#e9, $., $b]]).

net() ->
    frequency([
        {3, oneof(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "192.0.2.0/25", "192.0.2.7/32", "127.0.0.0/8", "0.0.0.0/0"])},
        {3, oneof(["::/0", "fd00::/8", "fd00:1::/32", "2001:db8::7", "2001:db8:8000::/33", "::1/128"])},
        {2, ?LET({Ip, Length}, {ip4(), range(0, 32)}, network(Ip, 8, Length))},
        {2, ?LET({Ip, Length}, {ip6(), range(0, 128)}, network(Ip, 16, Length))}
    ]).

%% The network of that length an address is in.
network(Ip, Width, Length) ->
    Bits = << <<Part:Width>> || Part <- tuple_to_list(Ip) >>,
    Rest = bit_size(Bits) - Length,
    <<Prefix:Length/bitstring, _:Rest>> = Bits,
    Start = list_to_tuple([Part || <<Part:Width>> <= <<Prefix/bitstring, 0:Rest>>]),
    inet:ntoa(Start) ++ "/" ++ integer_to_list(Length).

options() ->
    ?LET(
        {Transports, Others},
        {carriers(), list(oneof([
            ticktime(), {connect_timeout, range(1, 60000)}, {stagger, range(0, 5000)}, {registries, oneof([[epmd], [epmd], []])},
            {socket, socket()}
        ]))},
        ?LET(Legacy, legacy(Transports), (maps:from_list(Others ++ Legacy))#{transports => Transports})
    ).

ticktime() ->
    {ticktime, oneof([range(1, 3600), {range(100, 100000), ms}, ?LET(N, range(1, 1000), N / 10), 0.25])}.

socket() ->
    ?LET({Options, IsMap}, {list(socket_option()), boolean()}, socket(IsMap, maps:from_list(Options))).

socket(true, Options) -> Options;
socket(false, Options) -> maps:to_list(Options).

socket_option() ->
    oneof([{nodelay, boolean()}, {keepalive, boolean()}, {sndbuf, range(1, 1000000)}, {recbuf, range(1, 1000000)},
           {priority, range(0, 6)}, {tos, range(0, 255)}, {user_timeout, range(1, 60000)},
           {sctp, ?LET({Heartbeat, Max}, {range(1, 60000), range(1, 9)}, #{heartbeat => Heartbeat, path_max_retrans => Max})}]).

%% Whatever the transports allow that to be.
legacy(Transports) ->
    Plain = lists:member(tcp, Transports) orelse lists:member(tcp6, Transports),
    oneof([[], [{legacy, none}]] ++ [[{legacy, tcp}] || Plain] ++ [[{legacy, tls}] || lists:member(tls, Transports)]).

%% Any of the transports in any order.
carriers() ->
    Lengths = frequency([{1, 0}, {2, 1}, {2, 2}, {2, 3}, {4, 4}, {4, 5}]),
    ?LET({Order, Length}, {vector(length(?TRANSPORTS), range(0, 1000)), Lengths},
         lists:sublist([T || {_, T} <- lists:sort(lists:zip(Order, ?TRANSPORTS))], Length)).

peer() ->
    peer(list({epmd, frequency([{4, {record, list(endpoint())}}, {1, {port, port()}}])})).

stock_peer() ->
    peer([{epmd, {port, port()}}]).

peer(Registered) ->
    ?LET(
        {Node, Ip4, Ip6, SameHost, SameMachine, Dirs, Answers},
        {node_name(), short(ip4()), short(ip6()), boolean(), boolean(), uds_dirs(), Registered},
        #{node => Node, ip4 => Ip4, ip6 => Ip6, same_host => SameHost, same_machine => SameMachine, uds_dirs => Dirs,
          registered => Answers}
    ).

short(Generator) ->
    ?LET(N, frequency([{1, 0}, {3, 1}, {2, 2}]), vector(N, Generator)).

%% What a peer registers: mostly what belongs together, and any lie.
endpoint() ->
    frequency([
        {6, oneof([{tcp, {any4, port()}}, {tcp6, {any6, port()}}, {oneof([tls, sctp]), {oneof([any4, any6]), port()}}])},
        {6, oneof([{tcp, {ip4(), port()}}, {tcp6, {ip6(), port()}}, {oneof([tls, sctp]), {ip(), port()}}])},
        {4, {uds, {local, path()}}},
        {2, {oneof(?TRANSPORTS), oneof([{oneof([any4, any6]), port()}, {ip(), port()}, {local, path()}, {opaque, binary()}])}}
    ]).

port() ->
    frequency([{1, 0}, {9, range(1, 9)}]).

ip() ->
    oneof([ip4(), ip6()]).

ip4() ->
    frequency([
        {5, oneof([{10, 1, 2, 3}, {10, 9, 0, 1}, {192, 0, 2, 7}, {192, 0, 2, 200}, {203, 0, 113, 5}])},
        {2, oneof([{0, 0, 0, 0}, {0, 1, 2, 3}, {127, 0, 0, 1}, {127, 9, 9, 9}, {224, 0, 0, 1}, {239, 255, 0, 1}, {240, 0, 0, 1},
                   {255, 255, 255, 255}, {223, 255, 255, 255}, {126, 0, 0, 1}, {128, 0, 0, 1}])},
        {1, ?LET(Parts, vector(4, range(0, 255)), list_to_tuple(Parts))}
    ]).

ip6() ->
    frequency([
        {5, oneof([{16#fd00, 1, 0, 0, 0, 0, 0, 9}, {16#fd00, 2, 0, 0, 0, 0, 0, 9}, {16#2001, 16#db8, 0, 0, 0, 0, 0, 7},
                   {16#2001, 16#db8, 16#8000, 0, 0, 0, 0, 7}])},
        {3, oneof([{0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 1}, {0, 0, 0, 0, 0, 16#ffff, 16#a01, 16#203},
                   {0, 0, 0, 0, 0, 16#ffff, 16#7f00, 1}, {16#fe80, 0, 0, 0, 0, 0, 0, 1}, {16#febf, 0, 0, 0, 0, 0, 0, 1},
                   {16#fec0, 0, 0, 0, 0, 0, 0, 1}, {16#fe7f, 0, 0, 0, 0, 0, 0, 1}, {16#ff02, 0, 0, 0, 0, 0, 0, 1},
                   {16#feff, 0, 0, 0, 0, 0, 0, 1}])},
        {1, ?LET(Parts, vector(8, range(0, 65535)), list_to_tuple(Parts))}
    ]).

uds_dirs() ->
    list(oneof([<<"/run/polydist">>, <<"/run/polydist">>, <<"/tmp/polydist-0">>, <<"/run/shared/">>, <<"/run/sh\xff">>])).

path() ->
    frequency([
        {6, ?LET({Dir, Name}, {dir(), oneof(["a@h", "b@h", "a..b", "x/c@h", "\xff@h"])}, joined(Dir, Name))},
        %% relative, out of it, beside it, itself, hidden, cut short by the kernel
        {4, ?LET({Dir, Name}, {dir(), oneof(["../a@h", "x/../../a@h", "..", "", "a\0b", "../polydist/a@h"])}, joined(Dir, Name))},
        {2, oneof([
            <<>>, <<"/">>, <<"a@h">>, <<"run/polydist/a@h">>, <<"./run/polydist/a">>, <<"/run/polydist">>,
            <<"/run/polydistant/a">>, <<"/run/shared2/a">>, <<0, "/run/polydist/a">>, <<"/etc/passwd">>
        ])},
        %% as long as it can be, and longer
        {2, ?LET({Dir, Length}, {dir(), oneof([106, 107, 108, 109, 300])},
                 list_to_binary(string:slice(Dir ++ "/" ++ lists:duplicate(300, $a), 0, Length)))},
        {1, binary()}
    ]).

dir() ->
    oneof(["/run/polydist", "/tmp/polydist-0", "/run/shared", "/run/sh\xff", "/run"]).

joined(Dir, Name) ->
    list_to_binary([Dir, "/", Name]).

%% What is no match.
wrong_match() ->
    oneof([
        17, nowhere, "", <<>>, <<255>>, ["db", -1], [any], {any}, #{}, {either, [any]},
        {net, "10.0.0.0/33"}, {net, "fd00::/129"}, {net, "10.0.0.0/-1"}, {net, "10.0.0/8"}, {net, "10.0.0.0/x"},
        {net, "10.0.0.0/"}, {net, "10.0.0.0/8/8"}, {net, "10.0.0.1/8"}, {net, ""}, {net, "localhost"}, {net, {10, 0, 0, 0}},
        {net, "10.0.0.0/8", "x"},
        {host, ""}, {host, 5}, {all, []}, {all, any}, {all, improper(any, same_host)}, {all, [any, nowhere]},
        {'not', nowhere}, {'not', {net, "1"}}, {'not', any}
    ]).

%% An option, and what it cannot be.
wrong_option() ->
    Known = [transports, ticktime, legacy, connect_timeout, stagger, registries, socket],
    oneof([
        {transports, oneof([tcp, [quic], [tcp, tcp], improper(tcp, tls), "tcp", [[]]])},
        {ticktime, oneof([0, -1, 0.05, {99, ms}, {0.5, ms}, {1000, s}, infinity, "8", {1000}])},
        {legacy, oneof([uds, "tcp", true, [tcp], tcp6])},
        {connect_timeout, oneof([0, -1, 1.5, infinity, "1"])},
        {stagger, oneof([-1, 0.5, infinity])},
        {registries, oneof([dns, epmd, [dns], [epmd, dns], [epmd, epmd], improper(epmd, epmd)])},
        {socket, oneof([[linger], #{linger => true}, [{nodelay, 1}], #{sndbuf => 0}, #{sndbuf => big}, nodelay, #{backlog => 5},
                        #{user_timeout => -1}, #{sctp => #{heartbeat => 0}}, improper({nodelay, true}, x)])},
        {transport, [tcp]},
        {?SUCHTHAT(Key, anything(), not lists:member(Key, Known)), anything()},
        {oneof(["transports", 7, <<"legacy">>]), anything()}
    ]).

%% PropEr takes a list in a generator apart, so it must not see that this one is none.
improper(Head, Tail) ->
    ?LET(Proper, [Head], Proper ++ Tail).

wrong_rule() ->
    oneof([
        ?LET({Match, Options}, rule(), {Match, maps:remove(transports, Options)}),
        ?LET({Match, Options}, rule(), {Match, maps:to_list(Options)}),
        ?LET({Match, Ts}, {match(), oneof([[], [tcp], [uds, tcp6, tcp]])}, {Match, #{legacy => tls, transports => Ts}}),
        ?LET({Match, Ts}, {match(), oneof([[], [tls], [tls, uds]])}, {Match, #{legacy => tcp, transports => Ts}}),
        oops, {any}, {any, #{transports => [tcp]}, more}, [], anything()
    ]).
