%%% Connections made on purpose: polydist:connect/2 and reconnect/2.
%%%
%%% net_kernel takes no options for a connection. So a process of ours, the keeper, dials first, by a plan that is what the policy
%%% allows, perhaps less, never more. Once it has a connection net_kernel is told to connect, and the process that it starts
%%% for that finds the keeper in our table and takes the connection over. So nothing that is up is ended before there is
%%% something to replace it, and the gap is as short as it can be.
-module(polydist_choice).

%% for polydist
-export([connect/2, reconnect/2]).

%% for polydist_connection
-export([take/1]).

-export_type([options/0, moved/0, error/0]).

-type options() :: #{transports => [polydist_native:transport()]}.
-type moved() :: #{gap := non_neg_integer(), from := polydist_native:transport(), to := polydist_native:transport()}.
-type error() :: {error, {Kind :: atom(), Sentence :: binary()}}.

%% A peer that sends to us at the same time connects by a policy of its own, and may be the first.
-define(TRIES, 10).

%% @doc What somebody on this node has chosen and dialled for a connection to Node. In the process of that connection.
-spec take(node()) -> {taken, polydist_lookup:plan(), polydist_dial:result()} | none.
take(Node) ->
    case polydist_sup:lookup({choice, Node}) of
        {ok, {Keeper, Plan}} ->
            Monitor = monitor(process, Keeper),
            Keeper ! {take, self(), Monitor},
            receive
                {Monitor, Result} ->
                    demonitor(Monitor, [flush]),
                    {taken, Plan, Result};
                {'DOWN', Monitor, process, _, _} -> none % given up, or taken by another
            end;
        error -> none
    end.

%% @doc Connects to Node over one of these transports.
-spec connect(node(), options()) -> {ok, polydist_connections:entry()} | error().
connect(Node, Options) ->
    case {transports(Options), polydist_connections:find(Node)} of
        {{error, _} = Error, _} -> Error;
        {{ok, Transports}, error} -> dialled(Node, Transports, fun() -> made(Node, Transports, net_kernel:connect_node(Node)) end);
        {{ok, Transports}, {ok, _}} -> made(Node, Transports, true)
    end.

