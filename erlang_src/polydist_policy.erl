%%% Which transport to dial a node over. Pure: a policy and what is known about the peer in, ordered candidates out.
%%%
%%% A policy is a list of `{Match, Options}', tried in order, the first whose Match fits the peer decides:
%%%   Match    a glob on the whole node name ("db*@*", with * and ?), same_host, or any
%%%   Options  #{transports => [uds, tls, tcp6, tcp]}, in order of preference; [] forbids the connection
%%% A peer that no rule fits gets the default rules, which are also those of a node without a policy: on the same host uds, tls,
%%% tcp6, tcp; on another host tls alone when this node runs the TLS carrier, else tcp6, tcp. So plain TCP to another host, where
%%% TLS is on, needs a rule that says so.
%%%
%%% A peer that registered a record is dialled at the endpoints in it. A stock peer registered a port and nothing else: that
%%% port is dialled by plain TCP (tcp, tcp6) if the rule allows that, and never otherwise.
-module(polydist_policy).

-export([compile/1, default/1, may_connect/2, candidates/3, matches/2]).

-export_type([policy/0, rule/0, match/0, options/0, peer/0, endpoint/0, candidate/0, skipped/0]).

-type match() :: string() | binary() | same_host | any.
-type options() :: #{transports := [polydist_native:transport()]}.
-type rule() :: {match(), options()}.
-opaque policy() :: [{{glob, string()} | same_host | any, options(), Name :: binary()}].

-type endpoint() :: {polydist_native:transport(), polydist_native:where()}.

%% The peer: where its host's name leads, whether that is this host, and what it registered: endpoints, or one stock port.
-type peer() :: #{node := node(), ip4 := [inet:ip4_address()], ip6 := [inet:ip6_address()], same_host := boolean(),
                  registered := {record, [endpoint()]} | {port, inet:port_number()}}.

-type candidate() :: #{transport := polydist_native:transport(), address := polydist_native:address(), why := binary()}.

%% A transport that the rule names and that gave no candidate, and why.
-type skipped() :: {polydist_native:transport(), Why :: binary()}.

-define(LOOPBACK4, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).

%% @doc Checks a policy as the user wrote it.
-spec compile(term()) -> {ok, policy()} | {error, Sentence :: binary()}.
compile(Rules) when is_list(Rules) ->
    try
        {ok, [rule(Number, Rule) || {Number, Rule} <- lists:zip(lists:seq(1, length(Rules)), Rules)]}
    catch
        throw:{invalid, Sentence} -> {error, Sentence};
        error:_ ->
            {error, polydist_log:text("policy is ~0p, which is not a proper list of {Match, #{transports => [..]}}", [Rules])}
    end;
compile(Other) ->
    {error, polydist_log:text("policy is ~0p, but must be a list of {Match, #{transports => [..]}}", [Other])}.

rule(Number, {Match, Options} = Rule) when is_map(Options) ->
    Checked = maps:map(fun(Key, Value) -> option(Number, Rule, Key, Value) end, Options),
    is_map_key(transports, Checked) orelse invalid(Number, Rule, "needs transports => [..]", []),
    {match(Number, Rule, Match), Checked, polydist_log:text("policy rule ~0p (~0p)", [Number, Match])};
rule(Number, Rule) ->
    invalid(Number, Rule, "must be {Match, #{transports => [..]}}", []).

%% One clause per option of a rule.
option(Number, Rule, transports, Transports) when is_list(Transports) ->
    Known = polydist_carrier:transports(),
    case [T || T <- Transports, not lists:member(T, Known)] of
        [] -> Transports;
        [Unknown | _] -> invalid(Number, Rule, "names the transport ~0p; there are ~ts", [Unknown, names(Known)])
    end;
option(Number, Rule, transports, _) ->
    invalid(Number, Rule, "needs a list for transports", []);
option(Number, Rule, Key, _) ->
    invalid(Number, Rule, "has the unknown option ~0p; there is transports => [..]", [Key]).

match(_, _, Match) when Match =:= same_host; Match =:= any ->
    Match;
match(Number, Rule, Match) when is_binary(Match); is_list(Match), Match =/= [] ->
    case unicode:characters_to_list(Match) of
        Glob when is_list(Glob) -> {glob, Glob};
        _ -> invalid(Number, Rule, "has a match that is not text", [])
    end;
match(Number, Rule, _) ->
    invalid(Number, Rule, "has a match that is neither a node name with * and ? (\"db*@*\") nor same_host nor any", []).

-spec invalid(pos_integer(), term(), string(), [term()]) -> no_return().
invalid(Number, Rule, Format, Args) ->
    throw({invalid, polydist_log:text("policy rule ~0p, ~0p, " ++ Format, [Number, Rule | Args])}).

names(Transports) ->
    lists:join(", ", [atom_to_list(T) || T <- Transports]).

%% @doc The rules of a node without a policy, given the transports it runs.
-spec default(Carriers :: [polydist_native:transport()]) -> policy().
default(Carriers) ->
    Remote = case lists:member(tls, Carriers) of
                 true -> [tls];
                 false -> [tcp6, tcp]
             end,
    [{same_host, #{transports => [uds, tls, tcp6, tcp]}, <<"the default for this host">>},
     {any, #{transports => Remote}, <<"the default for other hosts">>}].

%% @doc Whether a connection to Node is at all possible, by its name alone: false only if the rule that fits it forbids it.
-spec may_connect(policy(), node()) -> boolean().
may_connect([{same_host, #{transports := [_ | _]}, _} | _], _) -> true; % perhaps it is; the lookup will tell
may_connect([{same_host, _, _} | Rules], Node) -> may_connect(Rules, Node);
may_connect([{Match, #{transports := Transports}, _} | Rules], Node) ->
    case fits(Match, #{node => Node, same_host => false}) of
        true -> Transports =/= [];
        false -> may_connect(Rules, Node)
    end;
may_connect([], _) -> true.

%% @doc The addresses to dial, in order, and what was left out. Only transports in Carriers, those this node runs, are dialled.
-spec candidates(policy(), Carriers :: [polydist_native:transport()], peer()) -> {[candidate()], [skipped()]}.
candidates(Policy, Carriers, Peer) ->
    {#{transports := Transports}, Why} = decide(Policy ++ default(Carriers), Peer),
    Found = [{T, addresses(T, lists:member(T, Carriers), Peer)} || T <- Transports],
    {[#{transport => T, address => Address, why => Why} || {T, {ok, Addresses}} <- Found, Address <- Addresses],
     case Transports of
         [] -> [{T, <<Why/binary, " allows no transport">>} || T <- Carriers];
         _ -> [{T, Reason} || {T, {skip, Reason}} <- Found]
              ++ [{T, <<Why/binary, " does not allow it">>} || T <- Carriers -- Transports]
     end}.

decide([{Match, Options, Why} | Rules], Peer) ->
    case fits(Match, Peer) of
        true -> {Options, Why};
        false -> decide(Rules, Peer)
    end.

fits(any, _) -> true;
fits(same_host, #{same_host := SameHost}) -> SameHost;
fits({glob, Glob}, #{node := Node}) -> matches(Glob, atom_to_list(Node)).

addresses(_, false, _) ->
    {skip, <<"this node does not run it: it is not in -proto_dist">>};
addresses(Transport, true, #{registered := {record, Endpoints}} = Peer) ->
    case [Where || {T, Where} <- Endpoints, T =:= Transport] of
        [] -> {skip, <<"the peer did not register it">>};
        Wheres -> reachable(lists:flatmap(fun(Where) -> resolve(Where, Peer) end, Wheres), Peer)
    end;
addresses(_, true, #{registered := {port, 0}}) ->
    {skip, <<"the peer registered no port">>};
addresses(tcp, true, #{registered := {port, Port}} = Peer) -> reachable(resolve({any4, Port}, Peer), Peer);
addresses(tcp6, true, #{registered := {port, Port}} = Peer) -> reachable(resolve({any6, Port}, Peer), Peer);
addresses(_, true, _) ->
    {skip, <<"the peer registered only a port, as stock nodes do; that one is dialled by tcp and tcp6 alone">>}.

reachable([], #{same_host := false}) -> {skip, <<"no address of it can be reached from this host">>};
reachable([], _) -> {skip, <<"no address of it is known">>};
reachable(Addresses, _) -> {ok, Addresses}.

%% A name that has no address of a family may still be this host, and this host has its loopback.
resolve({any4, Port}, #{ip4 := [], same_host := true}) -> [{?LOOPBACK4, Port}];
resolve({any4, Port}, #{ip4 := Ips}) -> [{Ip, Port} || Ip <- Ips];
resolve({any6, Port}, #{ip6 := [], same_host := true}) -> [{?LOOPBACK6, Port}];
resolve({any6, Port}, #{ip6 := Ips}) -> [{Ip, Port} || Ip <- Ips];
resolve({local, _} = Where, #{same_host := true}) -> [Where];
resolve({local, _}, _) -> [];
resolve({opaque, _}, _) -> [];
resolve({{127, _, _, _}, _}, #{same_host := false}) -> []; % its loopback, not ours
resolve({?LOOPBACK6, _}, #{same_host := false}) -> [];
resolve({_, _} = Where, _) -> [Where].

%% @doc Whether a text fits a pattern in which * stands for any characters and ? for one.
-spec matches(Glob :: string(), Text :: string()) -> boolean().
matches(Glob, Text) ->
    matches(Glob, Text, none).

%% The third argument is where to go on if this attempt fails: after the last *, with one more character given to it.
matches([$* | Glob], Text, _) -> matches(Glob, Text, {Glob, Text});
matches([$? | Glob], [_ | Text], Retry) -> matches(Glob, Text, Retry);
matches([C | Glob], [C | Text], Retry) -> matches(Glob, Text, Retry);
matches([], [], _) -> true;
matches(_, _, {Glob, [_ | Text]}) -> matches(Glob, Text, {Glob, Text});
matches(_, _, _) -> false.
