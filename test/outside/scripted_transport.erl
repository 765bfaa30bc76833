%%% The transport abstract, but for callbacks that a test has do something else: from the command line (`-scripted listen crash')
%%% or while the node runs.
-module(scripted_transport).
-behaviour(polydist_transport).

-export([listen/2, accept/1, connect/2, fd/1, close/1, encode/1, decode/1, text/1, reach/0]).

%% for tests
-export([script/2]).

%% @doc Has a callback do this from now on: normal, crash, die, hang, or `{return, Term}'.
-spec script(Callback :: atom(), term()) -> ok.
script(Callback, What) ->
    persistent_term:put({?MODULE, Callback}, What).

listen(Options, Node) ->
    Socket = maps:get(socket, Options, "scripted/" ++ atom_to_list(Node)),
    play(listen, fun() -> abstract_transport:listen(#{socket => Socket}, Node) end).

accept(Socket) -> play(accept, fun() -> abstract_transport:accept(Socket) end).

connect(Name, Time) -> play(connect, fun() -> abstract_transport:connect(Name, Time) end).

fd(Socket) -> play(fd, fun() -> abstract_transport:fd(Socket) end).

close(Socket) -> play(close, fun() -> abstract_transport:close(Socket) end).

encode(Name) -> play(encode, fun() -> abstract_transport:encode(Name) end).

decode(Bytes) -> play(decode, fun() -> abstract_transport:decode(Bytes) end).

text(Name) -> play(text, fun() -> abstract_transport:text(Name) end).

reach() -> play(reach, fun() -> abstract_transport:reach() end).

play(Callback, Normal) ->
    case persistent_term:get({?MODULE, Callback}, booted(Callback)) of
        normal -> Normal();
        crash -> error(scripted);
        die -> exit(self(), kill), receive after infinity -> ok end;
        hang -> receive after infinity -> ok end;
        {return, Term} -> Term
    end.

booted(Callback) ->
    Name = atom_to_list(Callback),
    case init:get_argument(scripted) of
        {ok, [[Name, "rubbish"]]} -> {return, rubbish};
        {ok, [[Name, What]]} -> list_to_atom(What);
        _ -> normal
    end.
