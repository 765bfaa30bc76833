%%% What a policy comes to, worked out the slow and obvious way from its text, for one address after another. Shares no code
%%% with polydist_policy: it is what that one is compared with.
-module(polydist_policy_oracle).

-export([expected/3, is_allowed/4, settings/3, decide_by_name/2, fits_text/2]).

%% @doc What may be dialled, best first: {Transport, Address, Number of the rule, Registry}.
expected(Rules, Carriers, Peer) ->
    Found = [
        {RuleNumber, preference(Transport, Options), Transport, Address, Registry}
     || {Registry, Answer} <- maps:get(registered, Peer),
        {Transport, Address, Spoken} <- offered(Answer, Peer),
        lists:member(Transport, Carriers),
        {RuleNumber, Options} <- [decide(Rules, Carriers, Peer, Address)],
        lists:member(Registry, maps:get(registries, Options, [epmd])),
        lists:member(Transport, maps:get(transports, Options)),
        lists:member(Spoken, [itself, maps:get(legacy, Options, tcp)])
    ],
    %% lists:sort/2 is stable: what is alike stays as registered.
    Sorted = lists:sort(fun({N1, P1, _, _, _}, {N2, P2, _, _, _}) -> {N1, P1} =< {N2, P2} end, Found),
    lists:foldl(
        fun({Number, _, Transport, Address, Registry}, Kept) ->
            case [again || {T, A, _, _} <- Kept, T =:= Transport, A =:= Address] of
                [] -> Kept ++ [{Transport, Address, Number, Registry}];
                [_] -> Kept
            end
        end,
        [],
        Sorted
    ).

