%%% The TLS configurations of this node: loads them, loads them again when asked to or when their files have changed, and warns
%%% before a certificate ends.
%%%
%%% What is in use is in the table. Connections that are up keep what they were made with; listeners take what is new for the
%%% handshakes that begin then, and who dials reads the table. What cannot be used never replaces what can.
%%%
%%% A certificate and its key are two files, and both may be half written when we look. So a change is taken up when two looks in a
%%% row have seen the same, and it loads; that it does not is said when it still does not at the third attempt, once for each
%%% change.
%%%
%%% The options may hold keys and passwords. They are read from where they are each time, and are kept neither here nor in the
%%% table.
-module(polydist_tls).
-behaviour(gen_server).

%% for the API and the listeners
-export([reload/0, load/0]).

%% for listeners and connections
-export([config/1, server_name/1, is_mutual/0, verify/3]).

%% supervisor and gen_server callbacks
-export([start_link/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type error() :: {error, {Kind :: atom(), Sentence :: binary()}}.

%% `watch': milliseconds between two looks, `none' before there is something to look at. `looked': what the files held at the last
%% look; `settled': what they held when the configuration in use was read. `trouble': what the files hold that cannot be used, why,
%% and how often it was tried.
-type state() :: #{watch := pos_integer() | false | none, looked := polydist_tls_files:prints(),
                   settled := polydist_tls_files:contents() | unsettled,
                   trouble := none | {polydist_tls_files:contents(), Sentence :: binary(), Attempts :: pos_integer()},
                   warned := polydist_expiry:warned()}.

%% Attempts after which a change that cannot be used is told.
-define(PATIENCE, 3).

%% Loads, while the files change meanwhile.
-define(LOADS, 3).

-define(HOUR, 3600000).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Loads the configurations again. With a mistake in them the old ones stay.
-spec reload() -> ok | error().
reload() ->
    case polydist_listeners:config() of
        {error, Sentence} -> {error, {not_running, Sentence}};
        {ok, _} ->
            case gen_server:call(?MODULE, reload, infinity) of
                ok -> polydist_listeners:take_tls();
                {error, Sentence} -> {error, {tls, Sentence}}
            end
    end.

%% @doc For a listener that has no configuration: there may be one by now.
-spec load() -> ok.
load() ->
    try
        gen_server:call(?MODULE, load, infinity)
    catch
        exit:_ -> ok % it is being restarted, which loads, too
    end.

%% @doc The TLS configuration for one side.
-spec config(server | client) -> {ok, polydist_native:tls_config()} | {error, {tls, Sentence :: binary()}}.
config(Role) ->
    case polydist_sup:lookup(tls) of
        {ok, {ok, #{Role := Tls}}} -> {ok, Tls};
        {ok, {error, Sentence}} -> {error, {tls, Sentence}};
        error -> {error, {tls, <<"this node does not run the TLS carrier">>}}
    end.

%% @doc What a peer is taken for that is dialled at Host: that, or what the option server_name_indication says.
-spec server_name(Host :: string()) -> string().
server_name(Host) ->
    maps:get(server_name, in_use(), Host).

%% @doc Whether the TLS options make every peer that connects have a certificate.
-spec is_mutual() -> boolean().
is_mutual() ->
    maps:get(mutual, in_use(), false).

%% @doc What the library leaves to us of checking the peer's certificate, if anything. Host is whom we dialled. In the process of
%% the connection, before anything of the distribution's handshake is sent or answered.
-spec verify(server | client, polydist_native:info(), Host :: string() | undefined) -> ok | {error, {tls, Sentence :: binary()}}.
verify(Role, #{tls := #{chain := Chain, deferred := Deferred}} = Info, Host) ->
    case in_use() of
        #{deferred := #{Role := Check}} -> polydist_tls_verify:verify(Role, Chain, taken_for(Role, Host, Info), Check);
        _ when Deferred ->
            {error, {tls, <<"the TLS options were read anew during the handshake, and this peer's certificate is verified by none "
                            "of them; the next attempt is">>}};
        _ -> ok
    end;
verify(_, _, _) ->
    ok.

taken_for(server, _, #{peer := {Ip, _}}) -> Ip;
taken_for(_, Host, _) -> Host.

-spec init([]) -> {ok, state()}.
init([]) ->
    State = #{watch => none, looked => #{}, settled => unsettled, trouble => none, warned => #{}},
    case {polydist_sup:lookup(tls), lists:member(tls, polydist_config:carriers()), polydist_sup:lookup(native)} of
        {{ok, _}, _, _} -> {ok, wanted(State)}; % after a crash
        {error, true, {ok, ok}} -> {ok, first(wanted(State))};
        _ -> {ok, State}
    end.

wanted(#{watch := none} = State) ->
    case polydist_listeners:config() of
        {ok, #{tls_watch := Watch}} ->
            look_later(Watch),
            _ = erlang:send_after(?HOUR, self(), hour),
            State#{watch := Watch};
        {error, _} -> State % the carriers say so
    end;
wanted(State) ->
    State.

first(#{watch := none} = State) ->
    State;
first(State) ->
    case loaded(State) of
        {ok, Loaded, New} -> used(Loaded, New);
        {error, Sentence} -> unusable(Sentence, State)
    end.

-spec handle_call(reload | load, gen_server:from(), state()) -> {reply, ok | {error, binary()}, state()}.
handle_call(reload, _From, #{watch := none} = State) ->
    {reply, {error, <<"no carrier or listener of this node speaks TLS">>}, State};
handle_call(reload, _From, State) ->
    case valid(loaded(State)) of
        {ok, Loaded, New} -> {reply, ok, taken_up(Loaded, New)};
        {error, Sentence} -> {reply, {error, Sentence}, unusable(Sentence, State)}
    end;
handle_call(load, _From, State) ->
    case is_usable() of
        true -> {reply, ok, State};
        false -> {reply, ok, again(fun(_, Failed) -> Failed end, wanted(State))}
    end.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(look, #{watch := Watch} = State) ->
    look_later(Watch),
    {noreply, look(State)};
handle_info(hour, State) ->
    _ = erlang:send_after(?HOUR, self(), hour),
    {noreply, warn(State)};
handle_info(_, State) ->
    {noreply, State}.

look_later(false) ->
    ok;
look_later(Watch) ->
    _ = erlang:send_after(Watch, self(), look),
    ok.

look(#{looked := Before, settled := Settled} = State) ->
    Looked = polydist_tls_files:look(files(), Before),
    Seen = State#{looked := Looked},
    case {polydist_tls_files:contents(Looked), polydist_tls_files:contents(Before)} of
        {Settled, _} -> mended(Seen);
        {Same, Same} -> again(fun(Sentence, Failed) -> complain(Sentence, Same, Failed) end, Seen);
        _ -> Seen
    end.

%% While there is nothing in use, anything will do that loads; peers tell what they do not like about it.
again(Complain, State) ->
    Result = case is_usable() of
                 true -> valid(loaded(State));
                 false -> loaded(State)
             end,
    case Result of
        {ok, Loaded, New} ->
            Used = taken_up(Loaded, New),
            ok = polydist_listeners:take_tls_soon(),
            Used;
        {error, Sentence} -> Complain(Sentence, unusable(Sentence, State))
    end.

is_usable() ->
    map_size(in_use()) > 0.

files() ->
    maps:get(files, in_use(), []).

-spec in_use() -> polydist_tls_config:loaded() | #{}.
in_use() ->
    case polydist_sup:lookup(tls) of
        {ok, {ok, Loaded}} -> Loaded;
        _ -> #{}
    end.

%% Where nothing is in use a listener says why, and whoever dials.
unusable(Sentence, State) ->
    is_usable() orelse polydist_sup:store(tls, {error, Sentence}),
    State.

complain(Sentence, Contents, #{trouble := {Contents, Sentence, Attempts}} = State) ->
    Attempts + 1 =:= ?PATIENCE andalso is_usable() andalso
        polydist_log:say(warning, "the files of the TLS options have changed and cannot be used; what was read before stays in "
                         "use: ~ts", [Sentence]),
    State#{trouble := {Contents, Sentence, Attempts + 1}};
complain(Sentence, Contents, State) ->
    State#{trouble := {Contents, Sentence, 1}}.

mended(#{trouble := {_, _, Attempts}} = State) ->
    Attempts < ?PATIENCE orelse polydist_log:say(info, "the files of the TLS options are again as they were read"),
    State#{trouble := none};
mended(State) ->
    State.

%% Reads all, until it has read what the files held both before and after it.
loaded(State) ->
    Result = loaded(files(), ?LOADS, State),
    _ = erlang:garbage_collect(), % the keys
    Result.

loaded(Files, Tries, #{looked := Before} = State) ->
    Looked = polydist_tls_files:look(Files, Before),
    Contents = polydist_tls_files:contents(Looked),
    case read() of
        {ok, #{files := Read} = Loaded} ->
            After = polydist_tls_files:look(Read, Looked),
            case polydist_tls_files:contents(After) of
                Contents -> {ok, Loaded, State#{looked := After, settled := Contents}};
                _ when Tries > 1 -> loaded(Read, Tries - 1, State#{looked := After});
                _ -> {ok, Loaded, State#{looked := After, settled := unsettled}}
            end;
        {error, _} = Error -> Error
    end.

%% What a crash would print may hold a key.
read() ->
    try
        polydist_tls_config:load(polydist_config:tls())
    catch
        Class:_:Stack ->
            Where = [{Module, Function} || {Module, Function, _, _} <- Stack],
            {error, polydist_log:text("the TLS options cannot be read: ~p in ~0p", [Class, hd(Where ++ [unknown])])}
    end.

valid({ok, Loaded, _} = Result) ->
    Now = erlang:system_time(second),
    case [{Why, Each} || {Certificate, _} = Each <- certificates(Loaded),
                         Why <- [polydist_expiry:is_valid(Certificate, Now)], Why =/= true] of
        [] -> Result;
        [{late, Each} | _] -> {error, polydist_log:text("~ts ended on ~ts", [name(Each), date(not_after, Each)])};
        [{early, Each} | _] ->
            {error, polydist_log:text("~ts is valid only from ~ts on; is the clock right?", [name(Each), date(not_before, Each)])}
    end;
valid(Error) ->
    Error.

taken_up(Loaded, State) ->
    polydist_log:say(notice, "the TLS options were read anew, for handshakes from now on: ~ts", [text(certificates(Loaded))]),
    used(Loaded, State).

used(#{notices := Notices} = Loaded, State) ->
    _ = [polydist_log:say(notice, Notice) || Notice <- Notices -- maps:get(notices, in_use(), [])],
    polydist_sup:store(tls, {ok, Loaded}),
    warn(State#{trouble := none}).

warn(#{warned := Warned, watch := Watch} = State) ->
    Certificates = certificates(in_use()),
    {Due, Now} = polydist_expiry:check([Each || {Each, _} <- Certificates], erlang:system_time(second), Warned),
    _ = [warn(Kind, lists:keyfind(Each, 1, Certificates), Watch) || {Each, Kind} <- Due],
    State#{warned := Now}.

warn(Kind, Certificate, Watch) ->
    {Level, Says} = case Kind of
                        ends -> {warning, "ends on ~ts"};
                        ended -> {error, "ended on ~ts; peers that verify it refuse this node"}
                    end,
    polydist_log:say(Level, "~ts ~ts; put a new one, with its key, in its place~ts",
                     [name(Certificate), io_lib:format(Says, [date(not_after, Certificate)]),
                      case Watch of
                          false -> " and call polydist:reload_tls()";
                          _ -> ": it is taken up without a restart"
                      end]).

%% Our own, each once, and what names it.
certificates(Loaded) ->
    All = [{Certificate, Role} || Role <- [server, client], #{Role := Tls} <- [Loaded],
                                  Certificate <- polydist_native:tls_certificates(Tls)],
    [{Certificate, place(Role, Loaded)} || {Certificate, Role} <- lists:uniq(fun({Certificate, _}) -> Certificate end, All)].

place(Role, #{named := Named}) ->
    polydist_log:text("the TLS ~p's ~ts", [Role, lists:join(", ", map_get(Role, Named))]).

text([]) -> "there is no certificate";
text(Certificates) -> lists:join("; ", [[name(Each), " ends on ", date(not_after, Each)] || Each <- Certificates]).

name({#{subject := Subject, serial := Serial}, Place}) ->
    polydist_log:text("the certificate of ~ts, number ~ts (~ts),", [Subject, Serial, Place]).

date(Key, {Certificate, _}) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(map_get(Key, Certificate), second),
    io_lib:format("~4..0b-~2..0b-~2..0b ~2..0b:~2..0b:~2..0b UTC", [Year, Month, Day, Hour, Minute, Second]).
