%%% What polydist says: sentences to logger, and the native library's events along with them.
-module(polydist_log).
-behaviour(gen_server).

%% user API
-export([text/2, chars/1, say/2, say/3]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% More events than this waiting for logger: the rest of the flood is counted, not logged.
-define(MAX_WAITING, 500).

%% @doc A sentence: io_lib:format as a binary.
-spec text(io:format(), [term()]) -> binary().
text(Format, Args) ->
    Chars = io_lib:format(Format, Args),
    case unicode:characters_to_binary(Chars) of
        Text when is_binary(Text) -> Text;
        _ -> iolist_to_binary(io_lib:format("~p", [Args])) % a binary among Args was not UTF-8
    end.

%% @doc A string or binary, as a user may write a text, as characters.
-spec chars(term()) -> {ok, string()} | error.
chars(Text) when is_list(Text); is_binary(Text) ->
    try unicode:characters_to_list(Text) of
        Chars when is_list(Chars) -> {ok, Chars};
        _ -> error
    catch
        error:badarg -> error
    end;
chars(_) ->
    error.

%% @doc Logs a sentence.
-spec say(logger:level(), Sentence :: unicode:chardata()) -> ok.
say(Level, Sentence) ->
    %% No domain: logger's default handler drops every event of a domain that is not OTP's.
    logger:log(Level, "polydist: ~ts", [Sentence]).

%% @doc Logs a sentence made by text/2.
-spec say(logger:level(), io:format(), [term()]) -> ok.
say(Level, Format, Args) ->
    say(Level, text(Format, Args)).

%% @doc Starts the process that receives the native library's events.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec init([]) -> {ok, Dropped :: non_neg_integer()}.
init([]) ->
    case polydist_native:load() of
        ok -> ok = polydist_native:log_to(self(), level(polydist_listeners:config()));
        {error, _} -> ok
    end,
    {ok, 0}.

level({ok, #{log_level := Level}}) -> Level;
level({error, _}) -> warning.

-spec handle_call(term(), gen_server:from(), State) -> {reply, ignored, State}.
handle_call(_, _From, Dropped) ->
    {reply, ignored, Dropped}.

-spec handle_cast(term(), State) -> {noreply, State}.
handle_cast(_, Dropped) ->
    {noreply, Dropped}.

-spec handle_info(term(), State) -> {noreply, State}.
handle_info({polydist_log, Level, Message, Fields}, Dropped) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, Waiting} when Waiting > ?MAX_WAITING ->
            {noreply, Dropped + 1};
        _ when Dropped > 0 ->
            say(warning, "~p events of the native library were not logged, they came too fast", [Dropped]),
            event(Level, Message, Fields),
            {noreply, 0};
        _ ->
            event(Level, Message, Fields),
            {noreply, 0}
    end;
handle_info(_, Dropped) ->
    {noreply, Dropped}.

event(Level, Message, Fields) ->
    say(logger_level(Level), [Message | [[", ", Key, " ", Value] || {Key, Value} <- maps:to_list(Fields)]]).

logger_level(error) -> error;
logger_level(info) -> info;
logger_level(Level) when Level =:= debug; Level =:= trace -> debug;
logger_level(_Warn) -> warning.
