%%% Which transport to dial a node over. Pure: a policy and what is known about the peer in, ordered candidates out.
%%%
%%% A policy is a list of rules (polydist_rule). Every address at which the peer may be reached is judged by itself: the first rule
%%% that fits the node and that address decides which transports it may be dialled by. So of a host with an address in 10.0.0.0/8
%%% and one outside, a rule for {net, "10.0.0.0/8"} speaks for the first only. The candidates are ordered by rule, then by the
%%% rule's transports, then as the peer registered them.
%%%
%%% After the rules of the user come the default ones, which are also those of a node without a policy: on the same host uds, tls,
%%% tcp6, tcp, sctp; on another host tls alone when this node runs the TLS carrier, else tcp6, tcp, sctp. So plain TCP or SCTP to
%%% another host, where TLS is on, needs a rule that says so. Transports from outside come last where plain TCP would do; one that
%%% does not leave this host comes after uds.
%%%
%%% A peer that registered a record is dialled at the endpoints in it. A stock peer registered a port and nothing else: what that
%%% port speaks is for the rule's `legacy' to say.
%%%
%%% A record is a peer's word. An address that cannot be dialled, or leads to where the peer has no business (another host's
%%% loopback, a path outside the directories for sockets), is no candidate.
-module(polydist_policy).

-export([compile/1, compile/2, source/1, default/1, may_connect/2, registries/2, candidates/3, settings/3]).

-export_type([policy/0, peer/0, endpoint/0, registered/0, candidate/0, skipped/0]).

-opaque policy() :: #{source := [polydist_rule:source()], rules := [polydist_rule:rule()],
                      registries := [polydist_registry:name()]}.

-type endpoint() :: {polydist_native:transport(), polydist_native:where()}.
-type registered() :: {record, [endpoint()]} | {port, inet:port_number()}.

%% The peer: where its host's name leads, whether that is this host, whether it is this machine (another network namespace of it,
%% perhaps), and what it registered where. Sockets are dialled in `uds_dirs' only. Where a registry knows better, its own facts come
%% before those.
-type peer() :: #{node := node(), ip4 := [inet:ip4_address()], ip6 := [inet:ip6_address()], same_host := boolean(),
                  same_machine := boolean(), uds_dirs := [binary()],
                  registered := [{polydist_registry:name(), registered()}
                                 | {polydist_registry:name(), registered(), Facts :: map()}]}.

%% `why' is the rule that allows it.
-type candidate() :: #{transport := polydist_native:transport(), address := polydist_native:address(), why := binary(),
                       registry := polydist_registry:name(), settings := polydist_rule:settings()}.

%% A transport that gave no candidate, and why.
-type skipped() :: {polydist_native:transport(), Why :: binary()}.

