%%% Distribution over vsock (vsock(7)), within one machine: listeners are bound to the CID that leads back to it, and no other
%%% is dialled. The others are the host of a virtual machine, and the virtual machines of a host.
-module(vsock_transport).
-behaviour(polydist_transport).

-export([listen/2, accept/1, connect/2, fd/1, close/1, encode/1, decode/1, text/1, reach/0]).

-export_type([address/0]).

-type address() :: {vsock, Cid :: 1, Port :: 0..16#fffffffe}.

%% From linux/socket.h and linux/vm_sockets.h; OTP has no names for them.
-define(AF_VSOCK, 40).
-define(VMADDR_PORT_ANY, 16#ffffffff).
-define(VMADDR_CID_LOCAL, 1).

%% In the key listen: #{vsock => #{port => 5000}}; by default any free port. Ports below 1024 take root rights.
listen(Options, _Node) ->
    case maps:get(port, Options, any) of
        any -> bind(?VMADDR_PORT_ANY);
        Port when is_integer(Port), Port > 0, Port < ?VMADDR_PORT_ANY -> bind(Port);
        _ -> {error, "the port is not a number from 1 to 4294967294"}
    end.

bind(Port) ->
    with_socket(fun(Socket) ->
        case socket:bind(Socket, sockaddr(?VMADDR_CID_LOCAL, Port)) of
            ok ->
                ok = socket:listen(Socket, 128),
                {ok, Address} = socket:sockname(Socket),
                {ok, Socket, address(Address)};
            Error ->
                Error
        end
    end).

accept(Socket) ->
    case socket:accept(Socket) of
        {ok, Stream} -> {ok, Stream, peer(socket:peername(Stream))};
        Error -> Error
    end.

%% One that has hung up already has no name.
peer({ok, Address}) -> address(Address);
peer({error, _}) -> {vsock, ?VMADDR_CID_LOCAL, 0}.

%% The kernel says econnreset where nobody listens, or where too many wait to be accepted.
connect({vsock, ?VMADDR_CID_LOCAL, Port}, Milliseconds) ->
    with_socket(fun(Socket) ->
        case socket:connect(Socket, sockaddr(?VMADDR_CID_LOCAL, Port), Milliseconds) of
            ok -> {ok, Socket};
            Error -> Error
        end
    end).

%% A kernel without vsock says eafnosupport. A socket that comes to nothing is closed.
with_socket(Use) ->
    case socket:open(?AF_VSOCK, stream, 0) of
        {ok, Socket} -> close_unless_used(Socket, Use(Socket));
        Error -> Error
    end.

close_unless_used(Socket, {error, _} = Error) ->
    _ = socket:close(Socket),
    Error;
close_unless_used(_, Used) ->
    Used.

%% struct sockaddr_vm: what follows its family is two unused bytes, the port, the CID, the flags and padding.
sockaddr(Cid, Port) ->
    #{family => ?AF_VSOCK, addr => <<0:16, Port:32/native, Cid:32/native, 0:32>>}.

address(#{addr := <<_:16, Port:32/native, Cid:32/native, _/binary>>}) ->
    {vsock, Cid, Port}.

fd(Socket) -> socket:getopt(Socket, {otp, fd}).

close(Socket) -> socket:close(Socket).

%% The CID is always 1 here, and is there for a version that reaches other machines.
encode({vsock, Cid, Port}) -> <<Cid:32, Port:32>>.

decode(<<?VMADDR_CID_LOCAL:32, Port:32>>) when Port > 0, Port < ?VMADDR_PORT_ANY ->
    {ok, {vsock, ?VMADDR_CID_LOCAL, Port}};
decode(<<?VMADDR_CID_LOCAL:32, Port:32>>) ->
    {error, ["port ", integer_to_list(Port), " is not one that a socket can have"]};
decode(<<Cid:32, _:32>>) ->
    {error, ["CID ", integer_to_list(Cid), " leads out of this machine, and only 1 is dialled"]};
decode(_) ->
    {error, "an address is a CID and a port of 4 bytes each"}.

text({vsock, Cid, Port}) -> ["CID ", integer_to_list(Cid), " port ", integer_to_list(Port)].

%% CID 1 is on every host a different one: there it means that host.
reach() -> host.
