%%% Nodes in DNS. A node `db@db1.example' is looked up by its service records (RFC 2782), in the manner of DNS-SD:
%%%   db._erlang-dist-tls._tcp.db1.example   SRV  0 0 4371 db1.example.       for tls
%%%   db._erlang-dist._tcp.db1.example       SRV  0 0 4370 db1.example.       for tcp and tcp6
%%% and without those by the same names without the node's own, for hosts with one node. Targets are followed to their A and AAAA
%%% records. Answers are kept for as long as their time to live says.
%%%
%%% Options, a map of
%%%   services => [{tls, "_erlang-dist-tls._tcp"}, {tcp, "_erlang-dist._tcp"}]      which there are, by preference
%%%   domain => "nodes.example"          where to look, instead of the node's host
%%%   ports => [{tls, 4370}]             no service records: these ports at the host's addresses, as with a headless service
%%%   nameservers => [{Ip, Port}]        whom to ask, instead of those of inet_res
-module(polydist_registry_dns).
-behaviour(polydist_registry).

-export([check/1, lookup/2]).

-define(SERVICES, [{tls, "_erlang-dist-tls._tcp"}, {tcp, "_erlang-dist._tcp"}]).
-define(MAX_TTL, 86400).
-define(MAX_KEPT, 1000).
-define(MAX_TARGETS, 16).

%% @doc Checks the options.
-spec check(term()) -> {ok, map()} | {error, iodata()}.
check(Options) when is_map(Options) ->
    Known = #{services => ?SERVICES, domain => host, ports => [], nameservers => []},
    Unknown = maps:keys(maps:without(maps:keys(Known), Options)),
    case {Unknown, [Key || {Key, Value} <- maps:to_list(Options), not is_right(Key, Value)]} of
        {[], []} -> {ok, maps:merge(Known, Options)};
        {[First | _], _} -> {error, io_lib:format("~0tp is not known; there are ~0p", [First, maps:keys(Known)])};
        {[], [Wrong | _]} ->
            {error, io_lib:format("~p is ~0tP, but must be like ~ts", [Wrong, maps:get(Wrong, Options), 20, example(Wrong)])}
    end;
check(Other) ->
    {error, io_lib:format("~0tP is no map such as #{domain => \"nodes.example\"}", [Other, 20])}.

example(services) -> "[{tls, \"_erlang-dist-tls._tcp\"}]";
example(domain) -> "\"nodes.example\"";
example(ports) -> "[{tls, 4370}]";
example(nameservers) -> "[{{127, 0, 0, 1}, 53}]".

is_right(services, Services) -> all(Services, fun({T, Service}) -> polydist_carrier:is_inet(T) andalso is_text(Service) end);
is_right(domain, Domain) -> Domain =:= host orelse is_text(Domain);
is_right(ports, Ports) -> all(Ports, fun({T, Port}) -> polydist_carrier:is_inet(T) andalso is_port_number(Port) end);
is_right(nameservers, Servers) -> all(Servers, fun({Ip, Port}) -> inet:is_ip_address(Ip) andalso is_port_number(Port) end);
is_right(_, _) -> true. % said already

all(List, Is) ->
    try
        lists:all(Is, List)
    catch
        error:_ -> false
    end.

is_text([_ | _] = Text) -> lists:all(fun(Char) -> is_integer(Char) andalso Char > 32 andalso Char < 127 end, Text);
is_text(_) -> false.

is_port_number(Port) -> is_integer(Port) andalso Port > 0 andalso Port =< 65535.

%% @doc Asks for the services, or takes the ports, and follows them to addresses.
-spec lookup(polydist_registry:query(), map()) -> {ok, polydist_registry:found()} | polydist_registry:error().
lookup(#{name := Name, host := Host, timeout := Timeout}, #{services := Services, domain := Domain, ports := Ports} = Options) ->
    Ask = Options#{deadline => erlang:monotonic_time(millisecond) + Timeout},
    Where = case Domain of
                host -> Host;
                _ -> Domain
            end,
    Targets = case Ports of
                  [] -> services(Name, Services, Where, Ask);
                  _ -> [{Transport, Where, Port} || {Transport, Port} <- Ports]
              end,
    case {lists:append([endpoints(Target, Ask) || Target <- lists:sublist(Targets, ?MAX_TARGETS)]), Targets} of
        {[], []} -> {error, {not_found, polydist_log:text("there is no service record for ~ts at ~ts", [Name, Where])}};
        {[], [{_, Target, _} | _]} -> {error, {nxdomain, polydist_log:text("~ts has no address in DNS", [Target])}};
        {Endpoints, _} -> {ok, #{endpoints => Endpoints, addresses => lists:uniq([Ip || {_, {Ip, _}} <- Endpoints])}}
    end.

%% The services side by side, first by the node's name.
services(Name, Services, Where, Ask) ->
    case asked([{T, lists:append([Name, ".", Service, ".", Where])} || {T, Service} <- Services], Ask) of
        [] -> asked([{T, lists:append([Service, ".", Where])} || {T, Service} <- Services], Ask);
        Targets -> Targets
    end.

asked(Questions, Ask) ->
    Tasks = [{T, polydist_task:start(fun() -> records(Domain, srv, Ask) end)} || {T, Domain} <- Questions],
    Answers = [{T, polydist_task:await([Task], left(Ask))} || {T, Task} <- Tasks],
    lists:foreach(fun({_, Task}) -> polydist_task:stop(Task) end, Tasks),
    [{T, Target, Port} || {T, {_, Records}} <- Answers, is_list(Records),
                          {_, _, Port, Target} <- lists:sort(fun before/2, Records), Target =/= "."].

before({PriorityA, WeightA, _, _}, {PriorityB, WeightB, _, _}) ->
    {PriorityA, -WeightA} =< {PriorityB, -WeightB}.

endpoints({Transport, Target, Port}, Ask) ->
    case inet:parse_strict_address(Target) of
        {ok, Ip} -> [{T, {Ip, Port}} || T <- carriers(Transport, Ip)];
        {error, _} ->
            Tasks = [polydist_task:start(fun() -> records(Target, Type, Ask) end) || Type <- types(Transport)],
            Answers = [polydist_task:await([Task], left(Ask)) || Task <- Tasks],
            lists:foreach(fun polydist_task:stop/1, Tasks),
            [{T, {Ip, Port}} || {_, Ips} <- Answers, is_list(Ips), Ip <- Ips, T <- carriers(Transport, Ip)]
    end.

types(tcp6) -> [aaaa];
types(_) -> [a, aaaa].

%% What speaks TCP is tcp over IPv4 and tcp6 over IPv6.
carriers(tcp, Ip) when tuple_size(Ip) =:= 8 -> [tcp6];
carriers(tcp6, Ip) when tuple_size(Ip) =:= 4 -> [];
carriers(Transport, _) -> [Transport].

left(#{deadline := Deadline}) ->
    max(0, Deadline - erlang:monotonic_time(millisecond)).

%% The data of a name's records, from our table while they live.
records(Domain, Type, #{nameservers := Servers} = Ask) ->
    Key = {dns, string:lowercase(Domain), Type, Servers},
    Now = erlang:monotonic_time(millisecond),
    case polydist_sup:lookup(Key) of
        {ok, {Until, Records}} when Now < Until -> Records;
        _ ->
            {Records, Ttl} = resolve(Domain, Type, Servers, left(Ask)),
            Ttl > 0 andalso keep(Key, {Now + 1000 * Ttl, Records}, Now),
            Records
    end.

resolve(Domain, Type, Servers, Timeout) ->
    Options = [{timeout, max(1, Timeout)}, {retry, 2}] ++ [{nameservers, Servers} || Servers =/= []],
    case inet_res:resolve(Domain, in, Type, Options) of
        {ok, Message} ->
            %% Its header file is not in every installation.
            Found = [{inet_dns:rr(Answer, data), inet_dns:rr(Answer, ttl)}
                     || Answer <- inet_dns:msg(Message, anlist), inet_dns:rr(Answer, type) =:= Type],
            {[Data || {Data, _} <- Found], lists:min([?MAX_TTL | [Ttl || {_, Ttl} <- Found] ++ [0 || Found =:= []]])};
        {error, _} -> {[], 0}
    end.

keep(Key, Value, Now) ->
    Kept = polydist_sup:match({{dns, '$1', '$2', '$3'}, {'$4', '_'}}),
    lists:foreach(fun([Domain, Type, Servers, Until]) ->
                          Until > Now andalso length(Kept) < ?MAX_KEPT orelse polydist_sup:delete({dns, Domain, Type, Servers})
                  end, Kept),
    polydist_sup:store(Key, Value).
