%%% Distribution over TCP over IPv6: `erl -proto_dist polydist_tcp6 -epmd_module polydist_epmd -sname a'.
%%% What each callback does is said in polydist_carrier.
-module(polydist_tcp6_dist).
-include("polydist_carrier.hrl").
