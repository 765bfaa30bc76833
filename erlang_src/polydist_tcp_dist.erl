%%% Distribution over TCP over IPv4: `erl -proto_dist polydist_tcp -epmd_module polydist_epmd -sname a'.
%%% What each callback does is said in polydist_carrier.
-module(polydist_tcp_dist).
-include("polydist_carrier.hrl").
