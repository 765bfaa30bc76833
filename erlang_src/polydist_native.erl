%%% The native library: NIF stubs, loading it, and waiting for its answers.
%%%
%%% A NIF parses, queues and returns; nothing here blocks. Calls that take a `Ref' (made by the caller) answer later with
%%% exactly one message `{polydist, Ref, Answer}' to the calling process; await/2 receives it. Errors are always
%%% `{error, {Kind, Sentence}}': match on the atom Kind, show the Sentence.
%%%
%%% The library is not loaded by `-on_load': in an embedded release of OTP 25 that runs only after the distribution has started.
-module(polydist_native).

%% Loading
-export([load/0, load_driver/0, await/2]).

%% Listening, dialling and the handshake's frames
-export([abi/0, host_identity/0, machine_identity/0, listen/3, accept/1, set_listener_options/2,
         listener_info/1, close_listener/1, dial/4, controlling_process/2, send/2, recv/2, detach/2, close/1, stats/1,
         getstat/1]).

%% TLS
-export([tls_config/2, tls_certificates/1, certificate_is_for/2, set_listener_tls/2]).

%% Transports whose sockets are made outside the library
-export([outside_listen/3, outside_feed/4, outside_dial/5]).

%% EPMD, the registration record, logging
-export([epmd_register/3, epmd_unregister/1, epmd_lookup/4, epmd_names/3, record_encode/1, record_decode/1, log_to/2]).

%% A directory as a registry
-export([dir_claim/3, dir_update/2, dir_release/1, dir_read/2, dir_nodes/1]).

-export_type([transport/0, address/0, listener/0, conn/0, tls_config/0, tls_options/0, tls_contents/0, tls_facts/0,
              certificate/0, registration/0, error/0, info/0, socket_options/0, endpoints_record/0, where/0, stats/0, dir_entry/0]).

-nifs([abi/0, host_identity/0, machine_identity/0, tls_config/2, tls_certificates/1, certificate_is_for/2,
       set_listener_tls/2, listen/3, accept/1, set_listener_options/2,
       listener_info/1, close_listener/1, dial/4, controlling_process/2, send/2, recv/2, detach/2, close/1, stats/1,
       getstat/1, outside_listen/3, outside_feed/4, outside_dial/5,
       epmd_register/3, epmd_unregister/1, epmd_lookup/4, epmd_names/3, record_encode/1, record_decode/1, log_to/2,
       dir_claim/3, dir_update/2, dir_release/1, dir_read/2, dir_nodes/1]).

-define(ABI, 4).
-define(DRIVER, "polydist").
-define(stub, erlang:nif_error(not_loaded)).

-type transport() :: atom().
%% `tcp', `tcp6', `tls', `uds', or the name of one whose sockets are made outside the library.
-type address() :: {inet:ip_address(), inet:port_number()} | {local, Path :: binary()} | {opaque, binary()}.
%% `opaque': what only a transport outside the library understands.
-type listener() :: reference().
-type conn() :: reference().
-type tls_config() :: reference().
-type registration() :: reference().
-type dir_entry() :: reference().
-type error() :: {error, {Kind :: atom(), Sentence :: binary()}}.
-type info() :: #{transport := transport(), peer := address(), local := address(),
                  addresses := #{local := [address()], peer := [address()]} | undefined,
                  tls := tls_info() | undefined,
                  listener => polydist_listeners:id(),
                  credentials := #{uid := integer(), gid := integer(), pid := integer()} | undefined,
                  took := Microseconds :: non_neg_integer()}.
