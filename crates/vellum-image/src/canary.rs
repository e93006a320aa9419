//! [`Canary`]: mistakes in the layering that an image makes when a test asks for it, to show that the test would find them.
//! Outside tests nobody can ask.

/// A mistake in how an image changes while it is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// A copy-up writes what it read from below over whatever is there by now, instead of defining what is still inherited.
    CopyUpOverwrites,
    /// An operation changes the image without waiting for the requests that are inside the gate.
    OperationBesideRequests,
    /// Units are given back to the parent while a flatten counts on none being inherited again.
    GiveBackBesideFlatten,
    /// A flatten cuts the link before it has copied anything.
    CutTooEarly,
    /// Requests that overlap do not wait for each other.
    RequestsSideBySide,
}
