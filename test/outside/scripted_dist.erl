%%% The carrier of scripted_transport.
-module(scripted_dist).
-include_lib("polydist/include/polydist_carrier.hrl").
