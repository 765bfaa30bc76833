%%% Configuration: flags over application environment, checked once, errors as sentences.
%%%
%%% Every key is an environment key of the application polydist and a flag, `-polydist Key Term'; a flag wins, and of two the
%%% later. The flags matter: remsh and release scripts start nodes that see no sys.config.
%%%
%%%   policy     [{Match, #{transports => [..]}}]                       see polydist_rule
%%%   listen     #{Transport => #{..} | [#{..}]}                         see polydist_place
%%%   registries [epmd, {dir, Path}, ...]: where nodes are looked up and registered     see polydist_registry
%%%   uds_dirs   [Path]: directories whose sockets are dialled, besides those where we would put ours
%%%   legacy     tcp | tls | tcp6: whose port is registered as the one that stock nodes dial
%%%   tls        the terms of an -ssl_dist_optfile                      see polydist_tls_config
%%%   tls_watch  Seconds | false: how often to look whether the files of the TLS options have changed; 5
%%%   log_level  error | warning | info | debug: of the native library
%%%
%%% The kernel's inet_dist_* parameters, dist_nodelay and net_setuptime keep their meaning; they are read when used, since
%%% net_kernel:setopts/2 changes them.
-module(polydist_config).

%% Our own keys
-export([read/0, parse/2, tls/0, carriers/0]).

%% The kernel's parameters
-export([port_range/0, interface/0, socket_options/1, pick_socket_options/1, sctp_options/0, setup_time/0]).

-export_type([config/0]).

-type config() :: #{policy := polydist_policy:policy(),
                    listen := #{polydist_native:transport() => polydist_place:place() | [polydist_place:place()]},
                    registries := [polydist_registry:registry()],
                    uds_dirs := [binary()],
                    legacy := tcp | tls | tcp6 | undefined,
                    tls_watch := Milliseconds :: pos_integer() | false,
                    log_level := error | warning | info | debug}.

-define(KEYS, [policy, listen, registries, uds_dirs, legacy, tls, tls_watch, log_level]).

-define(WATCH, 5).
-define(SHORTEST_WATCH, 0.05).
-define(LONGEST_WATCH, 86400).

%% @doc The configuration of this node. Works as soon as the code server runs.
-spec read() -> {ok, config()} | {error, Sentence :: binary()}.
read() ->
    %% sys.config's values are there only once the application is loaded; nobody does that before the distribution starts.
    _ = application:load(polydist),
    parse(flags(), application:get_all_env(polydist)).

flags() ->
    case init:get_argument(polydist) of
        {ok, Words} -> Words;
        error -> []
    end.

%% @doc The key `tls' as it is now. It may hold keys and passwords, so it is no part of what read/0 returns, which is kept.
-spec tls() -> term() | undefined.
tls() ->
    maps:get(tls, given(flags(), application:get_all_env(polydist)), undefined).

