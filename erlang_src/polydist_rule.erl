%%% One rule of a policy: what may be written, and whether it fits. Pure.
%%%
%%%   {Match, Options}
%%%   Match    "db*@*"                 a pattern on the node name, with * and ?; string or binary
%%%            {host, "*.example"}     a pattern on what comes after the @
%%%            {net, "10.0.0.0/8"}     the address that would be dialled, or was dialled from; a Unix socket has none
%%%            same_host               on this host, which a Unix socket always is
%%%            any
%%%            {all, [Match]}, {'not', Match}
%%%   Options  transports => [tls, tcp]         needed; in order of preference, and [] forbids
%%%            ticktime => Seconds | {Ms, ms}   of the connection; without it the kernel's net_ticktime holds
%%%            max_age => Seconds | {Ms, ms}    after which this node renews a connection, see polydist_age
%%%            legacy => tcp | tls | none       what the one port of a stock peer speaks; tcp
%%%            connect_timeout => Ms            for one attempt; without it whatever net_setuptime leaves
%%%            stagger => Ms                    how long an attempt is alone before the next one starts; 250
%%%            registries => [epmd]             who is asked, of the key registries; all
%%%            identity => true | false         whether who connects must have a certificate for its name: polydist_identity
%%%            socket => #{nodelay, keepalive, sndbuf, recbuf, priority, tos, user_timeout,
%%%                        sctp => #{heartbeat, path_max_retrans, max_retrans, rto_initial, rto_min, rto_max}}
%%%
%%% A mistake is a sentence that names the rule.
-module(polydist_rule).

-export([compile/3, fits/2, matches/2]).

-export_type([source/0, match/0, options/0, rule/0, settings/0, facts/0]).

-type source() :: {match(), options()}.
-type match() :: string() | binary() | {host, string() | binary()} | {net, string() | binary()} | same_host | any
               | {all, [match()]} | {'not', match()}.
-type options() :: #{transports := [polydist_native:transport()],
                     ticktime => number() | {pos_integer(), ms}, max_age => number() | {pos_integer(), ms}, legacy => legacy(),
                     connect_timeout => pos_integer(), stagger => non_neg_integer(), identity => boolean(),
                     registries => [polydist_registry:name()],
                     socket => polydist_native:socket_options() | [{atom(), term()}]}.
-type legacy() :: tcp | tls | none.

-type rule() :: #{match := matcher(), transports := [polydist_native:transport()], legacy := legacy(),
                  registries := all | [polydist_registry:name()], settings := settings()}.
-type matcher() :: {node, Glob :: string()} | {host, Glob :: string()} | {net, polydist_net:net()} | same_host | any
                 | {all, [matcher()]} | {'not', matcher()}.

