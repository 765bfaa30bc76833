%%% How long to wait before what has failed is tried again. With jitter, so that nodes that were started together do not all try
%%% together.
-module(polydist_backoff).

-export([wait/3]).

%% @doc The milliseconds until the next attempt after so many that failed: First after one, twice as long after each further one,
%% but no more than Most; a fifth more or less of that.
-spec wait(First :: pos_integer(), Most :: pos_integer(), Failed :: pos_integer()) -> pos_integer().
wait(First, Most, Failed) ->
    min(Most, First bsl min(Failed - 1, 10)) * (80 + rand:uniform(40)) div 100.
