%%% The options of TLS as stock inet_tls takes them, checked, with every default in place. Nothing is read here.
%%%
%%% Each option of OTP's ssl is one of these: it is honoured; it has nothing to do here, enforces nothing, and is named in a notice;
%%% or it is refused with a sentence, since without it somebody else might get in. Of an option given twice the later one counts, as
%%% with ssl. Both sides prove who they are unless the options say otherwise: verify defaults to verify_peer, and
%%% fail_if_no_peer_cert to true. doc/tls.md has the table of all of them.
-module(polydist_tls_options).

-export([parse/1]).

-export_type([options/0, source/0, identity/0, crls/0, verify_fun/0]).

-type source() :: {file, file:filename_all()} | {der, [binary()]}.
-type identity() :: #{cert := source(), key => source(), password => fun(() -> iodata()) | unicode:chardata()}.
-type crls() :: #{check := chain | peer, unknown := deny | allow, from := [{file | dir, file:filename_all()}]}.
-type verify_fun() :: {fun((...) -> term()), State :: term()}.
-type options() :: #{identities := [identity()], roots => source(), verify := verify_peer | verify_none,
                     fail_if_no_peer_cert := boolean(), depth => 0..255, versions := ['tlsv1.2' | 'tlsv1.3'], ciphers => [binary()],
                     groups => [binary()], sni := boolean(), server_name => string(), ktls := boolean(), crls => crls(),
                     verify_fun => verify_fun(), hostname => [{atom(), fun()}], partial_chain => fun(([binary()]) -> term())}.

%% An absent list has these of the other. What the other takes on trust, this one need not.
-define(SHARED, [certfile, keyfile, password, cert, key, certs_keys, cacertfile, cacerts, depth, versions, ciphers,
                 supported_groups, eccs, crl_check, crl_cache, crlfile, crlfiles, ktls]).

%% Their values are never repeated.
-define(SECRET, [password, key, cert, cacerts, certs_keys, verify_fun, customize_hostname_check, partial_chain]).

%% Nothing here depends on them, and none of them keeps anybody out.
-define(MOOT, [client_renegotiation, renegotiate_at, reuse_session, reuse_sessions, session_tickets, use_ticket, early_data,
               anti_replay, stateless_tickets_seed, hibernate_after, honor_cipher_order, honor_ecc_order, log_level, log_alert,
               padding_check, beast_mitigation, fallback, middlebox_comp_mode, cookie, key_update_at, max_handshake_size,
               max_fragment_length, dh, dhfile, sender_spawn_opts, receiver_spawn_opts, keep_secrets, read_ahead, ssl_imp]).

%% Those of a socket, which stock inet_tls hands down to it.
-define(SOCKET, [active, backlog, binary, buffer, deliver, delay_send, dontroute, exit_on_close, header, high_msgq_watermark,
                 high_watermark, ifaddr, inet, inet6, ip, ipv6_v6only, keepalive, linger, list, low_msgq_watermark, low_watermark,
                 mode, nodelay, packet, packet_size, port, priority, raw, recbuf, reuseaddr, send_timeout, send_timeout_close,
                 show_econnreset, sndbuf, tclass, tos, ttl]).

%% @doc The terms of the file, checked and with every default in place.
-spec parse(Terms :: term()) ->
    {ok, #{server := options(), client := options(), notices := [binary()]}} | {error, Sentence :: binary()}.
parse(Terms) ->
    try
        Given = maps:from_list([role(Entry) || Entry <- roles(Terms)]),
        {Server, ServerNotices} = side(server, given(server, client, Given)),
        {Client, ClientNotices} = side(client, given(client, server, Given)),
        {ok, #{server => Server, client => Client,
               notices => moot(Given) ++ ServerNotices ++ ClientNotices ++ unshared(Given)}}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

roles({_, _} = Entry) -> [Entry];
roles([_ | _] = Terms) ->
    try length(Terms) of
        _ -> Terms
    catch
        error:badarg -> not_roles(Terms)
    end;
roles(Terms) -> not_roles(Terms).

