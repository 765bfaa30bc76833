%%% An epmd module of somebody else, with no daemon: a name is a file in a directory, its port the file's content. It has the
%%% callbacks that are compulsory and no more, so that our carriers are seen to need no others.
%%%
%%% `-foreign_epmd DIR' names the directory.
-module(polydist_foreign_epmd).

-export([start_link/0, register_node/2, register_node/3, port_please/2, address_please/3, names/1]).

-spec start_link() -> ignore.
start_link() ->
    ignore.

-spec register_node(Name :: atom() | string(), inet:port_number(), term()) -> {ok, 1..4} | {error, term()}.
register_node(Name, Port, _Family) ->
    register_node(Name, Port).

-spec register_node(Name :: atom() | string(), inet:port_number()) -> {ok, 1..4} | {error, term()}.
register_node(Name, Port) ->
    %% Raw, for OTP 25 has no file server yet.
    {ok, File} = file:open(path(Name), [write, raw]),
    ok = file:write(File, integer_to_list(Port)),
    ok = file:close(File),
    {ok, 3}.

-spec port_please(Name :: atom() | string(), Host :: term()) -> {port, inet:port_number(), 5..6} | noport.
port_please(Name, _Host) ->
    case file:open(path(Name), [read, raw]) of
        {ok, File} ->
            {ok, Port} = file:read(File, 10),
            ok = file:close(File),
            {port, list_to_integer(Port), 6};
        {error, enoent} ->
            noport
    end.

-spec address_please(Name :: string(), Host :: string(), inet | inet6) -> {ok, inet:ip_address()} | {error, term()}.
address_please(_Name, Host, Family) ->
    inet:getaddr(Host, Family).

-spec names(Host :: term()) -> {ok, [{string(), inet:port_number()}]}.
names(_Host) ->
    {ok, Names} = file:list_dir(directory()),
    {ok, [{Name, Port} || Name <- Names, {port, Port, _} <- [port_please(Name, none)]]}.

path(Name) ->
    filename:join(directory(), lists:concat([Name])).

directory() ->
    {ok, [[Directory]]} = init:get_argument(foreign_epmd),
    Directory.
