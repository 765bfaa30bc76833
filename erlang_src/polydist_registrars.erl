%%% Registers this node in every registry that takes registrations, each on its own: one that fails or hangs keeps the others from
%%% nothing. The EPMD of this host is polydist_epmd's, for net_kernel and net_adm speak to that; every other registry has a
%%% polydist_registrar beneath this supervisor.
-module(polydist_registrars).
-behaviour(supervisor).

%% for polydist_listeners
-export([register/3, update/2]).

%% for polydist_epmd
-export([names/0]).

-export([start_link/0, init/1]).

%% How long a registry may keep a booting node waiting, in milliseconds.
-define(PATIENCE, 5000).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @doc Registers the node, when it boots. Port is the one that stock nodes can dial, or 0. A creation of -1: no EPMD, or not yet. A
%% name that is taken anywhere is an error; a registry that does not answer is tried again later.
-spec register(Name :: string(), inet:port_number(), Endpoints :: [map()]) ->
    {ok, Creation :: integer()} | {error, duplicate_name | term()}.
register(Name, Port, Endpoints) ->
    case in_epmd(fun() -> polydist_epmd:register_endpoints(Name, Port, Endpoints) end, {ok, -1}) of
        {ok, Creation} ->
            Registrars = registrars(),
            Tasks = [polydist_task:start(fun() -> polydist_registrar:register(Each, Name, Port, Endpoints) end)
                     || Each <- Registrars],
            Deadline = now_ms() + ?PATIENCE,
            Taken = [Task || Task <- Tasks, polydist_task:await([Task], left(Deadline)) =:= {Task, {error, duplicate_name}}],
            lists:foreach(fun polydist_task:stop/1, Tasks),
            case Taken of
                [] -> {ok, Creation};
                _ ->
                    lists:foreach(fun polydist_registrar:unregister/1, Registrars),
                    _ = in_epmd(fun polydist_epmd:stop/0, ok),
                    {error, duplicate_name}
            end;
        Error -> Error
    end.

%% @doc The listeners have changed. Returns at once.
-spec update(inet:port_number(), Endpoints :: [map()]) -> ok.
update(Port, Endpoints) ->
    _ = in_epmd(fun() -> polydist_epmd:update_endpoints(Port, Endpoints) end, ok),
    lists:foreach(fun(Each) -> polydist_registrar:update(Each, Port, Endpoints) end, registrars()).

%% @doc The names in the registries that can list them, EPMD aside; as many of them as answer in time.
-spec names() -> [string()].
names() ->
    Tasks = [{polydist_task:start(fun() -> names(Each) end), now_ms() + maps:get(timeout, Each)}
             || #{name := Name} = Each <- configured(), Name =/= epmd],
    Answers = [polydist_task:await([Task], left(Deadline)) || {Task, Deadline} <- Tasks],
    lists:foreach(fun({Task, _}) -> polydist_task:stop(Task) end, Tasks),
    lists:usort(lists:append([Names || {_, {ok, Names}} <- Answers])).

names(#{module := Module, options := Options}) ->
    case erlang:function_exported(Module, names, 1) of
        true ->
            try Module:names(Options) of
                {ok, Names} -> {ok, [Name || Name <- Names, is_list(Name)]};
                _ -> none
            catch
                _:_ -> none
            end;
        false -> none
    end.

left(Deadline) -> max(0, Deadline - now_ms()).

now_ms() -> erlang:monotonic_time(millisecond).

in_epmd(Do, Else) ->
    case lists:any(fun(#{name := Name, register := Register}) -> Name =:= epmd andalso Register end, configured()) of
        true -> Do();
        false -> Else
    end.

configured() ->
    case polydist_listeners:config() of
        {ok, #{registries := Registries}} -> Registries;
        {error, _} -> []
    end.

registrars() ->
    [Name || {Name, _, _, _} <- supervisor:which_children(?MODULE)].

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Children = [#{id => Name, start => {polydist_registrar, start_link, [Each]}, shutdown => 500}
                || #{name := Name, register := true} = Each <- configured(), Name =/= epmd],
    {ok, {#{strategy => one_for_one, intensity => 100, period => 10}, Children}}.
