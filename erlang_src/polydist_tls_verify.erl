%%% The verification of a peer's certificates that the native library leaves to Erlang, since it calls funs of the user: verify_fun,
%%% customize_hostname_check and partial_chain. The funs are called as OTP's ssl calls them, at a time when ssl's processes need
%%% not run: after the TLS handshake, in the process of the connection, before anything of the distribution is answered. What a fun
%%% does wrong refuses the connection.
-module(polydist_tls_verify).

-export([check/3, verify/4]).

-export_type([check/0]).

-include_lib("public_key/include/public_key.hrl").

%% Holds no key and no password. roots and lists in DER.
-type check() :: #{verify_fun => polydist_tls_options:verify_fun(), partial_chain => fun(([binary()]) -> term()),
                   roots := [binary()], depth := 0..255,
                   host := given | unchecked | {name, string()}, hostname := [{atom(), fun()}],
                   crls => #{check := chain | peer, unknown := deny | allow, lists := [binary()]}}.

%% What ssl refuses, and what takes a signature for proof that can be forged.
-define(WEAK, [?md2WithRSAEncryption, ?md5WithRSAEncryption, ?sha1WithRSAEncryption, ?'id-dsa-with-sha1', ?'ecdsa-with-SHA1']).

%% As many certificates from the peer to its authority as ssl looks at.
-define(MAX_PATH, 12).

