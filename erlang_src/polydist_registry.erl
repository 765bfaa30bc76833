%%% Where nodes are looked up and registered: the behaviour of a registry, and what the configuration says of them.
%%%
%%% The key `registries' lists them, in the order in which their answers are merged:
%%%   epmd                       the EPMD of the peer's host, and of ours to register in; `{epmd, #{port => 4370}}'
%%%   {static, Endpoints}        polydist_registry_static
%%%   dns, {dns, Options}        polydist_registry_dns
%%%   {dir, Path}                polydist_registry_dir
%%%   {Module, Options}          any module with this behaviour
%%%   {Name, Kind, Options}      the same under a name of its own, so that there may be two of a kind:
%%%                              `{site, epmd, #{host => "e"}}'
%%% In a map of options, `timeout' (milliseconds; 2000, for epmd all there is) is how long a lookup may take, and
%%% `register => false' keeps this node out of it.
%%%
%%% A lookup asks all of them side by side, each in a process of its own: a registry may block, crash or lie. Its answer is as
%%% untrusted as a record is.
%%%
%%% A registry that can register has a process of its own (polydist_registrar) in which register/2, update/2, handle/2 and
%%% unregister/1 run.
-module(polydist_registry).

%% for polydist_config
-export([configure/1]).

%% for polydist_lookup
-export([lookup/2, answer/1, endpoints/1]).

-export_type([name/0, registry/0, query/0, found/0, registration/0, error/0]).

-type name() :: atom().
-type error() :: {error, {Kind :: atom(), Sentence :: binary()}}.

%% A registry as it is configured. `own' is the EPMD that this node registers in as stock nodes do.
-type registry() :: #{name := name(), module := module(), options := term(), timeout := pos_integer() | infinity,
                      register := boolean()}.

%% The node looked for, the two parts of its name, and the milliseconds there are.
-type query() :: #{node := node(), name := string(), host := string(), timeout := pos_integer()}.

%% Where a node is. Either its record, as a node registers it, or endpoints, or the one port of a stock node. `addresses' are those
%% of its host, when the registry knows better than a resolver. A Unix socket is dialled only if `trusted_paths' is true (a registry
%% that the user wrote) or the record names this machine.
-type found() :: #{record => binary(), endpoints => [polydist_policy:endpoint()], port => inet:port_number(),
                   addresses => [inet:ip_address()], trusted_paths => boolean()}.

%% What this node registers: its endpoints, and the same as a record of bytes; a port that stock nodes can dial, or 0.
-type registration() :: #{node := string(), name := string(), port := inet:port_number(), endpoints := [map()], record := binary()}.

%% Checks the options as the user wrote them; the other callbacks get what it returns. At boot, before the registry is used.
-callback check(Options :: term()) -> {ok, Checked :: term()} | {error, Why :: iodata()}.

%% Finds a node. In a process that may be killed at any time.
-callback lookup(query(), Options :: term()) -> {ok, found()} | error().

%% Registers this node. The error duplicate_name stops a node that boots; any other one is tried again, later and later.
-callback register(registration(), Options :: term()) -> {ok, State :: term()} | error().

%% The endpoints have changed. Without it, the node is unregistered and registered again.
-callback update(registration(), State :: term()) -> {ok, State :: term()} | error().

%% A message to the registrar's process. `lost': register again.
-callback handle(Message :: term(), State :: term()) -> {ok, State :: term()} | {lost, Sentence :: binary()}.

%% The distribution stops.
-callback unregister(State :: term()) -> ok.

%% The names that are registered, without their host.
-callback names(Options :: term()) -> {ok, [string()]} | error().

-optional_callbacks([check/1, register/2, update/2, handle/2, unregister/1, names/1]).

-define(KINDS, [epmd, static, dns, dir]).
-define(TIMEOUT, 2000).

%% More than these is no answer. Each endpoint may go with each address.
-define(MAX_RECORD, 65535).
-define(MAX_ENDPOINTS, 1000).
-define(MAX_ADDRESSES, 64).

