//! Support for tests that run `vellum` as a user does: a home of its own, a serving process that is killed with the test,
//! strangers' tools, and an NBD client of a few dozen lines.
//!
//! Nothing here knows the inside of Vellum: what these tests find, a user would find. [`home`] runs commands, [`serve`] holds a
//! server, [`process`] ends whatever a test started itself, [`tools`] finds other people's programs, [`nbd`] speaks just enough
//! of the protocol to keep a record of what was acknowledged, [`loop_device`] makes a device of a file, [`block_device`] one of an
//! export, [`mounted`] is a file system to put a pool on, [`ceph`] a Ceph of its own, and [`librbd`] a client of that.
#![forbid(unsafe_code)]

pub mod block_device;
pub mod ceph;
pub mod home;
pub mod librbd;
pub mod loop_device;
pub mod mounted;
pub mod nbd;
pub mod process;
pub mod serve;
pub mod tools;

pub use home::Home;
pub use librbd::Librbd;
pub use serve::Serve;
