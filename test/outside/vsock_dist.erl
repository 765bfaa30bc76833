%%% The carrier for -proto_dist vsock.
-module(vsock_dist).
-include_lib("polydist/include/polydist_carrier.hrl").
