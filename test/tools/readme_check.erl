%% Runs in the nodes that README.md starts: evaluates the page's shell sessions and compares the answers.
-module(readme_check).

-export([serve/1]).

%% Prefix.up says that the node is there; each Prefix.ask is answered by a Prefix.answer, the last line of it is ok or failed.
-spec serve([string()]) -> pid().
serve([Prefix]) ->
    spawn(fun() ->
        {name, true} = {name, is_alive()},
        ok = file:write_file(Prefix ++ ".up", []),
        loop(Prefix)
    end).

loop(Prefix) ->
    case file:read_file(Prefix ++ ".ask") of
        {ok, Session} ->
            ok = file:delete(Prefix ++ ".ask"),
            {Text, Verdict} = session(Session),
            ok = file:write_file(Prefix ++ ".part", [Text, atom_to_list(Verdict), $\n]),
            ok = file:rename(Prefix ++ ".part", Prefix ++ ".answer");
        {error, enoent} ->
            timer:sleep(50)
    end,
    loop(Prefix).

session(Session) ->
    Steps = [binary:split(Step, <<"\n">>) || Step <- tl(re:split(Session, "^[0-9]+> ", [multiline]))],
    {Texts, {_, Verdict}} = lists:mapfoldl(fun step/2, {[], ok}, Steps),
    {Texts, Verdict}.

step([Expression, Expected], {Bindings, Verdict}) ->
    {ok, Tokens, _} = erl_scan:string(binary_to_list(Expression)),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    {value, Value, NewBindings} = erl_eval:exprs(Forms, Bindings),
    Got = iolist_to_binary(io_lib:format("~0p", [Value])),
    Same = case string:trim(Expected) of
        Got -> Verdict;
        _ -> failed
    end,
    {[Expression, $\n, Got, $\n], {NewBindings, Same}}.
