//! [`Canary`]: mistakes that the engine makes when a test asks for it, to show that the test would find them. Outside tests
//! nobody can ask.

/// A mistake in what makes data durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// A sync copies the changed pages of the map after it has synced the data: states can get ahead of their data.
    PagesAfterData,
    /// A sync does not wait for the one before it, whose data may not be on the medium yet.
    OvertakingSync,
    /// A live log is believed after the machine was restarted.
    LogOfAnotherBoot,
    /// A sync that failed is repeated, and its second answer believed.
    SyncAgain,
}