%% `took': from the start of the dial, or from the accept, to a secured stream. The distribution's handshake comes after it.
%% `listener' is the acceptor's addition. `addresses' are all of both ends, where an end can have several.

-type tls_info() :: #{version := 'tlsv1.2' | 'tlsv1.3', cipher := binary(), resumed := boolean(), ktls := boolean(),
                      deferred := boolean(), peer := certificate() | undefined, own := certificate() | undefined,
                      chain := [Der :: binary()]}.
%% `resumed': it goes on with the keys of an earlier session. `ktls': the kernel does the encryption. `own' is the certificate of
%% ours that the peer was shown; `chain' is what it sent, `peer' the first of these. `deferred': the chain was taken on trust.

-type tls_facts() :: #{version := 'tlsv1.2' | 'tlsv1.3', cipher := binary(), resumed := boolean(), ktls := boolean(),
                       peer := certificate() | undefined, own := certificate() | undefined}.
%% What is shown of it.

-type certificate() :: #{subject := binary(), issuer := binary(), serial := Hexadecimal :: binary(), hosts := [binary()],
                         nodes := [binary()], not_before := integer(), not_after := integer()}.
%% The times are system time in seconds; `nodes' are those of URIs `erlang:name@host' in its subjectAltName.

-type tls_contents() :: {pem, binary()} | {der, [binary()]}.
-type tls_options() :: #{identities := [#{cert := tls_contents(), key => tls_contents(), password => binary()}],
                         roots => tls_contents(), verify := verify_peer | verify_none | deferred, check_host := boolean(),
                         fail_if_no_peer_cert := boolean(), depth => non_neg_integer(),
                         crls => #{files := [binary()], check := chain | peer, unknown := deny | allow},
                         versions := ['tlsv1.3' | 'tlsv1.2'], ciphers => [binary()], groups => [binary()],
                         sni := boolean(), ktls := boolean()}.
%% A `key' that is absent is in `cert', the DER of one is PKCS#8, PKCS#1 or SEC1, and of several `identities' the first is shown
%% whose key suits the peer. `deferred': any certificate will do here, as long as the peer has its key, and somebody looks at the
%% chain in info() afterwards. `check_host' and `sni' concern a client, `fail_if_no_peer_cert' a server. `ciphers' and `groups' are
%% names of IANA, the best first; a server follows its client's order.

-type socket_options() :: #{nodelay => boolean(), keepalive => boolean(), sndbuf => pos_integer(),
                            recbuf => pos_integer(), priority => non_neg_integer(), tos => non_neg_integer(),
                            user_timeout => Milliseconds :: non_neg_integer(),
                            sctp => #{heartbeat | path_max_retrans | max_retrans | rto_initial | rto_min
                                      | rto_max => pos_integer()}}.
%% A Unix domain socket ignores what only TCP and IP have: `nodelay', `priority', `tos', `user_timeout' (TCP_USER_TIMEOUT); so
%% does any other socket that is not IP's.

-type where() :: {any4 | any6, inet:port_number()} | {inet:ip_address(), inet:port_number()}
               | {local, binary()} | {opaque, binary()}.
-type endpoints_record() :: #{host => <<_:128>>, machine => <<_:128>>,
                    endpoints => [#{transport := binary(), flags := 0..255, address := where()}]}.
-type stats() :: #{bytes_in | bytes_out | frames_in | frames_out | ticks_in | ticks_out | wire_in | wire_out | queued
                   | queued_max | writes | reads | busy_count | busy_time := non_neg_integer()}.
%% `bytes' are those of frames, without their lengths; `wire' are the bytes that the socket gave and took, with lengths and TLS.
%% `queued' bytes wait for the socket now, `queued_max' is the most that ever did. `ticks_out' are those really sent: none goes
%% while output waits. `busy_count' is how often the VM was held back because too much was queued, `busy_time' how long in all,
%% in microseconds, the spell under way included. Counting begins with the handshake.

%% @doc Loads the NIF. Idempotent; may be called at any time from any process, also before the file server runs.
-spec load() -> ok | {error, Sentence :: binary()}.
load() ->
    try abi() of
        ?ABI -> ok;
        Abi -> {error, wrong_abi(Abi)}
    catch
        error:not_loaded -> load(library())
    end.

load({error, _} = Error) ->
    Error;
load({ok, Library}) ->
    case erlang:load_nif(Library, ?ABI) of
        ok -> check_abi();
        {error, {reload, _}} -> check_abi();
        {error, {_, Text}} ->
            {error, polydist_log:text("~ts.so cannot be loaded (~ts); it was probably built for another machine or another "
                                      "version: run rebar3 compile again (~ts)", [Library, Text, needs()])}
    end.

