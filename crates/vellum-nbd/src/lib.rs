//! The NBD protocol and a server for it.
//!
//! Layers, from the wire up: [`proto`] is bytes and rules, without I/O and without async; [`export`] is what a server offers, a
//! trait for whoever has images; [`server`] is sockets, connections and limits. The crate knows nothing of Vellum's images.
//!
//! The protocol is <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>: fixed newstyle negotiation,
//! structured replies, extended headers, block status. TLS is refused for now, in the protocol's own words.
#![forbid(unsafe_code)]

pub mod export;
pub mod proto;
pub mod server;

pub use export::{Export, ExportInfo, Exports, Listed, OpenError, ReadPiece, Status, ZeroFlags};
pub use proto::error::{Errno, NbdError};
pub use proto::meta::Context;
pub use server::{Limits, Server};
