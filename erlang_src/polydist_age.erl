%%% Renews connections that are older than the policy's `max_age', one at a time, so that what a connection was made with - a
%%% certificate, an address, a rule - is not in use for ever. It is polydist:reconnect/2 that does it: the peer is dialled first,
%%% so a connection whose peer cannot be reached anew stays, and processes see the node go down and come up.
%%%
%%% A connection's moment is a random one, so that the nodes of a cluster that were started together do not do this together: in the
%%% fifth of its max_age that comes before the end where this node has dialled, and after the end where the peer has. So of two
%%% nodes that have the same max_age it is the one that dialled that renews, and the other one only if that failed.
-module(polydist_age).
-behaviour(gen_server).

%% for polydist_connections
-export([entered/1]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export([due/2]).

%% The one timer, and when it ends; what could not be renewed, how often that was tried, and when it is tried again.
-type state() :: #{timer := none | {reference(), At :: integer()}, failed := #{pid() => {Tries :: pos_integer(), At :: integer()}}}.

%% When what failed is tried again, in milliseconds: at first, and at most.
-define(RETRY, 5000).
-define(RETRY_MAX, 600000).

%% Connections are looked at so often at least: the system's clock may be set.
-define(LONGEST_SLEEP, 3600000).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc There is a new connection in the table, that of Pid.
-spec entered(pid()) -> ok.
entered(Pid) ->
    case polydist_sup:lookup({connection, Pid}) of
        {ok, #{settings := #{max_age := _}} = Entry} -> gen_server:cast(?MODULE, {due, due(Pid, Entry)});
        _ -> ok
    end.

%% @doc When a connection is to be renewed, in erlang:system_time(millisecond).
-spec due(pid(), polydist_connections:entry()) -> integer().
due(Pid, #{since := Since, direction := Direction, settings := #{max_age := Age}}) ->
    Fifth = Age div 5,
    Jitter = erlang:phash2({node(), Pid, Since}, Fifth),
    case Direction of
        out -> Since + Age - Fifth + Jitter;
        in -> Since + Age + Fifth div 4 + Jitter * 3 div 4
    end.

-spec init([]) -> {ok, state()}.
init([]) ->
    {ok, sleep(#{timer => none, failed => #{}})}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ignored, state()}.
handle_call(_, _From, State) ->
    {reply, ignored, State}.

-spec handle_cast({due, At :: integer()}, state()) -> {noreply, state()}.
handle_cast({due, At}, #{timer := {_, Before}} = State) when Before =< At ->
    {noreply, State};
handle_cast({due, At}, State) ->
    {noreply, sleep_until(At, State)}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({timeout, Timer, look}, #{timer := {Timer, _}} = State) ->
    {noreply, sleep(renewed(State#{timer := none}))};
handle_info(_, State) ->
    {noreply, State}.

renewed(#{failed := Failed} = State) ->
    Known = State#{failed := maps:filter(fun(Pid, _) -> is_process_alive(Pid) end, Failed)},
    Now = now_ms(),
    lists:foldl(fun({_, Pid, Entry}, Each) -> renew(Pid, Entry, Each) end, Known,
                lists:sort([Due || {At, _, _} = Due <- agenda(Known), At =< Now])).

%% Those that are renewed one day, and when.
agenda(#{failed := Failed}) ->
    [{case Failed of
          #{Pid := {_, At}} -> At;
          #{} -> due(Pid, Entry)
      end, Pid, Entry} || {Pid, #{settings := #{max_age := _}} = Entry} <- polydist_connections:all()].

sleep(State) ->
    case [At || {At, _, _} <- agenda(State)] of
        [] -> State;
        Ats -> sleep_until(lists:min(Ats), State)
    end.

sleep_until(At, #{timer := {Timer, _}} = State) ->
    _ = erlang:cancel_timer(Timer),
    sleep_until(At, State#{timer := none});
sleep_until(At, State) ->
    State#{timer := {erlang:start_timer(max(0, min(?LONGEST_SLEEP, At - now_ms())), self(), look), At}}.

%% The peer may have renewed it while others were. It ends while this happens, so what is left of it says nothing of the result.
renew(Pid, #{node := Node}, State) ->
    case is_process_alive(Pid) andalso polydist_choice:reconnect(Node, #{}) of
        false -> State;
        {ok, _} -> succeeded(Pid, Node, State);
        {error, {not_connected, _}} -> State; % it ended before
        {error, {Kind, Sentence}} ->
            case is_process_alive(Pid) of
                true -> failed(Pid, Node, Kind, Sentence, State);
                false -> replaced(Node, Sentence, State)
            end
    end.

succeeded(Pid, Node, #{failed := Failed} = State) ->
    not is_map_key(Pid, Failed) orelse
        polydist_log:say(notice, "the connection to ~ts is renewed after ~b attempts that failed", [Node, tries(Pid, Failed)]),
    State#{failed := maps:remove(Pid, Failed)}.

tries(Pid, Failed) ->
    {Tries, _} = map_get(Pid, Failed),
    Tries.

%% Said once.
failed(Pid, Node, Kind, Sentence, #{failed := Failed} = State) ->
    {Before, _} = maps:get(Pid, Failed, {0, never}),
    Before > 0 orelse
        polydist_log:say(warning, "the connection to ~ts is due to be renewed, by the max_age of its policy rule, and cannot be "
                         "(~p: ~ts); it stays, trying on", [Node, Kind, Sentence]),
    Tries = Before + 1,
    State#{failed := Failed#{Pid => {Tries, now_ms() + polydist_backoff:wait(?RETRY, ?RETRY_MAX, Tries)}}}.

replaced(Node, Sentence, State) ->
    polydist_log:say(warning, "the connection to ~ts was ended to be renewed, which failed: ~ts", [Node, Sentence]),
    State.

now_ms() ->
    erlang:system_time(millisecond).