check_abi() ->
    case abi() of
        ?ABI -> ok;
        Abi -> {error, wrong_abi(Abi)}
    end.

wrong_abi(Abi) ->
    polydist_log:text("the native library of polydist has interface ~0p, these modules want ~0p: run rebar3 compile "
                      "again and restart the node", [Abi, ?ABI]).

%% @doc Loads the driver that carries established connections; it lives in the same library. To be called by a
%% process that outlives them, since the VM unloads what a dead process loaded.
-spec load_driver() -> ok | {error, Sentence :: binary()}.
load_driver() ->
    load_driver(library()).

load_driver({error, _} = Error) ->
    Error;
load_driver({ok, Library}) ->
    case erl_ddll:load(filename:dirname(Library), ?DRIVER) of
        ok -> ok;
        {error, permanent} -> ok; % locked in memory by an earlier start of the distribution
        {error, Reason} ->
            {error, polydist_log:text("the driver in ~ts.so cannot be loaded (~ts): run rebar3 compile again (~ts)",
                                      [Library, erl_ddll:format_error(Reason), needs()])}
    end.

%% The library's path without `.so': in our priv directory, also when the application's folder has another name.
library() ->
    Candidates = [filename:join(Dir, ?DRIVER) || Dir <- priv_dirs()],
    case [Path || Path <- Candidates, is_file(Path ++ ".so")] of
        [Path | _] -> {ok, Path};
        [] -> {error, polydist_log:text("~ts.so is missing: run rebar3 compile (~ts)",
                                        [hd(Candidates ++ ["priv/" ?DRIVER]), needs()])}
    end.

priv_dirs() ->
    Named = case code:priv_dir(polydist) of
                {error, bad_name} -> [];
                Dir -> [Dir]
            end,
    case code:which(?MODULE) of
        Beam when is_list(Beam) -> Named ++ [filename:join(filename:dirname(filename:dirname(Beam)), "priv")];
        _ -> Named
    end.

is_file(Path) ->
    %% Raw: at boot on OTP 25 there is no file server yet.
    case file:read_file_info(Path, [raw]) of
        {ok, _} -> true;
        {error, _} -> false
    end.

needs() ->
    "building it needs Rust 1.91 or newer: https://rustup.rs".

%% @doc Waits for the answer to an asynchronous call. The library bounds every wait itself; the time given here is a second line.
-spec await(Ref :: reference(), timeout()) -> term() | error().
await(Ref, Timeout) ->
    receive
        {polydist, Ref, Answer} -> Answer
    after Timeout ->
        {error, {timeout, <<"no answer in time">>}}
    end.

%% @doc The version of this interface that the library implements.
-spec abi() -> pos_integer().
abi() -> ?stub.

%% @doc Identifies this machine and network namespace, until it reboots.
-spec host_identity() -> <<_:128>>.
host_identity() -> ?stub.

%% @doc Identifies this machine, whatever its network namespaces, until it reboots.
-spec machine_identity() -> <<_:128>>.
machine_identity() -> ?stub.

%% @doc Makes a TLS configuration from what files and options contain.
-spec tls_config(Role :: server | client, tls_options()) -> {ok, tls_config()} | error().
tls_config(_Role, _Options) -> ?stub.

%% @doc Our own certificates in a configuration.
-spec tls_certificates(tls_config()) -> [certificate()].
tls_certificates(_Config) -> ?stub.

%% @doc Whether a certificate is for the node `name@host', or for a host: by a host name or an IP address in its subjectAltName, by
%% its common name only if there is none of these, or by a URI `erlang:name@host' in the subjectAltName.
-spec certificate_is_for(Der :: binary(), Node :: binary()) -> boolean().
certificate_is_for(_Der, _Node) -> ?stub.

