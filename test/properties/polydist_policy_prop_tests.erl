%%% Properties of polydist_policy. What is expected comes from polydist_policy_oracle.
-module(polydist_policy_prop_tests).

-include_lib("proper/include/proper.hrl").

-export([properties_test_/0]).

-import(polydist_properties, [for_all/2, anything/0]).
-import(polydist_policy_gen, [rules/0, certain_rules/0, rule/0, some_rules/0, carriers/0, peer/0, stock_peer/0, node_name/0,
                               ip/0]).

properties_test_() ->
    polydist_properties:tests(?MODULE).

%% Above all: nothing is dialled in a way that the first rule for that very address does not allow.
prop_a_candidate_is_allowed_by_the_first_rule_that_fits_its_address() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) -> never_weaker(Rules, Carriers, Peer) end).

prop_a_stock_port_is_dialled_only_as_its_rule_says_it_speaks() ->
    for_all({rules(), carriers(), stock_peer()}, fun({Rules, Carriers, Peer}) -> never_weaker(Rules, Carriers, Peer) end).

never_weaker(Rules, Carriers, Peer) ->
    {Candidates, _} = candidates(Rules, Carriers, Peer),
    none([C || C <- Candidates, not polydist_policy_oracle:is_allowed(Rules, Carriers, Peer, C)]).

