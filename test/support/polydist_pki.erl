%%% Certificates that polydist-cert does not make: expired, revoked, with authorities between, with an encrypted key. In files as
%%% option files name them, and as terms.
-module(polydist_pki).

-export([new/1, issue/3, revoke/3, revoke/4]).

-export_type([pki/0, issued/0]).

-include_lib("public_key/include/public_key.hrl").

-type pki() :: #{directory := file:filename(), root := map(), cacertfile := file:filename()}.
-type issued() :: #{cert := [binary()], key := {atom(), binary()}, certfile := file:filename(), keyfile := file:filename(),
                    encrypted := file:filename(), password := string()}.

%% @doc An authority, its certificate in a file.
-spec new(Directory :: file:filename()) -> pki().
new(Directory) ->
    ok = filelib:ensure_path(Directory),
    #{cert := Der} = Root = public_key:pkix_test_root_cert("an authority", authority_key()),
    CaFile = filename:join(Directory, "ca.pem"),
    ok = write_pem(CaFile, [{'Certificate', Der, not_encrypted}]),
    #{directory => Directory, root => Root, cacertfile => CaFile}.

%% public_key of OTP 25 gives signatures of ECDSA parameters that they must not have.
authority_key() ->
    [{key, {rsa, 2048, 65537}}, {digest, sha256}].

%% @doc A certificate and what belongs to it, in files named after Name. Options: `hosts', `intermediates' (their number), and those
%% of public_key:pkix_test_data/1 for the certificate: `validity', `extensions'.
-spec issue(pki(), Name :: string(), #{atom() => term()}) -> issued().
issue(#{directory := Directory, root := Root}, Name, Options) ->
    San = #'Extension'{extnID = ?'id-ce-subjectAltName', critical = false,
                       extnValue = [{dNSName, Host} || Host <- maps:get(hosts, Options, ["localhost"])]},
    Peer = [{key, {namedCurve, secp256r1}}, {digest, sha256}, {extensions, [San | maps:get(extensions, Options, [])]} |
            maps:to_list(maps:with([validity], Options))],
    Made = public_key:pkix_test_data(#{root => Root, peer => Peer,
                                       intermediates => lists:duplicate(maps:get(intermediates, Options, 0), authority_key())}),
    Own = proplists:get_value(cert, Made),
    {Type, Key} = TypedKey = proplists:get_value(key, Made),
    Chain = chain(Own, proplists:get_value(cacerts, Made)),
    File = fun(What) -> filename:join(Directory, Name ++ What) end,
    Password = "correct horse",
    Encrypted = public_key:pem_entry_encode(Type, public_key:der_decode(Type, Key),
                                            {{"AES-128-CBC", crypto:strong_rand_bytes(16)}, Password}),
    ok = write_pem(File("-cert.pem"), [{'Certificate', Der, not_encrypted} || Der <- Chain]),
    ok = write_pem(File("-key.pem"), [{Type, Key, not_encrypted}]),
    ok = write_pem(File("-encrypted.pem"), [Encrypted]),
    #{cert => Chain, key => TypedKey, certfile => File("-cert.pem"), keyfile => File("-key.pem"),
      encrypted => File("-encrypted.pem"), password => Password}.

%% What a peer shows: up to the root, without it.
chain(Cert, Known) ->
    case [Each || Each <- Known, Each =/= Cert, public_key:pkix_is_issuer(Cert, Each)] of
        [Issuer | _] ->
            case public_key:pkix_is_self_signed(Issuer) of
                true -> [Cert];
                false -> [Cert | chain(Issuer, Known)]
            end;
        [] -> [Cert]
    end.

write_pem(File, Entries) ->
    file:write_file(File, public_key:pem_encode(Entries)).

%% @doc A list of revoked certificates of the authority, valid from yesterday till tomorrow, in PEM. The directory it lies in can be
%% a `crl_cache'.
-spec revoke(pki(), Directory :: file:filename(), [issued()]) -> file:filename().
revoke(Pki, Directory, Revoked) ->
    revoke(Pki, Directory, Revoked, {-1, 1}).

%% @doc The same, valid between two days that are counted from today.
-spec revoke(pki(), Directory :: file:filename(), [issued()], {integer(), integer()}) -> file:filename().
revoke(#{root := #{cert := Root, key := Key}}, Directory, Revoked, {From, Till}) ->
    ok = filelib:ensure_path(Directory),
    #'Certificate'{tbsCertificate = #'TBSCertificate'{subject = Subject}} = public_key:pkix_decode_cert(Root, plain),
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{subject = Issuer}} = public_key:pkix_decode_cert(Root, otp),
    Algorithm = sequence([<<6, 9, 16#2a864886f70d01010b:72>>, tagged(5, <<>>)]), % sha256WithRSAEncryption
    Listed = case Revoked of
                 [] -> <<>>;
                 _ -> sequence([sequence([integer(serial(Each)), time(From)]) || Each <- Revoked])
             end,
    Number = sequence([<<6, 3, 16#551d14:24>>, tagged(4, integer(1))]),
    Body = sequence([integer(1), Algorithm, public_key:der_encode('Name', Subject), time(From), time(Till), Listed,
                     tagged(16#a0, sequence([Number]))]),
    Der = sequence([Body, Algorithm, tagged(3, [0, public_key:sign(Body, sha256, Key)])]),
    File = filename:join(Directory, public_key:short_name_hash(Issuer) ++ ".r0"),
    ok = write_pem(File, [{'CertificateList', Der, not_encrypted}]),
    File.

serial(#{cert := [Der | _]}) ->
    #'Certificate'{tbsCertificate = #'TBSCertificate'{serialNumber = Serial}} = public_key:pkix_decode_cert(Der, plain),
    Serial.

%% DER by hand: the records of public_key for it differ between releases.
sequence(Parts) -> tagged(16#30, Parts).

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
