//! RADOS as it is: a cluster that is reached through librados.
//!
//! | module | what it does |
//! |---|---|
//! | `cluster` | [`Cluster`]: connects, finds pools, keeps others out |
//! | `pool` | [`Pool`]: operations on objects, one future each |
//! | `watch` | what is said about an object |
//! | `operation` | the steps of an operation, as librados takes them |
//! | `completion` | the end of an operation, as a future |
//! | `library` | the functions of librados, found at run time |
//!
//! All that is unsafe is in the last four of them, each of which says what it relies on.

mod cluster;
mod completion;
mod library;
mod operation;
mod pool;
mod watch;

pub use cluster::{Cluster, ConnectError, Options, exit_beside_connections, wait_for_connections};
pub use pool::Pool;
pub use watch::PoolWatch;
