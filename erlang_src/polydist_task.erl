%%% Work that may take longer than one wants to wait for: a question to a resolver or to EPMD. It runs in a process of its own,
%%% which is killed when nobody waits any more; an answer that comes too late goes nowhere.
-module(polydist_task).

-export([start/1, await/2, stop/1]).

-export_type([task/1]).

-type task(_Result) :: {alias(), pid(), Monitor :: reference()}.
-type alias() :: reference().

%% @doc Starts the work, at the caller's priority. It ends with the caller.
-spec start(fun(() -> Result)) -> task(Result).
start(Work) ->
    Caller = self(),
    Alias = alias(),
    {priority, Priority} = process_info(Caller, priority),
    {Pid, Monitor} = spawn_opt(fun() -> Alias ! {Alias, Work()} end, [monitor, {priority, Priority}]),
    %% No link: what the work does to itself must not reach the caller.
    _ = spawn(fun() -> end_with(Caller, Pid) end),
    {Alias, Pid, Monitor}.

end_with(Caller, Pid) ->
    OfCaller = monitor(process, Caller),
    OfWork = monitor(process, Pid),
    receive
        {'DOWN', OfCaller, process, _, _} -> exit(Pid, kill);
        {'DOWN', OfWork, process, _, _} -> true
    end.

%% @doc The result of the first of some tasks to have one, and which that is. A task that crashed has the result `crashed'. The
%% tasks are not stopped.
-spec await([task(Result)], timeout()) -> {task(Result), Result | crashed} | timeout.
await(Tasks, Timeout) ->
    Aliases = maps:from_list([{Alias, Task} || {Alias, _, _} = Task <- Tasks]),
    Monitors = maps:from_list([{Monitor, Task} || {_, _, Monitor} = Task <- Tasks]),
    receive
        {Alias, Result} when is_map_key(Alias, Aliases) -> {map_get(Alias, Aliases), Result};
        {'DOWN', Monitor, process, _, _} when is_map_key(Monitor, Monitors) ->
            {Alias, _, _} = Task = map_get(Monitor, Monitors),
            receive {Alias, Result} -> {Task, Result} after 0 -> {Task, crashed} end
    after Timeout -> timeout
    end.

%% @doc Ends a task, and leaves no message of it.
-spec stop(task(_)) -> ok.
stop({Alias, Pid, Monitor}) ->
    _ = unalias(Alias),
    demonitor(Monitor, [flush]),
    exit(Pid, kill),
    receive {Alias, _} -> ok after 0 -> ok end.
