%%% A registry that does what a test tells it to, at boot by its options and later by tell/2.
-module(polydist_scripted_registry).
-behaviour(polydist_registry).

-export([check/1, lookup/2, register/2, unregister/1, names/1, handle/2]).
-export([tell/2, registrations/1]).

-type action() :: hang | crash | {answer, term()} | absent | fun((polydist_registry:query()) -> term()).

%% @doc `key' names it, `lookup' and `registration' are what it does; without them it finds nothing and registers anything.
-spec check(term()) -> {ok, map()} | {error, iodata()}.
check(crash) -> error(scripted);
check({say, Answer}) -> Answer;
check(Options) when is_map(Options) ->
    {ok, maps:merge(#{key => none, lookup => absent, registration => {answer, {ok, state}}}, Options)};
check(_) -> {error, "a scripted registry wants a map"}.

%% @doc What the registry with this key answers from now on. On the node itself.
-spec tell(Key :: atom(), action()) -> ok.
tell(Key, Action) ->
    persistent_term:put({?MODULE, told, Key}, Action).

%% @doc How often the node was registered.
-spec registrations(Key :: atom()) -> non_neg_integer().
registrations(Key) ->
    persistent_term:get({?MODULE, registrations, Key}, 0).

-spec lookup(polydist_registry:query(), map()) -> term().
lookup(Query, #{key := Key, lookup := Action}) ->
    act(persistent_term:get({?MODULE, told, Key}, Action), Query).

-spec register(polydist_registry:registration(), map()) -> term().
register(Registration, #{key := Key, registration := Action}) ->
    persistent_term:put({?MODULE, registrations, Key}, 1 + registrations(Key)),
    act(Action, Registration).

-spec unregister(term()) -> ok.
unregister(_) -> ok.

-spec handle(term(), term()) -> {ok, term()} | {lost, binary()}.
handle(lose, _) -> {lost, <<"it was told to lose the node">>};
handle(_, State) -> {ok, State}.

-spec names(map()) -> {ok, [string()]} | polydist_registry:error().
names(#{lookup := hang}) -> act(hang, names);
names(#{lookup := crash}) -> act(crash, names);
names(_) -> {ok, ["scripted"]}.

act(hang, _) -> receive never -> ok end;
act(crash, _) -> error(scripted);
act({answer, Answer}, _) -> Answer;
act(absent, _) -> {error, {not_found, <<"the test says it is not here">>}};
act(Fun, Question) -> Fun(Question).
