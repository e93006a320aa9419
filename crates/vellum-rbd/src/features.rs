//! The bits of an image: what its clients must understand, and which of them go together.

use std::fmt;
use std::ops::BitOr;

/// What an image has, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Features(pub u64);

/// The bits by the names that users know.
const NAMES: &[(Features, &str)] = &[
    (Features::LAYERING, "layering"),
    (Features::STRIPING, "striping"),
    (Features::EXCLUSIVE_LOCK, "exclusive-lock"),
    (Features::OBJECT_MAP, "object-map"),
    (Features::FAST_DIFF, "fast-diff"),
    (Features::DEEP_FLATTEN, "deep-flatten"),
    (Features::JOURNALING, "journaling"),
    (Features::DATA_POOL, "data-pool"),
    (Features::OPERATIONS, "operations"),
    (Features::MIGRATING, "migrating"),
    (Features::NON_PRIMARY, "non-primary"),
    (Features::DIRTY_CACHE, "dirty-cache"),
];

impl Features {
    /// It may have a parent, or be one.
    pub const LAYERING: Self = Self(1);
    /// It is striped otherwise than object by object.
    pub const STRIPING: Self = Self(1 << 1);
    /// One client writes at a time, and says so.
    pub const EXCLUSIVE_LOCK: Self = Self(1 << 2);
    /// It keeps a map of which data objects exist. Needs the lock.
    pub const OBJECT_MAP: Self = Self(1 << 3);
    /// The map tells too what changed since the last snapshot. Needs the map.
    pub const FAST_DIFF: Self = Self(1 << 4);
    /// A flatten cuts its snapshots off as well.
    pub const DEEP_FLATTEN: Self = Self(1 << 5);
    /// Changes go through a journal. Needs the lock.
    pub const JOURNALING: Self = Self(1 << 6);
    /// Data objects are in a pool of their own.
    pub const DATA_POOL: Self = Self(1 << 7);
    /// There are [operations](operation) that must be understood.
    pub const OPERATIONS: Self = Self(1 << 8);
    /// It is being moved.
    pub const MIGRATING: Self = Self(1 << 9);
    /// It is a mirror.
    pub const NON_PRIMARY: Self = Self(1 << 10);
    /// A cache on a client's machine has what the cluster has not.
    pub const DIRTY_CACHE: Self = Self(1 << 11);

    /// Those of a new image.
    pub const USUAL: Self = Self(0x3d);
    /// Whoever reads must understand these.
    pub const TO_READ: Self = Self(1 | 1 << 1 | 1 << 7 | 1 << 11);
    /// Whoever writes must understand these.
    pub const TO_WRITE: Self = Self(0x0fff);
    /// Those that come with how an image is made, and not by wish.
    const IMPLICIT: Self = Self(1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11);

    /// Whether all of some are there.
    pub fn has(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }

    /// Without some.
    #[must_use]
    pub fn without(self, some: Self) -> Self {
        Self(self.0 & !some.0)
    }

    /// Those of a clone of an image that has these, unless something else is asked for.
    #[must_use]
    pub fn of_clone(self) -> Self {
        self.without(Self::IMPLICIT)
    }

    /// What is missing for one of these: the one, and what it needs.
    pub fn lacks(self) -> Option<(Self, Self)> {
        let needs = [
            (Self::OBJECT_MAP, Self::EXCLUSIVE_LOCK),
            (Self::FAST_DIFF, Self::OBJECT_MAP),
            (Self::JOURNALING, Self::EXCLUSIVE_LOCK),
        ];
        needs.into_iter().find(|(one, needed)| self.has(*one) && !self.has(*needed))
    }

    /// Those that this program knows nothing of, among what whoever reads, or writes, must understand.
    #[must_use]
    pub fn not_understood(self, writes: bool, understood: Self) -> Self {
        let known = NAMES.iter().fold(0, |bits, (feature, _)| bits | feature.0);
        let needed = if writes { Self::TO_WRITE } else { Self::TO_READ };
        // A bit that nobody has named yet may mean anything.
        Self(self.0 & (needed.0 | !known)).without(understood)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        for (feature, name) in NAMES.iter().filter(|(feature, _)| self.has(*feature)) {
            write!(f, "{separator}{name}")?;
            (rest, separator) = (rest.without(*feature), ", ");
        }
        match rest.0 {
            0 if separator.is_empty() => f.write_str("none"),
            0 => Ok(()),
            unknown => write!(f, "{separator}unknown ({unknown:#x})"),
        }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// Bits of what is not to be relied on.
pub mod flag {
    /// The object map may lack objects that are there.
    pub const OBJECT_MAP_INVALID: u64 = 1;
    /// The object map may not tell what changed since the last snapshot.
    pub const FAST_DIFF_INVALID: u64 = 2;
}

/// Bits of what has been done with an image that older clients would not understand.
pub mod operation {
    /// A snapshot has children of the second kind.
    pub const CLONE_PARENT: u64 = 1;
    /// It is a child of the second kind.
    pub const CLONE_CHILD: u64 = 2;
    /// It is in a group.
    pub const GROUP: u64 = 4;
    /// A snapshot is in the trash.
    pub const SNAP_TRASH: u64 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_inherits_what_was_asked_for_and_not_what_came_by_itself() {
        let parent =
            Features::USUAL | Features::STRIPING | Features::OPERATIONS | Features::DATA_POOL;
        assert_eq!(parent.of_clone(), Features::USUAL);
    }

    #[test]
    fn features_need_each_other() {
        assert_eq!(Features::USUAL.lacks(), None);
        let map = Features::LAYERING | Features::OBJECT_MAP;
        assert_eq!(map.lacks(), Some((Features::OBJECT_MAP, Features::EXCLUSIVE_LOCK)));
        let diff = Features::EXCLUSIVE_LOCK | Features::FAST_DIFF;
        assert_eq!(diff.lacks(), Some((Features::FAST_DIFF, Features::OBJECT_MAP)));
    }

    #[test]
    fn who_reads_must_understand_less_than_who_writes_and_nobody_an_unnamed_bit() {
        let journaled = Features::USUAL | Features::JOURNALING;
        assert_eq!(journaled.not_understood(false, Features::USUAL), Features(0));
        assert_eq!(journaled.not_understood(true, Features::USUAL), Features::JOURNALING);
        assert_eq!(Features(1 << 40).not_understood(false, Features(0x0fff)), Features(1 << 40));
    }

    #[test]
    fn features_are_shown_by_their_names() {
        let usual = "layering, exclusive-lock, object-map, fast-diff, deep-flatten";
        assert_eq!(Features::USUAL.to_string(), usual);
        assert_eq!(Features(1 << 40 | 1).to_string(), "layering, unknown (0x10000000000)");
        assert_eq!(Features(0).to_string(), "none");
    }
}