%% @doc Replaces the connection to Node by one over one of these transports; by the best one that the policy knows without any.
-spec reconnect(node(), options()) -> {ok, moved()} | error().
reconnect(Node, Options) ->
    case {transports(Options), polydist_connections:find(Node)} of
        {{error, _} = Error, _} -> Error;
        {{ok, _}, error} ->
            {error, {not_connected, polydist_log:text("~ts is not connected over polydist: connect to it first", [Node])}};
        {{ok, Transports}, {ok, #{info := #{transport := From}}}} -> move(Node, Transports, From, ?TRIES)
    end.

move(Node, Transports, From, Tries) ->
    case dialled(Node, Transports, fun() -> swap(Node, Transports, From) end) of
        {error, {other_transport, _}} when Tries > 1 -> move(Node, Transports, From, Tries - 1);
        {error, {other_transport, _}} ->
            Sentence = polydist_log:text("~ts connects to this node by a policy of its own, and its connection comes first each "
                                         "time: call reconnect there, or change the policy there", [Node]),
            {error, {other_transport, Sentence}};
        {lost, Connect, Error} -> again(Node, Connect, Error);
        Result -> Result
    end.

swap(Node, Transports, From) ->
    Connect = connect_as(Node),
    Start = erlang:monotonic_time(),
    _ = erlang:disconnect_node(Node),
    case made(Node, Transports, Connect(Node)) of
        {ok, #{info := #{transport := To}}} ->
            {ok, #{gap => erlang:convert_time_unit(erlang:monotonic_time() - Start, native, microsecond), from => From, to => To}};
        {error, {other_transport, _}} = Error -> Error;
        {error, Error} -> {lost, Connect, Error}
    end.

%% What is hidden stays so.
connect_as(Node) ->
    case lists:member(Node, nodes(hidden)) of
        true -> fun net_kernel:hidden_connect_node/1;
        false -> fun net_kernel:connect_node/1
    end.

transports(Options) when is_map(Options) ->
    Known = polydist_carrier:transports(),
    case Options of
        #{transports := [_ | _] = Transports} when map_size(Options) =:= 1 ->
            case is_list_of(Transports, Known) of
                true -> {ok, Transports};
                false -> bad_option(Options)
            end;
        #{} when map_size(Options) =:= 0 -> {ok, any};
        _ -> bad_option(Options)
    end;
transports(Options) ->
    bad_option(Options).

is_list_of([First | Rest], Known) -> lists:member(First, Known) andalso is_list_of(Rest, Known);
is_list_of(Tail, _) -> Tail =:= [].

bad_option(Options) ->
    Known = lists:join(", ", [atom_to_list(T) || T <- polydist_carrier:transports()]),
    {error, {bad_option, polydist_log:text("the options are ~0tP, but must be #{} or #{transports => [tls, uds]}, some of ~ts",
                                           [Options, 30, Known])}}.

%% Dials, and then does it while the keeper has the connection for who asks.
dialled(Node, Transports, Do) ->
    Deadline = erlang:monotonic_time(millisecond) + polydist_config:setup_time(),
    case polydist_lookup:plan(Node, Transports, Deadline) of
        #{error := Error} = Plan ->
            ok = polydist_attempts:failed(Node, Plan, [], Error),
            {error, Error};
        Plan -> dialled(Node, Plan, keeper(Node, Plan, Deadline), Do)
    end.

dialled(Node, Plan, {Keeper, Monitor}, Do) ->
    receive
        {Keeper, connected} ->
            Result = case leave(Node, Keeper, Plan) of
                         true -> Do();
                         false ->
                             {error, {busy, polydist_log:text("somebody else is connecting to ~ts on purpose; try again", [Node])}}
                     end,
            demonitor(Monitor, [flush]),
            _ = leave_no_more(Node, Keeper),
            exit(Keeper, kill),
            Result;
        {'DOWN', Monitor, process, Keeper, {failed, Attempts}} ->
            Error = polydist_dial:failure(Attempts),
            ok = polydist_attempts:failed(Node, Plan, Attempts, Error),
            {error, Error};
        {'DOWN', Monitor, process, Keeper, Reason} ->
            {error, {ended, polydist_log:text("dialling ~ts was ended: ~0tP", [Node, Reason, 20])}}
    end.

keeper(Node, #{candidates := Candidates}, Deadline) ->
    Caller = self(),
    {node, _, Host} = dist_util:split_node(Node),
    spawn_monitor(fun() ->
        CallerMonitor = monitor(process, Caller),
        case polydist_dial:race(Candidates, Host, Deadline) of
            {ok, _, _, _, _} = Result ->
                Caller ! {self(), connected},
                keep(Result, CallerMonitor);
            {error, Attempts} -> exit({failed, Attempts})
        end
    end).

%% The connection closes with its owner, so whoever takes it must own it first.
keep({ok, Conn, _, _, _} = Result, CallerMonitor) ->
    receive
        {take, Pid, Tag} ->
            _ = polydist_native:controlling_process(Conn, Pid), % if it is closed already, Pid will notice
            Pid ! {Tag, Result},
            ok;
        {'DOWN', CallerMonitor, process, _, _} -> ok
    end.

leave(Node, Keeper, Plan) ->
    polydist_sup:store_new({choice, Node}, {Keeper, Plan}) orelse
        case polydist_sup:lookup({choice, Node}) of
            {ok, {Other, _}} ->
                %% Its caller may have been killed.
                not is_process_alive(Other) andalso leave_no_more(Node, Other) andalso leave(Node, Keeper, Plan);
            error -> leave(Node, Keeper, Plan)
        end.

leave_no_more(Node, Keeper) ->
    case polydist_sup:lookup({choice, Node}) of
        {ok, {Keeper, _}} -> polydist_sup:delete({choice, Node}) =:= ok;
        _ -> true
    end.

made(Node, Transports, true) ->
    case polydist_connections:find(Node) of
        {ok, #{info := #{transport := Transport}} = Entry} ->
            case Transports =:= any orelse lists:member(Transport, Transports) of
                true -> {ok, Entry};
                false ->
                    {error, {other_transport, polydist_log:text("~ts is connected over ~p already; polydist:reconnect/2 moves it",
                                                                [Node, Transport])}}
            end;
        error -> {error, {not_connected, polydist_log:text("~ts is connected, but not over polydist, or no more", [Node])}}
    end;
made(Node, _, Other) ->
    {error, reason(Node, Other)}.

reason(_, ignored) ->
    {not_running, <<"this node is not distributed">>};
reason(Node, false) ->
    case polydist_attempts:last(Node) of
        #{reason := Reason} -> Reason;
        _ -> {failed, polydist_log:text("~ts could not be connected; nodes may be forbidden by net_kernel:allow/1", [Node])}
    end.

%% Nobody asked for the connection to be lost.
again(Node, Connect, {Kind, Sentence}) ->
    Now = case Connect(Node) of
              true ->
                  case polydist_connections:find(Node) of
                      {ok, #{info := #{transport := Transport}}} -> polydist_log:text("it is connected again over ~p", [Transport]);
                      error -> <<"it is connected again">>
                  end;
              _ -> <<"it is no longer connected">>
          end,
    {error, {Kind, <<Sentence/binary, "; ", Now/binary>>}}.