%% One address of the peer, before a rule has been asked. `stock': what the port speaks is not known.
-type place() :: #{transport := polydist_native:transport() | stock, address := polydist_native:address(),
                   facts := polydist_rule:facts(), registry := polydist_registry:name()}.

-define(LOOPBACK4, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).
-define(LONGEST_PATH, 107). % sun_path without its NUL

%% @doc Checks a policy as the user wrote it, on a node that has EPMD alone.
-spec compile(term()) -> {ok, policy()} | {error, Sentence :: binary()}.
compile(Source) ->
    compile(Source, [epmd]).

%% @doc Checks a policy as the user wrote it, on a node that has these registries.
-spec compile(term(), [polydist_registry:name()]) -> {ok, policy()} | {error, Sentence :: binary()}.
compile(Source, Registries) ->
    try length(Source) of
        _ -> compile(Source, 1, [], #{source => Source, rules => [], registries => Registries})
    catch
        error:badarg ->
            {error, polydist_log:text("the policy is ~0tP, but must be a list of rules, {Match, #{transports => [..]}}",
                                      [Source, 30])}
    end.

compile([], _, Rules, Policy) ->
    {ok, Policy#{rules := lists:reverse(Rules)}};
compile([Each | Rest], Number, Rules, #{registries := Registries} = Policy) ->
    case {polydist_rule:compile(Number, Each, Registries), covering(Rules)} of
        {{error, _} = Error, _} -> Error;
        {{ok, Rule}, none} -> compile(Rest, Number + 1, [Rule | Rules], Policy);
        {{ok, _}, Name} ->
            {error, polydist_log:text("policy rule ~0p can never be reached, for ~ts fits every connection: put it before that "
                                      "one, or remove it", [Number, Name])}
    end.

%% The rule before, if it fits whatever comes.
covering([#{match := Match, settings := #{rule := Name}} | _]) ->
    case polydist_rule:fits(Match, #{}) of
        true -> Name;
        unknown -> none
    end;
covering([]) ->
    none.

%% @doc The policy as the user wrote it.
-spec source(policy()) -> [polydist_rule:source()].
source(#{source := Source}) ->
    Source.

%% @doc The rules of a node without a policy, given the transports it runs.
-spec default(Carriers :: [polydist_native:transport()]) -> policy().
default(Carriers) ->
    Outside = [T || T <- Carriers, polydist_carrier:is_outside(T)],
    {Within, Beyond} = lists:partition(fun(T) -> polydist_outside:reach(T) =:= host end, Outside),
    Plain = [tcp6, tcp] ++ [sctp || lists:member(sctp, Carriers)] ++ Beyond,
    Remote = case lists:member(tls, Carriers) of
                 true -> [tls];
                 false -> Plain
             end,
    Source = [{same_host, #{transports => [uds] ++ Within ++ [tls | Plain]}}, {any, #{transports => Remote}}],
    {ok, #{rules := Rules} = Policy} = compile(Source),
    Names = [<<"the default for this host">>, <<"the default for other hosts">>],
    Policy#{rules := [Rule#{settings := Settings#{rule := Name}}
                      || {#{settings := Settings} = Rule, Name} <- lists:zip(Rules, Names)]}.

rules(#{rules := Rules}, Carriers) ->
    #{rules := Default} = default(Carriers),
    Rules ++ Default.

%% @doc Whether a connection to Node is at all possible, by its name alone: false only if the rule that fits it forbids it.
-spec may_connect(policy(), node()) -> boolean().
may_connect(#{rules := Rules}, Node) ->
    may_connect_by(Rules, #{node => Node}).

may_connect_by([#{match := Match, transports := Transports} | Rules], Facts) ->
    case {polydist_rule:fits(Match, Facts), Transports} of
        {true, _} -> Transports =/= [];
        {unknown, [_ | _]} -> true; % perhaps it fits; the lookup will tell
        _ -> may_connect_by(Rules, Facts)
    end;
may_connect_by([], _) ->
    true.

%% @doc The registries to ask for Node: those of every rule that may turn out to fit.
-spec registries(policy(), node()) -> [polydist_registry:name()].
registries(#{registries := Known} = Policy, Node) ->
    Asked = registries_by(rules(Policy, []), #{node => Node}, Known),
    [Name || Name <- Known, lists:member(Name, Asked)].

registries_by([#{match := Match, registries := Registries} | Rules], Facts, Known) ->
    case {polydist_rule:fits(Match, Facts), Registries} of
        {false, _} -> registries_by(Rules, Facts, Known);
        {_, all} -> Known;
        {true, _} -> Registries;
        {unknown, _} -> Registries ++ registries_by(Rules, Facts, Known)
    end.

%% @doc What the first rule that fits says, for a connection that a peer opened.
-spec settings(policy(), Carriers :: [polydist_native:transport()], polydist_rule:facts()) -> polydist_rule:settings().
settings(Policy, Carriers, Facts) ->
    {_, #{settings := Settings}} = first(rules(Policy, Carriers), Facts, 1),
    Settings.

%% @doc The addresses to dial, in order, and for every other transport that this node runs or the rules name, why there is none.
%% Only transports in Carriers, those this node runs, are dialled.
-spec candidates(policy(), Carriers :: [polydist_native:transport()], peer()) -> {[candidate()], [skipped()]}.
candidates(Policy, Carriers, Peer) ->
    Rules = rules(Policy, Carriers),
    {Places, Refused} = places(Peer),
    Judged = [judge(Place, Rules, Carriers) || Place <- Places],
    Chosen = lists:sort([{Rank, Number, Candidate} || {Number, {candidate, Rank, Candidate}} <- lists:enumerate(Judged)]),
    %% Dialled once, where it comes first: a resolver or a record may name an address more than once.
    Candidates = lists:uniq(fun(#{transport := T, address := A}) -> {T, A} end, [Candidate || {_, _, Candidate} <- Chosen]),
    Reasons = Refused ++ [{T, Why} || {skip, T, Why} <- Judged],
    Named = lists:append([Transports || #{transports := Transports} <- concerned(Places, Rules, Peer)]),
    Missing = lists:uniq(Named ++ Carriers) -- [T || #{transport := T} <- Candidates],
    {Candidates, [{T, why_not(T, Carriers, Reasons)} || T <- Missing]}.

%% The rules that decided about an address; those that could have where there was none.
concerned([], Rules, #{node := Node}) ->
    [Rule || #{match := Match} = Rule <- Rules, polydist_rule:fits(Match, #{node => Node}) =/= false];
concerned(Places, Rules, _) ->
    [Rule || #{facts := Facts} <- Places, {_, Rule} <- [first(Rules, Facts, 1)]].

why_not(Transport, Carriers, Reasons) ->
    case {lists:member(Transport, Carriers), lists:uniq([Why || {T, Why} <- Reasons, T =:= Transport orelse T =:= stock])} of
        {false, _} -> <<"this node does not run it: it is not in -proto_dist">>;
        {true, []} -> <<"the peer did not register it">>;
        {true, Whys} -> iolist_to_binary(lists:join("; ", Whys))
    end.

first([#{match := Match} = Rule | Rules], Facts, Number) ->
    case polydist_rule:fits(Match, Facts) of
        true -> {Number, Rule};
        _ -> first(Rules, Facts, Number + 1)
    end.

judge(#{facts := Facts, registry := Registry} = Place, Rules, Carriers) ->
    {Number, #{transports := Transports, registries := Registries, settings := Settings} = Rule} = first(Rules, Facts, 1),
    Name = maps:get(rule, Settings),
    case transport(Place, Rule) of
        {skip, Transport, Why} -> {skip, Transport, <<Name/binary, " ", Why/binary>>};
        Transport ->
            Skip = fun(Format, Args) -> {skip, Transport, polydist_log:text(Format, Args)} end,
            Asked = Registries =:= all orelse lists:member(Registry, Registries),
            case {position(Transport, Transports), lists:member(Transport, Carriers), Asked} of
                {none, _, _} when Transports =:= [] -> Skip("~ts allows no transport", [Name]);
                {none, _, _} -> Skip("~ts does not allow it", [Name]);
                {_, false, _} -> Skip("this node does not run it", []);
                {_, _, false} -> Skip("~ts does not ask ~p", [Name, Registry]);
                {Position, true, true} ->
                    {candidate, {Number, Position},
                     #{transport => Transport, address => maps:get(address, Place), why => Name, registry => Registry,
                       settings => Settings}}
            end
    end.

%% The port of a stock peer speaks what the rule says it does.
transport(#{transport := stock, address := {Ip, _}}, #{transports := Transports, legacy := Legacy}) ->
    case {Legacy, lists:member(tcp, Transports) orelse lists:member(tcp6, Transports)} of
        {none, _} -> {skip, stock, <<"says legacy => none, and the peer registered only a port, as stock nodes do">>};
        {tcp, false} when Transports =/= [] ->
            {skip, stock, <<"does not allow tcp, and the peer registered only a port, as stock nodes do; if that one speaks TLS, "
                            "say legacy => tls">>};
        {tcp, _} when tuple_size(Ip) =:= 4 -> tcp;
        {tcp, _} -> tcp6;
        {tls, _} -> tls
    end;
transport(#{transport := Transport}, _) ->
    Transport.

position(Item, List) -> position(Item, List, 1).

position(Item, [Item | _], Position) -> Position;
position(Item, [_ | List], Position) -> position(Item, List, Position + 1);
position(_, [], _) -> none.

%% Every address that the peer's registrations lead to, and why the others are none.
-spec places(peer()) -> {[place()], [{polydist_native:transport() | stock, Why :: binary()}]}.
places(#{registered := Registered} = Peer) ->
    Found = lists:append([case Each of
                              {Registry, Answer} -> places(Answer, Registry, Peer);
                              {Registry, Answer, Facts} -> places(Answer, Registry, maps:merge(Peer, Facts))
                          end || Each <- Registered]),
    {[Place || Place <- Found, is_map(Place)], [Reason || Reason <- Found, is_tuple(Reason)]}.

places({record, Endpoints}, Registry, Peer) ->
    lists:append([places(Transport, Where, Registry, Peer) || {Transport, Where} <- Endpoints]);
places({port, 0}, _, _) ->
    [{stock, <<"the peer registered no port">>}];
places({port, Port}, Registry, Peer) ->
    case places(stock, {any4, Port}, Registry, Peer) ++ places(stock, {any6, Port}, Registry, Peer) of
        [{stock, _}, {stock, _}] -> [{stock, <<"the host has no address">>}];
        Both -> [Place || Place <- Both, is_map(Place)]
    end.

places(Transport, Where, Registry, #{node := Node} = Peer) ->
    case takes(Transport, Where) andalso resolve(Transport, Where, Peer) of
        false -> [{Transport, <<"the peer registered it at an address of a kind that it does not have">>}];
        {skip, Why} -> [{Transport, Why}];
        Addresses ->
            [#{transport => Transport, address => Address, registry => Registry,
               facts => facts(Node, Transport, Address, Peer)} || Address <- Addresses]
    end.

takes(_, {opaque, _}) -> true; % resolve/3 says more of it
takes(uds, {Kind, _}) -> Kind =:= local;
takes(_, {local, _}) -> false;
takes(tcp, {Ip, _}) -> Ip =:= any4 orelse is_tuple(Ip) andalso tuple_size(Ip) =:= 4;
takes(tcp6, {Ip, _}) -> Ip =:= any6 orelse is_tuple(Ip) andalso tuple_size(Ip) =:= 8;
takes(_, _) -> true.

facts(Node, _, {local, _}, _) -> #{node => Node, ip => none, same_host => true};
facts(Node, Transport, {opaque, _}, #{same_host := SameHost}) ->
    #{node => Node, ip => none, same_host => SameHost orelse polydist_outside:reach(Transport) =:= host};
facts(Node, _, {Ip, _}, #{same_host := SameHost}) -> #{node => Node, ip => Ip, same_host => SameHost}.

resolve(Transport, {opaque, _} = Where, Peer) ->
    case polydist_carrier:is_outside(Transport) of
        true -> reached(polydist_outside:reach(Transport), Where, Peer);
        false -> {skip, <<"this version does not know that kind of address">>}
    end;
resolve(Transport, Where, Peer) ->
    (Transport =:= stock orelse not polydist_carrier:is_outside(Transport)) andalso resolve(Where, Peer).

reached(host, _, #{same_machine := false}) -> {skip, <<"it does not reach another host">>};
reached(_, Where, _) -> [Where].

resolve({local, Path}, #{same_machine := true, uds_dirs := Dirs}) -> path(Path, Dirs);
resolve({local, _}, _) -> {skip, <<"a Unix socket does not reach another host">>};
resolve({_, 0}, _) -> {skip, <<"the peer registered port 0">>};
%% A name that has no address of a family may still be this host, and this host has its loopback.
resolve({any4, Port}, #{ip4 := [], same_host := true}) -> [{?LOOPBACK4, Port}];
resolve({any6, Port}, #{ip6 := [], same_host := true}) -> [{?LOOPBACK6, Port}];
resolve({any4, _}, #{ip4 := []}) -> {skip, <<"the host has no IPv4 address">>};
resolve({any6, _}, #{ip6 := []}) -> {skip, <<"the host has no IPv6 address">>};
resolve({any4, Port}, #{ip4 := Ips}) -> resolved(Ips, Port);
resolve({any6, Port}, #{ip6 := Ips}) -> resolved(Ips, Port);
resolve({Ip, Port}, #{same_host := SameHost}) ->
    case kind(Ip) of
        unicast -> [{Ip, Port}];
        loopback when SameHost -> [{Ip, Port}];
        loopback -> {skip, polydist_log:text("~ts is that host's own loopback, not ours", [inet:ntoa(Ip)])};
        Kind -> {skip, unfit(Ip, Kind)}
    end.

%% These come from our own resolver: a loopback address for another host leads into a tunnel.
resolved([Ip | _] = Ips, Port) ->
    case [{Each, Port} || Each <- Ips, lists:member(kind(Each), [unicast, loopback])] of
        [] -> {skip, unfit(Ip, kind(Ip))};
        Addresses -> Addresses
    end.

unfit(Ip, Kind) ->
    polydist_log:text("~ts cannot be dialled: it is ~ts", [inet:ntoa(Ip), Kind]).

kind({0, _, _, _}) -> "no host's address";
kind({127, _, _, _}) -> loopback;
kind({A, _, _, _}) when A >= 224 -> "a multicast or reserved address";
kind({_, _, _, _}) -> unicast;
kind({0, 0, 0, 0, 0, 0, 0, 0}) -> "no host's address";
kind(?LOOPBACK6) -> loopback;
kind({0, 0, 0, 0, 0, 16#ffff, _, _}) -> "an IPv4 address in IPv6 form";
kind({A, _, _, _, _, _, _, _}) when A >= 16#ff00 -> "a multicast address";
kind({A, _, _, _, _, _, _, _}) when A band 16#ffc0 =:= 16#fe80 -> "a link-local address, which says nothing without its interface";
kind(_) -> unicast.

path(Path, _) when byte_size(Path) > ?LONGEST_PATH -> {skip, <<"the path is longer than a socket's can be">>};
path(Path, Dirs) ->
    Parts = filename:split(Path),
    Suspect = [Part || Part <- Parts, Part =:= <<"..">> orelse Part =:= <<".">> orelse binary:match(Part, <<0>>) =/= nomatch],
    case {Parts, Suspect} of
        {[<<"/">> | _], []} ->
            Inside = fun(Dir) -> Parts =/= Dir andalso lists:prefix(Dir, Parts) end,
            case lists:any(Inside, [filename:split(Dir) || Dir <- Dirs]) of
                true -> [{local, Path}];
                false ->
                    {skip, polydist_log:text("~ts is outside the directories in which sockets are dialled (~ts); if it is right, "
                                             "add its directory to uds_dirs", [printable(Path), lists:join(", ", Dirs)])}
            end;
        _ -> {skip, polydist_log:text("~ts is not a plain absolute path", [printable(Path)])}
    end.

printable(Path) ->
    case unicode:characters_to_list(Path) of
        Text when is_list(Text) -> Text;
        _ -> io_lib:format("~0p", [Path])
    end.