role({Role, Options}) when is_list(Options), Role =:= server orelse Role =:= client ->
    {Role, maps:from_list(lists:append([option(Role, Option) || Option <- proper(Role, Options)]))};
role(Other) ->
    not_roles(Other).

proper(Role, Options) ->
    try length(Options) of
        _ -> Options
    catch
        error:badarg -> invalid("the TLS options of the ~0p are no proper list", [Role])
    end.

%% Passwords may be among them, so only what looks like the name of an option is shown.
-spec not_roles(term()) -> no_return().
not_roles(Terms) ->
    What = case Terms of
               Atom when is_atom(Atom) -> io_lib:format("have ~0p", [Atom]);
               {Key, _} when is_atom(Key) -> io_lib:format("have ~0p", [Key]);
               _ -> "are something else"
           end,
    invalid("the TLS options must be [{server, [..]}, {client, [..]}], but ~ts", [What]).

option(Role, {Key, Value}) when is_atom(Key) -> known(Role, kind(Key), Key, Value);
option(Role, Key) when is_atom(Key) -> option(Role, {Key, true});
option(Role, Tuple) when is_tuple(Tuple), tuple_size(Tuple) > 0, is_atom(element(1, Tuple)) ->
    known(Role, kind(element(1, Tuple)), element(1, Tuple), malformed);
option(Role, _) ->
    invalid("among the TLS options of the ~0p is one that is no {Name, Value}", [Role]).

kind(Key) ->
    Lists = [{moot, ?MOOT}, {socket, ?SOCKET}],
    case [Kind || {Kind, List} <- Lists, lists:member(Key, List)] of
        [Kind] -> Kind;
        [] -> own
    end.

%% ssl, too, takes undefined for absent.
known(_, moot, _, undefined) -> [];
known(_, moot, Key, Value) -> [{{moot, Key}, Value}];
known(Role, socket, Key, _) ->
    invalid("~0p, among the TLS options of the ~0p, is an option of its socket; put it into inet_dist_listen_options and "
            "inet_dist_connect_options of the kernel, or `socket' of a policy's rule", [Key, Role]);
known(Role, own, Key, Value) ->
    case value(Role, Key, Value) of
        unknown ->
            invalid("the ~0p has a TLS option ~0p, but there is none of that name; doc/tls.md has all that there are", [Role, Key]);
        _ when Value =:= undefined -> [];
        {ok, Checked} -> [{Key, Checked}];
        ignore -> [];
        {must_be, Wanted} -> bad_value(Role, Key, Value, Wanted);
        {refused, Why} -> invalid("the TLS option ~0p of the ~0p is not supported: ~ts", [Key, Role, Why]);
        {other_side, Side} ->
            invalid("the TLS option ~0p is one of the ~0p, but stands among those of the ~0p; move it", [Key, Side, Role])
    end.

-spec bad_value(server | client, atom(), term(), string()) -> no_return().
bad_value(Role, Key, Value, Wanted) ->
    case lists:member(Key, ?SECRET) of
        true -> invalid("the TLS option ~0p of the ~0p must be ~ts", [Key, Role, Wanted]);
        false -> invalid("the TLS option ~0p of the ~0p is ~0P, but must be ~ts", [Key, Role, Value, 20, Wanted])
    end.

value(_, _, malformed) -> {must_be, "in a tuple of two, {Name, Value}"};
value(_, Key, Value) when Key =:= certfile; Key =:= keyfile; Key =:= cacertfile; Key =:= crlfile -> file(Value);
value(_, crlfiles, Files) -> files(Files);
value(_, password, Password) -> password(Password);
value(_, cert, Cert) -> cert(Cert);
value(_, key, Key) -> key(Key);
value(_, cacerts, Certs) -> cacerts(Certs);
value(Role, certs_keys, Identities) -> identities(Role, Identities);
value(_, verify, Verify) -> one_of(Verify, [verify_peer, verify_none], "verify_peer or verify_none");
value(_, Key, Value) when Key =:= fail_if_no_peer_cert; Key =:= ktls -> one_of(Value, [true, false], "true or false");
value(_, depth, Depth) when is_integer(Depth), Depth >= 0, Depth =< 255 -> {ok, Depth};
value(_, depth, _) -> {must_be, "a number from 0 to 255"};
value(_, versions, Versions) -> versions(Versions);
value(_, ciphers, []) -> ignore; % the default, as with ssl
value(_, ciphers, Ciphers) -> names(polydist_tls_suites:ciphers(Ciphers), "a list of cipher suites");
value(_, Key, Groups) when Key =:= supported_groups; Key =:= eccs ->
    names(polydist_tls_suites:groups(Groups), "a list of groups, [x25519, secp256r1, secp384r1]");
