//! How a process asks the one that holds an image: a Unix socket, one request a connection, lines of JSON.
//!
//! The lock on an image is the truth about who holds it. The file `<image id>.holder` beside the live logs is only a [`hint`]
//! where that process listens; if it leads nowhere, the image is simply in use. [`protocol`] is what is said, [`socket`] where,
//! [`client`] and [`server`] who says it, and [`operation`] what is done, which is the same for who holds the image and for
//! who opened it only for this.

mod client;
pub(crate) mod hint;
pub(crate) mod operation;
pub(crate) mod protocol;
pub(crate) mod server;
pub(crate) mod socket;

#[cfg(feature = "fuzzing")]
pub(crate) use client::exchange;
pub(crate) use client::{Outcome, ask};
pub(crate) use protocol::{Answer, Request};

/// That a flatten was stopped, as its caller asked.
pub(crate) fn stopped() -> vellum_engine::Error {
    let what = "the flatten was stopped, as asked; start it again to go on";
    vellum_engine::Error::new(vellum_engine::ErrorKind::Stopped, what)
}
