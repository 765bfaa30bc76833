%%% Distribution over SCTP: `erl -proto_dist polydist_sctp -epmd_module polydist_epmd -sname a'.
%%% What each callback does is said in polydist_carrier.
-module(polydist_sctp_dist).
-include("polydist_carrier.hrl").
