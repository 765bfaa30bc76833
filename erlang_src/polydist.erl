%%% What a running node tells about its distribution.
-module(polydist).

-export([listeners/0, connections/0, candidates/1]).

-export_type([listener/0, connection/0]).

%% `address' is a list where a carrier listens at several. `reason' is there when it does not listen, or not everywhere it should.
-type listener() :: #{transport := polydist_native:transport(), state := listening | failed,
                      address => polydist_native:address() | [polydist_native:address()], reason => binary(),
                      accepted => non_neg_integer(), failed => non_neg_integer(), pending => non_neg_integer(),
                      last_error => binary()}.

%% `since' is erlang:system_time(millisecond).
-type connection() :: #{node := node(), transport := polydist_native:transport(), direction := in | out,
                        peer := polydist_native:address(), since := integer(),
                        bytes_in := non_neg_integer(), bytes_out := non_neg_integer(),
                        frames_in := non_neg_integer(), frames_out := non_neg_integer(),
                        tls := #{version := atom(), cipher := binary()} | undefined}.

-define(PATIENCE, 5000).

%% @doc One map for each carrier of ours: where it listens, or why it does not, and what it has accepted.
-spec listeners() -> [listener()].
listeners() ->
    [listener(Result) || Result <- polydist_listeners:results()].

listener(#{transport := Transport, state := State, listeners := Listeners} = Result) ->
    Infos = [polydist_native:listener_info(L) || L <- Listeners],
    Sum = fun(Key) -> lists:sum([maps:get(Key, Info) || Info <- Infos]) end,
    maps:from_list(
        [{transport, Transport}, {state, State}]
        ++ case maps:get(addresses, Result) of
               [] -> [];
               [Address] -> [{address, Address}];
               Addresses -> [{address, Addresses}]
           end
        ++ [{reason, Sentence} || #{reason := {_, Sentence}} <- [Result]]
        ++ [{Key, Sum(Key)} || Key <- [accepted, failed, pending], Infos =/= []]
        ++ [{last_error, Error} || #{last_error := Error} <- Infos, Error =/= undefined]).

%% @doc One map for each connection that polydist carries.
-spec connections() -> [connection()].
connections() ->
    [maps:merge(maps:remove(conn, Entry), maps:with([bytes_in, bytes_out, frames_in, frames_out], polydist_native:stats(Conn)))
     || {_, #{conn := Conn} = Entry} <- polydist_connections:all()].

%% @doc How a connection to Node would be made now: the addresses in the order of dialling, and for every other transport why not.
%% Looks Node up, so it may take a while.
-spec candidates(node()) ->
    {ok, [polydist_policy:candidate()], [polydist_policy:skipped()]} | {error, {Kind :: atom(), Sentence :: binary()}}.
candidates(Node) ->
    polydist_lookup:candidates(Node, erlang:monotonic_time(millisecond) + ?PATIENCE).