%% @doc The registries as the user wrote them.
-spec configure(term()) -> {ok, [registry()]} | {error, Why :: binary()}.
configure(Specs) ->
    try
        Registries = [registry(Spec) || Spec <- proper(Specs)],
        Names = [Name || #{name := Name} <- Registries],
        case Names -- lists:usort(Names) of
            [] -> {ok, Registries};
            [Twice | _] -> invalid("name ~0p twice; give one a name of its own: {Name, Kind, Options}", [Twice])
        end
    catch
        throw:{invalid, Why} -> {error, <<"registries ", Why/binary>>}
    end.

proper(Specs) ->
    try length(Specs) of
        _ -> Specs
    catch
        error:badarg -> invalid("are ~0tP, but must be a list such as [epmd, {dir, \"/run/app\"}]", [Specs, 30])
    end.

registry(Kind) when is_atom(Kind) -> registry({Kind, #{}});
registry({Kind, Options}) -> registry({Kind, Kind, Options});
registry({epmd, Kind, Options}) when Kind =/= epmd; is_map_key(host, Options) ->
    invalid("have ~0tP under the name epmd, which is for the EPMD of each host: give it a name of its own", [{Kind, Options}, 20]);
registry({Name, Kind, Options}) when is_atom(Name), is_atom(Kind) ->
    Module = module(Kind),
    case code:ensure_loaded(Module) of
        {module, Module} -> ok;
        {error, _} -> invalid("name ~0p; there are epmd, static, dns, dir, and modules that are there (~ts is not)", [Kind, Module])
    end,
    exports(Module, lookup, 2) orelse invalid("name ~0p, but ~ts has no lookup/2: it is no registry", [Kind, Module]),
    {Common, Own} = common(Options),
    checked(Name, maps:merge(#{timeout => timeout(Name), register => exports(Module, register, 2)}, Common), Module, Own);
registry(Other) ->
    invalid("have ~0tP; write epmd, dns, {static, Endpoints}, {dns, Options}, {dir, Path}, {Module, Options} or "
            "{Name, Kind, Options}", [Other, 30]).

%% EPMD has always had all the time there is.
timeout(epmd) -> infinity;
timeout(_) -> ?TIMEOUT.

module(epmd) -> polydist_registry_epmd;
module(static) -> polydist_registry_static;
module(dns) -> polydist_registry_dns;
module(dir) -> polydist_registry_dir;
module(Module) -> Module.

%% What any registry may be told, apart from what is its own.
common(Options) when is_map(Options) ->
    Common = maps:with([timeout, register], Options),
    case Common of
        #{timeout := Timeout} when not is_integer(Timeout); Timeout < 1 ->
            invalid("have timeout => ~0tp, which must be a whole number of milliseconds", [Timeout]);
        #{register := Register} when not is_boolean(Register) ->
            invalid("have register => ~0tp, which must be true or false", [Register]);
        _ -> {Common, maps:without([timeout, register], Options)}
    end;
common(Options) ->
    {#{}, Options}.

checked(Name, Common, Module, Options) ->
    Result = try
                 case exports(Module, check, 1) of
                     true -> Module:check(Options);
                     false -> {ok, Options}
                 end
             catch
                 Class:Reason -> {error, io_lib:format("~ts crashed on its options (~0tP)", [Module, {Class, Reason}, 20])}
             end,
    case Result of
        {ok, Checked} -> Common#{name => Name, module => Module, options => Checked};
        {error, Why} -> invalid("have for ~0p options that are wrong: ~ts", [Name, sentence(Why)]);
        Other -> invalid("name ~0p, but ~ts answered ~0tP to check/1", [Name, Module, Other, 20])
    end.

sentence(Why) ->
    try unicode:characters_to_list(Why) of
        Text when is_list(Text) -> Text;
        _ -> io_lib:format("~0tP", [Why, 20])
    catch
        error:badarg -> io_lib:format("~0tP", [Why, 20])
    end.

exports(Module, Function, Arity) ->
    erlang:function_exported(Module, Function, Arity).

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).

%% @doc Asks one registry. What it does wrong is an error that names it.
-spec lookup(registry(), query()) -> {ok, found()} | error().
lookup(#{name := Name, module := Module, options := Options}, Query) ->
    %% Connections are made at the highest priority. Code that we do not know must not be: it could keep the VM busy.
    _ = lists:member(Module, [module(Kind) || Kind <- ?KINDS]) orelse process_flag(priority, normal),
    try Module:lookup(Query, Options) of
        {ok, Found} -> {ok, Found};
        {error, {Kind, Sentence}} when is_atom(Kind), is_binary(Sentence) -> {error, {Kind, Sentence}};
        Other -> {error, {bad_answer, polydist_log:text("the registry ~p answered ~0tP, which is no answer", [Name, Other, 20])}}
    catch
        Class:Reason -> {error, {crashed, polydist_log:text("the registry ~p crashed: ~0tP", [Name, {Class, Reason}, 20])}}
    end.

%% @doc What is in a registry's answer, once it has been checked.
-spec answer(term()) ->
    {ok, polydist_policy:registered(), #{host => binary(), machine => binary(), addresses => [inet:ip_address()],
                                         trusted_paths => boolean()}}
  | error().
answer(Found) ->
    try
        Facts = maps:map(fun few/2, maps:filter(fun fact/2, maps:with([addresses, trusted_paths], Found))),
        case Found of
            #{record := Record} when byte_size(Record) =< ?MAX_RECORD -> record(Record, maps:get(port, Found, 0), Facts);
            #{endpoints := Endpoints} when length(Endpoints) =< ?MAX_ENDPOINTS ->
                {ok, {record, [Endpoint || Endpoint <- Endpoints, is_endpoint(Endpoint)]}, Facts};
            #{port := Port} when is_integer(Port), Port >= 0, Port =< 65535 -> {ok, {port, Port}, Facts}
        end
    catch
        error:_ -> {error, {bad_answer, polydist_log:text("~0tP says nothing of where the node is", [Found, 20])}}
    end.

%% @doc The endpoints of a record whose transports this version knows.
-spec endpoints(polydist_native:endpoints_record()) -> [polydist_policy:endpoint()].
endpoints(#{endpoints := Endpoints}) ->
    [{T, Where} || #{transport := Name, address := Where} <- Endpoints, T <- polydist_carrier:transports(),
                   atom_to_binary(T) =:= Name].

record(Bytes, Port, Facts) ->
    case polydist_native:record_decode(Bytes) of
        {ok, Record} -> {ok, {record, endpoints(Record)}, maps:merge(Facts, maps:with([host, machine], Record))};
        {error, _} = Error ->
            case is_port_number(Port) andalso Port > 0 of
                true -> {ok, {port, Port}, Facts}; % no record of ours
                false -> Error
            end
    end.

fact(addresses, Addresses) -> lists:all(fun inet:is_ip_address/1, Addresses);
fact(trusted_paths, Trusted) -> is_boolean(Trusted).

few(addresses, Addresses) -> lists:sublist(Addresses, ?MAX_ADDRESSES);
few(_, Fact) -> Fact.

is_endpoint({Transport, Where}) ->
    lists:member(Transport, polydist_carrier:transports()) andalso is_where(Where);
is_endpoint(_) ->
    false.

is_where({local, Path}) -> is_binary(Path);
is_where({opaque, Bytes}) -> is_binary(Bytes);
is_where({Any, Port}) when Any =:= any4; Any =:= any6 -> is_port_number(Port);
is_where({Ip, Port}) -> inet:is_ip_address(Ip) andalso is_port_number(Port);
is_where(_) -> false.

is_port_number(Port) -> is_integer(Port) andalso Port >= 0 andalso Port =< 65535.
