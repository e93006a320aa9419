//! What Vellum keeps beside the RBD format: names of keys and objects, and what lies under them. Ceph's own tools leave alone what
//! they do not know.
//!
//! | where | what | says |
//! |---|---|---|
//! | header, key [`SPARSE`] | [`Sparse`] | that the image is sparse, and what its objects are called |
//! | header, key [`PARENT`] | [`Elsewhere`] | which image outside this cluster it hangs on |
//! | header, keys [`auto`] | nothing | that a snapshot goes with its last child |
//! | header, keys [`dropped`] | nothing | that a snapshot was removed, and the cluster not told yet |
//! | header, keys [`child`] | nothing | children outside this cluster |
//! | header, keys [`reader`] | nothing | who reads the head and keeps writers out |
//! | header, key [`TRIM`] | bytes | up to where objects may be left beyond the end of an image that was made smaller |
//! | header, key [`REMOVED`] | nothing | that the image is gone, whatever else is still there |
//! | directory, keys [`pending`] | [`Pending`](crate::pending::Pending) | what somebody has begun |
//! | data objects, attribute [`STATES`] | [`ObjectStates`](crate::states::ObjectStates) | the states of their units |
//! | object [`bitmap`] | [`Presence`](crate::presence::Presence) | which data objects there are |

use vellum_engine::{ChildRef, PoolId, RevisionId};
use vellum_rbd::wire::{Decode, Encode, Malformed, Reader, structure};
use vellum_rbd::{Text, wire};

/// In the header of a sparse image.
pub const SPARSE: &str = "vellum_sparse";
/// In the header of an image whose parent is not in this cluster.
pub const PARENT: &str = "vellum_parent";
/// In the header of an image that is being made smaller, or was until somebody died: how many bytes it had. Beyond its end there may
/// be objects that hold nothing, and that nobody sees, up to here.
pub const TRIM: &str = "vellum_trim";
/// In the header of an image that is being removed.
pub const REMOVED: &str = "vellum_removed";
/// What the keys of [`pending`] begin with.
pub const PENDING: &str = "vellum_pending_";
/// The attribute of a data object of a sparse image.
pub const STATES: &str = "vellum";
/// What stands in the place of the prefix in the header of a sparse image. Ceph's tools cannot read it, and so leave the image
/// alone: they would take for zeros what it inherits.
pub const HIDDEN_PREFIX: &[u8] = b"vellum";

const AUTO: &str = "vellum_auto_";
const DROPPED: &str = "vellum_dropped_";
const CHILD: &str = "vellum_child_";
const READER: &str = "vellum_reader_";

/// Of a snapshot that goes with its last child.
pub fn auto(snapshot: u64) -> String {
    format!("{AUTO}{snapshot:016x}")
}

/// Of a snapshot whose name is gone, and that the cluster was not told of yet.
pub fn dropped(snapshot: u64) -> String {
    format!("{DROPPED}{snapshot:016x}")
}

/// Of a child outside this cluster, which hangs on a snapshot.
pub fn child(snapshot: u64, child: &ChildRef) -> String {
    format!("{CHILD}{snapshot:016x}_{}_{}", child.pool, child.image)
}

/// Of a client that reads the head, by its watch.
pub fn reader(client: u64, watch: u64) -> String {
    format!("{READER}{client}_{watch}")
}

/// In the directory: of an image that somebody makes, removes, or moves to the trash or back.
pub fn pending(image: &str) -> String {
    format!("{PENDING}{image}")
}

/// The object that says which data objects there are, at the head or at a snapshot.
pub fn bitmap(image: &str, snapshot: Option<u64>) -> String {
    match snapshot {
        None => format!("vellum_bitmap.{image}"),
        Some(snapshot) => format!("vellum_bitmap.{image}.{snapshot:016x}"),
    }
}

/// What a key of a header is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// [`auto`].
    Auto(u64),
    /// [`dropped`].
    Dropped(u64),
    /// [`child`].
    Child(u64, ChildRef),
    /// [`reader`].
    Reader(u64, u64),
}

impl Key {
    /// `None` for one that is not known here.
    pub fn read(key: &str) -> Option<Self> {
        let id = |digits: &str| u64::from_str_radix(digits, 16).ok();
        if let Some(snapshot) = key.strip_prefix(AUTO) {
            return id(snapshot).map(Self::Auto);
        }
        if let Some(snapshot) = key.strip_prefix(DROPPED) {
            return id(snapshot).map(Self::Dropped);
        }
        if let Some(rest) = key.strip_prefix(READER) {
            let (client, watch) = rest.split_once('_')?;
            return Some(Self::Reader(client.parse().ok()?, watch.parse().ok()?));
        }
        let mut parts = key.strip_prefix(CHILD)?.splitn(3, '_');
        let snapshot = id(parts.next()?)?;
        let pool: PoolId = parts.next()?.parse().ok()?;
        let image = vellum_engine::ImageId::new(parts.next()?);
        Some(Self::Child(snapshot, ChildRef { pool, image }))
    }
}

