%%% Nodes whose place is written down: in the configuration, or in a file.
%%%
%%% Options are the endpoints, as a map or, where the order matters, as a list; or the path of a file with the same pairs as terms,
%%% each ended by a full stop. The first pattern that fits the node's name decides.
%%%   #{"db*@*" => [{tls, 4370}],                       its host's own addresses
%%%     "web@front" => [{tls, "10.0.0.7", 4371}, {tcp, "front.example", 4370}],
%%%     "job@here" => [{uds, "/run/app/job.sock"}]}
%%% A transport from outside has addresses of its own: {vsock, Address}.
%%% A file is read again when it has changed. With a mistake in it, the content before stays, and a line in the log says where.
-module(polydist_registry_static).
-behaviour(polydist_registry).

-export([check/1, lookup/2]).

-include_lib("kernel/include/file.hrl").

-type rule() :: {Glob :: string(), [endpoint()]}.
-type endpoint() :: {polydist_native:transport(), inet:port_number() | {opaque, binary()}} | {uds, Path :: binary()}
                  | {polydist_native:transport(), Host :: string() | inet:ip_address(), inet:port_number()}.

-define(LARGEST_FILE, 10000000).

%% @doc Checks the endpoints, or that there is a path. What is in a file may come later.
-spec check(term()) -> {ok, [rule()] | {file, string()}} | {error, iodata()}.
check(Rules) when Rules =:= #{} ->
    {error, "there is no endpoint; write {static, #{\"name@host\" => [{tls, 4370}]}} or {static, \"/path\"}"};
check(Rules) when is_map(Rules) -> rules(maps:to_list(Rules));
check(<<"/", _/binary>> = Path) -> check(unicode:characters_to_list(Path));
check("/" ++ _ = Path) -> {ok, {file, Path}};
check([Char | _] = Path) when is_integer(Char) -> {error, io_lib:format("~0tP is not the absolute path of a file", [Path, 20])};
check(Rules) when is_list(Rules) -> rules(Rules);
check(Other) -> {error, io_lib:format("~0tP is neither a map of endpoints nor the absolute path of a file", [Other, 20])}.

rules(Rules) ->
    try
        {ok, [rule(Rule) || Rule <- Rules]}
    catch
        throw:{invalid, Why} -> {error, Why};
        error:_ -> {error, io_lib:format("~0tP is no list of {\"name@host\", [Endpoint]}", [Rules, 20])}
    end.

rule({Glob, Endpoints}) when is_list(Endpoints) -> {text(Glob), [endpoint(Glob, Each) || Each <- Endpoints]};
rule(Other) -> invalid("~0tP is not {\"name@host\", [Endpoint]}", [Other, 20]).

endpoint(Glob, {uds, Path}) ->
    case unicode:characters_to_binary(Path) of
        <<"/", _/binary>> = Binary -> {uds, Binary};
        _ -> invalid("~0tp has {uds, ~0tp}, which is no absolute path", [Glob, Path])
    end;
endpoint(Glob, {Transport, Address} = Endpoint) ->
    case is_atom(Transport) andalso lists:member(Transport, polydist_carrier:outside()) of
        true -> {Transport, {opaque, encoded(Glob, Transport, Address)}};
        false -> inet(Glob, Endpoint)
    end;
endpoint(Glob, Endpoint) ->
    inet(Glob, Endpoint).

encoded(Glob, Transport, Address) ->
    case polydist_outside:encode(Transport, Address) of
        {ok, Bytes} -> Bytes;
        {error, {_, Why}} -> invalid("~0tp has {~0p, ~0tP}: ~ts", [Glob, Transport, Address, 20, Why])
    end.

inet(Glob, {Transport, Port} = Endpoint) when is_integer(Port) ->
    is_inet(Transport, Port) orelse wrong(Glob, Endpoint),
    Endpoint;
inet(Glob, {Transport, Host, Port} = Endpoint) ->
    is_inet(Transport, Port) orelse wrong(Glob, Endpoint),
    case inet:is_ip_address(Host) of
        true -> Endpoint;
        false -> {Transport, text(Host), Port}
    end;
inet(Glob, Other) -> wrong(Glob, Other).

is_inet(Transport, Port) ->
    polydist_carrier:is_inet(Transport) andalso is_integer(Port) andalso Port > 0 andalso Port =< 65535.

text(Text) when is_list(Text), Text =/= []; is_binary(Text) ->
    case unicode:characters_to_list(Text) of
        Chars when is_list(Chars) -> Chars;
        _ -> invalid("~0tP is not text", [Text, 20])
    end;
text(Other) -> invalid("~0tP is not text", [Other, 20]).

-spec wrong(term(), term()) -> no_return().
wrong(Glob, Endpoint) ->
    invalid("~0tp has ~0tP; write {tls, 4370}, {tls, \"host\", 4370} or {uds, \"/path\"}", [Glob, Endpoint, 20]).

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, io_lib:format(Format, Args)}).