-record(state, {role :: server | client, host :: string() | inet:ip_address() | unchecked, hostname :: list(),
                crls :: map() | none, path :: [#cert{}], roots :: [#cert{}], user :: {fun(), Name :: iodata()} | none}).

%% @doc What one side needs to verify its peers, from its options and the contents of its files.
-spec check(server | client, polydist_tls_options:options(), polydist_tls_config:native()) ->
    {ok, check()} | {error, Sentence :: binary()}.
check(Role, Options, Native) ->
    case lists:all(fun(Module) -> code:ensure_loaded(Module) =:= {module, Module} end, [public_key, crypto]) of
        true ->
            Check = maps:merge(maps:with([verify_fun, partial_chain], Options),
                               #{roots => ders('Certificate', maps:get(roots, Native, {der, []})),
                                 depth => maps:get(depth, Options, 10), host => host(Role, Options),
                                 hostname => maps:get(hostname, Options, [])}),
            {ok, case Native of
                     #{crls := #{files := Files} = Crls} ->
                         Lists = lists:append([ders('CertificateList', {pem, File}) || File <- Files]),
                         Check#{crls => (maps:remove(files, Crls))#{lists => Lists}};
                     #{} -> Check
                 end};
        false ->
            {error, polydist_log:text("the ~0p's TLS options have a fun that verifies certificates; that needs OTP's applications "
                                      "public_key and crypto, which this node does not have", [Role])}
    end.

host(client, #{sni := false}) -> unchecked;
host(client, #{server_name := Name}) -> {name, Name};
host(_, _) -> given.

ders(_, {der, Ders}) -> Ders;
ders(Type, {pem, <<"-----BEGIN", _/binary>> = Pem}) -> entries(Type, Pem);
ders(Type, {pem, Contents}) ->
    %% Text may precede the first block; with no block at all it is DER.
    case entries(Type, Contents) of
        [] -> [Contents];
        Entries -> Entries
    end.

entries(Type, Pem) ->
    [Der || {Each, Der, not_encrypted} <- public_key:pem_decode(Pem), Each =:= Type].

%% @doc Verifies what the peer has sent, its own certificate first. Host is, for a client, what was dialled; for a server, the
%% address of its peer if that is known.
-spec verify(server | client, Chain :: [binary()], Host :: string() | inet:ip_address() | undefined, check()) ->
    ok | {error, {tls, Sentence :: binary()}}.
verify(server, [], _, _) ->
    ok; % a peer without a certificate is the matter of fail_if_no_peer_cert, and stock calls nobody then either
verify(Role, Chain, Host, #{roots := Roots} = Check) ->
    try
        Trusted = decoded(Roots),
        {Anchor, Path} = anchored(decoded(Chain), Trusted, Check),
        State = #state{role = Role, host = checked_host(Role, Host, Check), hostname = maps:get(hostname, Check),
                       crls = maps:get(crls, Check, none), path = Path, roots = Trusted, user = user(Role, Check)},
        validated(Anchor, Path, maps:get(depth, Check), callback(State, user_state(Host, Check)))
    of
        {ok, _} -> ok;
        {error, {user_fun, Sentence}} -> refused(Role, Sentence); % public_key catches what is thrown
        {error, Reason} -> refused(Role, why(Reason))
    catch
        throw:{user_fun, Sentence} -> refused(Role, Sentence);
        Class:Reason -> refused(Role, io_lib:format("it cannot be verified (~0p ~ts)", [Class, kind(Reason)]))
    end.

%% Of what is no anchor public_key, too, would ask the fun; but it would not tell what went wrong in it.
validated(Reason, [#cert{otp = Otp} = Top | Path], Depth, {Fun, State}) when is_atom(Reason) ->
    case Fun(Otp, {bad_cert, Reason}, State) of
        {valid, NewState} -> validated(Top, Path, Depth, {Fun, NewState});
        {fail, Why} -> {error, Why}
    end;
validated(#cert{otp = Otp}, Path, Depth, Callback) ->
    public_key:pkix_path_validation(Otp, Path, [{max_path_length, Depth}, {verify_fun, Callback}]).

refused(Role, Why) ->
    {error, {tls, polydist_log:text("the certificate of the ~ts is not accepted: ~ts", [peer(Role), Why])}}.

peer(server) -> "client";
peer(client) -> "server".

checked_host(client, Host, #{host := given}) when Host =/= undefined -> Host;
checked_host(client, _, #{host := {name, Name}}) -> Name;
checked_host(_, _, _) -> unchecked.

decoded(Ders) ->
    [#cert{der = Der, otp = public_key:pkix_decode_cert(Der, otp)} || Der <- Ders].

%% The way from an authority that is trusted down to the peer: {Anchor, Path}. Anchor is what keeps it from being trusted if
%% there is none, which is the verify_fun's to judge, as with ssl.
anchored([Peer | Sent], Roots, Check) ->
    case public_key:pkix_is_self_signed(Peer#cert.otp) of
        true -> shortened([Peer], {selfsigned_peer, [Peer]}, Check);
        false -> anchored([Peer], Sent, Roots, Check)
    end.

anchored(Path, _, _, Check) when length(Path) > ?MAX_PATH ->
    shortened(Path, {unknown_ca, Path}, Check);
anchored([Top | _] = Path, Sent, Roots, Check) ->
    case issuers(Top, Roots) of
        [Root | _] when Top =/= Root -> shortened([Root | Path], {Root, Path}, Check);
        [Root | _] -> shortened(Path, {Root, tl(Path)}, Check);
        [] ->
            %% Sent ones, then those that are known but not trusted by themselves; none twice, for they may go round.
            case issuers_among(Top, Sent) ++ issuers_among(Top, Roots) of
                [Next | _] ->
                    case lists:member(Next, Path) of
                        false -> anchored([Next | Path], Sent, Roots, Check);
                        true -> shortened(Path, {unknown_ca, Path}, Check)
                    end;
                [] -> shortened(Path, {unknown_ca, Path}, Check)
            end
    end.

%% Authorities whose certificates are their own; those that are valid now come first.
issuers(Cert, Roots) ->
    Selfsigned = [Root || #cert{otp = Otp} = Root <- issuers_among(Cert, Roots), public_key:pkix_is_self_signed(Otp)],
    {Now, Other} = lists:partition(fun is_valid_now/1, Selfsigned),
    Now ++ Other.

issuers_among(#cert{otp = Otp, der = Der}, Candidates) ->
    [Each || #cert{otp = Candidate} = Each <- Candidates, public_key:pkix_is_issuer(Otp, Candidate), has_signed(Der, Candidate)].

has_signed(Der, Otp) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{subjectPublicKeyInfo = Info}} = Otp,
    #'OTPSubjectPublicKeyInfo'{algorithm = #'PublicKeyAlgorithm'{algorithm = Algorithm, parameters = Parameters},
                               subjectPublicKey = Key} = Info,
    try
        public_key:pkix_verify(Der, public_key(Algorithm, Parameters, Key))
    catch
        _:_ -> false
    end.

public_key(?'id-ecPublicKey', Parameters, Point) -> {Point, Parameters};
public_key(Algorithm, _, Point) when Algorithm =:= ?'id-Ed25519'; Algorithm =:= ?'id-Ed448' -> {Point, {namedCurve, Algorithm}};
public_key(?'id-RSASSA-PSS', Parameters, Key) -> {Key, Parameters};
public_key(?'id-dsa', {params, Parameters}, Key) -> {Key, Parameters};
public_key(_, _, Key) -> Key.

is_valid_now(#cert{otp = Otp}) ->
    Accept = fun(_, {bad_cert, cert_expired}, _) -> {fail, expired};
                (_, _, State) -> {valid, State}
             end,
    case public_key:pkix_path_validation(Otp, [Otp], [{verify_fun, {Accept, ok}}]) of
        {error, {bad_cert, expired}} -> false;
        _ -> true
    end.

%% A fun of the user may trust what stands further down.
shortened(Path, Default, #{partial_chain := Fun}) ->
    try Fun([Der || #cert{der = Der} <- Path]) of
        {trusted_ca, Der} ->
            case lists:dropwhile(fun(#cert{der = Each}) -> Each =/= Der end, Path) of
                [Trusted | [_ | _] = Rest] -> {Trusted, Rest};
                _ -> Default
            end;
        _ -> Default
    catch
        _:_ -> Default
    end;
shortened(_, Default, _) ->
    Default.

%% The user's fun

user(Role, #{verify_fun := {Fun, _}}) ->
    {module, Module} = erlang:fun_info(Fun, module),
    {name, Name} = erlang:fun_info(Fun, name),
    {Fun, io_lib:format("the verify_fun ~0p:~0p of the TLS ~0p", [Module, Name, Role])};
user(_, _) ->
    none.

%% inet_tls_dist:verify_client/3 stands for a state that only the carrier can know.
user_state(Address, #{verify_fun := {Fun, State}}) ->
    case Fun =:= fun inet_tls_dist:verify_client/3 of
        true -> {allowed_hosts(), Address};
        false -> State
    end;
user_state(_, _) ->
    none.

allowed_hosts() ->
    {ok, Allowed} = net_kernel:allowed(),
    lists:usort([Host || Node <- Allowed, Host <- case dist_util:split_node(Node) of
                                                      {node, _, Host} -> [Host];
                                                      {host, Host} -> [Host];
                                                      _ -> []
                                                  end]).

%% As ssl wraps a fun of the user, and what it does without one
callback(#state{user = none} = State, _) ->
    {fun(Otp, {extension, _} = Extension, _) -> extension(Otp, Extension, State);
        (Otp, Valid, _) when Valid =:= valid; Valid =:= valid_peer ->
             case {is_revoked(Otp, Valid, State), certificate(Otp, Valid, State)} of
                 {valid, Valid} -> {valid, none};
                 {valid, Reason} -> {fail, Reason};
                 {Reason, _} -> {fail, Reason}
             end;
        (_, {bad_cert, _} = Reason, _) -> {fail, Reason}
     end, none};
callback(State, UserState) ->
    {fun(Otp, {extension, _} = Extension, User) ->
             case extension(Otp, Extension, State) of
                 {valid, _} -> {valid, User};
                 {fail, Reason} -> judged(Otp, Reason, User, State);
                 {unknown, _} -> judged(Otp, Extension, User, State)
             end;
        (Otp, Valid, User) when Valid =:= valid; Valid =:= valid_peer ->
             Event = certificate(Otp, Valid, State),
             case asked(Otp, Event, User, State) of
                 {Answer, NewUser} when Answer =:= valid; Answer =:= valid_peer ->
                     case is_revoked(Otp, Event, State) of
                         valid -> {Answer, NewUser};
                         Reason -> judged(Otp, Reason, NewUser, State)
                     end;
                 {fail, _} = Fail -> Fail;
                 _ -> wrong_answer(State)
             end;
        (Otp, Reason, User) -> judged(Otp, Reason, User, State)
     end, UserState}.

judged(Otp, Event, User, State) ->
    case asked(Otp, Event, User, State) of
        {Answer, _} = Is when Answer =:= valid; Answer =:= valid_peer; Answer =:= fail; Answer =:= unknown -> Is;
        _ -> wrong_answer(State)
    end.

-spec wrong_answer(#state{}) -> no_return().
wrong_answer(#state{user = {_, Name}}) ->
    throw({user_fun, polydist_log:text("~ts answered neither {valid, State} nor {fail, Reason}, nor {unknown, State} to an "
                                       "extension", [Name])}).

asked(Otp, Event, User, #state{user = {Fun, Name}, path = Path, roots = Roots}) ->
    try
        case is_function(Fun, 4) of
            true ->
                #cert{der = Der} = lists:keyfind(Otp, #cert.otp, Path ++ Roots),
                Fun(Otp, Der, Event, User);
            false -> Fun(Otp, Event, User)
        end
    catch
        %% What it was given, and its state, are in the reason and the stack; neither is shown.
        Class:Reason -> throw({user_fun, polydist_log:text("~ts failed: ~0p ~ts", [Name, Class, kind(Reason)])})
    end.

kind(Reason) when is_atom(Reason) -> atom_to_list(Reason);
kind(Reason) when is_tuple(Reason), tuple_size(Reason) > 0, is_atom(element(1, Reason)) -> atom_to_list(element(1, Reason));
kind(_) -> "".

%% What ssl checks beside public_key

extension(Otp, {extension, #'Extension'{extnID = ?'id-ce-extKeyUsage', extnValue = Uses}}, #state{role = Role, path = Path}) ->
    case lists:member(usage(Role), Uses) of
        true -> {valid, none};
        false -> {fail, {bad_cert, wrong_usage((lists:last(Path))#cert.otp =:= Otp, Uses)}}
    end;
extension(_, _, _) ->
    {unknown, none}.

usage(client) -> ?'id-kp-serverAuth';
usage(server) -> ?'id-kp-clientAuth'.

%% By the names that ssl of this release has.
wrong_usage(IsPeer, Uses) ->
    case erlang:system_info(otp_release) of
        Old when Old < "27" -> invalid_ext_key_usage;
        _ when IsPeer -> {invalid_ext_keyusage, Uses};
        _ -> {ca_invalid_ext_keyusage, Uses}
    end.

%% valid or valid_peer, or what is wrong with the certificate.
certificate(Otp, Valid, State) ->
    #'SignatureAlgorithm'{algorithm = Algorithm} = Otp#'OTPCertificate'.signatureAlgorithm,
    case {Valid =:= valid orelse is_for_host(Otp, State), lists:member(Algorithm, ?WEAK)} of
        {false, _} -> {bad_cert, hostname_check_failed};
        {true, true} -> {bad_cert, unsupported_signature};
        {true, false} -> Valid
    end.

is_for_host(_, #state{host = unchecked}) ->
    true;
is_for_host(Otp, #state{host = Host, hostname = Checks}) ->
    try
        public_key:pkix_verify_hostname(Otp, [host_id(Host)], Checks)
    catch
        Class:Reason ->
            throw({user_fun, polydist_log:text("customize_hostname_check failed: ~0p ~ts", [Class, kind(Reason)])})
    end.

host_id(Host) ->
    case inet:parse_strict_address(Host) of
        {ok, Ip} -> {ip, Ip};
        {error, _} -> {dns_id, Host}
    end.

%% Lists of revoked certificates

is_revoked(_, _, #state{crls = none}) -> valid;
is_revoked(_, valid, #state{crls = #{check := peer}}) -> valid;
is_revoked(Otp, _, #state{crls = #{lists := Lists, unknown := Unknown}} = State) ->
    Options = [{issuer_fun, {fun(_, Crl, _, _) -> crl_issuer(Crl, State) end, none}}, {undetermined_details, true}],
    case crls_say(Otp, points(Otp, Lists), Options) of
        {bad_cert, {revocation_status_undetermined, _}} when Unknown =:= allow -> valid;
        Answer -> Answer
    end.

%% As ssl: by the distribution points that the certificate names, and else by its issuer.
crls_say(Otp, {Named, Own}, Options) ->
    case Named =/= [] andalso public_key:pkix_crls_validate(Otp, Named, Options) of
        false -> public_key:pkix_crls_validate(Otp, Own, Options);
        {bad_cert, {revocation_status_undetermined, _}} -> public_key:pkix_crls_validate(Otp, Own, Options);
        Answer -> Answer
    end.

points(Otp, Lists) ->
    Issuer = public_key:pkix_normalize_name((Otp#'OTPCertificate'.tbsCertificate)#'OTPTBSCertificate'.issuer),
    Crls = [{Der, public_key:der_decode('CertificateList', Der)} || Der <- Lists],
    Relevant = [Crl || {_, List} = Crl <- Crls, public_key:pkix_normalize_name(public_key:pkix_crl_issuer(List)) =:= Issuer],
    {[{Point, Crl} || Point <- public_key:pkix_dist_points(Otp), Crl <- Relevant],
     [{public_key:pkix_dist_point(Otp), Crl} || Crl <- Relevant]}.

%% Who has signed a list, and why he is trusted.
crl_issuer(Crl, #state{path = Path, roots = Roots}) ->
    Name = public_key:pkix_normalize_name(public_key:pkix_crl_issuer(Crl)),
    Candidates = [Cert || #cert{otp = Otp} = Cert <- Path ++ Roots, is_subject(Name, Otp), public_key:pkix_crl_verify(Crl, Otp)],
    case Candidates of
        [] -> {error, unknown_ca};
        [Issuer | _] ->
            case anchored([Issuer], Path, Roots, #{}) of
                {#cert{otp = Root}, Chain} when Chain =/= [] -> {ok, Root, [Der || #cert{der = Der} <- Chain]};
                {#cert{der = Der, otp = Root}, []} -> {ok, Root, [Der]};
                _ -> {error, unknown_ca}
            end
    end.

is_subject(Name, Otp) ->
    {_, Subject} = public_key:pkix_subject_id(Otp),
    Subject =:= Name.

%% Reasons of public_key, ssl and of the user's fun, in words

why({bad_cert, Reason}) -> why(Reason);
why(cert_expired) -> "it, or one of an authority above it, has expired or is not valid yet";
why(root_cert_expired) -> "the certificate of its authority has expired";
why(unknown_ca) -> "it is signed by an authority that is not among the CA certificates";
why(selfsigned_peer) -> "it is signed by itself, not by an authority";
why(invalid_issuer) -> "its issuer is another authority than the one it names";
why(invalid_signature) -> "a signature on it, or on one above it, is wrong";
why(unsupported_signature) -> "it, or one above it, is signed with SHA-1 or MD5";
why(hostname_check_failed) -> "it is not for the host that was dialled";
why(name_not_permitted) -> "its authority may not sign for that name";
why(missing_basic_constraint) -> "what has signed it is no authority";
why(invalid_key_usage) -> "what has signed it may not sign certificates";
why(max_path_length_reached) -> "there are more authorities between it and a trusted one than `depth' allows";
why(unknown_critical_extension) -> "it has a critical extension that nobody here knows";
why(cert_no_hostname_nor_ip_match) -> "it is neither for the peer's address nor for a host that net_kernel:allow/1 names";
why({revoked, Reason}) -> io_lib:format("it has been revoked (~0p)", [Reason]);
why({revocation_status_undetermined, _}) -> "no list of revoked certificates that is valid now tells of it; see crl_check";
why({Usage, _}) when Usage =:= invalid_ext_keyusage; Usage =:= ca_invalid_ext_keyusage -> why(invalid_ext_key_usage);
why(invalid_ext_key_usage) -> "it, or one above it, is not meant for this side of TLS (extended key usage)";
why(Reason) -> io_lib:format("~0P", [Reason, 10]).
