%%% Properties of polydist_config: whatever stands in sys.config or on the command line is read or told of.
-module(polydist_config_prop_tests).

-include_lib("proper/include/proper.hrl").

-export([properties_test_/0]).

-import(polydist_properties, [for_all/2, anything/0]).

properties_test_() ->
    polydist_properties:tests(?MODULE).

prop_directories_for_sockets_are_kept_in_order() ->
    for_all(list(directory()), fun(Dirs) ->
        equals({ok, [unicode:characters_to_binary(D) || D <- Dirs]}, dirs([], [{uds_dirs, Dirs}]))
    end).

%% As a shell and init hand it on: cut in words at the blanks.
prop_directories_for_sockets_may_be_a_flag() ->
    for_all(list(directory()), fun(Dirs) ->
        Words = string:lexemes(lists:flatten(io_lib:format("~0tp", [Dirs])), " "),
        equals({ok, [unicode:characters_to_binary(D) || D <- Dirs]}, dirs([["uds_dirs" | Words]], [{uds_dirs, ["/other"]}]))
    end).

prop_one_that_is_no_absolute_path_is_told() ->
    for_all({list(directory()), no_directory(), list(directory())}, fun({Before, Wrong, After}) ->
        refused("uds_dirs", polydist_config:parse([], [{uds_dirs, Before ++ [Wrong | After]}]))
    end).

prop_what_is_no_list_of_directories_is_told() ->
    for_all({list(directory()), tail()}, fun({Dirs, Tail}) ->
        refused("uds_dirs", polydist_config:parse([], [{uds_dirs, Dirs ++ Tail}]))
    end).

prop_no_value_crashes_the_check() ->
    for_all({key(), value()}, fun({Key, Value}) -> is_answer(polydist_config:parse([], [{Key, Value}])) end).

prop_no_flag_crashes_the_check() ->
    for_all(list(list(word())), fun(Flags) -> is_answer(polydist_config:parse(Flags, [])) end).

dirs(Flags, Environment) ->
    case polydist_config:parse(Flags, Environment) of
        {ok, #{uds_dirs := Dirs}} -> {ok, Dirs};
        Error -> Error
    end.

refused(Part, {error, Sentence}) -> is_sentence(Sentence) andalso string:find(Sentence, Part) =/= nomatch;
refused(_, {ok, _}) -> false.

is_answer({ok, Config}) -> is_map(Config);
is_answer({error, Sentence}) -> is_sentence(Sentence).

is_sentence(Text) ->
    is_binary(Text) andalso is_list(unicode:characters_to_list(Text)) andalso Text =/= <<>>.

directory() ->
    ?LET({Chars, IsBinary}, {list(oneof([$a, $b, $-, $., $/, $", 16#e9, 16#153])), boolean()},
         case IsBinary of
             true -> unicode:characters_to_binary([$/ | Chars]);
             false -> [$/ | Chars]
         end).

no_directory() ->
    oneof([
        "", <<>>, "run/polydist", <<"run">>, "./run", 7, undefined, {dir, "/run"}, [["run"]], <<"/run/", 255>>, ["/run", -1],
        #{}, <<1:3>>
    ]).

%% Of a list that does not end as one does, or of something else altogether.
tail() ->
    oneof(["run", <<"/run">>, all, 7, {"/run"}]).

key() ->
    oneof([policy, listen, uds_dirs, legacy, tls, log_level, nothing, '']).

value() ->
    oneof([anything(), ?SIZED(Size, resize(Size div 5, listen()))]).

listen() ->
    ?LET(Places, list({oneof([tcp, tcp6, tls, uds, sctp, anything()]), oneof([anything(), place()])}), maps:from_list(Places)).

place() ->
    Option = {oneof([ip, port, ports, dir, mode, anything()]), oneof([anything(), "::1", {0, 9}])},
    ?LET(Options, list(Option), maps:from_list(Options)).

word() ->
    oneof([
        "policy", "listen", "uds_dirs", "legacy", "tls", "log_level", "[", "]", "#{", "}", "{", ",", "\"/run", "\"", "any", "=>",
        "1", "16#", "'", "$", "", [16#153], string()
    ]).