value(client, server_name_indication, Name) -> server_name(Name);
value(server, server_name_indication, _) -> {other_side, client};
value(client, customize_hostname_check, Checks) -> hostname(Checks);
value(server, customize_hostname_check, _) -> {other_side, client};
value(_, crl_check, Check) -> one_of(Check, [true, false, peer, best_effort], "true, peer, best_effort or false");
value(_, crl_cache, Cache) -> crl_cache(Cache);
value(_, verify_fun, Fun) -> verify_fun(Fun);
value(_, partial_chain, Fun) when is_function(Fun, 1) -> {ok, Fun};
value(_, partial_chain, _) -> {must_be, "a fun of one argument"};
%% What is always so here, and what OTP's own example of such a file contains.
value(_, secure_renegotiate, _) -> ignore;
value(_, erl_dist, _) -> ignore;
value(_, protocol, tls) -> ignore;
value(_, protocol, _) -> {must_be, "tls"};
value(_, handshake, full) -> ignore;
value(_, handshake, _) -> {must_be, "full"};
value(Role, certificate_authorities, Bool) when Bool =:= (Role =:= server) -> ignore;
value(_, certificate_authorities, _) ->
    {refused, "the server always names its authorities to the client, and the client never does; leave it out"};
value(_, Key, Off) when Key =:= ocsp_stapling, Off =:= false; Key =:= stapling, Off =:= no_staple;
                        Key =:= allow_any_ca_purpose, Off =:= false; Key =:= sni_hosts, Off =:= [];
                        Key =:= cert_policy_opts, Off =:= [] -> ignore;
value(_, Key, Value) -> refused(Key, Value).

refused(Key, _) when Key =:= psk_identity; Key =:= user_lookup_fun; Key =:= srp_identity; Key =:= psk_groups ->
    {refused, "nodes know each other by certificates here, not by shared keys; give certfile and keyfile"};
refused(Key, _) when Key =:= sni_hosts; Key =:= sni_fun ->
    {refused, "the server has the same certificates for every name; put all its names into one certificate, or give certs_keys"};
refused(Key, _) when Key =:= stapling; Key =:= ocsp_stapling; Key =:= ocsp_nonce; Key =:= ocsp_responder_certs ->
    {refused, "OCSP is not spoken here; give the lists of revoked certificates with crl_check and crlfile"};
refused(Key, _) when Key =:= signature_algs; Key =:= signature_algs_cert ->
    {refused, "the signatures accepted cannot be chosen; those by SHA-1 and MD5 never are. Leave it out"};
refused(Key, _) when Key =:= alpn_advertised_protocols; Key =:= alpn_preferred_protocols; Key =:= next_protocols_advertised;
                     Key =:= client_preferred_next_protocols ->
    {refused, "only Erlang's distribution is spoken here; leave it out"};
refused(Key, _) when Key =:= cert_policy_opts; Key =:= allow_any_ca_purpose ->
    {refused, "certificates are checked as the defaults of ssl say; leave it out, or give a verify_fun for more"};
refused(Key, _) when Key =:= use_srtp; Key =:= cb_info ->
    {refused, "the distribution has no use for it; leave it out"};
refused(_, _) -> unknown.

one_of(Value, Values, Wanted) ->
    case lists:member(Value, Values) of
        true -> {ok, Value};
        false -> {must_be, Wanted}
    end.

file(Name) ->
    case polydist_log:chars(Name) of
        {ok, [_ | _]} -> {ok, Name};
        _ -> {must_be, "a file name"}
    end.

