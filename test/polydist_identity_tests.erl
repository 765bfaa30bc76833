%%% Unit tests of polydist_identity: whose name is in a peer's first message.
-module(polydist_identity_tests).

-include_lib("eunit/include/eunit.hrl").

%% As dist_util writes them (erl_dist_protocol, "Distribution Handshake").
the_name_is_found_in_either_form_of_the_first_message_test_() ->
    [?_assertEqual({ok, <<"a@host">>}, polydist_identity:claimed(Frame)) || Frame <- [
        <<$N, 7:64, 1:32, 6:16, "a@host">>,
        <<$N, 7:64, 1:32, 6:16, "a@host", "later additions">>,
        <<$n, 5:16, 7:32, "a@host">>
    ]].

other_messages_have_none_test_() ->
    [?_assertEqual(none, polydist_identity:claimed(Frame)) || Frame <- [
        <<>>, <<"r", 1:32, 0:128>>, <<"c", 7:32, 1:32>>, <<"sok">>
    ]].

what_would_crash_dist_util_is_told_from_it_test_() ->
    Long = binary:copy(<<"n">>, 256),
    [?_assertEqual(malformed, polydist_identity:claimed(Frame)) || Frame <- [
        <<"N">>, <<$N, 7:64>>, <<$N, 7:64, 1:32, 60:16, "a@host">>, <<$N, 7:64, 1:32, 256:16, Long/binary>>, <<"n">>,
        <<$n, 5:16>>, <<$n, 5:16, 7:32, Long/binary>>
    ]].

bytes_of_a_name_are_characters_test() ->
    ?assertEqual({ok, <<"ä@host"/utf8>>}, polydist_identity:claimed(<<$N, 7:64, 1:32, 6:16, 228, "@host">>)).
