//! [`Canary`]: mistakes that an open image makes when a test asks for it, to show that the tests would find them. Outside tests
//! nobody can ask.

/// A mistake in how an image changes while it is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// A flatten cuts the link before it has copied anything.
    CutTooEarly,
}
