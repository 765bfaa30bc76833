%%% Certificates that polydist-cert does not make: expired, revoked, with authorities between, with an encrypted key. In files as
%%% option files name them, and as terms.
-module(polydist_pki).

-export([new/1, issue/3, revoke/3, revoke/4]).

-import(polydist_der, [bits/1, boolean/1, extension/3, integer/1, name/1, oid/1, sequence/1, tagged/2]).

-export_type([pki/0, issued/0]).

-include_lib("public_key/include/public_key.hrl").

-type pki() :: #{directory := file:filename(), root := map(), cacertfile := file:filename()}.
-type issued() :: #{cert := [binary()], key := {atom(), binary()}, serial := integer(), certfile := file:filename(),
                    keyfile := file:filename(), encrypted := file:filename(), password := string()}.

-define(EC_PUBLIC_KEY, {1, 2, 840, 10045, 2, 1}).
-define(PRIME256V1, {1, 2, 840, 10045, 3, 1, 7}).
-define(DAY, 86400).

%% @doc An authority, its certificate in a file.
-spec new(Directory :: file:filename()) -> pki().
new(Directory) ->
    ok = filelib:ensure_path(Directory),
    Root = authority("an authority", self),
    CaFile = filename:join(Directory, "ca.pem"),
    ok = write_pem(CaFile, [{'Certificate', maps:get(cert, Root), not_encrypted}]),
    #{directory => Directory, root => Root, cacertfile => CaFile}.

authority(Name, Issuer) ->
    certificate(Name, Issuer, {-1, 1}, [extension({2, 5, 29, 19}, true, sequence([boolean(true)])), % basicConstraints: an authority
                                        extension({2, 5, 29, 15}, true, <<3, 2, 1, 6>>)]). % keyUsage: keyCertSign, cRLSign

%% @doc A certificate and what belongs to it, in files named after Name. Options: `hosts', `intermediates' (their number), `days'
%% (between which two, counted from today, it is valid).
-spec issue(pki(), Name :: string(), #{hosts => [string()], intermediates => integer(), days => {integer(), integer()}}) ->
    issued().
issue(#{directory := Directory, root := Root}, Name, Options) ->
    Above = above(maps:get(intermediates, Options, 0), [Root]),
    Hosts = sequence([tagged(16#82, Host) || Host <- maps:get(hosts, Options, ["localhost"])]),
    #{cert := Der, key := Key} = Own = certificate(Name, hd(Above), maps:get(days, Options, {-1, 1}),
                                                   [extension({2, 5, 29, 17}, false, Hosts)]),
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
    Body = sequence([tagged(16#a0, integer(2)), integer(Serial), polydist_der:ecdsa_with_sha256(), IssuerName,
                     sequence([day(From), day(Till)]), maps:get(name, Subject), Info, tagged(16#a3, sequence(Extensions))]),
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
    Listed = [sequence([sequence([integer(Serial), day(From)]) || #{serial := Serial} <- Revoked]) || Revoked =/= []],
    Number = extension({2, 5, 29, 20}, false, integer(1)),
    Body = sequence([integer(1), polydist_der:ecdsa_with_sha256(), Name, day(From), day(Till), Listed,
                     tagged(16#a0, sequence([Number]))]),
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{subject = Issuer}} = public_key:pkix_decode_cert(Cert, otp),
    File = filename:join(Directory, public_key:short_name_hash(Issuer) ++ ".r0"),
    ok = write_pem(File, [{'CertificateList', signed(Body, Root), not_encrypted}]),
    File.

signed(Body, #{key := {_, Private}}) ->
    polydist_der:signed(Body, crypto:sign(ecdsa, sha256, Body, [Private, secp256r1])).

day(Days) -> polydist_der:time(Days * ?DAY).
