%%% What the TLS carrier needs, from what stock inet_tls takes: `-ssl_dist_optfile FILE', `-ssl_dist_opt', or the key `tls'.
%%%
%%%   [{server, [{certfile, F}, {keyfile, F}, {cacertfile, F}, {verify, verify_peer}, {fail_if_no_peer_cert, true},
%%%              {versions, ['tlsv1.3', 'tlsv1.2']}]},
%%%    {client, [...]}].
%%%
%%% The file holds one expression, which is evaluated, as stock does. polydist_tls_options checks the options; here they are found,
%%% and the files that they name are read. If one of the two lists is absent, it has the other's files. Nothing that is kept holds a
%%% key or a password, and no sentence repeats one.
-module(polydist_tls_config).

-export([load/1, read/1]).

-export_type([native/0, loaded/0]).

%% As polydist_native:tls_config/2 takes it: contents instead of names.
-type native() :: polydist_native:tls_options().

%% What is kept of the options: no key and no password. deferred: the sides whose peers polydist_tls_verify verifies. server_name:
%% what our client takes its peers for, instead of the host that it dials. named: the files of each side. files: all that was read,
%% directories included.
-type loaded() :: #{server := polydist_native:tls_config(), client := polydist_native:tls_config(),
                    deferred := #{server => polydist_tls_verify:check(), client => polydist_tls_verify:check()},
                    server_name => string(), named := #{server := [iodata()], client := [iodata()]}, mutual := boolean(),
                    files := [file:filename_all()], notices := [binary()]}.

%% Since this release stock takes the options of the command line and of the file together.
-define(TOGETHER, "26").

%% @doc The configurations of this node, ready for use. Terms is the key `tls' of the configuration; the flags win.
-spec load(Terms :: term() | undefined) -> {ok, loaded()} | {error, Sentence :: binary()}.
load(Terms) ->
    case read(Terms) of
        {ok, #{server := Server, client := Client, named := Named} = Read} ->
            try
                {ok, maps:merge(maps:with([deferred, server_name, named, mutual, files, notices], Read),
                                #{server => config(server, Server, Named), client => config(client, Client, Named)})}
            catch
                throw:{invalid, Sentence} -> {error, Sentence}
            end;
        Error -> Error
    end.

config(Role, Native, Named) ->
    case polydist_native:tls_config(Role, Native) of
        {ok, Config} -> Config;
        {error, {_, Sentence}} ->
            %% The library saw contents, not names.
            #{Role := Files} = Named,
            invalid("~ts (the TLS ~0p's ~ts)", [Sentence, Role, case Files of
                                                                    [] -> "options";
                                                                    _ -> lists:join(", ", Files)
                                                                end])
    end.

%% @doc The options of this node, all files read; `named' says which files each side has.
-spec read(Terms :: term() | undefined) ->
    {ok, #{server := native(), client := native(), named := #{server := [iodata()], client := [iodata()]}, deferred := map(),
           server_name => string(), mutual := boolean(), files := [file:filename_all()], notices := [binary()]}} |
    {error, Sentence :: binary()}.
read(Terms) ->
    try
        {Found, OptionFiles} = terms(Terms),
        #{server := Server, client := Client, notices := Notices} = parsed(Found),
        {ServerNative, ServerFiles} = native(server, Server),
        {ClientNative, ClientFiles} = native(client, Client),
        Deferred = maps:from_list(check(server, Server, ServerNative) ++ check(client, Client, ClientNative)),
        {ok, maps:merge(maps:with([server_name], Client),
                        #{server => ServerNative, client => ClientNative, deferred => Deferred,
                          named => #{server => named(ServerFiles), client => named(ClientFiles)}, mutual => is_mutual(ServerNative),
                          files => lists:usort(OptionFiles ++ [File || {_, File} <- ServerFiles ++ ClientFiles]),
                          notices => Notices})}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

parsed(Terms) ->
    case polydist_tls_options:parse(Terms) of
        {ok, Options} -> Options;
        {error, Sentence} -> throw({invalid, Sentence})
    end.

