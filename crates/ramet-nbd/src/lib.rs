//! The NBD front end: serves every [`ramet_engine::Exports`] to any NBD client.
//!
//! Layers, imports pointing down only: `server` (accept, limits, closing) over `session` (one
//! connection) over `negotiation` and `transmission` over `channel` (buffers) over `transport`
//! (sockets); `replies` says how requests are answered, `contexts` what the metadata contexts are;
//! `registry` knows who is connected to what, `large` bounds the memory of large messages;
//! `codec` and `judgement` are pure.
//! Invariants: requests of a connection take effect in order of arrival; a write that was not
//! received whole is never applied; no byte a client can send panics the server.
//! Source: the NBD protocol document, `doc/proto.md` of `NetworkBlockDevice/nbd`.

mod channel;
pub mod codec;
mod contexts;
mod errno;
mod error;
mod judgement;
mod large;
mod negotiation;
mod registry;
mod replies;
mod server;
mod session;
mod transmission;
mod transport;
mod unix;

pub use errno::Errno;
pub use error::NbdError;
pub use judgement::{Action, Agreed, ExportShape, judge};
pub use server::{CONNECTIONS_MAX, Limits, NbdServer};
