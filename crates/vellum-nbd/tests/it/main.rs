//! A server of exports in memory, and scripted peers that speak the protocol to it byte by byte: everything a client may say,
//! and much that it may not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod limits;
mod memory_export;
mod negotiation;
mod peer;
mod requests;
mod sockets;
mod violations;

use std::future::Future;
use std::time::Duration;

/// What takes longer than this hangs.
async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it hangs")
}