/// What makes an image sparse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sparse {
    /// Bytes in a block.
    pub block_size: u32,
    /// What the names of its data objects begin with.
    pub prefix: Text,
}

impl Encode for Sparse {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, 1, 1, |out| {
            self.block_size.encode(out);
            self.prefix.encode(out);
        });
    }
}

impl Decode for Sparse {
    fn decode(input: &mut Reader<'_>) -> wire::Result<Self> {
        let (_, mut fields) = input.structure("sparse image", 1)?;
        let sparse = Self { block_size: fields.value()?, prefix: fields.value()? };
        if !sparse.block_size.is_power_of_two() || sparse.block_size < 512 {
            return Err(Malformed::Unknown {
                what: "size of a block",
                value: sparse.block_size.into(),
            });
        }
        Ok(sparse)
    }
}

/// A parent outside this cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elsewhere {
    /// Its pool.
    pub pool: PoolId,
    /// The image.
    pub image: Text,
    /// The revision.
    pub revision: Text,
    /// How much of it can be seen, in bytes.
    pub overlap: u64,
    /// The newest snapshot that sees it, once the head does not any more.
    pub seen_until: Option<u64>,
    /// By which shrinks it is seen less far: the newest snapshot that there had been when one took place, and how much can be seen
    /// since, by the head and by newer snapshots.
    pub clips: Vec<(u64, u64)>,
}

impl Elsewhere {
    /// How much of it the head sees, or a snapshot, in bytes; `None` if it does not see it at all.
    pub fn seen_by(&self, snapshot: Option<u64>) -> Option<u64> {
        let is_newer = |than: u64| snapshot.is_none_or(|snapshot| snapshot > than);
        if self.seen_until.is_some_and(is_newer) {
            return None;
        }
        let clips = self.clips.iter().filter(|(newest, _)| is_newer(*newest));
        Some(clips.fold(self.overlap, |overlap, (_, clip)| overlap.min(*clip)))
    }

    /// The same, once the head, and snapshots newer than this one, see no more than so many bytes.
    #[must_use]
    pub fn clipped(&self, newest: u64, overlap: u64) -> Self {
        let mut clips = self.clips.clone();
        // One of the same moment, or of later ones, says less.
        clips.retain(|(since, _)| *since < newest);
        clips.push((newest, overlap));
        Self { clips, ..self.clone() }
    }
}

impl Encode for Elsewhere {
    fn encode(&self, out: &mut Vec<u8>) {
        // Who does not know of clips would show what a shrink has hidden.
        let version = if self.clips.is_empty() { 1 } else { 2 };
        structure(out, version, version, |out| {
            Text(self.pool.0.to_vec()).encode(out);
            self.image.encode(out);
            self.revision.encode(out);
            self.overlap.encode(out);
            self.seen_until.encode(out);
            if version > 1 {
                self.clips.encode(out);
            }
        });
    }
}

impl Decode for Elsewhere {
    fn decode(input: &mut Reader<'_>) -> wire::Result<Self> {
        let (version, mut fields) = input.structure("parent elsewhere", 2)?;
        let Text(pool) = fields.value()?;
        let length = pool.len() as u64;
        let pool = pool.try_into();
        let pool =
            pool.map_err(|_| Malformed::Unknown { what: "length of a pool's id", value: length })?;
        let (image, revision, overlap) = fields.value()?;
        let seen_until = fields.value()?;
        let clips = if version > 1 { fields.value()? } else { Vec::new() };
        Ok(Self { pool: PoolId(pool), image, revision, overlap, seen_until, clips })
    }
}

/// The id of a pool: as good as unique, since that of the cluster is, and such that the number of the pool can be read from it.
pub fn pool_id(cluster: [u8; 16], pool: i64, namespace: &[u8]) -> PoolId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&place(cluster, namespace));
    id[8..].copy_from_slice(&pool.to_be_bytes());
    PoolId(id)
}

/// The number of the pool of this id, if it is one in this namespace of this cluster.
pub fn pool_number(id: PoolId, cluster: [u8; 16], namespace: &[u8]) -> Option<i64> {
    let (place_of, number) = id.0.split_at(8);
    let number = i64::from_be_bytes(number.try_into().expect("half of sixteen is eight"));
    (place_of == place(cluster, namespace)).then_some(number)
}

fn place(cluster: [u8; 16], namespace: &[u8]) -> [u8; 8] {
    let mut hash = Hash::default();
    hash.take(&cluster);
    hash.take(namespace);
    hash.0.to_be_bytes()
}

