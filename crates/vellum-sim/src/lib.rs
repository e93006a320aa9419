//! A simulated disk, for tests of what must survive: [`SimDisk`] can lose power, kill its process, run full, fail and stand
//! still, with the databases of SQLite on it, and with several processes at once.
//!
//! [`History`] is the other half of such a test: what each sector may read as, by what was written to it and promised of that.
//!
//! [`Orders`] stands beside them: it puts the steps of tasks in every order, or in random ones.
//!
//! Nothing here knows pools, layers and images, and none of it is part of the program.

mod disk;
mod history;
mod medium;
pub mod orders;
mod sqlite;
mod world;

pub use disk::{Hold, SimDirectory, SimDisk, SimFile};
pub use history::{ChangeId, History, Value};
pub use orders::{Explored, Order, Orders, Task};
pub use world::{Call, Calls, Fault, World};

/// Bytes that a power cut leaves or loses together.
pub const SECTOR: usize = 512;
