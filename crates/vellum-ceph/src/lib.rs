//! The Ceph engine: images on RADOS, in the RBD format.
//!
//! It knows objects of a cluster, through the seam of [`vellum_rados`], and the format, by [`vellum_rbd`]; nothing of what lies in
//! parents, and no file of this machine.
//!
//! | module | what it does |
//! |---|---|
//! | [`connect`] | [`Clusters`]: pools of real clusters, over librados |
//! | [`catalog`] | [`CephCatalog`]: the engine contract, and what of a pool is open |
//! | `create`, `remove`, `records`, `children`, `clone_v1`, `protect`, `trash`, `change`, `resize`, `publish` | each sequence of steps that changes a pool |
//! | `pending` | notes of such sequences, so that they can be finished after a death |
//! | `check` | what a check looks at |
//! | `ownership` | the lock of an image, and who reads its head |
//! | `background` | what goes on when a request is over, and where |
//! | `watched` | what an open image hears from others, and answers |
//! | `asked`, `asking` | what others ask of who holds its lock; asking that of others |
//! | `header`, `omap` | reading a header, and changing it at the version at which it was read; all keys of an object |
//! | `described` | what a header says, and the record that this makes |
//! | [`head`] | [`CephHead`]: the one writer |
//! | [`layer`] | [`CephLayer`]: a revision, for reading |
//! | `data` | the data objects of a revision, and what is remembered of their states |
//! | `bitmap`, `rebuild` | the allocation bitmap, as it is stored; comparing it with the objects, and making it anew |
//! | `plain_head`, `object_map` | what the owner of a plain RBD image knows beside, and the map of its objects |
//! | [`rules`] | pure: what a change does to an object, by [`plan`] in a sparse image, by [`plain`] in a plain one |
//! | [`place`] | pure: where units lie in objects |
//! | [`states`] | pure: the states of an object's units, as bytes |
//! | [`presence`] | pure: which objects there are |
//! | [`keys`] | pure: what is kept beside the RBD format |
//! | [`classes`] | Ceph's object classes in memory, for tests |
#![forbid(unsafe_code)]

mod asked;
mod asking;
mod background;
mod bitmap;
pub mod catalog;
mod change;
mod check;
mod children;
pub mod classes;
mod clone_v1;
pub mod connect;
mod create;
mod data;
mod described;
mod error;
pub mod head;
mod header;
pub mod keys;
pub mod layer;
mod object_map;
mod omap;
mod ownership;
pub mod pending;
pub mod place;
pub mod plain;
mod plain_head;
pub mod plan;
pub mod presence;
mod protect;
mod publish;
mod rebuild;
mod records;
mod remove;
mod resize;
pub mod rules;
pub mod states;
mod trash;
mod watched;

pub use background::wait_for_pools;
pub use catalog::CephCatalog;
pub use change::CephPrepared;
pub use connect::{Access, CephPool, Clusters};
pub use create::CloneFormat;
pub use head::CephHead;
pub use layer::CephLayer;
pub use rebuild::Compared;
pub use resize::{NoParent, ReadParent, Shrink};
pub use trash::{Deferment, TrashSource, TrashState, TrashedImage};
pub use vellum_rados::librados::exit_beside_connections;
pub use vellum_rbd::records::Protection;