is_mutual(#{verify := Verify, fail_if_no_peer_cert := Must}) ->
    Must andalso Verify =/= verify_none.

named(Files) ->
    lists:uniq([[What, " ", File] || {What, File} <- Files]).

check(Role, Options, #{verify := deferred} = Native) ->
    case polydist_tls_verify:check(Role, Options, Native) of
        {ok, Check} -> [{Role, Check}];
        {error, Sentence} -> throw({invalid, Sentence})
    end;
check(_, _, _) ->
    [].

%% Where the terms come from

terms(Terms) ->
    case {optfile(), command_line()} of
        {none, []} when Terms =:= undefined ->
            invalid("it has no certificates; give -ssl_dist_optfile FILE, the file that stock inet_tls takes", []);
        {none, []} -> {Terms, []};
        {none, Given} -> {Given, []};
        {File, Given} -> {together(Given, file_terms(File)), [File]}
    end.

%% Of an option in both the later one counts, which is the file's.
together([], InFile) -> InFile;
together(Given, InFile) when is_tuple(InFile) -> together(Given, [InFile]);
together(Given, InFile) ->
    try
        Both = erlang:system_info(otp_release) >= ?TOGETHER,
        Missing = [Side || {Role, _} = Side <- Given, not lists:keymember(Role, 1, InFile)],
        Missing ++ [case lists:keyfind(Role, 1, Given) of
                        {_, Options} when Both -> {Role, Options ++ Own};
                        _ -> Side
                    end || {Role, Own} = Side <- InFile]
    catch
        error:_ -> InFile % which polydist_tls_options finds wrong
    end.

optfile() ->
    case init:get_argument(ssl_dist_optfile) of
        error -> none;
        {ok, Given} ->
            case lists:usort(Given) of
                [[File]] -> File;
                [_] -> invalid("-ssl_dist_optfile needs one file name", []);
                _ -> invalid("-ssl_dist_optfile is given twice with different files; give one file with the options of both", [])
            end
    end.

command_line() ->
    case init:get_argument(ssl_dist_opt) of
        error -> [];
        {ok, Words} ->
            Options = word_options(lists:append(Words)),
            [{Role, [Option || {Each, Option} <- Options, Each =:= Role]} || Role <- [server, client],
                                                                           lists:keymember(Role, 1, Options)]
    end.

word_options([]) -> [];
word_options([Name, Value | Words]) -> [word_option(Name, Value) | word_options(Words)];
word_options([Name]) -> invalid("-ssl_dist_opt ~ts has no value", [Name]).

word_option("server_" ++ Option = Name, Value) -> {server, word_value(Name, Option, Value)};
word_option("client_" ++ Option = Name, Value) -> {client, word_value(Name, Option, Value)};
word_option(Name, _) -> invalid("-ssl_dist_opt ~ts names no option; they begin with server_ or client_: server_certfile", [Name]).

word_value(Name, Option, Value) ->
    Kinds = [{text, [certfile, cacertfile, keyfile, password, dhfile, crlfile, ciphers]},
             {atom, [verify, fail_if_no_peer_cert, crl_check, reuse_sessions, secure_renegotiate, ktls]},
             {version, [versions]},
             {number, [depth, hibernate_after]},
             {term, [crl_cache, verify_fun]}],
    case [{Kind, Key} || {Kind, Keys} <- Kinds, Key <- Keys, atom_to_list(Key) =:= Option] of
        [{Kind, Key}] ->
            try
                {Key, of_kind(Kind, Value)}
            catch
                error:_ -> invalid("the value of -ssl_dist_opt ~ts is no ~0p", [Name, Kind])
            end;
        [] ->
            invalid("-ssl_dist_opt ~ts is not supported; put the option into a file and give -ssl_dist_optfile FILE", [Name])
    end.

of_kind(text, Value) -> Value;
of_kind(atom, Value) -> list_to_atom(Value);
of_kind(version, Value) -> [list_to_atom(Value)];
of_kind(number, Value) -> list_to_integer(Value);
of_kind(term, Value) ->
    {ok, Tokens, _} = erl_scan:string(Value ++ " ."),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

%% One expression, as stock has it: with funs, say, or with what a function answers.
file_terms(File) ->
    Source = file_text(File, "the file that -ssl_dist_optfile names"),
    case erl_scan:string(Source) of
        {ok, Tokens, _} ->
            case erl_parse:parse_exprs(Tokens) of
                {ok, [Expression]} -> evaluated(File, Expression);
                {ok, _} -> not_one(File);
                {error, {Line, Module, Why}} -> not_erlang(File, Line, Module:format_error(Why))
            end;
        {error, {Line, Module, Why}, _} ->
            not_erlang(File, Line, Module:format_error(Why))
    end.

evaluated(File, Expression) ->
    try erl_eval:expr(Expression, erl_eval:new_bindings()) of
        {value, Value, Bindings} ->
            erl_eval:bindings(Bindings) =:= [] orelse not_one(File),
            Value
    catch
        %% The reason may hold what the file does.
        error:Reason -> invalid("~ts cannot be evaluated: ~ts", [File, kind(Reason)]);
        Class:_ -> invalid("~ts cannot be evaluated: it ends with ~0p", [File, Class])
    end.

kind({unbound_var, Name}) -> io_lib:format("the variable ~0p is unbound", [Name]);
kind(Reason) when is_atom(Reason) -> atom_to_list(Reason);
kind(Reason) when is_tuple(Reason), is_atom(element(1, Reason)) -> atom_to_list(element(1, Reason));
kind(_) -> "it fails".

-spec not_one(file:filename_all()) -> no_return().
not_one(File) ->
    invalid("~ts must hold one Erlang expression without variables, ending in a full stop: [{server, [..]}, {client, [..]}].",
            [File]).

%% What stands before a mistake may be a password, which is a string.
-spec not_erlang(file:filename_all(), term(), iodata()) -> no_return().
not_erlang(File, Line, Why) ->
    invalid("~ts: line ~0p: ~ts", [File, Line, case string:find(Why, "\"") of
                                                   nomatch -> Why;
                                                   _ -> "syntax error"
                                               end]).

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

read_file(File, What) ->
    case polydist_tls_files:read(File, fun(Data, Read) -> [Read, Data] end, []) of
        {ok, Read} -> iolist_to_binary(Read);
        {error, Reason} -> cannot_read(What, File, Reason)
    end.

-spec cannot_read(string(), file:filename_all(), atom()) -> no_return().
cannot_read(What, File, Reason) ->
    invalid("~ts, ~ts, cannot be read: ~ts", [What, File, file:format_error(Reason)]).

%% The files' contents

native(Role, #{identities := Identities, verify := Verify, sni := Sni} = Options) ->
    Deferred = is_deferred(Role, Options),
    {Ids, IdFiles} = lists:unzip([identity(Role, Identity) || Identity <- Identities]),
    {Roots, RootFiles} = case Options of
                             #{roots := Source} -> contents(Role, cacertfile, Source);
                             #{} -> {none, []}
                         end,
    {Crls, CrlFiles} = crls(Role, Options),
    Native = maps:merge(maps:with([fail_if_no_peer_cert, depth, versions, ciphers, groups, sni, ktls], Options),
                        #{identities => Ids, check_host => Role =:= client andalso Verify =:= verify_peer andalso Sni
                                                               andalso not Deferred,
                          verify => case Deferred of
                                        true -> deferred;
                                        false -> Verify
                                    end}),
    {maps:merge(Native, maps:from_list([{roots, Roots} || Roots =/= none] ++ [{crls, Crls} || Crls =/= none])),
     lists:append(IdFiles) ++ RootFiles ++ CrlFiles}.

%% A server asks for certificates only to verify them.
is_deferred(server, #{verify := verify_none}) -> false;
is_deferred(_, #{verify_fun := _}) -> true;
is_deferred(_, #{verify := verify_none}) -> false;
is_deferred(_, #{partial_chain := _}) -> true;
is_deferred(client, #{hostname := _, sni := true}) -> true;
is_deferred(_, _) -> false.

identity(Role, Identity) ->
    #{cert := Cert, key := Key} = Identity,
    {CertContents, CertFiles} = contents(Role, certfile, Cert),
    {KeyContents, KeyFiles} = contents(Role, keyfile, Key),
    Password = password(Role, Identity),
    {maps:merge(#{cert => CertContents, key => decrypted(Role, KeyContents, Password)}, Password), CertFiles ++ KeyFiles}.

%% PEM's own encryption, from before PKCS#8: the library has only the newer one.
decrypted(Role, {pem, Pem}, #{password := Password}) ->
    case binary:match(Pem, <<"Proc-Type: 4,ENCRYPTED">>) =/= nomatch andalso code:ensure_loaded(public_key) of
        {module, public_key} ->
            try
                [{Type, _, _} = Entry] = [Entry || {Type, _, _} = Entry <- public_key:pem_decode(Pem), is_key(Type)],
                Key = public_key:pem_entry_decode(Entry, binary_to_list(Password)),
                {der, [public_key:der_encode(Type, Key)]}
            catch
                error:_ -> invalid("the key of the TLS ~0p cannot be decrypted with the password given", [Role])
            end;
        _ -> {pem, Pem}
    end;
decrypted(_, Contents, _) ->
    Contents.

is_key(Type) ->
    lists:member(Type, ['RSAPrivateKey', 'ECPrivateKey', 'PrivateKeyInfo', 'DSAPrivateKey']).

password(Role, #{password := Fun}) when is_function(Fun) ->
    try polydist_log:chars(Fun()) of
        {ok, Chars} -> password(Role, #{password => Chars});
        error -> no_password(Role)
    catch
        _:_ -> no_password(Role)
    end;
password(_, #{password := Text}) -> #{password => unicode:characters_to_binary(Text)};
password(_, _) -> #{}.

-spec no_password(server | client) -> no_return().
no_password(Role) ->
    invalid("the fun that is the TLS option password of the ~0p does not answer a string or a binary", [Role]).

contents(_, _, {der, Ders}) -> {{der, Ders}, []};
contents(Role, What, {file, File}) ->
    {{pem, read_file(File, io_lib:format("the ~0p of the TLS ~0p", [What, Role]))}, [{atom_to_list(What), File}]}.

crls(Role, #{crls := #{from := From} = Crls}) ->
    {Files, Names} = lists:unzip(lists:append([crl_files(Role, Each) || Each <- From])),
    Names =/= [] orelse maps:get(unknown, Crls) =:= allow orelse
        invalid("the TLS ~0p has crl_check, but no list of revoked certificates is in ~ts",
                [Role, lists:join(", ", [Dir || {dir, Dir} <- From])]),
    {(maps:remove(from, Crls))#{files => Files}, [{"crl_cache", Dir} || {dir, Dir} <- From] ++ Names};
crls(_, _) ->
    {none, []}.

crl_files(Role, {file, File}) ->
    [{read_file(File, io_lib:format("the crlfile of the TLS ~0p", [Role])), {"crlfile", File}}];
crl_files(Role, {dir, Dir}) ->
    case erl_prim_loader:list_dir(path(Dir)) of
        {ok, Names} ->
            Files = [filename:join(Dir, Name) || Name <- lists:sort(Names), hd(Name) =/= $.],
            [{Contents, {"crl", File}} || File <- Files, is_regular(File),
                                          Contents <- [read_file(File, "a file in the TLS option crl_cache")], is_crl(Contents)];
        error -> invalid("the directory ~ts, of the TLS ~0p's crl_cache, cannot be read", [Dir, Role])
    end.

path(Name) ->
    {ok, Chars} = polydist_log:chars(Name),
    Chars.

is_regular(File) ->
    case erl_prim_loader:read_file_info(path(File)) of
        {ok, Info} -> element(3, Info) =:= regular;
        error -> false
    end.

%% Certificates lie there, too, where OpenSSL's tools made the directory.
is_crl(Contents) ->
    case binary:match(Contents, <<"-----BEGIN ">>) of
        nomatch -> Contents =/= <<>>;
        _ -> binary:match(Contents, <<"-----BEGIN X509 CRL-----">>) =/= nomatch
    end.

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).
