%%% The carrier for -proto_dist abstract.
-module(abstract_dist).
-include_lib("polydist/include/polydist_carrier.hrl").
