%%% Addresses as people read them.
-module(polydist_address).

-export([text/2]).

%% @doc An address of a transport.
-spec text(polydist_native:transport(), polydist_native:address()) -> unicode:chardata().
text(_, {local, Path}) ->
    case unicode:characters_to_list(Path) of
        Text when is_list(Text) -> Text;
        _ -> io_lib:format("~0p", [Path])
    end;
text(Transport, {opaque, Bytes}) ->
    polydist_outside:text(Transport, Bytes);
text(_, {Ip, Port}) ->
    [inet:ntoa(Ip), " port ", integer_to_list(Port)].
