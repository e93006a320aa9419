//! What a catalog says of an image: ids, revisions, links, snapshots.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use vellum_core::{Geometry, ImageName, SnapshotName};

/// Names a pool for ever, whatever it is called and wherever it is mounted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub [u8; 16]);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolId({self})")
    }
}

impl std::str::FromStr for PoolId {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let mut id = [0; 16];
        let bad = || {
            let text = vellum_core::quoted(text);
            crate::Error::corrupt(format!("'{text}' is not a pool id of 32 hex digits"))
        };
        if text.len() != 32 {
            return Err(bad());
        }
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])
                .zip(digit(pair[1]))
                .map(|(high, low)| high << 4 | low)
                .ok_or_else(bad)?;
        }
        Ok(PoolId(id))
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// An id as its engine wrote it. Only the engine knows what it means.
            pub fn new(text: impl Into<std::sync::Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text of the id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.0)
            }
        }
    };
}

text_id! {
    /// Names an image within its pool for ever; never reused.
    ImageId
}
text_id! {
    /// Names one revision of an image (its head, or what a snapshot froze) within its pool for ever; never reused.
    RevisionId
}
text_id! {
    /// Names a snapshot within its image for ever, whatever it is called; never reused.
    SnapshotId
}

/// Changes with every change of an image's record, so that a decision made on an old record is noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

/// How much is taken from the parent *image* when something must be taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Layering {
    /// The block.
    Sparse,
    /// The whole object.
    CopyUp,
}

impl fmt::Display for Layering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layering::Sparse => "sparse",
            Layering::CopyUp => "copy-up",
        })
    }
}

/// All that the catalog knows of an image.
#[derive(Clone, PartialEq, Debug)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// Its name, which may change.
    pub name: ImageName,
    /// Changes with every change of this record.
    pub version: Version,
    /// How it is striped.
    pub geometry: Geometry,
    /// What is taken from a parent at once.
    pub layering: Layering,
    /// Bytes in a block, the unit of `sparse` layering: a power of two.
    pub block_size: u32,
    /// When it was created.
    pub created: SystemTime,
    /// The revision that can be written.
    pub head: RevisionId,
    /// All revisions, in no order: the head, those that snapshots name, and those that have lost their name and still hold
    /// what newer ones inherit.
    pub revisions: Vec<Revision>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// Keys and values for whoever uses the image; nothing here is interpreted by an engine.
    pub meta: BTreeMap<String, String>,
}

impl ImageRecord {
    /// The revision with this id.
    pub fn revision(&self, id: &RevisionId) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.id == *id)
    }

    /// The revision that can be written.
    ///
    /// # Panics
    /// If the record lacks it, which an engine must have refused as corrupt.
    pub fn head_revision(&self) -> &Revision {
        self.revision(&self.head).expect("a record contains its head")
    }

    /// The snapshot of this name.
    pub fn snapshot(&self, name: &SnapshotName) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|snapshot| snapshot.name == *name)
    }

    /// The size of the image at its head, in bytes.
    pub fn size(&self) -> u64 {
        self.head_revision().size
    }

    /// The link to the parent image that the head sees, by itself or through its own older revisions, and the revision that
    /// carries it.
    pub fn parent(&self) -> Option<(&Revision, &ParentLink, u64)> {
        self.parent_of(&self.head)
    }

    /// The same for any of its revisions.
    pub fn parent_of(&self, revision: &RevisionId) -> Option<(&Revision, &ParentLink, u64)> {
        let mut at = self.revision(revision)?;
        // No chain is longer than there are revisions; one that leads back to itself ends all the same.
        for _ in 0..self.revisions.len() {
            match &at.below {
                Below::Parent { link, overlap } => return Some((at, link, *overlap)),
                Below::Own { revision, .. } => at = self.revision(revision)?,
                Below::Nothing => return None,
            }
        }
        None
    }

    /// What the image hangs on: its head, or a snapshot that still sees the parent although the head was cut off.
    pub fn parent_link(&self) -> Option<&ParentLink> {
        self.revisions.iter().find_map(|revision| match &revision.below {
            Below::Parent { link, .. } => Some(link),
            Below::Own { .. } | Below::Nothing => None,
        })
    }
}

/// One revision of an image: its size, and what lies below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revision {
    /// Its id.
    pub id: RevisionId,
    /// The size of the image at this revision, in bytes.
    pub size: u64,
    /// What it inherits from.
    pub below: Below,
    /// Whether what it reads as can never change again. False for the head only.
    pub sealed: bool,
}

/// What lies below a revision. Never goes from nothing to something; an overlap never grows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Below {
    /// Nothing: what is inherited reads as zeros.
    Nothing,
    /// An older revision of the same image, up to `overlap` bytes.
    Own {
        /// The older revision.
        revision: RevisionId,
        /// Bytes at or past it are zeros.
        overlap: u64,
    },
    /// A snapshot of another image, up to `overlap` bytes.
    Parent {
        /// Which.
        link: ParentLink,
        /// Bytes at or past it are zeros.
        overlap: u64,
    },
}

/// Names the frozen revision that a child reads what it does not define from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ParentLink {
    /// The parent's pool.
    pub pool: PoolId,
    /// The parent image.
    pub image: ImageId,
    /// The revision that its snapshot froze.
    pub revision: RevisionId,
}

/// Names a child in the parent's list.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChildRef {
    /// The child's pool.
    pub pool: PoolId,
    /// The child image.
    pub image: ImageId,
}

/// A snapshot: a name for a sealed revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// The revision it names.
    pub revision: RevisionId,
    /// Whether an operation made it for itself; then it goes with its last child.
    pub auto: bool,
    /// When it was made.
    pub created: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_id_reads_what_it_prints_and_nothing_else() {
        let id = PoolId(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string().parse::<PoolId>().unwrap(), id);
        for bad in ["", "00", &"g".repeat(32), &"0".repeat(33)] {
            assert!(bad.parse::<PoolId>().is_err(), "{bad}");
        }
    }
}
