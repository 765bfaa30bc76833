%%% Authorities and certificates for the suites, right ones and wrong ones, by OTP's public_key and no program of anybody's.
-module(polydist_certificates).

-export([authority/1, issue/2, write/4, write_options/2]).

-import(polydist_der, [bits/1, boolean/1, extension/3, integer/1, name/1, oid/1, sequence/1, tagged/2, time/1]).

-export_type([authority/0, identity/0, options/0]).

-type key_type() :: ecdsa | rsa | ed25519.
-type identity() :: #{cert := polydist_der:der(), key := term()}.
-type authority() :: #{name := string(), cert := polydist_der:der(), key := term()}.
-type options() :: #{
    key => key_type(),
    %% the common name of the subject
    name => string(),
    %% subjectAltNames: DNS names, IP addresses, and node names as URIs erlang:Name
    hosts => [string()],
    ips => [inet:ip_address()],
    nodes => [string()],
    valid => now | expired | not_yet,
    %% the extended key usage
    usage => [server | client | signing]
}.

-define(DAY, 86400).

%% @doc A new authority of this name, with a key of its own; two of one name are two.
-spec authority(Name :: string()) -> authority().
authority(Name) ->
    Key = key(ecdsa),
    Extensions = [extension({2, 5, 29, 19}, true, sequence([boolean(true)])), extension({2, 5, 29, 15}, true, <<3, 2, 1, 6>>)],
    #{name => Name, key => Key, cert => certificate(Name, Key, {Name, public(Key)}, now, Extensions)}.

%% @doc A certificate of the authority's, and its key.
-spec issue(authority(), options()) -> identity().
issue(#{name := Issuer, key := IssuerKey}, Options) ->
    Key = key(maps:get(key, Options, ecdsa)),
    Subject = {maps:get(name, Options, "a node"), public(Key)},
    Usage = extension({2, 5, 29, 37}, false, sequence([oid(usage(Each)) || Each <- maps:get(usage, Options, [server, client])])),
    Extensions = [Usage | [extension({2, 5, 29, 17}, false, sequence(Names)) || [_ | _] = Names <- [names(Options)]]],
    #{key => Key, cert => certificate(Issuer, IssuerKey, Subject, maps:get(valid, Options, now), Extensions)}.

usage(server) -> {1, 3, 6, 1, 5, 5, 7, 3, 1};
usage(client) -> {1, 3, 6, 1, 5, 5, 7, 3, 2};
usage(signing) -> {1, 3, 6, 1, 5, 5, 7, 3, 3}.

names(Options) ->
    [tagged(16#82, Host) || Host <- maps:get(hosts, Options, [])] ++
        [tagged(16#87, address(Ip)) || Ip <- maps:get(ips, Options, [])] ++
        [tagged(16#86, ["erlang:", Node]) || Node <- maps:get(nodes, Options, [])].

address(Ip) when tuple_size(Ip) =:= 4 -> list_to_binary(tuple_to_list(Ip));
address(Ip) -> << <<Part:16>> || Part <- tuple_to_list(Ip) >>.

%% @doc Writes Name.cert.pem, Name.key.pem, Name.ca.pem and the options for both sides, Name.conf, which is returned. Further
%% options, such as `versions', are for both sides.
-spec write(file:filename(), {Name :: string(), identity()}, Trusted :: [authority()], [{atom(), term()}]) -> file:filename().
write(Directory, {Name, #{cert := Cert, key := Key}}, Trusted, More) ->
    Ends = [".cert.pem", ".key.pem", ".ca.pem", ".conf"],
    [CertFile, KeyFile, CaFile, Optfile] = [filename:join(Directory, Name ++ End) || End <- Ends],
    ok = write_pem(CertFile, [{'Certificate', Cert, not_encrypted}]),
    ok = write_pem(KeyFile, [public_key:pem_entry_encode('PrivateKeyInfo', Key)]),
    ok = write_pem(CaFile, [{'Certificate', Each, not_encrypted} || #{cert := Each} <- Trusted]),
    write_options(Optfile, [{certfile, CertFile}, {keyfile, KeyFile}, {cacertfile, CaFile}, {verify, verify_peer} | More]).

%% @doc Writes these options for both sides, with fail_if_no_peer_cert for the server.
-spec write_options(file:filename(), [{atom(), term()}]) -> file:filename().
write_options(Optfile, Options) ->
    ok = polydist_ct:write_tls_options(Optfile, Options),
    Optfile.

write_pem(File, Entries) ->
    ok = file:write_file(File, public_key:pem_encode(Entries)),
    file:change_mode(File, 8#600).

key(ecdsa) -> public_key:generate_key({namedCurve, secp256r1});
key(rsa) -> public_key:generate_key({rsa, 2048, 65537});
key(ed25519) -> public_key:generate_key({namedCurve, ed25519}).

%% The SubjectPublicKeyInfo, in which the point of a curve and the modulus of RSA are what the private key's record holds.
public(Key) ->
    case element(1, Key) of
        'RSAPrivateKey' ->
            bits_of({1, 2, 840, 113549, 1, 1, 1}, [<<5, 0>>], sequence([integer(element(3, Key)), integer(element(4, Key))]));
        'ECPrivateKey' ->
            case is_ed25519(Key) of
                true -> bits_of({1, 3, 101, 112}, [], element(5, Key));
                false -> bits_of({1, 2, 840, 10045, 2, 1}, [oid({1, 2, 840, 10045, 3, 1, 7})], element(5, Key))
            end
    end.

bits_of(Algorithm, Parameters, Bits) ->
    sequence([sequence([oid(Algorithm) | Parameters]), bits(Bits)]).

is_ed25519(Key) -> byte_size(element(5, Key)) =:= 32.

certificate(Issuer, IssuerKey, {Subject, Public}, Valid, Extensions) ->
    Body = sequence([
        tagged(16#a0, integer(2)), serial(), polydist_der:ecdsa_with_sha256(), name(Issuer), validity(Valid), name(Subject), Public,
        tagged(16#a3, sequence(Extensions))
    ]),
    polydist_der:signed(Body, public_key:sign(Body, sha256, IssuerKey)).

serial() -> integer(binary:decode_unsigned(<<1, (crypto:strong_rand_bytes(8))/binary>>)).

validity(now) -> validity(-?DAY, ?DAY);
validity(expired) -> validity(-2 * ?DAY, -?DAY);
validity(not_yet) -> validity(?DAY, 2 * ?DAY).

validity(From, To) ->
    sequence([time(From), time(To)]).
