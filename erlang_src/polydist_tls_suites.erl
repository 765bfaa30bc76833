%%% The cipher suites and key exchange groups that there are here, by every name that the TLS options of OTP have for them.
-module(polydist_tls_suites).

-export([ciphers/1, groups/1, versions/1, names/0]).

-export_type([found/0]).

%% What a list of names comes to: ours in the order given, and those that exist elsewhere only.
-type found() :: {ok, [binary()], Left :: [unicode:chardata()]} | {error, NoName :: unicode:chardata()} | error.

%% {Code, IANA's name, OpenSSL's name, key exchange, cipher, hash}
-define(SUITES,
        [{<<16#13, 16#02>>, <<"TLS_AES_256_GCM_SHA384">>, <<"TLS_AES_256_GCM_SHA384">>, any, aes_256_gcm, sha384},
         {<<16#13, 16#01>>, <<"TLS_AES_128_GCM_SHA256">>, <<"TLS_AES_128_GCM_SHA256">>, any, aes_128_gcm, sha256},
         {<<16#13, 16#03>>, <<"TLS_CHACHA20_POLY1305_SHA256">>, <<"TLS_CHACHA20_POLY1305_SHA256">>, any, chacha20_poly1305,
          sha256},
         {<<16#C0, 16#2C>>, <<"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384">>, <<"ECDHE-ECDSA-AES256-GCM-SHA384">>, ecdhe_ecdsa,
          aes_256_gcm, sha384},
         {<<16#C0, 16#2B>>, <<"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256">>, <<"ECDHE-ECDSA-AES128-GCM-SHA256">>, ecdhe_ecdsa,
          aes_128_gcm, sha256},
         {<<16#CC, 16#A9>>, <<"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256">>, <<"ECDHE-ECDSA-CHACHA20-POLY1305">>,
          ecdhe_ecdsa, chacha20_poly1305, sha256},
         {<<16#C0, 16#30>>, <<"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384">>, <<"ECDHE-RSA-AES256-GCM-SHA384">>, ecdhe_rsa,
          aes_256_gcm, sha384},
         {<<16#C0, 16#2F>>, <<"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256">>, <<"ECDHE-RSA-AES128-GCM-SHA256">>, ecdhe_rsa,
          aes_128_gcm, sha256},
         {<<16#CC, 16#A8>>, <<"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256">>, <<"ECDHE-RSA-CHACHA20-POLY1305">>, ecdhe_rsa,
          chacha20_poly1305, sha256}]).

-define(GROUPS, [x25519, secp256r1, secp384r1]).

%% @doc IANA's names of all the suites.
-spec names() -> [binary()].
names() ->
    [Name || {_, Name, _, _, _, _} <- ?SUITES].

%% @doc The versions of TLS that have at least one of these suites.
-spec versions([binary()]) -> ['tlsv1.2' | 'tlsv1.3'].
versions(Ciphers) ->
    lists:usort([case KeyExchange of
                     any -> 'tlsv1.3';
                     _ -> 'tlsv1.2'
                 end || {_, Name, _, KeyExchange, _, _} <- ?SUITES, lists:member(Name, Ciphers)]).

%% @doc The option `ciphers': a list of names, maps, tuples or codes, or names in one string.
-spec ciphers(term()) -> found().
ciphers(Given) ->
    case listed(Given) of
        {ok, Ciphers} -> found(fun cipher/1, Ciphers);
        error -> error
    end.

listed(Given) when is_list(Given), Given =/= [] ->
    case polydist_log:chars(Given) of
        {ok, Chars} when is_integer(hd(Given)) -> {ok, string:lexemes(Chars, ":")};
        _ ->
            try
                {ok, lists:append([several(Each) || Each <- Given])}
            catch
                error:_ -> error
            end
    end;
listed(_) ->
    error.

%% On OTP 27 the words of -ssl_dist_opt are a list of one string.
several(<<_, _>> = Code) -> [Code];
several(Names) when is_list(Names); is_binary(Names) ->
    {ok, Chars} = polydist_log:chars(Names),
    string:lexemes(Chars, ":");
several(Other) -> [Other].

cipher(<<_, _>> = Code) ->
    ours(fun({C, _, _, _, _, _}) -> C =:= Code end, fun() -> true end, io_lib:format("~0p", [Code]));
cipher(Chars) when is_list(Chars) ->
    Name = unicode:characters_to_binary(Chars),
    ours(fun({_, Iana, OpenSsl, _, _, _}) -> Name =:= Iana orelse Name =:= OpenSsl end, fun() -> is_known(Chars) end, Chars);
cipher(#{key_exchange := KeyExchange, cipher := Cipher, mac := _, prf := Hash} = Map) ->
    ours(fun({_, _, _, K, C, H}) -> {K, C, H} =:= {KeyExchange, Cipher, Hash} end,
         fun() -> is_known(ssl:suite_to_str(Map)) end, io_lib:format("~0p", [Map]));
cipher({KeyExchange, Cipher, Mac}) ->
    cipher(#{key_exchange => KeyExchange, cipher => Cipher, mac => Mac, prf => default_prf});
cipher({KeyExchange, Cipher, Mac, Hash}) ->
    cipher(#{key_exchange => KeyExchange, cipher => Cipher, mac => mac(Cipher, Mac), prf => Hash});
cipher(Other) ->
    {no_name, io_lib:format("~0p", [Other])}.

mac(Cipher, _) when Cipher =:= aes_128_gcm; Cipher =:= aes_256_gcm; Cipher =:= chacha20_poly1305 -> aead;
mac(_, Mac) -> Mac.

%% What is not ours but a name nevertheless is known by OTP's ssl, if this node has it.
ours(IsIt, IsKnown, Text) ->
    case lists:filter(IsIt, ?SUITES) of
        [{_, Name, _, _, _, _}] -> {ours, Name};
        [] ->
            try IsKnown() of
                true -> {other, Text};
                false -> {no_name, Text}
            catch
                error:_ -> {no_name, Text}
            end
    end.

is_known(Name) ->
    is_map(ssl:str_to_suite(Name)).

%% @doc The options `supported_groups' and `eccs'.
-spec groups(term()) -> found().
groups(Given) when is_list(Given), Given =/= [] ->
    try
        found(fun group/1, Given)
    catch
        error:_ -> error
    end;
groups(_) ->
    error.

group(Group) when is_atom(Group) ->
    Name = atom_to_list(Group),
    case lists:member(Group, ?GROUPS) of
        true -> {ours, atom_to_binary(Group)};
        false ->
            case re:run(Name, "^(secp|sect|prime|brainpoolP|wtls|ffdhe|x448|ipsec|c2|mlkem|(x25519|x448|secp...r1)mlkem)",
                        [{capture, none}]) of
                match -> {other, Name};
                nomatch -> {no_name, Name}
            end
    end;
group(Other) ->
    {no_name, io_lib:format("~0p", [Other])}.

found(Name, List) ->
    Found = [Name(Each) || Each <- List],
    case [Text || {no_name, Text} <- Found] of
        [NoName | _] -> {error, NoName};
        [] -> {ok, lists:uniq([Ours || {ours, Ours} <- Found]), [Text || {other, Text} <- Found]}
    end.
