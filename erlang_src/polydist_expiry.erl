%%% When to warn that a certificate is about to end. Pure.
%%%
%%% A warning is due 30, 7 and 1 day before the end, and at the end; of those that have been missed only the last. What is longer
%%% than the certificate lasts in all is not waited for: one that is made for a day is renewed every day.
-module(polydist_expiry).

-export([check/3, is_valid/2]).

-export_type([warned/0]).

-type warned() :: #{term() => Days :: non_neg_integer()}.

-define(DAY, 86400).
-define(BEFORE, [30, 7, 1]).

%% @doc The certificates of which there is something new to say now, in seconds of system time, and what has been said then.
-spec check([polydist_native:certificate()], Now :: integer(), warned()) ->
    {[{polydist_native:certificate(), ends | ended}], warned()}.
check(Certificates, Now, Warned) ->
    Due = [{id(Each), Days, Each} || Each <- Certificates, Days <- stage(Each, Now)],
    New = [{Certificate, kind(Days)} || {Id, Days, Certificate} <- Due, maps:get(Id, Warned, infinity) > Days],
    {New, maps:from_list([{Id, min(Days, maps:get(Id, Warned, Days))} || {Id, Days, _} <- Due])}.

%% Its issuer gives no number twice.
id(#{issuer := Issuer, serial := Serial}) ->
    {Issuer, Serial}.

stage(#{not_before := From, not_after := To}, Now) ->
    Left = To - Now,
    case [Days || Days <- ?BEFORE, Left =< Days * ?DAY, To - From > Days * ?DAY] of
        _ when Left < 0 -> [0];
        [] -> [];
        Passed -> [lists:min(Passed)]
    end.

kind(0) -> ended;
kind(_) -> ends.

%% @doc Whether peers with a right clock can take a certificate now.
-spec is_valid(polydist_native:certificate(), Now :: integer()) -> true | early | late.
is_valid(#{not_after := To}, Now) when Now > To -> late;
is_valid(#{not_before := From}, Now) when Now < From -> early;
is_valid(_, _) -> true.