%% @doc Opens a listening socket. Options: `ports => {Low, High}', `mode', `backlog', `socket', `tls', `setup_time',
%% `max_pending', `max_pending_of_source', `shared => true' for a port of TCP that serves TLS as well, `allow => [{Ip, Bits}]', or
%% `[Uid]' for a path: anybody else is closed at once and counted as refused; for SCTP `addresses => [Ip]', further ones that the
%% listener has and that its peers are told.
-spec listen(transport(), address(), map()) -> {ok, listener(), Bound :: address()} | error().
listen(_Transport, _Address, _Options) -> ?stub.

%% @doc Makes the caller the acceptor: it gets `{polydist, Listener, {accepted, Conn, Info}}' for each connection, also for
%% those that waited. Of a listener that is closed nothing comes.
-spec accept(listener()) -> ok.
accept(_Listener) -> ?stub.

%% @doc Sets the socket options of connections accepted from now on.
-spec set_listener_options(listener(), socket_options()) -> ok | error().
set_listener_options(_Listener, _Options) -> ?stub.

%% @doc Sets the server's TLS configuration for the handshakes that begin from now on; those under way and connections that are up
%% keep theirs.
-spec set_listener_tls(listener(), tls_config()) -> ok | error().
set_listener_tls(_Listener, _Config) -> ?stub.

%% @doc What a listener has seen so far.
-spec listener_info(listener()) -> #{address := address(), accepted | failed | pending | refused := non_neg_integer(),
                                     last_error := binary() | undefined}.
listener_info(_Listener) -> ?stub.

%% @doc Closes a listening socket; it is closed, and a socket file gone, when this returns. Accepted connections that have not been
%% detached yet are closed, too; the others live on.
-spec close_listener(listener()) -> ok.
close_listener(_Listener) -> ?stub.

%% @doc Connects. Answers `{connected, info()}' or an error. Options: `timeout', `socket', `tls', `server_name'; for SCTP
%% `local => [Ip]', the addresses to have and to tell the peer, instead of all of this host.
-spec dial(transport(), address(), map(), Ref :: reference()) -> {ok, conn()} | error().
dial(_Transport, _Address, _Options, _Ref) -> ?stub.

%% @doc Opens a listener without a socket, for a transport outside the library: outside_feed/4 gives it connections. These go the
%% way of those that listen/3 accepts, and it is closed, asked and told options as a listener with a socket is. Options: `socket',
%% `setup_time', `max_pending', and `backlog', how many connections may wait for a place among the pending ones.
-spec outside_listen(transport(), {opaque, binary()}, map()) -> {ok, listener()} | error().
outside_listen(_Transport, _Address, _Options) -> ?stub.

