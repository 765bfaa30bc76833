%%% Finds a node: where its host's name leads, what it registered, and so which addresses to dial. Runs in the process of the
%%% connection, or of whoever asks; never in net_kernel.
%%%
%%% This is the place where other registries than EPMD will be asked, too.
-module(polydist_lookup).

-export([candidates/2, remaining/1]).

-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).

%% How long to wait for IPv6 addresses when there are others to dial: a resolver that swallows such questions must not cost
%% the connection.
-define(PATIENCE, 250).

%% @doc The candidates for a node, in order, and what was left out. Deadline is in erlang:monotonic_time(millisecond).
-spec candidates(node(), Deadline :: integer()) ->
    {ok, [polydist_policy:candidate()], [polydist_policy:skipped()]} | {error, {Kind :: atom(), Sentence :: binary()}}.
candidates(Node, Deadline) ->
    case {dist_util:split_node(Node), polydist_listeners:config()} of
        {{node, Name, Host}, {ok, #{policy := Given}}} ->
            Carriers = polydist_config:carriers(),
            Policy = case Given of
                         undefined -> polydist_policy:default(Carriers);
                         _ -> Given
                     end,
            Choose = fun(Peer) -> polydist_policy:candidates(Policy, Carriers, Peer#{node => Node}) end,
            chosen(peer(Name, Host, Deadline), Choose, Host, Carriers, Deadline);
        {{node, _, _}, {error, Sentence}} -> {error, {not_running, Sentence}};
        _ -> {error, {bad_name, polydist_log:text("~ts is not a node name", [Node])}}
    end.

%% IPv6 addresses are looked up only where they are of use: the VM's resolver has few workers, and unanswered questions hold
%% them all up.
chosen({ok, #{same_host := false, ip6 := [], registered := Registered} = Peer}, Choose, Host, Carriers, Deadline) ->
    case {wants_ip6(Registered, Carriers), Choose(Peer)} of
        {true, {Without, _}} -> ok(Choose(Peer#{ip6 := ip6(Host, patience(Without, Deadline))}));
        {false, Chosen} -> ok(Chosen)
    end;
chosen({ok, Peer}, Choose, _, _, _) ->
    ok(Choose(Peer)); % on this host there is the loopback
chosen({error, _} = Error, _, _, _, _) ->
    Error.

ok({Candidates, Skipped}) ->
    {ok, Candidates, Skipped}.

wants_ip6({record, Endpoints}, Carriers) -> [T || {T, {any6, _}} <- Endpoints, lists:member(T, Carriers)] =/= [];
wants_ip6({port, _}, Carriers) -> lists:member(tcp6, Carriers).

%% All there is time for, if there is nothing else.
patience([], Deadline) -> remaining(Deadline);
patience(_, Deadline) -> min(?PATIENCE, remaining(Deadline)).

%% What the node registered, by way of its host's IPv4 addresses; of the others if there are none or nobody answers there.
peer(Name, Host, Deadline) ->
    Epmd = net_kernel:epmd_module(),
    Ip4 = ip4(Host),
    case registered(Epmd, Name, Host, Ip4, Deadline) of
        {error, {Kind, _}} = Error when Kind =/= not_found ->
            case ip6(Host, patience(Ip4, Deadline)) of
                [] -> Error;
                Ip6 -> known(registered(Epmd, Name, Host, Ip6, Deadline), Ip4, Ip6)
            end;
        Found -> known(Found, Ip4, [])
    end.

known({record, Identity, Endpoints}, Ip4, Ip6) ->
    {ok, place(Identity =:= polydist_native:host_identity(), Ip4, Ip6, {record, Endpoints})};
known({port, Port}, Ip4, Ip6) ->
    {ok, place(true, Ip4, Ip6, {port, Port})};
known({port, Port, Ip}, _, _) when tuple_size(Ip) =:= 4 -> % a foreign epmd module may know another address than the resolver does
    {ok, place(true, [Ip], [], {port, Port})};
known({port, Port, Ip}, _, _) ->
    {ok, place(true, [], [Ip], {port, Port})};
known({error, _} = Error, _, _) ->
    Error.

registered(polydist_epmd, Name, Host, Ips, Deadline) ->
    case polydist_epmd:listen_port_please(Name, Host) of
        {ok, 0} when Ips =:= [] -> {error, {nxdomain, polydist_log:text("the host ~ts has no address", [Host])}};
        {ok, 0} ->
            case polydist_epmd:lookup(Name, Ips, remaining(Deadline)) of
                {ok, #{port := Port, extra := Extra}} -> decoded(polydist_native:record_decode(Extra), Port);
                Error -> Error
            end;
        {ok, Port} -> {port, Port}
    end;
registered(Epmd, Name, Host, _, _) ->
    %% The stock protocol between a carrier and its epmd module, for each family.
    foreign(Epmd, Name, Host, [inet, inet6]).

decoded({ok, #{endpoints := Endpoints} = Record}, _Port) ->
    {record, maps:get(host, Record, none),
     [{T, Where} || #{transport := Name, address := Where} <- Endpoints,
                    T <- polydist_carrier:transports(), atom_to_binary(T) =:= Name]};
decoded({error, _}, Port) -> % no record of ours
    {port, Port}.

foreign(_, Name, Host, []) ->
    {error, {not_found, polydist_log:text("~ts is not registered at ~ts", [Name, Host])}};
foreign(Epmd, Name, Host, [Family | Families]) ->
    Found = case erlang:function_exported(Epmd, address_please, 3) of
                true -> Epmd:address_please(Name, Host, Family);
                false -> inet:getaddr(Host, Family)
            end,
    case Found of
        {ok, Ip, Port, _Version} -> {port, Port, Ip};
        {ok, Ip} ->
            case Epmd:port_please(Name, Ip) of
                {port, Port, _Version} -> {port, Port, Ip};
                _ -> foreign(Epmd, Name, Host, Families)
            end;
        _ -> foreign(Epmd, Name, Host, Families)
    end.

ip4(Host) ->
    case inet:parse_strict_address(Host) of
        {ok, Ip} -> [Ip || tuple_size(Ip) =:= 4];
        {error, _} -> getaddrs(Host, inet)
    end.

%% In a process of its own: some resolvers swallow this question, and the answer may be one too many.
ip6(Host, Wait) ->
    case inet:parse_strict_address(Host) of
        {ok, Ip} -> [Ip || tuple_size(Ip) =:= 8];
        {error, _} ->
            Alias = alias(), % an answer that comes too late goes nowhere
            {Pid, Monitor} = spawn_monitor(fun() -> Alias ! {Alias, getaddrs(Host, inet6)} end),
            Ips = receive
                      {Alias, Found} -> Found;
                      {'DOWN', Monitor, process, Pid, _} -> []
                  after Wait -> []
                  end,
            unalias(Alias),
            demonitor(Monitor, [flush]),
            exit(Pid, kill),
            receive {Alias, _} -> ok after 0 -> ok end,
            Ips
    end.

getaddrs(Host, Family) ->
    case inet:getaddrs(Host, Family) of
        {ok, Ips} -> [Ip || Ip <- lists:uniq(Ips), dialable(Ip)];
        {error, _} -> []
    end.

%% Link-local addresses need a scope, which a resolver does not give; mapped ones are IPv4.
dialable({16#fe80, _, _, _, _, _, _, _}) -> false;
dialable({0, 0, 0, 0, 0, 16#ffff, _, _}) -> false;
dialable(_) -> true.

%% Same host: nothing speaks against it, and one of the addresses is ours. What is allowed towards this host only, plain TCP above
%% all, must not go to another because a registration or a resolver says so: of such a peer only addresses of ours count.
place(MayBeHere, Ip4, Ip6, Registered) ->
    Own = own_ips(),
    IsHere = fun(Ip) -> is_loopback(Ip) orelse lists:member(Ip, Own) end,
    case MayBeHere andalso lists:any(IsHere, Ip4 ++ Ip6) of
        true ->
            #{ip4 => lists:filter(IsHere, Ip4), ip6 => lists:filter(IsHere, Ip6), same_host => true,
              registered => registered_here(Registered, IsHere)};
        false -> #{ip4 => Ip4, ip6 => Ip6, same_host => false, registered => Registered}
    end.

registered_here({record, Endpoints}, IsHere) ->
    {record, [Endpoint || {_, Where} = Endpoint <- Endpoints,
                          case Where of
                              {Ip, _} when is_tuple(Ip) -> IsHere(Ip);
                              _ -> true
                          end]};
registered_here({port, _} = Port, _) ->
    Port.

is_loopback({127, _, _, _}) -> true;
is_loopback(Ip) -> Ip =:= ?LOOPBACK6.

own_ips() ->
    case inet:getifaddrs() of
        {ok, Interfaces} -> [Ip || {_, Options} <- Interfaces, {addr, Ip} <- Options];
        {error, _} -> []
    end.

%% @doc The milliseconds until a deadline, at least one.
-spec remaining(Deadline :: integer()) -> pos_integer().
remaining(Deadline) ->
    max(1, Deadline - erlang:monotonic_time(millisecond)).
