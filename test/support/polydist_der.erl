%%% DER, as far as certificates need it. Written by hand: the records that public_key takes are not the same in all releases, and
%%% what public_key:pkix_test_data/1 makes is, on one release or another, not what strict libraries accept.
-module(polydist_der).

-export([tagged/2, sequence/1, boolean/1, integer/1, oid/1, bits/1]).
-export([name/1, time/1, extension/3, ecdsa_with_sha256/0, signed/2]).

-export_type([der/0]).

-type der() :: binary().

%% @doc A value of this tag.
-spec tagged(Tag :: byte(), Parts :: iodata()) -> der().
tagged(Tag, Parts) ->
    Bytes = iolist_to_binary(Parts),
    <<Tag, (length_of(byte_size(Bytes)))/binary, Bytes/binary>>.

length_of(Short) when Short < 128 ->
    <<Short>>;
length_of(Long) ->
    Length = binary:encode_unsigned(Long),
    <<(128 + byte_size(Length)), Length/binary>>.

%% @doc A sequence of these values.
-spec sequence(Parts :: iodata()) -> der().
sequence(Parts) -> tagged(16#30, Parts).

%% @doc The only boolean that is not left out.
-spec boolean(true) -> der().
boolean(true) -> tagged(1, <<255>>).

%% @doc A number that is not negative.
-spec integer(non_neg_integer()) -> der().
integer(Number) ->
    case binary:encode_unsigned(Number) of
        <<1:1, _/bitstring>> = Negative -> tagged(2, [0, Negative]);
        Bytes -> tagged(2, Bytes)
    end.

%% @doc An object identifier.
-spec oid(tuple()) -> der().
oid(Oid) ->
    [First, Second | Arcs] = tuple_to_list(Oid),
    tagged(6, [First * 40 + Second | [arc(Arc) || Arc <- Arcs]]).

arc(Arc) -> arc(Arc div 128, [Arc rem 128]).

arc(0, Bytes) -> Bytes;
arc(Arc, Bytes) -> arc(Arc div 128, [128 + Arc rem 128 | Bytes]).

%% @doc A bit string of whole bytes.
-spec bits(iodata()) -> der().
bits(Bytes) -> tagged(3, [0, Bytes]).

%% @doc A subject or issuer that is a common name.
-spec name(string()) -> der().
name(Name) ->
    sequence([tagged(16#31, sequence([oid({2, 5, 4, 3}), tagged(16#0c, unicode:characters_to_binary(Name))]))]).

%% @doc The UTC time so many seconds from now.
-spec time(integer()) -> der().
time(Offset) ->
    Time = erlang:system_time(second) + Offset,
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(Time, second),
    tagged(16#17, io_lib:format("~2..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Year rem 100, Month, Day, Hour, Minute, Second])).

%% @doc An extension of a certificate or a list of revoked ones.
-spec extension(Id :: tuple(), Critical :: boolean(), Value :: iodata()) -> der().
extension(Id, Critical, Value) ->
    sequence([oid(Id), [boolean(true) || Critical], tagged(4, Value)]).

%% @doc The algorithm of all signatures here, for authorities have ECDSA keys.
-spec ecdsa_with_sha256() -> der().
ecdsa_with_sha256() -> sequence([oid({1, 2, 840, 10045, 4, 3, 2})]).

%% @doc A certificate or a list of revoked ones, from its body and the signature of that.
-spec signed(Body :: der(), Signature :: binary()) -> der().
signed(Body, Signature) -> sequence([Body, ecdsa_with_sha256(), bits(Signature)]).