prop_all_that_may_be_dialled_is_dialled_in_the_order_of_the_rules() ->
    for_all({rules(), carriers(), oneof([peer(), stock_peer()])}, fun({Rules, Carriers, Peer}) ->
        {Candidates, _} = candidates(Rules, Carriers, Peer),
        equals(
            [{T, A, R} || {T, A, _, R} <- polydist_policy_oracle:expected(Rules, Carriers, Peer)],
            [{T, A, R} || #{transport := T, address := A, registry := R} <- Candidates]
        )
    end).

prop_the_default_is_two_rules_like_any_other() ->
    for_all({carriers(), oneof([peer(), stock_peer()])}, fun({Carriers, Peer}) ->
        {Candidates, _} = polydist_policy:candidates(polydist_policy:default(Carriers), Carriers, Peer),
        equals(
            [{T, A} || {T, A, _, _} <- polydist_policy_oracle:expected([], Carriers, Peer)],
            [{T, A} || #{transport := T, address := A} <- Candidates]
        )
    end).

prop_every_carrier_has_a_candidate_or_a_reason() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) ->
        {Candidates, Skipped} = candidates(Rules, Carriers, Peer),
        Dialled = [T || #{transport := T} <- Candidates],
        conjunction([
            {all_told, equals([], Carriers -- (Dialled ++ [T || {T, _} <- Skipped]))},
            {told_once, equals([], Skipped -- lists:ukeysort(1, Skipped))},
            {sentences, none([Why || {_, Why} <- Skipped, not is_sentence(Why)])},
            {rules, none([Why || #{why := Why} <- Candidates, not is_sentence(Why)])}
        ])
    end).

prop_the_same_question_has_the_same_answer() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) ->
        Answer = candidates(Rules, Carriers, Peer),
        Again = candidates(polydist_policy:source(compiled(Rules)), Carriers, Peer),
        Elsewhere = elsewhere(fun() -> candidates(Rules, Carriers, Peer) end),
        equals({Answer, Answer}, {Again, Elsewhere})
    end).

%% Whatever a name is like and a record says, there is an answer.
prop_there_is_an_answer_to_every_question() ->
    for_all({rules(), carriers(), peer(), odd_name()}, fun({Rules, Carriers, Peer, Node}) ->
        {Candidates, Skipped} = candidates(Rules, Carriers, Peer#{node := Node}),
        Policy = compiled(Rules),
        is_list(Candidates) andalso is_list(Skipped) andalso is_boolean(polydist_policy:may_connect(Policy, Node)) andalso
            is_list(polydist_policy:registries(Policy, Node)) andalso
            is_map(polydist_policy:settings(Policy, Carriers, #{node => Node, ip => none, same_host => true}))
    end).

prop_a_candidate_has_what_its_rule_says_of_connections() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) ->
        {Candidates, _} = candidates(Rules, Carriers, Peer),
        Facts = fun
            ({local, _}) -> Peer#{ip => none};
            ({Ip, _}) -> Peer#{ip => Ip}
        end,
        equals(
            [polydist_policy_oracle:settings(Rules, Carriers, Facts(A)) || #{address := A} <- Candidates],
            [maps:remove(rule, Settings) || #{settings := Settings} <- Candidates]
        )
    end).

prop_an_accepted_connection_has_what_the_rule_for_its_address_says() ->
    From = oneof([{none, true}, {ip(), boolean()}]),
    for_all({rules(), carriers(), node_name(), From}, fun({Rules, Carriers, Node, {Ip, SameHost}}) ->
        Facts = #{node => Node, ip => Ip, same_host => SameHost},
        Settings = polydist_policy:settings(compiled(Rules), Carriers, Facts),
        conjunction([
            {named, is_sentence(maps:get(rule, Settings))},
            {settings, equals(polydist_policy_oracle:settings(Rules, Carriers, Facts), maps:remove(rule, Settings))}
        ])
    end).

prop_who_is_forbidden_by_name_has_no_candidate() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) ->
        {Candidates, _} = candidates(Rules, Carriers, Peer),
        Candidates =:= [] orelse polydist_policy:may_connect(compiled(Rules), maps:get(node, Peer))
    end).

prop_rules_on_names_are_decided_by_name() ->
    for_all({certain_rules(), node_name()}, fun({Rules, Node}) ->
        Policy = compiled(Rules),
        case polydist_policy_oracle:decide_by_name(Rules, Node) of
            unknown -> polydist_policy:may_connect(Policy, Node);
            Options ->
                equals(
                    {maps:get(transports, Options) =/= [], maps:get(registries, Options, [epmd])},
                    {polydist_policy:may_connect(Policy, Node), polydist_policy:registries(Policy, Node)}
                )
        end
    end).

prop_who_has_a_candidate_is_asked_for_at_its_registry() ->
    for_all({rules(), carriers(), peer()}, fun({Rules, Carriers, Peer}) ->
        {Candidates, _} = candidates(Rules, Carriers, Peer),
        Asked = polydist_policy:registries(compiled(Rules), maps:get(node, Peer)),
        none([R || #{registry := R} <- Candidates, not lists:member(R, Asked)])
    end).

prop_what_is_forbidden_either_way_is_forbidden() ->
    for_all({polydist_policy_gen:match(), carriers(), peer()}, fun({Match, Carriers, Peer}) ->
        {Candidates, _} = candidates([{Match, #{transports => []}}, {{'not', Match}, #{transports => []}}], Carriers, Peer),
        none(Candidates)
    end).

prop_rules_are_kept_as_written() ->
    for_all(rules(), fun(Rules) -> equals(Rules, polydist_policy:source(compiled(Rules))) end).

prop_no_term_crashes_the_check() ->
    for_all(wrong(), fun(Term) ->
        Answer = polydist_policy:compile(Term),
        conjunction([
            {answer, is_answer(Answer)},
            {check_policy, equals(ok_or_sentence(Answer), ok_or_sentence(polydist:check_policy(Term)))}
        ])
    end).

prop_a_wrong_match_is_told_with_the_number_of_its_rule() ->
    for_all({some_rules(), rule(), polydist_policy_gen:wrong_match()}, fun({Rules, {_, Options}, Wrong}) ->
        mistaken(Rules, {Wrong, Options})
    end).

prop_a_wrong_option_is_told_with_the_number_of_its_rule() ->
    for_all({some_rules(), rule(), polydist_policy_gen:wrong_option()}, fun({Rules, {Match, Options}, {Key, Wrong}}) ->
        mistaken(Rules, {Match, Options#{Key => Wrong}})
    end).

prop_a_wrong_rule_is_told_with_its_number() ->
    for_all({some_rules(), polydist_policy_gen:wrong_rule()}, fun({Rules, Wrong}) -> mistaken(Rules, Wrong) end).

mistaken(Rules, Wrong) ->
    refused_as(length(Rules) + 1, polydist_policy:compile(Rules ++ [Wrong | Rules])).

prop_a_rule_that_is_never_reached_is_told_with_its_number() ->
    for_all({some_rules(), rule()}, fun({Rules, Never}) ->
        refused_as(length(Rules) + 2, polydist_policy:compile(Rules ++ [{any, #{transports => [tls]}}, Never]))
    end).

prop_a_pattern_fits_what_it_says() ->
    for_all({polydist_policy_gen:glob(), node_name()}, fun({Glob, Node}) ->
        Allowed = [Glob || #{transport := tcp} <- element(1, candidates(
            [{Glob, #{transports => [tcp]}}, {any, #{transports => []}}],
            [tcp],
            #{node => Node, ip4 => [{192, 0, 2, 1}], ip6 => [], same_host => false, same_machine => false, uds_dirs => [],
              registered => [{epmd, {port, 1}}]}
        ))],
        equals(polydist_policy_oracle:fits_text(Glob, atom_to_list(Node)), Allowed =/= [])
    end).

candidates(Rules, Carriers, Peer) ->
    polydist_policy:candidates(compiled(Rules), Carriers, Peer).

compiled(Rules) ->
    {ok, Policy} = polydist_policy:compile(Rules),
    Policy.

elsewhere(Work) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({done, Work()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {done, Result}} -> Result
    end.

none(List) ->
    equals([], List).

is_sentence(Text) ->
    is_binary(Text) andalso is_list(unicode:characters_to_list(Text)) andalso Text =/= <<>>.

is_answer({ok, Policy}) -> is_list(polydist_policy:source(Policy));
is_answer({error, Sentence}) -> is_sentence(Sentence).

ok_or_sentence({ok, _}) -> ok;
ok_or_sentence({error, {Kind, Sentence}}) when is_atom(Kind) -> {error, Sentence};
ok_or_sentence(Other) -> Other.

refused_as(Number, {error, Sentence}) ->
    Named = lists:flatten(io_lib:format("policy rule ~b", [Number])),
    ?WHENFAIL(
        io:format("~ts~n", [Sentence]),
        is_sentence(Sentence) andalso string:prefix(Sentence, Named) =/= nomatch andalso
            re:run(Sentence, Named ++ "[0-9]") =:= nomatch
    );
refused_as(_, {ok, _}) ->
    false.

wrong() ->
    Match = oneof([polydist_policy_gen:match(), anything()]),
    Options = list({oneof([ticktime, legacy, connect_timeout, stagger, registries, socket, anything()]), anything()}),
    oneof([
        anything(),
        list({anything(), anything()}),
        [?LET({M, T, Os}, {Match, oneof([carriers(), anything()]), Options}, {M, maps:from_list([{transports, T} | Os])})],
        ?LET({Rules, Term, Tail}, {rules(), anything(), oneof([[], anything()])}, [Term | Rules] ++ Tail)
    ]).

odd_name() ->
    oneof([node_name(), 'nonode', '@', 'a@', '@h', 'a@b@c', '']).
