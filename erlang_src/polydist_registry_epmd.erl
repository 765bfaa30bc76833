%%% EPMD as a registry. Options: `port' (ERL_EPMD_PORT, 4369), and `host', whose EPMD is asked instead of that of the peer's host
%%% and in which this node registers as well. A stock EPMD takes registrations from its own host only, so that is for another EPMD
%%% on this host, for a tunnel, or for one that takes them; `register => false' keeps to asking.
%%%
%%% The registry `epmd' itself, without a host, is where polydist_epmd registers the node and polydist_lookup looks first; it does
%%% not come here but for its options.
-module(polydist_registry_epmd).
-behaviour(polydist_registry).

-export([check/1, lookup/2, register/2, handle/2, unregister/1, names/1]).

-define(PATIENCE, 10000).

%% @doc Checks the options.
-spec check(term()) -> {ok, #{port => inet:port_number(), host => string()}} | {error, iodata()}.
check(Options) when is_map(Options) ->
    case maps:to_list(maps:without([port, host], Options)) of
        [] -> check(maps:to_list(Options), #{});
        [{Key, _} | _] -> {error, io_lib:format("~0tp is not known; there are port and host", [Key])}
    end;
check(Other) ->
    {error, io_lib:format("~0tP is no map such as #{port => 4370}", [Other, 20])}.

check([], Checked) -> {ok, Checked};
check([{port, Port} | Rest], Checked) when is_integer(Port), Port > 0, Port =< 65535 -> check(Rest, Checked#{port => Port});
check([{host, [_ | _] = Host} | Rest], Checked) -> check(Rest, Checked#{host => Host});
check([{host, <<_, _/binary>> = Host} | Rest], Checked) -> check([{host, unicode:characters_to_list(Host)} | Rest], Checked);
check([{Key, Value} | _], _) -> {error, io_lib:format("~p is ~0tp, but must be a ~s", [Key, Value, kind(Key)])}.

kind(port) -> "port number";
kind(host) -> "host's name or address".

%% @doc Asks the EPMD.
-spec lookup(polydist_registry:query(), map()) -> {ok, polydist_registry:found()} | polydist_registry:error().
lookup(#{name := Name, host := PeerHost, timeout := Timeout}, Options) ->
    case polydist_epmd:lookup(Name, ips(maps:get(host, Options, PeerHost)), port(Options), Timeout) of
        {ok, #{port := Port, extra := <<>>}} -> {ok, #{port => Port}};
        {ok, #{port := Port, extra := Record}} -> {ok, #{record => Record, port => Port}};
        {error, _} = Error -> Error
    end.

%% @doc Registers the node; lasts as long as the connection to the EPMD.
-spec register(polydist_registry:registration(), map()) -> {ok, map()} | polydist_registry:error().
register(#{name := Name, port := Port, record := Record}, Options) ->
    Request = #{name => unicode:characters_to_binary(Name), port => Port, hidden => false, extra => Record},
    case ips(maps:get(host, Options, "localhost")) of
        [] -> {error, {nxdomain, polydist_log:text("the host ~ts has no address", [maps:get(host, Options, "localhost")])}};
        [Ip | _] ->
            Ref = make_ref(),
            case polydist_native:epmd_register({Ip, port(Options)}, Request, Ref) of
                {ok, Registration} -> registered(polydist_native:await(Ref, ?PATIENCE), Ref, Registration);
                {error, _} = Error -> Error
            end
    end.

registered({registered, _Creation}, Ref, Registration) ->
    {ok, #{ref => Ref, registration => Registration}};
registered(Other, _, Registration) ->
    ok = polydist_native:epmd_unregister(Registration),
    case Other of
        {error, _} -> Other;
        closed -> {error, {closed, <<"EPMD closed the connection">>}}
    end.

%% @doc EPMD has gone, or not.
-spec handle(term(), map()) -> {ok, map()} | {lost, binary()}.
handle({polydist, Ref, closed}, #{ref := Ref}) -> {lost, <<"EPMD closed the connection">>};
handle(_, State) -> {ok, State}.

%% @doc Ends the registration.
-spec unregister(map()) -> ok.
unregister(#{registration := Registration}) ->
    polydist_native:epmd_unregister(Registration).

%% @doc The names in the EPMD.
-spec names(map()) -> {ok, [string()]} | polydist_registry:error().
names(Options) ->
    Ref = make_ref(),
    ok = polydist_native:epmd_names([{Ip, port(Options)} || Ip <- ips(maps:get(host, Options, "localhost"))], ?PATIENCE, Ref),
    case polydist_native:await(Ref, ?PATIENCE + 1000) of
        {ok, Names} -> {ok, [unicode:characters_to_list(Name) || {Name, _} <- Names]};
        {error, _} = Error -> Error
    end.

port(Options) ->
    maps:get(port, Options, polydist_epmd:port()).

ips(Host) ->
    lists:uniq(lists:append([Ips || Family <- [inet, inet6], {ok, Ips} <- [inet:getaddrs(Host, Family)]])).
