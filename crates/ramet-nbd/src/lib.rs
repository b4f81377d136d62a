//! The NBD front end: serves every [`ramet_engine::Exports`] to any NBD client.
//!
//! Layers, imports pointing down only: `server` (accept, limits, closing) over `session` (one
//! connection) and `crowd` (many that flush at once, each of which takes a `turn`) over
//! `negotiation` and `transmission` over `channel` (buffers) over `transport`, which `socket` and,
//! laid over it, `tls` implement; `address` makes listeners of `unix`, `tcp` and `given` sockets;
//! `allow` is who may open what; `replies` says how requests are answered, `contexts` what the
//! metadata contexts are; `registry` knows who is connected to what, `habit` and `pairs` how a
//! connection flushes, `gathering` when a crowd does, `large` bounds the memory of large messages;
//! `slice` is of the threads that serve; `codec`, `judgement` and `certificate` are pure.
//! Invariants: requests of a connection take effect in order of arrival; a write that was not
//! received whole is never applied; no byte a client can send panics the server.
//! Source: the NBD protocol document, `doc/proto.md` of `NetworkBlockDevice/nbd`.

mod address;
mod ahead;
mod allow;
mod buffer;
mod certificate;
mod channel;
pub mod codec;
mod contexts;
mod crowd;
mod errno;
mod error;
mod gathering;
mod given;
mod habit;
mod judgement;
mod large;
mod negotiation;
mod pairs;
mod registry;
mod replies;
mod server;
mod session;
mod slice;
mod socket;
mod spin;
mod tcp;
mod tls;
mod transmission;
mod transport;
mod turn;
mod unix;

pub use address::{Address, SOCKET_MODE, UnixAddress};
pub use allow::{AllowList, Allowance};
pub use errno::Errno;
pub use error::NbdError;
pub use judgement::{Action, Agreed, ExportShape, judge};
pub use server::{CONNECTIONS_MAX, Limits, Listening, NbdServer};
pub use tls::{Tls, TlsFiles};
