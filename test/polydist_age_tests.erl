-module(polydist_age_tests).

-include_lib("eunit/include/eunit.hrl").

-define(AGE, 100000).

dues(Direction) ->
    [polydist_age:due(self(), #{direction => Direction, since => Since, settings => #{max_age => ?AGE}}) - Since
     || Since <- lists:seq(1, 3000)].

who_dialled_renews_before_the_end_and_the_other_after_it_test() ->
    [?assert(Due >= ?AGE * 0.8 andalso Due < ?AGE) || Due <- dues(out)],
    [?assert(Due >= ?AGE * 1.05 andalso Due < ?AGE * 1.2) || Due <- dues(in)].

connections_of_one_age_are_not_renewed_together_test() ->
    [?assert(length(lists:usort(dues(Direction))) > 2000) || Direction <- [in, out]].

the_moment_of_a_connection_stays_the_same_test() ->
    ?assertEqual(dues(out), dues(out)).