files(Names) ->
    try [{ok, _} = file(Name) || Name <- Names] of
        _ when is_list(Names), Names =/= [] -> {ok, Names};
        _ -> {must_be, "a list of file names"}
    catch
        error:_ -> {must_be, "a list of file names"}
    end.

password(Fun) when is_function(Fun, 0) -> {ok, Fun};
password(Text) when is_list(Text); is_binary(Text) ->
    case polydist_log:chars(Text) of
        {ok, _} -> {ok, Text};
        error -> {must_be, "a string, a binary or a fun without arguments"}
    end;
password(_) -> {must_be, "a string, a binary or a fun without arguments"}.

cert(Der) when is_binary(Der) -> cert([Der]);
cert([_ | _] = Ders) ->
    case is_all(fun is_binary/1, Ders) of
        true -> {ok, Ders};
        false -> {must_be, "a certificate in DER, or a list of them with the node's own first"}
    end;
cert(_) -> {must_be, "a certificate in DER, or a list of them with the node's own first"}.

key({Type, Der}) when is_binary(Der), Type =:= 'PrivateKeyInfo' orelse Type =:= 'RSAPrivateKey' orelse
                      Type =:= 'ECPrivateKey' orelse Type =:= rsa ->
    {ok, Der};
key({Type, _}) when Type =:= 'DSAPrivateKey'; Type =:= dsa ->
    {refused, "DSA is not used any more; make a key of RSA, ECDSA or Ed25519"};
