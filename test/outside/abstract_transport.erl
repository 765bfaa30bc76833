%%% Distribution over Unix sockets in Linux's abstract namespace.
-module(abstract_transport).
-behaviour(polydist_transport).

-export([listen/2, accept/1, connect/2, fd/1, close/1, encode/1, decode/1, text/1, reach/0]).

%% In the key listen: #{abstract => #{socket => "cluster/a"}}; by default the node's name.
listen(Options, Node) ->
    Name = unicode:characters_to_binary(maps:get(socket, Options, atom_to_list(Node))),
    {ok, Socket} = socket:open(local, stream),
    case socket:bind(Socket, address(Name)) of
        ok ->
            ok = socket:listen(Socket, 128),
            {ok, Socket, Name};
        Error ->
            _ = socket:close(Socket),
            Error
    end.

%% Who connects has no name of its own.

accept(Socket) ->
    case socket:accept(Socket) of
        {ok, Stream} -> {ok, Stream, <<"-">>};
        Error -> Error
    end.

%% A socket that comes to nothing is closed with the process.
connect(Name, Milliseconds) ->
    {ok, Socket} = socket:open(local, stream),
    case socket:connect(Socket, address(Name), Milliseconds) of
        ok -> {ok, Socket};
        Error -> Error
    end.

address(Name) ->
    #{family => local, path => <<0, "polydist/", Name/binary>>}.

%% polydist duplicates the descriptor, and then this socket is closed.
fd(Socket) -> socket:getopt(Socket, {otp, fd}).

close(Socket) -> socket:close(Socket).

encode(Name) -> Name.

decode(Name) when byte_size(Name) =< 98 -> {ok, Name};
decode(_) -> {error, "the name is longer than a socket's can be"}.

text(Name) -> ["@polydist/", Name].

reach() -> host.
