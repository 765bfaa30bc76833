%%% A directory as a registry: a file for each node, with its record. No daemon, and with Unix sockets no port. On a volume that
%%% several hosts share it serves them all.
%%%
%%% The options are the directory's path; it is made if it is not there, for its owner alone. A node's file is `NODE.node'. It
%%% appears and changes by a rename, whole or not at all, and the node keeps it locked (flock(2)) as long as it lives: a file
%%% without its lock is that of a dead node, however that ended. Directory and files must be ours or root's, and nobody else's to
%%% write.
-module(polydist_registry_dir).
-behaviour(polydist_registry).

-export([check/1, lookup/2, register/2, update/2, handle/2, unregister/1, names/1]).

-type state() :: #{entry := polydist_native:dir_entry(), dir := binary(), node := binary(), record := binary(),
                   timer := reference()}.

%% How often to see whether the file is still there, in milliseconds: who clears a directory tells nobody.
-define(LOOK, 2000).

%% @doc Checks that there is a path. The directory may come later.
-spec check(term()) -> {ok, binary()} | {error, iodata()}.
check(#{dir := Path} = Options) when map_size(Options) =:= 1 -> check(Path);
check(Path) when is_binary(Path); is_list(Path) ->
    try unicode:characters_to_binary(Path) of
        <<"/", _/binary>> = Dir -> {ok, Dir};
        _ -> wrong(Path)
    catch
        error:badarg -> wrong(Path)
    end;
check(Other) -> wrong(Other).

wrong(Path) ->
    {error, io_lib:format("~0tP is not the absolute path of a directory", [Path, 20])}.

%% @doc Reads the node's file.
-spec lookup(polydist_registry:query(), binary()) -> {ok, polydist_registry:found()} | polydist_registry:error().
lookup(#{node := Node}, Dir) ->
    case polydist_native:dir_read(Dir, atom_to_binary(Node)) of
        {ok, Record} -> {ok, #{record => Record}};
        {error, _} = Error -> Error
    end.

%% @doc Writes the node's file.
-spec register(polydist_registry:registration(), binary()) -> {ok, state()} | polydist_registry:error().
register(#{node := Name, record := Record}, Dir) ->
    Node = unicode:characters_to_binary(Name),
    case polydist_native:dir_claim(Dir, Node, Record) of
        {ok, Entry} -> {ok, #{entry => Entry, dir => Dir, node => Node, record => Record, timer => look()}};
        {error, _} = Error -> Error
    end.

%% @doc Writes the node's file anew.
-spec update(polydist_registry:registration(), state()) -> {ok, state()} | polydist_registry:error().
update(#{record := Record}, #{entry := Entry} = State) ->
    case polydist_native:dir_update(Entry, Record) of
        ok -> {ok, State#{record := Record}};
        {error, _} = Error -> Error
    end.

%% @doc Sees whether others still find the node.
-spec handle(term(), state()) -> {ok, state()} | {lost, binary()}.
handle({timeout, Timer, look}, #{timer := Timer, entry := Entry, dir := Dir, node := Node, record := Record} = State) ->
    case polydist_native:dir_read(Dir, Node) of
        {ok, Record} -> {ok, State#{timer := look()}};
        Other ->
            ok = polydist_native:dir_release(Entry),
            case Other of
                {ok, _} -> {lost, polydist_log:text("~ts/~ts.node is another node's", [Dir, Node])};
                {error, {_, Sentence}} -> {lost, Sentence}
            end
    end;
handle(_, State) ->
    {ok, State}.

look() -> erlang:start_timer(?LOOK, self(), look).

%% @doc Removes the node's file.
-spec unregister(state()) -> ok.
unregister(#{entry := Entry, timer := Timer}) ->
    _ = erlang:cancel_timer(Timer),
    polydist_native:dir_release(Entry).

%% @doc The nodes that live.
-spec names(binary()) -> {ok, [string()]} | polydist_registry:error().
names(Dir) ->
    case polydist_native:dir_nodes(Dir) of
        {ok, Nodes} -> {ok, [hd(string:split(unicode:characters_to_list(Node), "@")) || Node <- Nodes]};
        {error, _} = Error -> Error
    end.
