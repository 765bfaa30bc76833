%%% Finds a node: asks the registries side by side, and has the policy say which addresses to dial. Runs in the process of the
%%% connection, or of whoever asks; never in net_kernel.
%%%
%%% The registry `epmd' is asked here: its question depends on the addresses of the peer's host, and the other way round. The others
%%% are modules with the behaviour polydist_registry. Each is asked in a process of its own and has a time limit of its own. Once
%%% one has found the node, the others have GRACE left.
-module(polydist_lookup).

-export([plan/2, plan/3, settings/3, remaining/1]).

-export_type([plan/0, asked/0]).

%% How to reach a node, as far as that is known: the registries that were asked and what they said, then what the policy made of it.
%% There is an error if, and only if, there is no candidate.
-type plan() :: #{registries := [asked()], same_host := boolean(), candidates := [polydist_policy:candidate()],
                  skipped := [polydist_policy:skipped()], error => {Kind :: atom(), Sentence :: binary()}}.

%% One registry's answer, after so many milliseconds.
-type asked() :: #{registry := polydist_registry:name(), time := non_neg_integer(),
                   answer := polydist_policy:registered() | {error, {Kind :: atom(), Sentence :: binary()}}}.

%% What a registry has found, with the addresses that belong to it.
-type source() :: #{registered := polydist_policy:registered(), ip4 := [inet:ip4_address()], ip6 := [inet:ip6_address()],
                    same_host := boolean(), same_machine := boolean(), uds_dirs => [binary()]}.

-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).

%% How long to wait for IPv6 addresses when there are others to dial: a resolver that swallows such questions must not cost
%% the connection.
-define(PATIENCE, 250).

%% How long the other registries still have once one has found the node.
-define(GRACE, 250).

%% @doc How to reach a node. Deadline is in erlang:monotonic_time(millisecond).
-spec plan(node(), Deadline :: integer()) -> plan().
plan(Node, Deadline) ->
    plan(Node, any, Deadline).

%% @doc How to reach a node by these transports alone, in this order, as far as the policy allows them.
-spec plan(node(), any | [polydist_native:transport()], Deadline :: integer()) -> plan().
plan(Node, Choice, Deadline) ->
    case {dist_util:split_node(Node), polydist_listeners:config()} of
        {{node, Name, Host}, {ok, #{policy := Policy, registries := Registries}}} ->
            Names = polydist_policy:registries(Policy, Node),
            case [Each || #{name := Registry} = Each <- Registries, lists:member(Registry, Names)] of
                [] -> failed([], {not_asked, polydist_log:text("the policy asks no registry for ~ts", [Node])});
                Asked ->
                    Query = #{node => Node, name => Name, host => Host},
                    plan(Query, ask(Asked, Query, Deadline), Policy, Choice, Deadline)
            end;
        {{node, _, _}, {error, Sentence}} -> failed([], {not_running, Sentence});
        _ -> failed([], {bad_name, polydist_log:text("~ts is not a node name", [Node])})
    end.

failed(Asked, Error) ->
    #{registries => Asked, same_host => false, candidates => [], skipped => [], error => Error}.

plan(#{node := Node, host := Host}, Answers, Policy, Choice, Deadline) ->
    Asked = [#{registry => Name, time => Time, answer => said(Answer)} || {Name, Time, Answer} <- Answers],
    case [{Name, Source} || {Name, _, {ok, Source}} <- Answers] of
        [] ->
            failed(Asked, error_of(Asked));
        Sources ->
            Carriers = polydist_config:carriers(),
            Judge = fun(Each) -> polydist_policy:candidates(Policy, Carriers, peer_of(Node, Each)) end,
            {Candidates, Skipped} = demoted(Node, judged(Sources, Judge, Host, Carriers, Deadline)),
            chosen(Node, Choice, #{registries => Asked, same_host => lists:any(fun({_, #{same_host := Is}}) -> Is end, Sources),
                                   candidates => Candidates, skipped => Skipped})
    end.

%% Of several, the first registry's is the kind to match on.
error_of([#{answer := {error, Error}}]) ->
    Error;
error_of([#{answer := {error, {Kind, _}}} | _] = Asked) ->
    Sentences = [[atom_to_list(Name), ": ", Sentence] || #{registry := Name, answer := {error, {_, Sentence}}} <- Asked],
    {Kind, polydist_log:text("~ts", [lists:join("; ", Sentences)])}.

said({ok, #{registered := Registered}}) -> Registered;
said({error, _} = Error) -> Error.

peer_of(Node, Sources) ->
    #{node => Node, ip4 => [], ip6 => [], same_host => false, same_machine => false, uds_dirs => polydist_listeners:uds_dirs(),
      registered => [{Name, Registered, maps:remove(registered, Source)}
                     || {Name, #{registered := Registered} = Source} <- Sources]}.

%% Asks them all, each for as long as it may take.
-spec ask([polydist_registry:registry()], map(), Deadline :: integer()) ->
    [{polydist_registry:name(), Time :: non_neg_integer(), {ok, source()} | {error, {atom(), binary()}}}].
ask(Registries, Query, Deadline) ->
    Start = now_ms(),
    Tasks = [{polydist_task:start(fun() -> source(Each, Query, limit(Each, Deadline)) end), Each} || Each <- Registries],
    Answers = gather(Tasks, Start, Deadline, #{}),
    lists:foreach(fun({Task, _}) -> polydist_task:stop(Task) end, Tasks),
    [{Name, Time, Answer} || #{name := Name} <- Registries, #{Name := {Time, Answer}} <- [Answers]].

limit(#{timeout := infinity}, Deadline) -> Deadline;
limit(#{timeout := Timeout}, Deadline) -> min(Deadline, now_ms() + Timeout).

gather([], _, _, Answers) ->
    Answers;
gather(Tasks, Start, Deadline, Answers) ->
    {Soonest, #{name := Late}} = lists:min([{due(Each, Start, Deadline, Answers), Each} || {_, Each} <- Tasks]),
    case polydist_task:await([Task || {Task, _} <- Tasks], max(0, Soonest - now_ms())) of
        {Task, Result} ->
            {value, {_, #{name := Name}}, Rest} = lists:keytake(Task, 1, Tasks),
            gather(Rest, Start, Deadline, Answers#{Name => {now_ms() - Start, result(Name, Result)}});
        timeout ->
            Time = now_ms() - Start,
            Answer = {error, {timeout, polydist_log:text("the registry ~p did not answer within ~p ms", [Late, Time])}},
            gather([Each || {_, #{name := Name}} = Each <- Tasks, Name =/= Late], Start, Deadline, Answers#{Late => {Time, Answer}})
    end.

%% When to wait for a registry no longer.
due(#{timeout := Timeout}, Start, Deadline, Answers) ->
    Own = case Timeout of
              infinity -> Deadline;
              _ -> min(Deadline, Start + Timeout)
          end,
    lists:min([Own | [Start + Time + ?GRACE || {Time, {ok, _}} <- maps:values(Answers)]]).

result(Name, crashed) -> {error, {crashed, polydist_log:text("the registry ~p crashed", [Name])}};
result(_, Result) -> Result.

source(#{name := epmd}, #{name := Name, host := Host}, Limit) ->
    peer(Name, Host, Limit);
source(Registry, #{host := Host} = Query, Limit) ->
    case polydist_registry:lookup(Registry, Query#{timeout => remaining(Limit)}) of
        {ok, Found} ->
            case polydist_registry:answer(Found) of
                {ok, Registered, Facts} -> {ok, source(Registered, Facts, Host, Limit)};
                Error -> Error
            end;
        Error -> Error
    end.

source(Registered, Facts, Host, Limit) ->
    {Ip4, Ip6} = case {Facts, needs_addresses(Registered)} of
                     {#{addresses := Known}, _} -> lists:partition(fun(Ip) -> tuple_size(Ip) =:= 4 end, Known);
                     {_, true} -> {ips(Host, inet, remaining(Limit)), []};
                     {_, false} -> {[Ip || {_, {Ip, _}} <- endpoints_of(Registered), is_tuple(Ip), tuple_size(Ip) =:= 4],
                                    [Ip || {_, {Ip, _}} <- endpoints_of(Registered), is_tuple(Ip), tuple_size(Ip) =:= 8]}
                 end,
    Trusted = maps:get(trusted_paths, Facts, false),
    {SameHost, SameMachine} = same(Facts),
    Source = place(SameHost orelse not is_map_key(host, Facts), Trusted orelse SameMachine, Ip4, Ip6, Registered),
    case Trusted of
        true -> Source#{uds_dirs => [filename:dirname(Path) || {uds, {local, Path}} <- endpoints_of(Registered)]};
        false -> Source
    end.

%% Whether a record is of this host, and of this machine.
same(Record) ->
    SameHost = maps:get(host, Record, none) =:= polydist_native:host_identity(),
    {SameHost, SameHost orelse maps:get(machine, Record, none) =:= polydist_native:machine_identity()}.

needs_addresses({port, _}) -> true;
needs_addresses({record, Endpoints}) -> lists:any(fun({_, {Any, _}}) -> Any =:= any4 orelse Any =:= any6 end, Endpoints).

endpoints_of({record, Endpoints}) -> Endpoints;
endpoints_of({port, _}) -> [].

ips(Host, Family, Wait) ->
    case addresses(Host, Family, Wait) of
        timeout -> [];
        Ips -> Ips
    end.

chosen(Node, any, #{skipped := Skipped} = Plan) ->
    with_error(Node, Skipped, Plan);
chosen(Node, Transports, #{candidates := Candidates, skipped := Skipped} = Plan) ->
    Reasons = [{T, proplists:get_value(T, Skipped, <<"this node does not run it: it is not in -proto_dist">>)}
               || T <- Transports, not lists:member(T, [Each || #{transport := Each} <- Candidates])],
    Others = [{T, <<"another transport was asked for">>}
              || T <- lists:uniq([Each || #{transport := Each} <- Candidates]), not lists:member(T, Transports)],
    with_error(Node, Reasons, Plan#{candidates := [C || T <- Transports, #{transport := Each} = C <- Candidates, Each =:= T],
                                    skipped := Reasons ++ Others}).

with_error(Node, Reasons, #{candidates := []} = Plan) ->
    Sentences = lists:join("; ", [[atom_to_list(T), ": ", Why] || {T, Why} <- Reasons]),
    Plan#{error => {no_candidate, polydist_log:text("no way to ~ts: ~ts", [Node, Sentences])}};
with_error(_, _, Plan) ->
    Plan.

%% What took our connection a moment ago and then did not shake hands goes last: something listens there that is not the node.
demoted(Node, {Candidates, Skipped}) ->
    Suspects = polydist_attempts:suspects(Node),
    {Last, First} = lists:partition(fun(#{transport := T, address := A}) -> lists:member({T, A}, Suspects) end, Candidates),
    {First ++ Last, Skipped}.

%% @doc What the policy says of a connection that a peer opened.
-spec settings(node() | string(), polydist_native:transport(), polydist_native:address()) -> polydist_rule:settings().
settings(Node, Transport, Peer) ->
    Facts = case {Transport, Peer} of
                {_, {local, _}} -> #{ip => none, same_host => true};
                {_, {opaque, _}} -> #{ip => none, same_host => polydist_outside:reach(Transport) =:= host};
                {_, {Ip, _}} -> #{ip => Ip, same_host => is_here(Ip, own_ips())}
            end,
    case polydist_listeners:config() of
        {ok, #{policy := Policy}} -> polydist_policy:settings(Policy, polydist_config:carriers(), Facts#{node => Node});
        {error, _} -> #{rule => <<"none">>, stagger => 0, socket => #{}}
    end.

%% IPv6 addresses are looked up only where they are of use: the VM's resolver has few workers, and unanswered questions hold
%% them all up.
judged(Sources, Judge, Host, Carriers, Deadline) ->
    case {lists:any(fun({_, Source}) -> wants_ip6(Source, Carriers) end, Sources), Judge(Sources)} of
        {true, {Without, _}} ->
            Ip6 = ips(Host, inet6, patience(Without, Deadline)),
            Judge([{Name, case wants_ip6(Source, Carriers) of
                              true -> Source#{ip6 := Ip6};
                              false -> Source
                          end} || {Name, Source} <- Sources]);
        {false, Judged} -> Judged
    end.

%% On this host there is the loopback.
wants_ip6(#{same_host := false, ip6 := [], registered := Registered}, Carriers) -> is_ip6(Registered, Carriers);
wants_ip6(_, _) -> false.

is_ip6({record, Endpoints}, Carriers) -> [T || {T, {any6, _}} <- Endpoints, lists:member(T, Carriers)] =/= [];
is_ip6({port, _}, Carriers) -> lists:member(tcp6, Carriers) orelse lists:member(tls, Carriers).

%% All there is time for, if there is nothing else.
patience([], Deadline) -> remaining(Deadline);
patience(_, Deadline) -> min(?PATIENCE, remaining(Deadline)).

%% What the node registered, by way of its host's IPv4 addresses; of the others as well if those lead to no answer soon.
peer(Name, Host, Deadline) ->
    Epmd = net_kernel:epmd_module(),
    Ask = fun(Ips) -> polydist_task:start(fun() -> registered(Epmd, Name, Host, Ips, Deadline) end) end,
    Ip4 = addresses(Host, inet, remaining(Deadline)),
    Asked = Ask(Ip4),
    Found = case polydist_task:await([Asked], min(?PATIENCE, remaining(Deadline))) of
                {_, Answer} when Ip4 =:= timeout -> known(Answer, [], []);
                {_, {error, {Kind, _}} = Error} when Kind =/= not_found ->
                    other(Ask, ips(Host, inet6, patience(Ip4, Deadline)), Ip4, Error, Deadline);
                {_, Answer} -> known(Answer, Ip4, []);
                timeout -> either(Ask, ips(Host, inet6, patience(Ip4, Deadline)), Ip4, Asked, Deadline)
            end,
    polydist_task:stop(Asked),
    Found.

%% The first answer is an error already.
other(_, [], _, Error, _) ->
    Error;
other(Ask, Ip6, Ip4, _, Deadline) ->
    Asked = Ask(Ip6),
    Found = last_of(Asked, Deadline),
    polydist_task:stop(Asked),
    known(Found, Ip4, Ip6).

%% The first answer is still to come.
either(_, [], Ip4, Asked, Deadline) ->
    known(last_of(Asked, Deadline), Ip4, []);
either(Ask, Ip6, Ip4, Before, Deadline) ->
    Asked = Ask(Ip6),
    Found = case polydist_task:await([Before, Asked], remaining(Deadline)) of
                {Task, {error, {Kind, _}}} when Kind =/= not_found -> last_of(hd([Before, Asked] -- [Task]), Deadline);
                {_, Answer} -> Answer;
                timeout -> no_answer()
            end,
    polydist_task:stop(Asked),
    known(Found, Ip4, Ip6).

last_of(Asked, Deadline) ->
    case polydist_task:await([Asked], remaining(Deadline)) of
        {_, Answer} -> Answer;
        timeout -> no_answer()
    end.

no_answer() ->
    {error, {timeout, <<"EPMD did not answer in time">>}}.

known({record, Record}, Ip4, Ip6) ->
    {SameHost, SameMachine} = same(Record),
    {ok, place(SameHost, SameMachine, Ip4, Ip6, {record, polydist_registry:endpoints(Record)})};
known({port, Port}, Ip4, Ip6) ->
    {ok, place(true, false, Ip4, Ip6, {port, Port})};
known({port, Port, Ip}, _, _) when tuple_size(Ip) =:= 4 -> % a foreign epmd module may know another address than the resolver does
    {ok, place(true, false, [Ip], [], {port, Port})};
known({port, Port, Ip}, _, _) ->
    {ok, place(true, false, [], [Ip], {port, Port})};
known({error, _} = Error, _, _) ->
    Error;
known(crashed, _, _) ->
    {error, {epmd_module, polydist_log:text("the epmd module ~p crashed", [net_kernel:epmd_module()])}}.

registered(polydist_epmd, Name, Host, Ips, Deadline) ->
    case polydist_epmd:listen_port_please(Name, Host) of
        {ok, 0} when Ips =:= timeout ->
            {error, {timeout, polydist_log:text("the address of the host ~ts was not found out in time: does its name server "
                                                "answer?", [Host])}};
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

decoded({ok, Record}, _Port) ->
    {record, Record};
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

addresses(Host, Family, Wait) ->
    case inet:parse_strict_address(Host) of
        {ok, Ip} when tuple_size(Ip) =:= 4, Family =:= inet; tuple_size(Ip) =:= 8, Family =:= inet6 -> [Ip];
        {ok, _} -> [];
        {error, _} ->
            Asked = polydist_task:start(fun() -> getaddrs(Host, Family) end), % some resolvers swallow a question
            Found = polydist_task:await([Asked], Wait),
            polydist_task:stop(Asked),
            case Found of
                {_, crashed} -> [];
                {_, Ips} -> Ips;
                timeout -> timeout
            end
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
place(MayBeHere, SameMachine, Ip4, Ip6, Registered) ->
    Own = own_ips(),
    IsHere = fun(Ip) -> is_here(Ip, Own) end,
    Source = #{same_machine => SameMachine},
    case MayBeHere andalso lists:any(IsHere, Ip4 ++ Ip6) of
        true ->
            Source#{ip4 => lists:filter(IsHere, Ip4), ip6 => lists:filter(IsHere, Ip6), same_host => true,
                  registered => registered_here(Registered, IsHere)};
        false -> Source#{ip4 => Ip4, ip6 => Ip6, same_host => false, registered => Registered}
    end.

is_here({127, _, _, _}, _) -> true;
is_here(?LOOPBACK6, _) -> true;
is_here(Ip, Own) -> lists:member(Ip, Own).

registered_here({record, Endpoints}, IsHere) ->
    {record, [Endpoint || {_, Where} = Endpoint <- Endpoints,
                          case Where of
                              {Ip, _} when is_tuple(Ip) -> IsHere(Ip);
                              _ -> true
                          end]};
registered_here({port, _} = Port, _) ->
    Port.

own_ips() ->
    case inet:getifaddrs() of
        {ok, Interfaces} -> [Ip || {_, Options} <- Interfaces, {addr, Ip} <- Options];
        {error, _} -> []
    end.

%% @doc The milliseconds until a deadline, at least one.
-spec remaining(Deadline :: integer()) -> pos_integer().
remaining(Deadline) ->
    max(1, Deadline - now_ms()).

now_ms() ->
    erlang:monotonic_time(millisecond).