key(#{}) ->
    {refused, "a key in an engine or behind a fun cannot be used here; give a keyfile, or {key, {'PrivateKeyInfo', Der}}"};
key(_) -> {must_be, "{'PrivateKeyInfo' | 'RSAPrivateKey' | 'ECPrivateKey', Der}"}.

%% #cert{} of public_key, as public_key:cacerts_get() has them, or DER.
cacerts([_ | _] = Certs) ->
    try
        {ok, [case Cert of
                  {cert, Der, _} when is_binary(Der) -> Der;
                  Der when is_binary(Der) -> Der
              end || Cert <- Certs]}
    catch
        error:_ -> {must_be, "a list of certificates, each in DER or a #cert{}"}
    end;
cacerts(_) -> {must_be, "a list of certificates, each in DER or a #cert{}"}.

identities(Role, [_ | _] = Maps) ->
    try
        {ok, [identity(Role, maps:from_list(lists:append([identity_option(Role, Option) || Option <- maps:to_list(Map)])))
              || Map <- Maps]}
    catch
        error:_ -> {must_be, "a list of maps #{certfile, keyfile, password} or #{cert, key}"}
    end;
identities(_, _) -> {must_be, "a list of maps #{certfile, keyfile, password} or #{cert, key}"}.

identity_option(Role, {Key, Value}) ->
    case lists:member(Key, [certfile, keyfile, password, cert, key]) of
        true -> known(Role, own, Key, Value);
        false -> invalid("in certs_keys, a TLS option of the ~0p, is ~0p; there are certfile, keyfile, password, cert and key",
                         [Role, Key])
    end.

versions(Versions) ->
    Known = ['tlsv1.3', 'tlsv1.2', 'tlsv1.1', tlsv1, sslv3],
    case is_all(fun(Version) -> lists:member(Version, Known) end, Versions) of
        true when Versions =/= [] ->
            {Ours, Older} = lists:partition(fun(Version) -> Version =:= 'tlsv1.3' orelse Version =:= 'tlsv1.2' end, Versions),
            names({ok, lists:uniq(Ours), [atom_to_list(Version) || Version <- Older]}, "a list of 'tlsv1.3' and 'tlsv1.2'");
        _ -> {must_be, "a list of 'tlsv1.3' and 'tlsv1.2'"}
    end.

%% With what was left out.
names({ok, [], _}, Wanted) -> {must_be, Wanted ++ " with at least one that there is here, see doc/tls.md"};
names({ok, Names, Left}, _) -> {ok, {Names, Left}};
names({error, NoName}, Wanted) -> {must_be, lists:flatten(io_lib:format("~ts, and ~ts is none", [Wanted, NoName]))};
names(error, Wanted) -> {must_be, Wanted}.

server_name(disable) -> {ok, disable};
server_name(Name) when is_list(Name), Name =/= [] ->
    case polydist_log:chars(Name) of
        {ok, Chars} -> {ok, Chars};
        error -> {must_be, "a host name or disable"}
    end;
server_name(_) -> {must_be, "a host name or disable"}.

hostname([]) -> ignore;
hostname(Checks) ->
    try
        {ok, [hostname_check(Check) || Check <- Checks]}
    catch
        error:_ -> {must_be, "[{match_fun, Fun}], as public_key:pkix_verify_hostname/3 takes it"}
    end.

hostname_check({match_fun, {Module, Function, State}}) when is_atom(Module), is_atom(Function) ->
    {match_fun, fun(Reference, Presented) -> Module:Function(Reference, Presented, State) end};
hostname_check({match_fun, Fun} = Check) when is_function(Fun, 2) -> Check;
hostname_check({Key, Fun} = Check) when Key =:= fail_callback orelse Key =:= fqdn_fun, is_function(Fun, 1) -> Check.

crl_cache({ssl_crl_hash_dir, {_, Options}}) when is_list(Options) ->
    case [Dir || {dir, Dir} <- Options] of
        [Dir | _] ->
            case file(Dir) of
                {ok, _} -> {ok, [{dir, Dir}]};
                _ -> {must_be, "{ssl_crl_hash_dir, {internal, [{dir, Directory}]}}"}
            end;
        [] -> {must_be, "{ssl_crl_hash_dir, {internal, [{dir, Directory}]}}"}
    end;
crl_cache({ssl_crl_cache, {_, Options}}) when is_list(Options) ->
    case lists:keymember(http, 1, Options) of
        true ->
            {refused, "lists of revoked certificates are not fetched over HTTP; fetch them with a tool into a file or a directory, "
                      "and name it by crlfile, or {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Directory}]}}}"};
        false -> {ok, []}
    end;
crl_cache({Module, {_, Options}}) when is_atom(Module), is_list(Options) ->
    {refused, "lists of revoked certificates come from files here; name them by crlfile, or a directory by "
              "{crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Directory}]}}}"};
crl_cache(_) -> {must_be, "{ssl_crl_hash_dir, {internal, [{dir, Directory}]}}"}.

verify_fun({Module, Function, State}) when is_atom(Module), is_atom(Function) -> {ok, {fun Module:Function/3, State}};
verify_fun({Fun, _} = FunAndState) when is_function(Fun, 3); is_function(Fun, 4) -> {ok, FunAndState};
verify_fun(Fun) when is_function(Fun, 1) -> {ok, {fun old_verify_fun/3, Fun}};
verify_fun(_) -> {must_be, "{Module, Function, State} or {Fun, State} with a fun of three or four arguments"}.

%% As ssl does it for a fun of one argument.
old_verify_fun(_, {bad_cert, _} = Reason, Fun) ->
    case Fun([Reason]) of
        true -> {valid, Fun};
        false -> {fail, Reason}
    end;
old_verify_fun(_, {extension, _}, Fun) -> {unknown, Fun};
old_verify_fun(_, _, Fun) -> {valid, Fun}.

is_all(Is, List) ->
    try
        lists:all(Is, List)
    catch
        error:_ -> false
    end.

%% Checked options of one side, of both lists
given(Role, Other, Given) ->
    case Given of
        #{Role := Options} -> Options;
        #{Other := Options} -> maps:with(?SHARED, Options);
        #{} -> #{}
    end.

%% A side without a list of its own does not do what these of the other do.
unshared(#{server := _, client := _}) -> [];
unshared(Given) ->
    [{Role, Options}] = maps:to_list(Given),
    [polydist_log:text("~0p is a TLS option of the ~0p only; the ~0p has no list of its own, and does not have it",
                       [Key, Role, other(Role)]) || Key <- [verify_fun, partial_chain], is_map_key(Key, Options)].

other(server) -> client;
other(client) -> server.

moot(Given) ->
    case lists:usort([{Key, Role} || {Role, Options} <- maps:to_list(Given), {moot, Key} <- maps:keys(Options)]) of
        [] -> [];
        Moot ->
            [polydist_log:text("these TLS options have nothing to do here and are without effect: ~ts; see doc/tls.md",
                               [lists:join(", ", [io_lib:format("~0p (~0p)", [Key, Role]) || {Key, Role} <- Moot])])]
    end.

%% The options of one side, as the rest of polydist takes them, and what is to be said of them
side(Role, Given) ->
    {Identities, IdentityNotices} = own(Role, Given),
    {Roots, RootNotices} = roots(Role, Given),
    {Chosen, ChosenNotices} = chosen(Role, Given),
    {Crls, CrlNotices} = crls(Role, Given),
    Verify = maps:get(verify, Given, verify_peer),
    Options = lists:foldl(fun maps:merge/2,
                          #{identities => Identities, verify => Verify, ktls => maps:get(ktls, Given, false),
                            fail_if_no_peer_cert => maps:get(fail_if_no_peer_cert, Given, Verify =:= verify_peer),
                            sni => maps:get(server_name_indication, Given, any) =/= disable},
                          [maps:with([depth, verify_fun, partial_chain], Given), Roots, Chosen, Crls, names(Given)]),
    {consistent(Role, Options), IdentityNotices ++ RootNotices ++ ChosenNotices ++ CrlNotices ++ uncalled(Role, Options)}.

names(Given) ->
    maps:from_list([{server_name, Name} || #{server_name_indication := Name} <- [Given], Name =/= disable] ++
                       [{hostname, Checks} || #{customize_hostname_check := Checks} <- [Given]]).

own(Role, #{certs_keys := Identities} = Given) ->
    {Identities, overridden(Role, certs_keys, [cert, certfile, key, keyfile, password], Given)};
own(Role, Given) ->
    Notices = overridden(Role, cert, [certfile], Given) ++ overridden(Role, key, [keyfile], Given),
    case maps:with([certfile, keyfile, cert, key], Given) of
        None when map_size(None) =:= 0 -> {[], Notices};
        _ -> {[identity(Role, Given)], Notices}
    end.

identity(Role, Given) ->
    Cert = case Given of
               #{cert := Ders} -> {der, Ders};
               #{certfile := File} -> {file, File};
               #{} -> invalid("the TLS ~0p has a key but no certificate; add {certfile, File}", [Role])
           end,
    Key = case Given of
              #{key := Der} -> {der, [Der]};
              #{keyfile := KeyFile} -> {file, KeyFile};
              #{certfile := CertFile} -> {file, CertFile};
              #{} -> invalid("the TLS ~0p has a certificate but no key; add {key, {Type, Der}} or {keyfile, File}", [Role])
          end,
    maps:merge(#{cert => Cert, key => Key}, maps:with([password], Given)).

roots(_, #{cacerts := Ders} = Given) -> {#{roots => {der, Ders}}, overridden(any, cacerts, [cacertfile], Given)};
roots(_, #{cacertfile := File}) -> {#{roots => {file, File}}, []};
roots(_, _) -> {#{}, []}.

overridden(_, Winner, Losers, Given) ->
    case [Key || is_map_key(Winner, Given), Key <- Losers, is_map_key(Key, Given)] of
        [] -> [];
        Keys -> [polydist_log:text("of the TLS options ~ts, only ~0p counts when all are given",
                                   [listing([Winner | Keys]), Winner])]
    end.

listing(Keys) ->
    lists:join(", ", [atom_to_list(Key) || Key <- Keys]).

%% Versions, ciphers and groups; what there is not here is left out
chosen(Role, Given) ->
    {Ciphers, CipherNotices} = ciphers(Role, Given),
    {Groups, GroupNotices} = groups(Role, Given),
    {Versions, VersionNotices} = versions(Role, Given, Ciphers),
    {maps:merge(Groups, maps:merge(Ciphers, #{versions => Versions})), VersionNotices ++ CipherNotices ++ GroupNotices}.

ciphers(Role, #{ciphers := {Names, Left}}) -> {#{ciphers => Names}, left_out(Role, ciphers, Left)};
ciphers(_, _) -> {#{}, []}.

groups(Role, Given) ->
    Of = [{Key, maps:get(Key, Given)} || Key <- [supported_groups, eccs], is_map_key(Key, Given)],
    {maps:from_list([{groups, lists:uniq(lists:append([Names || {_, {Names, _}} <- Of]))} || Of =/= []]),
     lists:append([left_out(Role, Key, Left) || {Key, {_, Left}} <- Of])}.

versions(Role, Given, Ciphers) ->
    {Wanted, Left} = maps:get(versions, Given, {['tlsv1.3', 'tlsv1.2'], []}),
    Usable = case Ciphers of
                 #{ciphers := Names} -> polydist_tls_suites:versions(Names);
                 #{} -> Wanted
             end,
    case [Version || Version <- Wanted, lists:member(Version, Usable)] of
        [] -> invalid("none of the TLS ~0p's ciphers is one of its versions, ~0p; for both versions, name suites of both",
                      [Role, Wanted]);
        Versions -> {Versions, left_out(Role, versions, Left ++ [atom_to_list(V) || V <- Wanted -- Versions])}
    end.

left_out(_, _, []) -> [];
left_out(Role, Key, Left) ->
    [polydist_log:text("of ~0p, a TLS option of the ~0p, ~ts cannot be used here and is left out",
                       [Key, Role, lists:join(", ", Left)])].

crls(Role, Given) ->
    From = [{file, File} || #{crlfile := File} <- [Given]] ++ [{file, File} || #{crlfiles := Files} <- [Given], File <- Files] ++
        maps:get(crl_cache, Given, []),
    case maps:get(crl_check, Given, is_map_key(crlfile, Given) orelse is_map_key(crlfiles, Given)) of
        false when From =:= [] -> {#{}, []};
        false -> {#{}, [polydist_log:text("the TLS ~0p has lists of revoked certificates but no {crl_check, true}, so that they "
                                          "are not used", [Role])]};
        best_effort when From =:= [] ->
            {#{}, [polydist_log:text("the TLS ~0p has {crl_check, best_effort} but no list of revoked certificates; add "
                                     "{crlfile, File}", [Role])]};
        _ when From =:= [] ->
            invalid("the TLS ~0p has crl_check but no list of revoked certificates; add {crlfile, File}, or "
                    "{crl_cache, {ssl_crl_hash_dir, {internal, [{dir, Directory}]}}}", [Role]);
        best_effort -> {#{crls => #{check => chain, unknown => allow, from => From}}, []};
        peer -> {#{crls => #{check => peer, unknown => deny, from => From}}, []};
        true -> {#{crls => #{check => chain, unknown => deny, from => From}}, []}
    end.

consistent(server, #{identities := []}) ->
    invalid("the TLS server has no certificate; add {certfile, File} and {keyfile, File}", []);
consistent(server, #{verify := verify_none, fail_if_no_peer_cert := true}) ->
    invalid("the TLS server has fail_if_no_peer_cert but verify_none; that needs {verify, verify_peer}", []);
consistent(Role, #{verify := verify_peer} = Options) when not is_map_key(roots, Options), not is_map_key(verify_fun, Options) ->
    invalid("the TLS ~p has no CA to check its peers by; add {cacertfile, File}, or {verify, verify_none} to trust anybody",
            [Role]);
consistent(_, Options) ->
    Options.

%% A server asks for no certificate then, and stock does not call it either.
uncalled(server, #{verify := verify_none} = Options) ->
    [polydist_log:text("~0p, a TLS option of the server, has no effect with {verify, verify_none}: clients are not asked for "
                       "certificates", [Key]) || Key <- [verify_fun, partial_chain, crls], is_map_key(Key, Options)];
uncalled(client, #{verify := verify_none} = Options) when not is_map_key(verify_fun, Options) ->
    [polydist_log:text("~0p, a TLS option of the client, has no effect with {verify, verify_none}: anybody is trusted", [Key])
     || Key <- [hostname, partial_chain, crls], is_map_key(Key, Options)];
uncalled(_, _) ->
    [].

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).