%% What a rule says of a connection, times in milliseconds. `rule' is what to call it.
-type settings() :: #{rule := binary(), stagger := non_neg_integer(), socket := polydist_native:socket_options(),
                      ticktime => pos_integer(), max_age => pos_integer(), connect_timeout => pos_integer(),
                      identity => boolean()}.

%% What is known of a peer; a key that is not there is not known yet. The address of a Unix socket is none.
%% The node may be text: what a stranger says that it is called is no atom yet.
-type facts() :: #{node => node() | string(), ip => inet:ip_address() | none, same_host => boolean()}.

-define(STAGGER, 250). % RFC 8305, section 5
-define(SHORTEST_TICKTIME, 100).
-define(LONGEST_TICKTIME, 86400000).
-define(SHORTEST_AGE, 1000).
-define(LONGEST_AGE, 31536000000).
-define(DEPTH, 60). % of what a mistake repeats of its rule
-define(OPTIONS, [transports, ticktime, max_age, legacy, connect_timeout, stagger, registries, identity, socket]).

%% @doc Checks a rule as the user wrote it, on a node that has these registries.
-spec compile(Number :: pos_integer(), term(), [polydist_registry:name()]) -> {ok, rule()} | {error, Sentence :: binary()}.
compile(Number, {Match, Options} = Source, Registries) when is_map(Options) ->
    try
        Checked = maps:map(fun(registries, Value) -> registries(Value, Registries);
                              (Key, Value) -> option(Key, Value)
                           end, Options),
        Transports = needed(Checked),
        Matcher = matcher(Match),
        fits(Matcher, #{}) =/= false orelse invalid("can never match", []),
        {ok, #{match => Matcher, transports => Transports, legacy => legacy(Checked, Transports),
               registries => maps:get(registries, Checked, all),
               settings => maps:merge(#{rule => polydist_log:text("policy rule ~0p (~0tp)", [Number, Match]),
                                        stagger => ?STAGGER, socket => #{}},
                                      maps:with([ticktime, max_age, connect_timeout, stagger, identity, socket], Checked))}}
    catch
        throw:{invalid, Why} -> mistake(Number, Source, Why)
    end;
compile(Number, Source, _) ->
    mistake(Number, Source, "must be {Match, #{transports => [..]}}").

mistake(Number, Source, Why) ->
    {error, polydist_log:text("policy rule ~0p, ~0tP, ~ts", [Number, Source, ?DEPTH, Why])}.

needed(#{transports := Transports}) -> Transports;
needed(_) -> invalid("needs transports => [..]", []).

legacy(#{legacy := tls}, Transports) ->
    lists:member(tls, Transports)
        orelse invalid("says legacy => tls, but its transports are without tls: add it, or say legacy => none", []),
    tls;
legacy(#{legacy := tcp}, Transports) ->
    is_plain(Transports)
        orelse invalid("says legacy => tcp, but its transports are without tcp and tcp6: add one, or say legacy => none", []),
    tcp;
legacy(#{legacy := none}, _) -> none;
legacy(_, _) -> tcp.

is_plain(Transports) ->
    lists:member(tcp, Transports) orelse lists:member(tcp6, Transports).

%% One clause for each option that is right; option/2's last ones say what would have been.
option(transports, Transports) when is_list(Transports) -> members(transports, Transports, polydist_carrier:transports());
option(ticktime, {Ms, ms}) when is_integer(Ms) -> ticktime(Ms);
option(ticktime, Seconds) when is_number(Seconds), Seconds =< ?LONGEST_TICKTIME -> ticktime(round(Seconds * 1000));
option(max_age, {Ms, ms}) when is_integer(Ms) -> max_age(Ms);
option(max_age, Seconds) when is_number(Seconds), Seconds =< ?LONGEST_AGE -> max_age(round(Seconds * 1000));
option(legacy, Legacy) when Legacy =:= tcp; Legacy =:= tls; Legacy =:= none -> Legacy;
option(connect_timeout, Ms) when is_integer(Ms), Ms > 0, Ms =< 16#ffffffff -> Ms;
option(stagger, Ms) when is_integer(Ms), Ms >= 0, Ms =< 16#ffffffff -> Ms;
option(identity, Bool) when is_boolean(Bool) -> Bool;
option(socket, Options) when is_map(Options) -> option(socket, maps:to_list(Options));
option(socket, Options) when is_list(Options) ->
    length_of(socket, Options),
    case polydist_config:pick_socket_options(Options) of
        {#{backlog := _}, _} -> invalid("has socket => backlog, which is for listeners: see inet_dist_listen_options", []);
        {Known, []} -> Known;
        {_, [{sctp, Sctp} | _]} ->
            invalid("has socket => #{sctp => ~0tp}, which must be a map of heartbeat, rto_initial, rto_min, rto_max (milliseconds, "
                    "rto_min no more than rto_max) and path_max_retrans, max_retrans (1 to 65535)", [Sctp]);
        {_, [Unknown | _]} ->
            invalid("has socket => ~0tp; known are nodelay and keepalive (true or false), sndbuf, recbuf, priority, tos and "
                    "user_timeout (a number), and sctp (a map)", [Unknown])
    end;
option(transports, Other) ->
    invalid("has transports => ~0tp, which must be a list: [~ts]", [Other, names(polydist_carrier:transports())]);
option(ticktime, Other) -> invalid("has ticktime => ~0tp, which must be seconds (2, 0.5) or {500, ms}", [Other]);
option(max_age, Other) -> invalid("has max_age => ~0tp, which must be seconds (3600) or {5000, ms}", [Other]);
option(legacy, Other) -> invalid("has legacy => ~0tp, which must be tcp, tls or none: what a stock peer's port speaks", [Other]);
option(socket, Other) -> invalid("has socket => ~0tp, which must be a map such as #{keepalive => true}", [Other]);
option(identity, Other) -> invalid("has identity => ~0tp, which must be true or false", [Other]);
option(Key, Other) when Key =:= connect_timeout; Key =:= stagger ->
    invalid("has ~0p => ~0tp, which must be a whole number of milliseconds", [Key, Other]);
option(Key, _) -> invalid("has the unknown option ~0tp; there are ~ts", [Key, names(?OPTIONS)]).

registries(Registries, Known) when is_list(Registries) -> members(registries, Registries, Known);
registries(Other, Known) -> invalid("has registries => ~0tp, which must be a list: [~ts]", [Other, names(Known)]).

ticktime(Ms) when Ms >= ?SHORTEST_TICKTIME, Ms =< ?LONGEST_TICKTIME -> Ms;
ticktime(Ms) -> invalid("has a ticktime of ~0p ms, which must be from ~0p ms to a day", [Ms, ?SHORTEST_TICKTIME]).

max_age(Ms) when Ms >= ?SHORTEST_AGE, Ms =< ?LONGEST_AGE -> Ms;
max_age(Ms) -> invalid("has a max_age of ~0p ms, which must be from ~0p ms to a year", [Ms, ?SHORTEST_AGE]).

members(Key, List, Known) ->
    length_of(Key, List),
    case {[Each || Each <- List, not lists:member(Each, Known)], List -- lists:usort(List)} of
        {[], []} -> List;
        {[Unknown | _], _} -> invalid("names ~0tp in ~0p; there are ~ts", [Unknown, Key, names(Known)]);
        {[], [Twice | _]} -> invalid("names ~0p twice in ~0p", [Twice, Key])
    end.

length_of(Key, List) ->
    try
        length(List)
    catch
        error:badarg -> invalid("has ~0tp => ~0tp, which is not a proper list", [Key, List])
    end.

names(Atoms) ->
    lists:join(", ", [atom_to_list(Atom) || Atom <- Atoms]).

matcher(Match) when Match =:= same_host; Match =:= any -> Match;
matcher({host, Glob}) -> {host, glob(Glob)};
matcher({net, Net}) -> net(text(Net));
matcher({all, [_ | _] = Matches}) ->
    length_of(all, Matches),
    {all, [matcher(Each) || Each <- Matches]};
matcher({'not', Match}) -> {'not', matcher(Match)};
matcher(Glob) when is_binary(Glob); is_list(Glob) -> {node, glob(Glob)};
matcher(Other) ->
    invalid("has the match ~0tp; there are a node name with * and ? (\"db*@*\"), {host, \"*.example\"}, {net, \"10.0.0.0/8\"}, "
            "same_host, any, {all, [Match, ..]} and {'not', Match}", [Other]).

glob(Glob) ->
    case text(Glob) of
        [] -> invalid("has an empty pattern; * matches everything", []);
        Text -> Text
    end.

text(Text) ->
    case polydist_log:chars(Text) of
        {ok, Chars} -> Chars;
        error -> invalid("has ~0tp, which is not text", [Text])
    end.

net(Text) ->
    case polydist_net:parse(Text) of
        {ok, Net} -> {net, Net};
        {error, {beyond, Net}} ->
            invalid("has {net, ~0tp}, but the network of that length is ~ts", [Text, polydist_net:text(Net)]);
        {error, no_net} -> invalid("has {net, ~0tp}, which is no network: write \"10.0.0.0/8\" or \"fd00::/8\"", [Text])
    end.

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).

%% @doc Whether a rule's match fits; unknown where that depends on what is not known.
-spec fits(matcher(), facts()) -> boolean() | unknown.
fits(any, _) -> true;
fits({node, Glob}, #{node := Node}) -> matches(Glob, name(Node));
fits({host, Glob}, #{node := Node}) -> matches(Glob, host(Node));
fits({net, _}, #{ip := none}) -> false;
fits({net, Net}, #{ip := Ip}) -> polydist_net:contains(Net, Ip);
fits(same_host, #{same_host := SameHost}) -> SameHost;
fits({'not', Match}, Facts) ->
    case fits(Match, Facts) of
        unknown -> unknown;
        Fits -> not Fits
    end;
fits({all, Matches}, Facts) ->
    Fit = [fits(Match, Facts) || Match <- Matches],
    case {lists:member(false, Fit), lists:member(unknown, Fit)} of
        {true, _} -> false;
        {false, true} -> unknown;
        {false, false} -> true
    end;
fits({Name, Glob}, _) when Name =:= node; Name =:= host ->
    case lists:all(fun(Char) -> Char =:= $* end, Glob) of
        true -> true;
        false -> unknown
    end;
fits(_, _) -> unknown.

name(Node) when is_atom(Node) -> atom_to_list(Node);
name(Node) -> Node.

host(Node) ->
    case string:split(name(Node), "@") of
        [_, Host] -> Host;
        [_] -> ""
    end.

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
