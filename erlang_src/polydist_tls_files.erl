%%% Reads the files of the TLS options, and tells by prints of their contents whether they have changed. Raw reads only: at boot on
%%% Erlang/OTP 25 there is no file server yet.
-module(polydist_tls_files).

-export([read/3, look/2, contents/1]).

-export_type([prints/0, contents/0]).

-include_lib("kernel/include/file.hrl").

-opaque prints() :: #{file:filename_all() => {stat(), binary()}}.
-type contents() :: #{file:filename_all() => binary()}.

%% `passing': what this look saw of the file need not tell the next one whether it changed.
-type stat() :: #file_info{} | passing.

%% A file may be written twice within the clock tick of its file system, whose clock may be another machine's.
-define(TICK, 2).

%% @doc Folds over what a file holds, a piece at a time.
-spec read(file:filename_all(), fun((binary(), Acc) -> Acc), Acc) -> {ok, Acc} | {error, file:posix() | badarg | terminated}.
read(File, Take, Acc) ->
    case file:open(File, [read, raw, binary]) of
        {ok, Fd} ->
            Result = read_on(Fd, Take, Acc),
            ok = file:close(Fd),
            Result;
        Error -> Error
    end.

read_on(Fd, Take, Acc) ->
    case file:read(Fd, 65536) of
        {ok, Data} -> read_on(Fd, Take, Take(Data, Acc));
        eof -> {ok, Acc};
        Error -> Error
    end.

%% @doc The files as they are now. Before is the last look: of a file whose size, times and inode are as they were then the contents
%% are not read again.
-spec look([file:filename_all()], Before :: prints()) -> prints().
look(Files, Before) ->
    maps:from_list([{File, print(File, Before)} || File <- Files]).

%% @doc What two looks have in common if nothing was changed in between.
-spec contents(prints()) -> contents().
contents(Prints) ->
    maps:map(fun(_, {_, Hash}) -> Hash end, Prints).

print(File, Before) ->
    case {info(File), Before} of
        {{ok, Info}, #{File := {Info, _} = Print}} -> Print;
        {{ok, #file_info{type = Type} = Info}, _} -> {stat(Info), hash(File, Type)};
        {Error, _} -> {passing, hashed(Error)}
    end.

%% Without the time of access, which a look changes.
info(File) ->
    case file:read_file_info(File, [raw, {time, posix}]) of
        {ok, Info} -> {ok, Info#file_info{atime = undefined}};
        Error -> Error
    end.

stat(#file_info{mtime = Changed, ctime = Moved} = Info) ->
    case max(Changed, Moved) < erlang:system_time(second) - ?TICK of
        true -> Info;
        false -> passing
    end.

hash(File, directory) ->
    case prim_file:list_dir(File) of
        {ok, Names} -> hashed(lists:sort(Names));
        Error -> hashed(Error)
    end;
hash(File, regular) ->
    case read(File, fun(Data, Context) -> erlang:md5_update(Context, Data) end, erlang:md5_init()) of
        {ok, Context} -> erlang:md5_final(Context);
        Error -> hashed(Error)
    end;
hash(_, Other) ->
    hashed(Other).

hashed(Term) ->
    erlang:md5(term_to_binary(Term)).
