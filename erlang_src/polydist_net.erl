%%% Networks as users write them: "10.0.0.0/8", "fd00::/8", or one address. Pure.
-module(polydist_net).

-export([parse/1, contains/2, text/1]).

-export_type([net/0]).

%% The bits beyond the prefix are 0.
-type net() :: {inet:ip_address(), Bits :: 0..128}.

%% @doc Reads a network. `{beyond, Net}': the address has bits beyond the prefix; Net is the network of that length.
-spec parse(term()) -> {ok, net()} | {error, no_net | {beyond, net()}}.
parse(Ip) when is_tuple(Ip) ->
    case inet:is_ip_address(Ip) of
        true -> {ok, {Ip, bit_size(bits(Ip))}};
        false -> {error, no_net}
    end;
parse(Text) ->
    case polydist_log:chars(Text) of
        {ok, Chars} ->
            {Address, Length} = case string:split(Chars, "/") of
                                    [Whole] -> {Whole, all};
                                    [Before, Digits] -> {Before, number(Digits)}
                                end,
            case {inet:parse_strict_address(Address), Length} of
                {{ok, Ip}, all} -> parse(Ip);
                {{ok, Ip}, Bits} when is_integer(Bits) -> net(Ip, bits(Ip), Bits);
                _ -> {error, no_net}
            end;
        error -> {error, no_net}
    end.

net(_, Whole, Bits) when Bits > bit_size(Whole) ->
    {error, no_net};
net(Ip, Whole, Bits) ->
    Rest = bit_size(Whole) - Bits,
    case Whole of
        <<_:Bits/bitstring, 0:Rest>> -> {ok, {Ip, Bits}};
        <<Prefix:Bits/bitstring, _/bitstring>> -> {error, {beyond, {address(<<Prefix/bitstring, 0:Rest>>), Bits}}}
    end.

number(Text) ->
    case Text =/= [] andalso length(Text) =< 3 andalso lists:all(fun(Char) -> Char >= $0 andalso Char =< $9 end, Text) of
        true -> list_to_integer(Text);
        false -> none
    end.

%% @doc Whether an address is in a network; one of the other family never is.
-spec contains(net(), inet:ip_address()) -> boolean().
contains({Net, Bits}, Ip) when tuple_size(Net) =:= tuple_size(Ip) ->
    <<Prefix:Bits/bitstring, _/bitstring>> = bits(Net),
    <<Start:Bits/bitstring, _/bitstring>> = bits(Ip),
    Prefix =:= Start;
contains(_, _) ->
    false.

%% @doc The network as it is written; one address without its length.
-spec text(net()) -> binary().
text({Ip, Bits}) ->
    case bit_size(bits(Ip)) of
        Bits -> polydist_log:text("~ts", [inet:ntoa(Ip)]);
        _ -> polydist_log:text("~ts/~b", [inet:ntoa(Ip), Bits])
    end.

bits({A, B, C, D}) -> <<A, B, C, D>>;
bits(Ip) -> << <<Part:16>> || Part <- tuple_to_list(Ip) >>.

address(<<A, B, C, D>>) -> {A, B, C, D};
address(Bits) -> list_to_tuple([Part || <<Part:16>> <= Bits]).
