%%% Distribution over TLS: `erl -proto_dist polydist_tls -epmd_module polydist_epmd -ssl_dist_optfile dist_tls.conf -sname a'.
%%% What each callback does is said in polydist_carrier.
-module(polydist_tls_dist).
-include("polydist_carrier.hrl").