%% @doc The endpoints of the first pattern that fits.
-spec lookup(polydist_registry:query(), [rule()] | {file, string()}) -> {ok, polydist_registry:found()} | polydist_registry:error().
lookup(#{node := Node}, Options) ->
    case [Endpoints || {Glob, Endpoints} <- content(Options), polydist_rule:matches(Glob, atom_to_list(Node))] of
        [Endpoints | _] -> {ok, #{endpoints => lists:append([resolved(Each) || Each <- Endpoints]), trusted_paths => true}};
        [] -> {error, {not_found, polydist_log:text("no pattern fits ~ts~ts", [Node, place(Options)])}}
    end.

place({file, Path}) -> [" in ", Path];
place(_) -> "".

resolved({uds, Path}) -> [{uds, {local, Path}}];
resolved({Transport, {opaque, _} = Address}) -> [{Transport, Address}];
resolved({tcp, Port}) -> [{tcp, {any4, Port}}];
resolved({tcp6, Port}) -> [{tcp6, {any6, Port}}];
resolved({Transport, Port}) -> [{Transport, {any4, Port}}, {Transport, {any6, Port}}];
resolved({Transport, Host, Port}) when is_tuple(Host) -> [{Transport, {Host, Port}}];
resolved({Transport, Host, Port}) ->
    [{Transport, {Ip, Port}} || Family <- families(Transport), {ok, Ips} <- [inet:getaddrs(Host, Family)], Ip <- lists:uniq(Ips)].

families(tcp) -> [inet];
families(tcp6) -> [inet6];
families(_) -> [inet, inet6].

%% What was read from a file, and what the file was like then, is in our table.
content({file, Path}) ->
    {Before, Rules, Said} = case polydist_sup:lookup({static, Path}) of
                                {ok, Known} -> Known;
                                error -> {none, [], <<>>}
                            end,
    case stamp(Path) of
        Before -> Rules;
        Now ->
            {Level, Sentence, New} = read(Path, Now, Rules),
            polydist_sup:store({static, Path}, {Now, New, Sentence}),
            Unchanged = Level =:= notice andalso New =:= Rules andalso Before =/= none,
            Sentence =:= Said orelse Unchanged orelse polydist_log:say(Level, Sentence),
            New
    end;
content(Rules) ->
    Rules.

%% The time of a change is told in seconds: a file that has just changed may change again and look the same.
stamp(Path) ->
    case file:read_file_info(Path, [raw, {time, posix}]) of
        {ok, #file_info{mtime = Time, size = Size, inode = Inode}} ->
            case abs(erlang:system_time(second) - Time) < 2 of
                true -> {Time, Size, {Inode, erlang:unique_integer()}};
                false -> {Time, Size, Inode}
            end;
        {error, Reason} -> Reason
    end.

read(Path, {_, Size, _}, Rules) when Size > ?LARGEST_FILE ->
    kept(Path, io_lib:format("it has more than ~p bytes", [?LARGEST_FILE]), Rules);
read(Path, {_, _, _}, Rules) ->
    case bytes(Path) of
        {ok, Bytes} ->
            case terms(Bytes) of
                {ok, Terms} ->
                    case rules(Terms) of
                        {ok, New} -> {notice, polydist_log:text("read ~ts: ~p patterns", [Path, length(New)]), New};
                        {error, Why} -> kept(Path, Why, Rules)
                    end;
                {error, Why} -> kept(Path, Why, Rules)
            end;
        {error, Reason} -> kept(Path, file:format_error(Reason), Rules)
    end;
read(Path, Reason, Rules) ->
    kept(Path, file:format_error(Reason), Rules).

%% Raw: while OTP 25 boots there is no file server.
bytes(Path) ->
    case file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Read = file:read(File, ?LARGEST_FILE),
            ok = file:close(File),
            case Read of
                eof -> {ok, <<>>};
                _ -> Read
            end;
        Error -> Error
    end.

kept(Path, Why, Rules) ->
    {warning, polydist_log:text("~ts cannot be used (~ts); ~ts", [Path, Why, stays(Rules)]), Rules}.

stays([]) -> "no node is found in it";
stays(_) -> "what was in it before stays".

terms(Bytes) ->
    case unicode:characters_to_list(Bytes) of
        Text when is_list(Text) -> terms(Text, {1, 1}, []);
        _ -> {error, "it is not UTF-8"}
    end.

terms(Text, Location, Terms) ->
    case scanned(erl_scan:tokens([], Text, Location), Location) of
        {ok, Tokens, Next, Rest} ->
            case erl_parse:parse_term(Tokens) of
                {ok, Term} -> terms(Rest, Next, [Term | Terms]);
                {error, Error} -> mistake(Error)
            end;
        eof -> {ok, lists:reverse(Terms)};
        {error, Error} -> mistake(Error)
    end.

scanned({more, Continuation}, Location) -> scanned(erl_scan:tokens(Continuation, eof, Location), Location);
scanned({done, {ok, Tokens, Next}, eof}, _) -> {ok, Tokens, Next, []};
scanned({done, {ok, Tokens, Next}, Rest}, _) -> {ok, Tokens, Next, Rest};
scanned({done, {eof, _}, _}, _) -> eof;
scanned({done, {error, Error, _}, _}, _) -> {error, Error}.

mistake({{Line, _}, Module, Why}) ->
    {error, io_lib:format("line ~p: ~ts", [Line, Module:format_error(Why)])}.
