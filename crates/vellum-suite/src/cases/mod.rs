//! The cases, in files named for what they are about. A case is a sentence that holds, and short enough to be read at once.

mod catalog;
mod changes;
mod children;
mod concurrency;
mod durability;
mod fill;
mod ownership;
mod program;
mod read;
mod snapshot;
mod space;
mod write;
mod zero;

use crate::harness::Harness;
use crate::runner::Case;

/// Lists the cases of a file. One that is not listed is dead code, which the compiler points out.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) fn cases<H: $crate::harness::Harness>() -> Vec<$crate::runner::Case<H>> {
            vec![$($crate::runner::Case {
                name: stringify!($name),
                run: |pool| Box::pin($name(pool)),
            }),*]
        }
    };
}
use cases;

/// All cases, by the file they are in.
pub(crate) fn all<H: Harness>() -> Vec<(&'static str, Vec<Case<H>>)> {
    vec![
        ("catalog", catalog::cases()),
        ("changes", changes::cases()),
        ("children", children::cases()),
        ("ownership", ownership::cases()),
        ("read", read::cases()),
        ("write", write::cases()),
        ("fill", fill::cases()),
        ("zero", zero::cases()),
        ("snapshot", snapshot::cases()),
        ("durability", durability::cases()),
        ("space", space::cases()),
        ("concurrency", concurrency::cases()),
        ("program", program::cases()),
    ]
}
