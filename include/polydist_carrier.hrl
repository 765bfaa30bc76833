%%% The carrier module of a transport, which -proto_dist wants: all of X_dist but its name. polydist_carrier says what each
%%% callback does, doc/transports.md how to write the transport itself.
%%%
%%%   -module(abstract_dist).
%%%   -include_lib("polydist/include/polydist_carrier.hrl").
-behaviour(polydist_carrier).

-export([childspecs/0, listen/2, listen/1, accept/1, accept_connection/5, setup/5, select/1, close/1, address/0, address/1,
         setopts/2, getopts/2, polydist/0]).

-spec polydist() -> polydist_native:transport().
polydist() -> polydist_carrier:transport(?MODULE).

-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() -> polydist_carrier:childspecs(polydist()).

-spec listen(Name :: atom(), Host :: string()) -> polydist_carrier:listening().
listen(Name, Host) -> polydist_carrier:listen(polydist(), Name, Host).

-spec listen(Name :: atom()) -> {error, listen_2_only}.
listen(_Name) -> {error, listen_2_only}.

-spec accept(polydist_carrier:handle()) -> pid().
accept(Handle) -> polydist_carrier:accept(Handle).

-spec accept_connection(pid(), Connection :: term(), node(), Allowed :: list(), timeout()) -> pid().
accept_connection(Acceptor, Connection, MyNode, Allowed, SetupTime) ->
    polydist_carrier:accept_connection(Acceptor, Connection, MyNode, Allowed, SetupTime).

-spec setup(node(), Type :: atom(), node(), shortnames | longnames, timeout()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    polydist_carrier:setup(Node, Type, MyNode, LongOrShortNames, SetupTime).

-spec select(node()) -> boolean().
select(Node) -> polydist_carrier:select(Node).

-spec close(polydist_carrier:handle()) -> ok.
close(Handle) -> polydist_carrier:close(Handle).

-spec address() -> polydist_carrier:net_address().
address() -> address(polydist_carrier:host()).

-spec address(Host :: string()) -> polydist_carrier:net_address().
address(Host) -> polydist_carrier:address(polydist(), Host).

-spec setopts(polydist_carrier:handle(), [term()]) -> ok | {error, term()}.
setopts(Handle, Options) -> polydist_carrier:setopts(Handle, Options).

-spec getopts(polydist_carrier:handle(), [term()]) -> {ok, [term()]} | {error, term()}.
getopts(Handle, Options) -> polydist_carrier:getopts(Handle, Options).
