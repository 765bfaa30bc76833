%%% Distribution over Unix domain sockets: `erl -proto_dist polydist_uds -epmd_module polydist_epmd -sname a'.
%%% What each callback does is said in polydist_carrier.
-module(polydist_uds_dist).
-include("polydist_carrier.hrl").