%% @doc Pure: the words after each `-polydist', and the environment, to a configuration.
-spec parse(Flags :: [[string()]], Environment :: [{atom(), term()}]) -> {ok, config()} | {error, Sentence :: binary()}.
parse(Flags, Environment) ->
    try
        Given = given(Flags, Environment),
        Config = maps:fold(fun(Key, Value, Config) -> Config#{Key := value(Key, Value)} end,
                           #{registries => value(registries, [epmd]), listen => #{}, uds_dirs => [], legacy => undefined,
                             tls_watch => value(tls_watch, ?WATCH), log_level => warning},
                           maps:without([policy, tls], Given)), % polydist_tls_config checks tls: a mistake there stops TLS only
        {ok, Config#{policy => policy(maps:get(policy, Given, []), Config)}}
    catch
        throw:{invalid, Sentence} -> {error, Sentence}
    end.

given(Flags, Environment) ->
    maps:merge(maps:from_list(lists:keydelete(included_applications, 1, Environment)),
               maps:from_list([flag(Words) || Words <- Flags])).

flag([Key | Words]) ->
    case [K || K <- ?KEYS, atom_to_list(K) =:= Key] of
        [Known] -> {Known, term(Known, lists:join(" ", Words))};
        [] -> unknown(Key)
    end;
flag([]) ->
    invalid("the flag -polydist needs a key and a term: -polydist legacy tls", []).

term(Key, Words) ->
    Source = lists:flatten(Words),
    case erl_scan:string(Source ++ " .") of
        {ok, Tokens, _} ->
            case erl_parse:parse_term(Tokens) of
                {ok, Term} -> Term;
                {error, {_, Module, Why}} -> not_a_term(Key, Source, Module:format_error(Why))
            end;
        {error, {_, Module, Why}, _} ->
            not_a_term(Key, Source, Module:format_error(Why))
    end.

-spec not_a_term(atom(), string(), iodata()) -> no_return().
not_a_term(tls, _, _) ->
    %% There may be a password in it.
    invalid("-polydist tls is not followed by an Erlang term; in a shell it wants quotes: -polydist tls 'Term'", []);
not_a_term(Key, Source, Why) ->
    invalid("-polydist ~0p ~ts is not an Erlang term (~ts); in a shell it wants quotes: -polydist ~0p 'Term'",
            [Key, Source, Why, Key]).

%% It names registries.
policy(Rules, #{registries := Registries}) ->
    case polydist_policy:compile(Rules, [Name || #{name := Name} <- Registries]) of
        {ok, Policy} -> Policy;
        {error, Sentence} -> throw({invalid, Sentence})
    end.

value(registries, Value) ->
    case polydist_registry:configure(Value) of
        {ok, Registries} -> Registries;
        {error, Sentence} -> throw({invalid, Sentence})
    end;
value(listen, Value) -> polydist_place:parse(Value);
value(uds_dirs, Value) when is_list(Value) -> [directory(Value, Each) || Each <- proper(Value)];
value(uds_dirs, Value) -> no_directories(Value);
value(legacy, Value) when Value =:= tcp; Value =:= tls; Value =:= tcp6 -> Value;
value(legacy, Value) -> invalid("legacy is ~0p, but must be tcp, tls or tcp6: whose port stock nodes are told", [Value]);
value(tls_watch, false) -> false;
value(tls_watch, Seconds) when is_number(Seconds), Seconds >= ?SHORTEST_WATCH, Seconds =< ?LONGEST_WATCH -> round(Seconds * 1000);
value(tls_watch, Value) ->
    invalid("tls_watch is ~0p, but must be how many seconds lie between two looks at the files of the TLS options, from ~0p to a "
            "day, or false", [Value, ?SHORTEST_WATCH]);
value(log_level, Value) when Value =:= error; Value =:= warning; Value =:= info; Value =:= debug -> Value;
value(log_level, Value) -> invalid("log_level is ~0p, but must be error, warning, info or debug", [Value]);
value(Key, _) -> unknown(Key).

proper(List) ->
    try length(List) of
        _ -> List
    catch
        error:badarg -> no_directories(List)
    end.

directory(All, Path) ->
    case polydist_log:chars(Path) of
        {ok, "/" ++ _ = Dir} -> unicode:characters_to_binary(Dir);
        _ -> no_directories(All)
    end.

-spec no_directories(term()) -> no_return().
no_directories(Value) ->
    invalid("uds_dirs is ~0tp, but must be a list of absolute paths: [\"/run/shared\"]", [Value]).

-spec unknown(term()) -> no_return().
unknown(Key) ->
    invalid("~ts is not a key of polydist; the keys are ~ts",
            [printable(Key), lists:join(", ", [atom_to_list(K) || K <- ?KEYS])]).

printable(Key) when is_list(Key) -> Key;
printable(Key) -> io_lib:format("~0p", [Key]).

-spec invalid(string(), [term()]) -> no_return().
invalid(Format, Args) ->
    throw({invalid, polydist_log:text(Format, Args)}).

%% @doc Our transports and those from outside on this node's command line, in its order.
-spec carriers() -> [polydist_native:transport()].
carriers() ->
    case init:get_argument(proto_dist) of
        {ok, [Names | _]} -> [T || Name <- Names, {ok, T} <- [polydist_carrier:named(Name)]];
        error -> []
    end.

%% @doc The ports that inet_dist_listen_min and _max allow; `{0, 0}' is any.
-spec port_range() -> {inet:port_number(), inet:port_number()}.
port_range() ->
    case {application:get_env(kernel, inet_dist_listen_min), application:get_env(kernel, inet_dist_listen_max)} of
        {{ok, Min}, {ok, Max}} when is_integer(Min), is_integer(Max) -> {Min, Max};
        {{ok, Min}, _} when is_integer(Min) -> {Min, Min};
        _ -> {0, 0}
    end.

