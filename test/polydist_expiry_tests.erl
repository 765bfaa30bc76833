-module(polydist_expiry_tests).

-include_lib("eunit/include/eunit.hrl").

-define(DAY, 86400).
-define(END, 1000 * ?DAY).

certificate(Serial, Days) ->
    #{subject => <<"CN=a">>, issuer => <<"CN=authority">>, serial => Serial, hosts => [], nodes => [],
        not_before => ?END - Days * ?DAY, not_after => ?END}.

%% The days left at which something is said of a certificate that is looked at every hour, and what.
said(Days) ->
    Certificate = certificate(<<"1">>, Days),
    {Said, _} = lists:foldl(
        fun(Hour, {Said, Warned}) ->
            Now = ?END - Days * ?DAY + Hour * 3600,
            {New, After} = polydist_expiry:check([Certificate], Now, Warned),
            {Said ++ [{(?END - Now) / ?DAY, Kind} || {Each, Kind} <- New, Each =:= Certificate], After}
        end,
        {[], #{}}, lists:seq(0, (Days + 3) * 24)
    ),
    Said.

three_times_before_and_once_after_test() ->
    ?assertEqual([{30.0, ends}, {7.0, ends}, {1.0, ends}, {-1 / 24, ended}], said(365)).

what_is_longer_than_the_certificate_lasts_is_not_said_test_() ->
    [
        ?_assertEqual([{7.0, ends}, {1.0, ends}, {-1 / 24, ended}], said(30)),
        ?_assertEqual([{1.0, ends}, {-1 / 24, ended}], said(7)),
        ?_assertEqual([{-1 / 24, ended}], said(1))
    ].

of_what_was_missed_only_the_last_is_said_test() ->
    Certificate = certificate(<<"1">>, 365),
    {[{Certificate, ends}], Warned} = polydist_expiry:check([Certificate], ?END - 3 * ?DAY, #{}),
    ?assertMatch({[], _}, polydist_expiry:check([Certificate], ?END - 2 * ?DAY, Warned)),
    ?assertMatch({[{Certificate, ended}], _}, polydist_expiry:check([Certificate], ?END + ?DAY, Warned)),
    ?assertMatch({[{Certificate, ended}], _}, polydist_expiry:check([Certificate], ?END + ?DAY, #{})).

each_certificate_has_its_own_warnings_and_a_new_one_none_test() ->
    [Old, New] = [certificate(<<"1">>, 365), (certificate(<<"2">>, 365))#{not_after := ?END + 300 * ?DAY}],
    {[{Old, ends}], Warned} = polydist_expiry:check([Old, New], ?END - ?DAY, #{}),
    {[], None} = polydist_expiry:check([New], ?END - ?DAY, Warned),
    ?assertEqual(#{}, None).

a_clock_that_is_set_back_says_nothing_twice_test() ->
    Certificate = certificate(<<"1">>, 365),
    {[_], Warned} = polydist_expiry:check([Certificate], ?END - ?DAY, #{}),
    {[], Again} = polydist_expiry:check([Certificate], ?END - 20 * ?DAY, Warned),
    ?assertMatch({[], _}, polydist_expiry:check([Certificate], ?END - ?DAY, Again)).

a_certificate_is_valid_between_its_dates_test_() ->
    Certificate = certificate(<<"1">>, 10),
    [
        ?_assertEqual(Valid, polydist_expiry:is_valid(Certificate, ?END + Days * ?DAY))
     || {Days, Valid} <- [{-11, early}, {-10, true}, {0, true}, {1, late}]
    ].
