%%% Authorities and certificates for the suites, right ones and wrong ones, by OTP's public_key and no program of anybody's. The
%%% DER of a certificate is written here: the records that public_key takes for it are not the same in all releases.
-module(polydist_certificates).

-export([authority/1, issue/2, write/4, write_options/2]).

-export_type([authority/0, identity/0, options/0]).

-type der() :: binary().
-type key_type() :: ecdsa | rsa | ed25519.
-type identity() :: #{cert := der(), key := term()}.
-type authority() :: #{name := string(), cert := der(), key := term()}.
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
    [der(16#82, Host) || Host <- maps:get(hosts, Options, [])] ++
        [der(16#87, address(Ip)) || Ip <- maps:get(ips, Options, [])] ++
        [der(16#86, ["erlang:", Node]) || Node <- maps:get(nodes, Options, [])].

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

%% Authorities have ECDSA keys.
certificate(Issuer, IssuerKey, {Subject, Public}, Valid, Extensions) ->
    Algorithm = sequence([oid({1, 2, 840, 10045, 4, 3, 2})]),
    Body = sequence([
        der(16#a0, integer(2)), serial(), Algorithm, name(Issuer), validity(Valid), name(Subject), Public,
        der(16#a3, sequence(Extensions))
    ]),
    sequence([Body, Algorithm, bits(public_key:sign(Body, sha256, IssuerKey))]).

serial() -> integer(binary:decode_unsigned(<<1, (crypto:strong_rand_bytes(8))/binary>>)).

name(Name) ->
    sequence([der(16#31, sequence([oid({2, 5, 4, 3}), der(16#0c, unicode:characters_to_binary(Name))]))]).

validity(now) -> validity(-?DAY, ?DAY);
validity(expired) -> validity(-2 * ?DAY, -?DAY);
validity(not_yet) -> validity(?DAY, 2 * ?DAY).

validity(From, To) ->
    sequence([time(From), time(To)]).

time(Offset) ->
    Time = erlang:system_time(second) + Offset,
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(Time, second),
    der(16#17, io_lib:format("~2..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Year rem 100, Month, Day, Hour, Minute, Second])).

extension(Id, Critical, Value) ->
    sequence([oid(Id), [boolean(true) || Critical], der(4, Value)]).

sequence(Parts) -> der(16#30, Parts).
boolean(true) -> der(1, <<255>>).
bits(Bits) -> der(3, [0, Bits]).

integer(Number) ->
    case binary:encode_unsigned(Number) of
        <<1:1, _/bitstring>> = Negative -> der(2, [0, Negative]);
        Bytes -> der(2, Bytes)
    end.

oid(Oid) ->
    [First, Second | Arcs] = tuple_to_list(Oid),
    der(6, [First * 40 + Second | [arc(Arc) || Arc <- Arcs]]).

arc(Arc) -> arc(Arc div 128, [Arc rem 128]).

arc(0, Bytes) -> Bytes;
arc(Arc, Bytes) -> arc(Arc div 128, [128 + Arc rem 128 | Bytes]).

der(Tag, Parts) ->
    Bytes = iolist_to_binary(Parts),
    case byte_size(Bytes) of
        Short when Short < 128 -> <<Tag, Short, Bytes/binary>>;
        Long ->
            Length = binary:encode_unsigned(Long),
            <<Tag, (128 + byte_size(Length)), Length/binary, Bytes/binary>>
    end.