%% @doc inet_dist_use_interface.
-spec interface() -> any | inet:ip_address() | {invalid, term()}.
interface() ->
    case application:get_env(kernel, inet_dist_use_interface) of
        undefined -> any;
        {ok, Ip} ->
            case inet:is_ip_address(Ip) of
                true -> Ip;
                false -> {invalid, Ip}
            end
    end.

%% @doc The socket options from inet_dist_listen_options or inet_dist_connect_options and dist_nodelay, and those we do not know.
-spec socket_options(listen | connect) -> {Known :: map(), Ignored :: [term()]}.
socket_options(Direction) ->
    Parameter = case Direction of
                    listen -> inet_dist_listen_options;
                    connect -> inet_dist_connect_options
                end,
    {Known, Ignored} = pick_socket_options(application:get_env(kernel, Parameter, [])),
    Nodelay = case application:get_env(kernel, dist_nodelay) of
                  {ok, false} -> false;
                  {ok, _} -> true;
                  undefined -> maps:get(nodelay, Known, true)
              end,
    {Known#{nodelay => Nodelay}, Ignored}.

%% @doc Sorts a list of socket options as inet takes them into those we can set and the others.
-spec pick_socket_options(term()) -> {Known :: map(), Ignored :: [term()]}.
pick_socket_options([Option | Options]) ->
    {Known, Ignored} = pick_socket_options(Options),
    case socket_option(Option) of
        set -> {maps:merge(maps:from_list([Option]), Known), Ignored}; % of two the later wins
        implied -> {Known, Ignored};
        unknown -> {Known, [Option | Ignored]}
    end;
pick_socket_options([]) ->
    {#{}, []};
pick_socket_options(Other) ->
    {#{}, [Other]}.

socket_option({Name, Value}) when Name =:= nodelay; Name =:= keepalive -> known(is_boolean(Value));
socket_option({Name, Value}) when Name =:= sndbuf; Name =:= recbuf; Name =:= backlog ->
    known(is_number_from(1, Value));
socket_option({Name, Value}) when Name =:= priority; Name =:= tos; Name =:= user_timeout -> known(is_number_from(0, Value));
socket_option({sctp, Options}) when is_map(Options) ->
    known(lists:all(fun sctp_option/1, maps:to_list(Options)) andalso fit(Options));
socket_option({reuseaddr, true}) -> implied; % always done
socket_option(_) -> unknown.

%% @doc What can be said of SCTP's paths, in the order of the driver.
-spec sctp_options() -> [atom()].
sctp_options() ->
    [heartbeat, path_max_retrans, max_retrans, rto_initial, rto_min, rto_max].

sctp_option({Name, Value}) when Name =:= path_max_retrans; Name =:= max_retrans ->
    is_number_from(1, Value) andalso Value =< 16#ffff;
sctp_option({Name, Value}) -> lists:member(Name, sctp_options()) andalso is_number_from(1, Value).

fit(#{rto_min := Min, rto_max := Max}) -> Min =< Max;
fit(_) -> true.

is_number_from(Least, Value) ->
    is_integer(Value) andalso Value >= Least andalso Value =< 16#7fffffff.

known(true) -> set;
known(false) -> unknown.

%% @doc net_setuptime in milliseconds, as net_kernel reads it.
-spec setup_time() -> pos_integer().
setup_time() ->
    case application:get_env(kernel, net_setuptime) of
        {ok, Time} when is_number(Time), Time >= 120 -> 120000;
        {ok, Time} when is_number(Time), Time > 0 -> max(1, round(Time * 1000));
        _ -> 7000
    end.