%% @doc Gives such a listener a connected stream socket that was accepted elsewhere. The socket is duplicated: once this has
%% returned ok, Fd is the caller's to close. Answers `ok' when the connection has got a place among the pending ones, which may
%% take as long as the peers before it, or `{error, {closed, _}}' if the listener closes first; then the duplicate is closed, too.
%% An error now, and no answer, if Fd is not open (`ebadf'), no stream socket (`not_a_stream') or not connected (`enotconn'), if the
%% listener is `closed' or has a socket of its own (`bad_option'), and if as many as its backlog wait already (`eagain').
-spec outside_feed(listener(), Fd :: integer(), Peer :: {opaque, binary()}, Ref :: reference()) -> ok | error().
outside_feed(_Listener, _Fd, _Peer, _Ref) -> ?stub.

%% @doc As dial/4 with a stream socket that is connected already; it is duplicated at once, and Fd is the caller's to close
%% whatever this returns. Answers `{connected, info()}'. Options: `socket'.
-spec outside_dial(transport(), Fd :: integer(), Peer :: {opaque, binary()}, map(), Ref :: reference()) -> {ok, conn()} | error().
outside_dial(_Transport, _Fd, _Peer, _Options, _Ref) -> ?stub.

%% @doc Gives a connection to another process. A connection closes when its owner dies.
-spec controlling_process(conn(), pid()) -> ok | {error, closed}.
controlling_process(_Conn, _Pid) -> ?stub.

%% @doc Queues one frame of the handshake.
-spec send(conn(), iodata()) -> ok | {error, closed}.
send(_Conn, _Frame) -> ?stub.

%% @doc Asks for the next frame of the handshake. Answers `{ok, Frame}' or an error.
-spec recv(conn(), Ref :: reference()) -> ok.
recv(_Conn, _Ref) -> ?stub.

%% @doc Lets the driver take over. Answers `{ok, Token}' once all queued frames are written, or an error.
-spec detach(conn(), Ref :: reference()) -> ok.
detach(_Conn, _Ref) -> ?stub.

%% @doc Closes a connection that has not been detached; to close twice does no harm. Frames that were queued are still
%% written, within a second. A dial under way, with its TLS handshake, is given up at once: its Ref is answered
%% `{error, {closed, _}}', unless `{connected, _}' was sent before, and by then its socket is closed.
-spec close(conn()) -> ok.
close(_Conn) -> ?stub.

%% @doc The counters of a connection, before and after it was detached.
-spec stats(conn()) -> stats().
stats(_Conn) -> ?stub.

%% @doc What dist_util's tick asks for.
-spec getstat(conn()) -> {ok, FramesIn :: non_neg_integer(), FramesOut :: non_neg_integer(), Queued :: non_neg_integer()}.
getstat(_Conn) -> ?stub.

%% @doc Registers in an EPMD. Answers `{registered, Creation}' or an error; later, once, `closed'. Unregisters when the
%% caller dies.
-spec epmd_register(address(), #{name := binary(), port := inet:port_number(), hidden := boolean(), extra := binary()},
                    Ref :: reference()) -> {ok, registration()} | error().
epmd_register(_Epmd, _Node, _Ref) -> ?stub.

%% @doc Ends a registration.
-spec epmd_unregister(registration()) -> ok.
epmd_unregister(_Registration) -> ?stub.

%% @doc Asks each EPMD in turn for a name. Answers `{ok, #{port, extra, ...}}' or an error.
-spec epmd_lookup([address()], Name :: binary(), timeout(), Ref :: reference()) -> ok.
epmd_lookup(_Epmds, _Name, _Timeout, _Ref) -> ?stub.

%% @doc Asks for all names. Answers `{ok, [{Name, Port}]}' or an error.
-spec epmd_names([address()], timeout(), Ref :: reference()) -> ok.
epmd_names(_Epmds, _Timeout, _Ref) -> ?stub.

%% @doc Encodes what a node registers in EPMD's Extra field.
-spec record_encode(endpoints_record()) -> {ok, binary()} | error().
record_encode(_Record) -> ?stub.

%% @doc Decodes what a node registered.
-spec record_decode(binary()) -> {ok, endpoints_record()} | error().
record_decode(_Bytes) -> ?stub.

%% @doc Writes a node's file into a directory. It is there until dir_release/1, or until the term is garbage; when this VM ends
%% in any other way, it is seen to be a dead node's.
-spec dir_claim(Dir :: binary(), Node :: binary(), Record :: binary()) -> {ok, dir_entry()} | error().
dir_claim(_Dir, _Node, _Record) -> ?stub.

%% @doc Writes another record.
-spec dir_update(dir_entry(), Record :: binary()) -> ok | error().
dir_update(_Entry, _Record) -> ?stub.

%% @doc Removes the node's file.
-spec dir_release(dir_entry()) -> ok.
dir_release(_Entry) -> ?stub.

%% @doc The record of a node that lives.
-spec dir_read(Dir :: binary(), Node :: binary()) -> {ok, Record :: binary()} | error().
dir_read(_Dir, _Node) -> ?stub.

%% @doc The nodes that live.
-spec dir_nodes(Dir :: binary()) -> {ok, [Node :: binary()]} | error().
dir_nodes(_Dir) -> ?stub.

%% @doc Sends the library's events at Level or above as `{polydist_log, Level, Message, Fields}'.
-spec log_to(pid(), Level :: atom()) -> ok.
log_to(_Pid, _Level) -> ?stub.
