//! All tests of the NBD front end, one module for each concern.

#![allow(clippy::unwrap_used, reason = "the lint spares test functions, not their helpers")]

mod allow;
mod chunks;
mod clients;
mod closing;
mod codec;
mod common;
mod contexts;
mod crowd;
mod expected;
mod judgement;
mod listeners;
mod negotiation;
mod server;
mod transmission;
