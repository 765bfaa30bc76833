%%% What a transport from outside of polydist is: a module X_transport that makes connected stream sockets, for the carrier X_dist.
%%% doc/transports.md says how to write one, with a complete example.
%%%
%%% From a socket on everything is polydist's: the distribution's handshake, the data, registration, policy, ticks and figures.
%%% Whatever these callbacks do - crash, hang, return anything else - costs one connection, or one listener for a while.
-module(polydist_transport).

-export_type([address/0, listening/0, stream/0]).

%% Where a node listens or a peer is; only the transport knows what is in it.
-type address() :: term().

%% A socket that listens, and a connected one, as the transport keeps them.
-type listening() :: term().
-type stream() :: term().

%% Opens a socket that listens. Options is the transport's map in the key `listen', without `name'; Node is this node's name.
%% Runs in a process that lives as long as the listener, and has five seconds.
-callback listen(Options :: map(), Node :: node()) -> {ok, listening(), address()} | {error, Reason :: term()}.

%% Waits until somebody connects. Runs in a process of its own, again and again, and is killed when the listener closes. What is
%% not known of the peer may be any address; it is only shown.
-callback accept(listening()) -> {ok, stream(), Peer :: address()} | {error, Reason :: term()}.

%% Connects, within so many milliseconds. Runs in a process of its own, which is killed when the time is over or another
%% candidate was faster.
-callback connect(address(), Milliseconds :: non_neg_integer()) -> {ok, stream()} | {error, Reason :: term()}.

%% The file descriptor of a stream: a connected socket of type SOCK_STREAM. polydist duplicates it.
-callback fd(stream()) -> {ok, non_neg_integer()} | {error, Reason :: term()}.

%% Closes a listening socket; or a stream, as soon as polydist has duplicated its descriptor or does not want it.
-callback close(listening() | stream()) -> term().

%% An address as 1 to 255 bytes, for the registration.
-callback encode(address()) -> binary().

%% An address that a node registered. The bytes are the peer's word: check them.
-callback decode(binary()) -> {ok, address()} | {error, Reason :: term()}.

%% An address for people; ~0tp without it.
-callback text(address()) -> unicode:chardata().

%% Whether a connection can leave this host; it can without it. What is for one host is not dialled on another one.
-callback reach() -> host | network.

-optional_callbacks([text/1, reach/0]).
