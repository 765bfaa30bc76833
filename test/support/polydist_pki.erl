%%% Certificates that polydist-cert does not make: expired, revoked, with authorities between, with an encrypted key. In files as
%%% option files name them, and as terms. Written in DER by hand: what public_key:pkix_test_data/1 makes is, on one release or
%%% another, not what strict libraries accept.
-module(polydist_pki).

-export([new/1, issue/3, revoke/3, revoke/4]).

-export_type([pki/0, issued/0]).

-include_lib("public_key/include/public_key.hrl").

-type pki() :: #{directory := file:filename(), root := map(), cacertfile := file:filename()}.
-type issued() :: #{cert := [binary()], key := {atom(), binary()}, serial := integer(), certfile := file:filename(),
                    keyfile := file:filename(), encrypted := file:filename(), password := string()}.

-define(EC_PUBLIC_KEY, <<16#2a8648ce3d0201:56>>).
-define(PRIME256V1, <<16#2a8648ce3d030107:64>>).
-define(ECDSA_WITH_SHA256, <<16#2a8648ce3d040302:64>>).

%% @doc An authority, its certificate in a file.
-spec new(Directory :: file:filename()) -> pki().
new(Directory) ->
    ok = filelib:ensure_path(Directory),
    Root = authority("an authority", self),
    CaFile = filename:join(Directory, "ca.pem"),
    ok = write_pem(CaFile, [{'Certificate', maps:get(cert, Root), not_encrypted}]),
    #{directory => Directory, root => Root, cacertfile => CaFile}.

authority(Name, Issuer) ->
    certificate(Name, Issuer, {-1, 1}, [extension(16#551d13, true, sequence([<<1, 1, 16#ff>>])), % basicConstraints: an authority
                                        extension(16#551d0f, true, <<3, 2, 1, 6>>)]). % keyUsage: keyCertSign, cRLSign

%% @doc A certificate and what belongs to it, in files named after Name. Options: `hosts', `intermediates' (their number), `days'
%% (between which two, counted from today, it is valid).
-spec issue(pki(), Name :: string(), #{hosts => [string()], intermediates => integer(), days => {integer(), integer()}}) ->
    issued().
issue(#{directory := Directory, root := Root}, Name, Options) ->
    Above = above(maps:get(intermediates, Options, 0), [Root]),
    Hosts = sequence([tagged(16#82, Host) || Host <- maps:get(hosts, Options, ["localhost"])]),
    #{cert := Der, key := Key} = Own = certificate(Name, hd(Above), maps:get(days, Options, {-1, 1}),
                                                   [extension(16#551d11, false, Hosts)]),
    Chain = [Der | [Each || #{cert := Each} <- lists:droplast(Above)]],
    File = fun(What) -> filename:join(Directory, Name ++ What) end,
    Password = "correct horse",
    Encrypted = public_key:pem_entry_encode('ECPrivateKey', public_key:der_decode('ECPrivateKey', private(Key)),
                                            {{"AES-128-CBC", crypto:strong_rand_bytes(16)}, Password}),
    ok = write_pem(File("-cert.pem"), [{'Certificate', Each, not_encrypted} || Each <- Chain]),
    ok = write_pem(File("-key.pem"), [{'ECPrivateKey', private(Key), not_encrypted}]),
    ok = write_pem(File("-encrypted.pem"), [Encrypted]),
    #{cert => Chain, key => {'ECPrivateKey', private(Key)}, serial => maps:get(serial, Own), certfile => File("-cert.pem"),
      keyfile => File("-key.pem"), encrypted => File("-encrypted.pem"), password => Password}.

above(0, Authorities) -> Authorities;
above(N, [Issuer | _] = Authorities) ->
    above(N - 1, [authority(lists:concat(["authority ", N]), Issuer) | Authorities]).

certificate(Name, Issuer, {From, Till}, Extensions) ->
    {Public, _} = Key = crypto:generate_key(ecdh, secp256r1),
    Subject = #{name => name(Name), key => Key},
    #{name := IssuerName} = Signer = case Issuer of
                                         self -> Subject;
                                         _ -> Issuer
                                     end,
    Serial = erlang:unique_integer([positive]),
    Info = sequence([sequence([oid(?EC_PUBLIC_KEY), oid(?PRIME256V1)]), bits(Public)]),
    Body = sequence([tagged(16#a0, integer(2)), integer(Serial), sequence([oid(?ECDSA_WITH_SHA256)]), IssuerName,
                     sequence([time(From), time(Till)]), maps:get(name, Subject), Info, tagged(16#a3, sequence(Extensions))]),
    Subject#{serial => Serial, cert => signed(Body, Signer)}.

private({Public, Private}) ->
    sequence([integer(1), tagged(4, Private), tagged(16#a0, oid(?PRIME256V1)), tagged(16#a1, bits(Public))]).

write_pem(File, Entries) ->
    file:write_file(File, public_key:pem_encode(Entries)).

%% @doc A list of revoked certificates of the authority, valid from yesterday till tomorrow, in PEM. The directory it lies in can be
%% a `crl_cache'.
-spec revoke(pki(), Directory :: file:filename(), [issued()]) -> file:filename().
revoke(Pki, Directory, Revoked) ->
    revoke(Pki, Directory, Revoked, {-1, 1}).

%% @doc The same, valid between two days that are counted from today.
-spec revoke(pki(), Directory :: file:filename(), [issued()], {integer(), integer()}) -> file:filename().
revoke(#{root := #{name := Name, cert := Cert} = Root}, Directory, Revoked, {From, Till}) ->
    ok = filelib:ensure_path(Directory),
    Listed = [sequence([sequence([integer(Serial), time(From)]) || #{serial := Serial} <- Revoked]) || Revoked =/= []],
    Number = extension(16#551d14, false, integer(1)),
    Body = sequence([integer(1), sequence([oid(?ECDSA_WITH_SHA256)]), Name, time(From), time(Till), Listed,
                     tagged(16#a0, sequence([Number]))]),
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{subject = Issuer}} = public_key:pkix_decode_cert(Cert, otp),
    File = filename:join(Directory, public_key:short_name_hash(Issuer) ++ ".r0"),
    ok = write_pem(File, [{'CertificateList', signed(Body, Root), not_encrypted}]),
    File.

signed(Body, #{key := {_, Private}}) ->
    sequence([Body, sequence([oid(?ECDSA_WITH_SHA256)]), bits(crypto:sign(ecdsa, sha256, Body, [Private, secp256r1]))]).

name(Common) ->
    sequence([tagged(16#31, sequence([oid(<<16#550403:24>>), tagged(12, Common)]))]).

extension(Oid, Critical, Value) ->
    sequence([oid(<<Oid:24>>), [<<1, 1, 16#ff>> || Critical], tagged(4, Value)]).

sequence(Parts) -> tagged(16#30, Parts).

oid(Bytes) -> tagged(6, Bytes).

bits(Bytes) -> tagged(3, [0, Bytes]).

integer(N) ->
    case binary:encode_unsigned(N) of
        <<1:1, _/bitstring>> = Bytes -> tagged(2, [0, Bytes]);
        Bytes -> tagged(2, Bytes)
    end.

time(Days) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} =
        calendar:system_time_to_universal_time(os:system_time(second) + Days * 86400, second),
    tagged(16#17, io_lib:format("~2..0w~2..0w~2..0w~2..0w~2..0w~2..0wZ", [Year rem 100, Month, Day, Hour, Minute, Second])).

tagged(Tag, Parts) ->
    Content = iolist_to_binary(Parts),
    iolist_to_binary([Tag, size_of(byte_size(Content)), Content]).

size_of(Size) when Size < 128 -> Size;
size_of(Size) ->
    Bytes = binary:encode_unsigned(Size),
    [128 + byte_size(Bytes), Bytes].