%% @doc Whether the rules let this node dial that address of the peer over that transport.
is_allowed(Rules, Carriers, Peer, #{transport := Transport, address := Address, registry := Registry}) ->
    {_, Options} = decide(Rules, Carriers, Peer, Address),
    Answers = [Answer || {R, Answer} <- maps:get(registered, Peer), R =:= Registry],
    Ways = [Spoken || Answer <- Answers, {T, A, Spoken} <- offered(Answer, Peer), T =:= Transport, A =:= Address],
    lists:member(Transport, Carriers) andalso
        lists:member(Transport, maps:get(transports, Options)) andalso
        lists:member(Registry, maps:get(registries, Options, [epmd])) andalso
        lists:any(fun(Spoken) -> lists:member(Spoken, [itself, maps:get(legacy, Options, tcp)]) end, Ways).

preference(Transport, #{transports := Transports}) ->
    length(lists:takewhile(fun(T) -> T =/= Transport end, Transports)).

%% Every transport and address that an answer leads to, in its order, with what the other end would speak there.
offered({record, Endpoints}, Peer) ->
    [
        {Transport, Address, itself}
     || {Transport, Where} <- Endpoints, Address <- dialable(Where, Peer), suits(Transport, Address)
    ];
offered({port, Port}, Peer) ->
    Four = dialable({any4, Port}, Peer),
    Six = dialable({any6, Port}, Peer),
    [{tcp, A, tcp} || A <- Four] ++ [{tcp6, A, tcp} || A <- Six] ++ [{tls, A, tls} || A <- Four ++ Six].

suits(uds, {local, _}) -> true;
suits(tcp, {Ip, _}) when tuple_size(Ip) =:= 4 -> true;
suits(tcp6, {Ip, _}) when tuple_size(Ip) =:= 8 -> true;
suits(Transport, {Ip, _}) when is_tuple(Ip), Transport =:= tls orelse Transport =:= sctp -> true;
suits(_, _) -> false.

dialable({_, 0}, _) -> [];
dialable({opaque, _}, _) -> [];
dialable({local, Path}, Peer) -> [{local, Path} || is_allowed_path(Path, Peer)];
dialable({any4, Port}, #{ip4 := [], same_host := true}) -> [{{127, 0, 0, 1}, Port}];
dialable({any6, Port}, #{ip6 := [], same_host := true}) -> [{{0, 0, 0, 0, 0, 0, 0, 1}, Port}];
%% Where our own resolver says that a host is at our loopback, it is: that is how tunnels are named.
dialable({any4, Port}, #{ip4 := Ips}) -> [{Ip, Port} || Ip <- Ips, lists:member(kind(Ip), [host, loopback])];
dialable({any6, Port}, #{ip6 := Ips}) -> [{Ip, Port} || Ip <- Ips, lists:member(kind(Ip), [host, loopback])];
dialable({Ip, Port}, #{same_host := true}) -> [{Ip, Port} || lists:member(kind(Ip), [host, loopback])];
dialable({Ip, Port}, #{same_host := false}) -> [{Ip, Port} || kind(Ip) =:= host].

is_allowed_path(Path, #{same_machine := SameMachine, uds_dirs := Dirs}) ->
    Chars = binary_to_list(Path),
    SameMachine andalso length(Chars) =< 107 andalso not lists:member(0, Chars) andalso
        not lists:member("..", string:split(Chars, "/", all)) andalso
        lists:any(fun(Dir) -> is_below(string:trim(binary_to_list(Dir), trailing, "/") ++ "/", Chars) end, Dirs).

is_below(Dir, Path) ->
    lists:prefix(Dir, Path) andalso string:trim(Path, trailing, "/") ++ "/" =/= Dir.

kind({127, _, _, _}) -> loopback;
kind({A, _, _, _}) when A =:= 0; A >= 224 -> none;
kind({0, 0, 0, 0, 0, 0, 0, 0}) -> none;
kind({0, 0, 0, 0, 0, 0, 0, 1}) -> loopback;
kind({0, 0, 0, 0, 0, 16#ffff, _, _}) -> none;
kind({A, _, _, _, _, _, _, _}) when A >= 16#fe80, A =< 16#febf; A >= 16#ff00 -> none;
kind(_) -> host.

%% The first rule that fits this address, with its number; the default rules come after all others.
decide(Rules, Carriers, Peer, Address) ->
    Facts =
        case Address of
            {local, _} -> {maps:get(node, Peer), none, true};
            {Ip, _} -> {maps:get(node, Peer), Ip, maps:get(same_host, Peer)}
        end,
    hd([{Number, Options} || {Number, {Match, Options}} <- numbered(Rules, Carriers), fits(Match, Facts)]).

numbered(Rules, Carriers) ->
    Remote =
        case lists:member(tls, Carriers) of
            true -> [tls];
            false -> [tcp6, tcp, sctp]
        end,
    Defaults = [{same_host, #{transports => [uds, tls, tcp6, tcp, sctp]}}, {any, #{transports => Remote}}],
    lists:zip(lists:seq(1, length(Rules) + 2), Rules ++ Defaults).

fits(any, _) -> true;
fits(same_host, {_, _, SameHost}) -> SameHost;
fits({all, Matches}, Facts) -> lists:foldl(fun(Match, Fits) -> Fits and fits(Match, Facts) end, true, Matches);
fits({'not', Match}, Facts) -> not fits(Match, Facts);
fits({net, _}, {_, none, _}) -> false;
fits({net, Net}, {_, Ip, _}) -> is_in(Ip, unicode:characters_to_list(Net));
fits({host, Glob}, {Node, _, _}) ->
    [_Name, Host] = string:lexemes(atom_to_list(Node), "@"),
    fits_text(Glob, Host);
fits(Glob, {Node, _, _}) -> fits_text(Glob, atom_to_list(Node)).

is_in(Ip, Net) ->
    {Text, Length} =
        case string:lexemes(Net, "/") of
            [Alone] -> {Alone, 128};
            [Before, Digits] -> {Before, list_to_integer(Digits)}
        end,
    {ok, Start} = inet:parse_address(Text),
    Drop = max(0, width(Start) - Length),
    width(Ip) =:= width(Start) andalso number(Ip) bsr Drop =:= number(Start) bsr Drop.

width(Ip) when tuple_size(Ip) =:= 4 -> 32;
width(Ip) when tuple_size(Ip) =:= 8 -> 128.

number(Ip) ->
    Base = 1 bsl (width(Ip) div tuple_size(Ip)),
    lists:foldl(fun(Part, Number) -> Number * Base + Part end, 0, tuple_to_list(Ip)).

%% @doc Whether a text fits a pattern.
fits_text(Glob, Text) ->
    glob(unicode:characters_to_list(Glob), Text).

glob([], Text) -> Text =:= [];
glob("*" ++ Glob, Text) -> lists:any(fun(N) -> glob(Glob, lists:nthtail(N, Text)) end, lists:seq(0, length(Text)));
glob("?" ++ Glob, Text) -> Text =/= [] andalso glob(Glob, tl(Text));
glob([C | Glob], Text) -> Text =/= [] andalso hd(Text) =:= C andalso glob(Glob, tl(Text)).

%% @doc What the deciding rule says of a connection with an address of the peer, or with a Unix socket (none).
settings(Rules, Carriers, #{ip := none} = Facts) -> said(decide(Rules, Carriers, Facts, {local, <<"/">>}));
settings(Rules, Carriers, #{ip := Ip} = Facts) -> said(decide(Rules, Carriers, Facts, {Ip, 1})).

said({_, Options}) ->
    maps:map(
        fun
            (ticktime, {Ms, ms}) -> Ms;
            (ticktime, Seconds) -> round(Seconds * 1000);
            (socket, Socket) when is_list(Socket) -> maps:from_list(Socket);
            (_, Value) -> Value
        end,
        maps:merge(#{stagger => 250, socket => #{}}, maps:with([ticktime, connect_timeout, stagger, socket], Options))
    ).

%% @doc What the deciding rule says is to be done with a node, going by its name alone; unknown if that depends on more.
decide_by_name([{Match, Options} | Rules], Node) ->
    case {is_by_name(Match), fits(Match, {Node, none, false})} of
        {false, _} -> unknown;
        {true, true} -> Options;
        {true, false} -> decide_by_name(Rules, Node)
    end;
decide_by_name([], _) ->
    unknown.

is_by_name(same_host) -> false;
is_by_name({net, _}) -> false;
is_by_name({all, Matches}) -> lists:all(fun is_by_name/1, Matches);
is_by_name({'not', Match}) -> is_by_name(Match);
is_by_name(_) -> true.
