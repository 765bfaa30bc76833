%%% What the TLS carrier needs, from the same file that stock inet_tls takes: `-ssl_dist_optfile FILE', or the key `tls'.
%%%
%%%   [{server, [{certfile, F}, {keyfile, F}, {cacertfile, F}, {verify, verify_peer}, {fail_if_no_peer_cert, true},
%%%              {versions, ['tlsv1.3', 'tlsv1.2']}]},
%%%    {client, [...]}].
%%%
%%% Both sides prove who they are unless the file says otherwise: verify defaults to verify_peer, fail_if_no_peer_cert to true.
%%% keyfile defaults to certfile. If one of the two lists is absent, it has the other's files. An option that we do not
%%% support is an error, never ignored: what it was meant to enforce would not be.
-module(polydist_tls_config).

-export([load/1, read/1, parse/1]).

-export_type([native/0, options/0]).

-type options() :: #{certfile => file:filename_all(), keyfile => file:filename_all(), cacertfile => file:filename_all(),
                     verify := verify_peer | verify_none, fail_if_no_peer_cert := boolean(), versions := ['tlsv1.2' | 'tlsv1.3']}.

%% As polydist_native:tls_config/2 takes it: contents instead of names.
-type native() :: polydist_native:tls_options().

%% @doc The configurations of this node, ready for use. Terms is the key `tls' of the configuration; the flag wins.
-spec load(Terms :: term() | undefined) ->
    {ok, #{server := polydist_native:tls_config(), client := polydist_native:tls_config()}} | {error, Sentence :: binary()}.
load(Terms) ->
    try
        {ok, maps:map(fun load/2, options(Terms))}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

load(Role, Options) ->
    case polydist_native:tls_config(Role, contents(Role, Options)) of
        {ok, Config} -> Config;
        {error, {_, Sentence}} ->
            %% The library saw contents, not names.
            Files = [[atom_to_list(Key), " ", File] || Key <- [certfile, keyfile, cacertfile], #{Key := File} <- [Options]],
            invalid("~ts (the TLS ~ts's ~ts)", [Sentence, Role, lists:join(", ", Files)])
    end.

%% @doc The options of this node, all files read.
-spec read(Terms :: term() | undefined) -> {ok, #{server := native(), client := native()}} | {error, Sentence :: binary()}.
read(Terms) ->
    try
        {ok, maps:map(fun contents/2, options(Terms))}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

options(Terms) ->
    case parse(terms(Terms)) of
        {ok, Roles} -> Roles;
        {error, Sentence} -> throw({invalid, Sentence})
    end.

terms(Terms) ->
    case {init:get_argument(ssl_dist_optfile), init:get_argument(ssl_dist_opt), Terms} of
        {{ok, [[File] | _]}, _, _} -> file_terms(File);
        {{ok, _}, _, _} -> invalid("-ssl_dist_optfile needs one file name", []);
        {error, {ok, _}, _} ->
            invalid("the flag -ssl_dist_opt is not supported; put its options into a file and give -ssl_dist_optfile FILE", []);
        {error, error, undefined} ->
            invalid("it has no certificates; give -ssl_dist_optfile FILE, the file that stock inet_tls takes", []);
        {error, error, _} -> Terms
    end.

file_terms(File) ->
    Source = file_text(File, "the file that -ssl_dist_optfile names"),
    case erl_scan:string(Source) of
        {ok, Tokens, _} ->
            try
                {ok, [Expression]} = erl_parse:parse_exprs(Tokens),
                erl_parse:normalise(Expression)
            catch
                error:_ ->
                    invalid("~ts must hold one plain Erlang term ending in a full stop: [{server, [..]}, {client, [..]}].",
                            [File])
            end;
        {error, {Line, Module, Why}, _} ->
            invalid("~ts: line ~0p: ~ts", [File, Line, Module:format_error(Why)])
    end.

file_text(File, What) ->
    Binary = read_file(File, What),
    case epp:read_encoding_from_binary(Binary) of
        latin1 -> binary_to_list(Binary);
        _ ->
            case unicode:characters_to_list(Binary) of
                Text when is_list(Text) -> Text;
                _ -> binary_to_list(Binary)
            end
    end.

%% At boot on OTP 25 there is no file server yet: only raw files can be read.
read_file(File, What) ->
    case file:open(File, [read, raw, binary]) of
        {ok, Fd} ->
            Result = read_all(Fd, []),
            ok = file:close(Fd),
            case Result of
                {ok, Binary} -> Binary;
                {error, Reason} -> cannot_read(What, File, Reason)
            end;
        {error, Reason} ->
            cannot_read(What, File, Reason)
    end.

read_all(Fd, Read) ->
    case file:read(Fd, 65536) of
        {ok, Data} -> read_all(Fd, [Read, Data]);
        eof -> {ok, iolist_to_binary(Read)};
        {error, Reason} -> {error, Reason}
    end.

-spec cannot_read(string(), file:filename_all(), atom()) -> no_return().
cannot_read(What, File, Reason) ->
    invalid("~ts, ~ts, cannot be read: ~ts", [What, File, file:format_error(Reason)]).

%% @doc Pure: the terms of the file, checked and with every default in place.
-spec parse(Terms :: term()) -> {ok, #{server := options(), client := options()}} | {error, Sentence :: binary()}.
parse(Terms) ->
    try
        is_list(Terms) andalso Terms =/= [] orelse not_roles(Terms),
        Given = maps:from_list([role(Entry) || Entry <- Terms]),
        {ok, #{server => complete(server, given(server, client, Given)),
               client => complete(client, given(client, server, Given))}}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

%% Only the files of the other list: what it takes on trust, this one need not.
given(Role, Other, Given) ->
    case Given of
        #{Role := Options} -> Options;
        #{Other := Options} -> maps:with([certfile, keyfile, cacertfile], Options);
        #{} -> #{}
    end.

role({Role, Options}) when is_list(Options), Role =:= server orelse Role =:= client ->
    {Role, maps:from_list([known_option(Role, Option) || Option <- Options, not is_harmless(Option)])};
role(Other) ->
    not_roles(Other).

-spec not_roles(term()) -> no_return().
not_roles(Terms) ->
    invalid("the TLS options are ~0p, but must be [{server, [..]}, {client, [..]}]", [Terms]).

%% What OTP's own example of such a file contains and TLS 1.2 and 1.3 as spoken here always do.
is_harmless({secure_renegotiate, _}) -> true;
is_harmless(_) -> false.

known_option(Role, {Key, File} = Option) when Key =:= certfile; Key =:= keyfile; Key =:= cacertfile ->
    try unicode:characters_to_binary(File) of
        Name when is_binary(Name), Name =/= <<>> -> Option;
        _ -> bad_value(Role, Option, "a file name")
    catch
        error:badarg -> bad_value(Role, Option, "a file name")
    end;
known_option(_, {verify, Verify} = Option) when Verify =:= verify_peer; Verify =:= verify_none -> Option;
known_option(Role, {verify, _} = Option) -> bad_value(Role, Option, "verify_peer or verify_none");
known_option(_, {fail_if_no_peer_cert, Bool} = Option) when is_boolean(Bool) -> Option;
known_option(Role, {fail_if_no_peer_cert, _} = Option) -> bad_value(Role, Option, "true or false");
known_option(Role, {versions, Versions} = Option) ->
    try [V || V <- Versions, V =/= 'tlsv1.2', V =/= 'tlsv1.3'] of
        [] when Versions =/= [] -> Option;
        _ -> bad_value(Role, Option, "a list of 'tlsv1.3' and 'tlsv1.2'")
    catch
        error:_ -> bad_value(Role, Option, "a list of 'tlsv1.3' and 'tlsv1.2'")
    end;
known_option(Role, Option) ->
    Name = case Option of
               {Key, _} -> Key;
               _ -> Option
           end,
    invalid("the TLS option ~0p of the ~0p is not supported; there are certfile, keyfile, cacertfile, verify, "
            "fail_if_no_peer_cert and versions", [Name, Role]).

-spec bad_value(server | client, {atom(), term()}, string()) -> no_return().
bad_value(Role, {Key, Value}, Wanted) ->
    invalid("the TLS option ~0p of the ~0p is ~0p, but must be ~ts", [Key, Role, Value, Wanted]).

complete(Role, Given) ->
    WithKey = case Given of
                  #{keyfile := _} -> Given;
                  #{certfile := Cert} -> Given#{keyfile => Cert};
                  #{} -> Given
              end,
    Options = maps:merge(#{verify => verify_peer, fail_if_no_peer_cert => maps:get(verify, Given, verify_peer) =:= verify_peer,
                           versions => ['tlsv1.3', 'tlsv1.2']}, WithKey),
    case {Role, Options} of
        {server, Without} when not is_map_key(certfile, Without) ->
            invalid("the TLS server has no certificate; add {certfile, File} and {keyfile, File}", []);
        {_, #{keyfile := _} = Without} when not is_map_key(certfile, Without) ->
            invalid("the TLS ~0p has a keyfile but no certfile", [Role]);
        {_, #{verify := verify_peer} = Without} when not is_map_key(cacertfile, Without) ->
            invalid("the TLS ~p has no CA to check its peers by; add {cacertfile, File}, or {verify, verify_none} to trust "
                    "anybody", [Role]);
        {server, #{verify := verify_none, fail_if_no_peer_cert := true}} ->
            invalid("the TLS server has fail_if_no_peer_cert but verify_none; that needs {verify, verify_peer}", []);
        _ ->
            Options
    end.

contents(Role, Options) ->
    Contents = fun(Key) -> [{pem, pem(Role, Key, File)} || #{Key := File} <- [Options]] end,
    Identity = maps:from_list([{Name, Found} || {Name, Key} <- [{cert, certfile}, {key, keyfile}], Found <- Contents(Key)]),
    Native = maps:with([verify, fail_if_no_peer_cert, versions], Options),
    WithRoots = maps:from_list([{roots, Roots} || Roots <- Contents(cacertfile)]),
    maps:merge(WithRoots, Native#{identities => [Identity || map_size(Identity) > 0], check_host => true, sni => true,
                                  ktls => false}).

pem(Role, Key, File) ->
    read_file(File, io_lib:format("the ~0p of the TLS ~0p", [Key, Role])).

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).
