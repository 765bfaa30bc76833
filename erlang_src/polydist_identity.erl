%%% Whether a peer may be the node that it says it is: its certificate must be for that node. Pure but for the look at the policy
%%% and the listener, and called before anything of the peer's handshake is answered.
%%%
%%% A certificate is for a node if it has the host of its name as a subjectAltName, or the URI `erlang:Name@Host'. Who has a rule
%%% or a listener with `identity => true' is not taken without a certificate, but for Unix sockets, where the kernel says who is
%%% there. Without either it is asked of every peer over TLS, if the TLS options make all peers have a certificate.
-module(polydist_identity).

-export([claimed/1, check/2]).

%% @doc The name in the first message of a peer's handshake, in UTF-8; none in any other message. One that is malformed would crash
%% dist_util, as would a name that is too long for an atom.
-spec claimed(Frame :: binary()) -> {ok, Name :: binary()} | none | malformed.
claimed(<<$N, _Flags:64, _Creation:32, Size:16, Name:Size/binary, _/binary>>) when Size =< 255 -> {ok, text(Name)};
claimed(<<$n, _Version:16, _Flags:32, Name/binary>>) when byte_size(Name) =< 255 -> {ok, text(Name)};
claimed(<<Tag, _/binary>>) when Tag =:= $N; Tag =:= $n -> malformed;
claimed(_) -> none.

%% dist_util takes each byte for a character.
text(Name) -> unicode:characters_to_binary(Name, latin1).

%% @doc Whether the peer of an accepted connection may have this name; if not, what there is to say.
-spec check(Name :: binary(), polydist_native:info()) -> ok | {refused, Sentence :: binary()}.
check(_, #{transport := uds}) ->
    ok;
check(Name, Info) ->
    case is_wanted(Name, Info) of
        true -> fits(Name, Info);
        false -> ok
    end.

is_wanted(Name, #{transport := Transport, peer := Peer} = Info) ->
    case {polydist_lookup:settings(unicode:characters_to_list(Name), Transport, Peer), place(Info)} of
        {#{identity := Wanted}, _} -> Wanted;
        {_, #{identity := Wanted}} -> Wanted;
        _ -> Transport =:= tls andalso polydist_tls:is_mutual()
    end.

place(#{listener := Id}) ->
    case polydist_sup:lookup({listener, Id}) of
        {ok, #{place := Place}} -> Place;
        error -> #{} % just removed
    end;
place(_) ->
    #{}.

fits(Name, #{tls := #{chain := [Certificate | _], peer := Facts}} = Info) ->
    case polydist_native:certificate_is_for(Certificate, Name) of
        true -> ok;
        false ->
            refused(Name, Info, "its certificate is for ~ts; give it one with the host of its name, or the URI erlang:~ts, as a "
                    "subjectAltName", [named(Facts), Name])
    end;
fits(Name, #{tls := #{}} = Info) ->
    refused(Name, Info, "it has no certificate to show it by; give it certfile and keyfile in the client part", []);
fits(Name, Info) ->
    refused(Name, Info, "nothing shows that: it must connect by TLS, with a certificate for that name", []).

named(#{subject := Subject, hosts := Hosts, nodes := Nodes}) ->
    case Hosts ++ Nodes of
        [] -> Subject;
        Names -> lists:join(", ", Names)
    end;
named(undefined) ->
    "nobody that could be read".

refused(Name, #{transport := Transport, peer := Peer}, Why, Args) ->
    {refused, polydist_log:text("refused the peer at ~ts over ~p: it says that it is ~ts, but " ++ Why,
                                [polydist_address:text(Transport, Peer), Transport, Name | Args])}.