/// FNV-1a of 64 bits, which is the same in every version of this program.
#[derive(Clone, Copy, Debug)]
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Goes on with these bytes, and with how many there are.
    pub fn take(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        for byte in bytes.iter().chain(&length) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The revision of the head of an image.
pub fn head_revision(image: &str) -> RevisionId {
    RevisionId::new(image)
}

/// The revision that a snapshot froze.
pub fn snapshot_revision(image: &str, snapshot: u64) -> RevisionId {
    RevisionId::new(format!("{image}@{snapshot:x}"))
}

/// The snapshot that a revision of this image is of; `Some(None)` for its head.
pub fn snapshot_of(image: &str, revision: &RevisionId) -> Option<Option<u64>> {
    if *revision == head_revision(image) {
        return Some(None);
    }
    let digits = revision.as_str().strip_prefix(image)?.strip_prefix('@')?;
    let snapshot = u64::from_str_radix(digits, 16).ok()?;
    (*revision == snapshot_revision(image, snapshot)).then_some(Some(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let someone = ChildRef { pool: PoolId([7; 16]), image: vellum_engine::ImageId::new("a_b") };
        let cases = [
            (auto(4), Key::Auto(4)),
            (dropped(u64::MAX), Key::Dropped(u64::MAX)),
            (child(4, &someone), Key::Child(4, someone)),
            (reader(1, 2), Key::Reader(1, 2)),
        ];
        for (key, read) in cases {
            assert_eq!(Key::read(&key), Some(read), "{key}");
        }
        for other in ["vellum", "vellum_auto_x", "vellum_child_1", "vellum_reader_1", "size"] {
            assert_eq!(Key::read(other), None, "{other}");
        }
    }

    #[test]
    fn the_hidden_prefix_is_no_string() {
        assert!(Text::from_bytes(HIDDEN_PREFIX).is_err());
    }

    #[test]
    fn a_pool_has_one_id_and_its_number_is_in_it() {
        let id = pool_id([1; 16], 5, b"ns");
        assert_eq!(pool_number(id, [1; 16], b"ns"), Some(5));
        for other in
            [pool_id([2; 16], 5, b"ns"), pool_id([1; 16], 5, b""), pool_id([1; 16], 6, b"ns")]
        {
            assert_ne!(id, other);
        }
        assert_eq!(pool_number(id, [1; 16], b""), None);
    }

    #[test]
    fn a_revision_is_the_head_or_a_snapshot_of_one_image() {
        assert_eq!(snapshot_of("10ab", &head_revision("10ab")), Some(None));
        assert_eq!(snapshot_of("10ab", &snapshot_revision("10ab", 31)), Some(Some(31)));
        for other in ["10a", "10ab@", "10ab@zz", "10ab@01", "11ab@1"] {
            assert_eq!(snapshot_of("10ab", &RevisionId::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_makes_an_image_sparse_is_read_as_it_is_written() {
        let sparse = Sparse { block_size: 4096, prefix: "rbd_data.10".into() };
        assert_eq!(Sparse::from_bytes(&sparse.to_bytes()), Ok(sparse.clone()));
        let odd = Sparse { block_size: 4095, ..sparse };
        assert!(Sparse::from_bytes(&odd.to_bytes()).is_err());
        let parent = Elsewhere {
            pool: PoolId([3; 16]),
            image: "i".into(),
            revision: "r".into(),
            overlap: 9,
            seen_until: Some(7),
            clips: Vec::new(),
        };
        assert_eq!(parent.to_bytes()[..2], [1, 1]);
        let clipped = parent.clipped(4, 6);
        assert_eq!(clipped.to_bytes()[..2], [2, 2]);
        for parent in [parent, clipped] {
            assert_eq!(Elsewhere::from_bytes(&parent.to_bytes()), Ok(parent));
        }
    }

    #[test]
    fn a_parent_elsewhere_is_seen_as_far_as_the_shrinks_before_a_revision_let_it() {
        let parent = Elsewhere {
            pool: PoolId([3; 16]),
            image: "i".into(),
            revision: "r".into(),
            overlap: 90,
            seen_until: None,
            clips: Vec::new(),
        };
        // Made smaller after snapshot 4, twice, and again after 7.
        let parent = parent.clipped(4, 70).clipped(4, 60).clipped(7, 50);
        let seen = [Some(3), Some(4), Some(5), Some(7), Some(8), None].map(|at| parent.seen_by(at));
        assert_eq!(seen, [90, 90, 60, 60, 50, 50].map(Some));
        let cut = Elsewhere { seen_until: Some(7), ..parent };
        assert_eq!(
            (cut.seen_by(Some(7)), cut.seen_by(Some(8)), cut.seen_by(None)),
            (Some(60), None, None)
        );
    }
}
