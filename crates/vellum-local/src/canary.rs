//! [`Canary`]: mistakes that the engine makes when a test asks for it, to show that the test would find them. Outside tests
//! nobody can ask.

/// A mistake: in what makes data durable, in what a unit becomes, in who may write, or in what the catalog says.
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
    /// A unit that is set to zero inherits instead.
    InheritForZero,
    /// A fill takes units that are defined already.
    FillOverwrites,
    /// An image that is being written can be owned once more.
    SharedOwnership,
    /// What an open catalog shows is believed before it is durable.
    UnsyncedCatalog,
    /// What a process that died has left in the log of the catalog may come true later.
    Leftovers,
    /// An image that is being created counts as gone.
    GoneTooEarly,
}
