//! The wire formats of polydist: what is said to EPMD, what a node registers there, and how
//! handshake messages are framed.
//!
//! Bytes in, values out. There are no sockets, no clock and no async code here; `polydist-transport`
//! has those. Every decoder works on whatever has arrived so far: it returns the value and how many
//! bytes it took, `None` when more bytes are needed, or an error when no further byte can help.
//! Nothing here panics or allocates more than the bytes it is given, whoever sent them.

#![forbid(unsafe_code)]

pub mod epmd;
pub mod frame;
pub mod record;

mod reader;
