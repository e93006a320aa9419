//! The class `rbd`: headers, directories, object maps.

use std::collections::{BTreeMap, BTreeSet};

use vellum_rados::memory::{Class, ClassObject};
use vellum_rados::{Failure, Result};
use vellum_rbd::features::operation;
use vellum_rbd::names::{self, HEAD, directory, key};
use vellum_rbd::object_map::{Existence, ObjectMap};
use vellum_rbd::records::{
    Child, Children, Parent, ParentSpec, Protection, Purpose, Snapshot, SnapshotInfo, Trashed,
};
use vellum_rbd::wire::Time;
use vellum_rbd::{Decode, Encode, Features, Text};

use super::keys::{Keys, given};

/// The class.
#[derive(Clone, Copy, Debug)]
pub struct Rbd;

/// `ENOSYS`.
const NOT_KNOWN: Failure = Failure(38);
/// `EBADF`.
const BAD_ID: Failure = Failure(9);
/// `ENOEXEC`.
const LACKS_FEATURE: Failure = Failure(8);

/// What a client may enable and disable.
const MUTABLE: u64 = 0x4 | 0x8 | 0x10 | 0x40 | 0x400 | 0x800;
/// What it may disable only.
const DISABLE_ONLY: u64 = 0x20;
/// What the class sets itself.
const INTERNAL: u64 = 0x100 | 0x200;
/// All features there are.
const ALL_FEATURES: u64 = 0xfff;
/// All operations there are.
const ALL_OPERATIONS: u64 = 0xf;

impl Class for Rbd {
    fn call(
        &self,
        method: &str,
        _client: u64,
        object: &mut Option<ClassObject>,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        match method {
            "copyup" => return copy_up(object, [(0, input.to_vec())]),
            "sparse_copyup" => return sparse_copy_up(object, input),
            _ => {}
        }
        let it = object.get_or_insert_default();
        let nothing = |done: Result<()>| done.map(|()| Vec::new());
        match method {
            "set_id" => nothing(set_id(it, input)),
            "get_id" => get_id(it),
            "dir_add_image" => nothing(add_image(it, input)),
            "dir_remove_image" => nothing(remove_image(it, input)),
            "dir_rename_image" => nothing(rename_image(it, input)),
            "dir_get_id" => Ok(it.get::<Text>(&directory::name(&text(input)?))?.to_bytes()),
            "dir_get_name" => Ok(it.get::<Text>(&directory::id(&text(input)?))?.to_bytes()),
            "dir_list" => listed(it, "name_", input, |value| Text::from_bytes(value).ok()),
            "create" => nothing(create(it, input)),
            "metadata_set" => nothing(set_metadata(it, input)),
            "metadata_remove" => nothing(remove_metadata(it, input)),
            "metadata_list" => listed(it, "metadata_", input, |value| Some(Text(value.to_vec()))),
            _ if method.starts_with("trash_") => trash_method(it, method, input),
            "add_child" | "remove_child" | "get_children" => old_children(it, method, input),
            _ if method.starts_with("object_map_") => map_method(it, method, input),
            _ => header_method(it, method, input),
        }
    }
}

fn header_method(it: &mut ClassObject, method: &str, input: &[u8]) -> Result<Vec<u8>> {
    let nothing = |done: Result<()>| done.map(|()| Vec::new());
    match method {
        "get_size" => get_size(it, input),
        "set_size" => nothing(set_size(it, given(input)?)),
        "get_features" => get_features(it, input),
        "set_features" => nothing(set_features(it, input)),
        "get_object_prefix" => Ok(it.get::<Text>(key::OBJECT_PREFIX)?.to_bytes()),
        "get_data_pool" => Ok(it.find::<i64>(key::DATA_POOL)?.unwrap_or(-1).to_bytes()),
        "get_snapcontext" => snap_context(it),
        "get_stripe_unit_count" => striping(it),
        "set_stripe_unit_count" => nothing(set_striping(it, input)),
        "get_flags" => get_flags(it, given(input)?),
        "set_flags" => nothing(set_flags(it, input)),
        "op_features_get" => Ok(it.find::<u64>(key::OPERATIONS)?.unwrap_or(0).to_bytes()),
        "op_features_set" => nothing(set_operations_asked(it, input)),
        "get_create_timestamp" => time(it, key::CREATED),
        "get_modify_timestamp" => time(it, key::MODIFIED),
        "set_modify_timestamp" => nothing(touch(it, key::MODIFIED)),
        "set_access_timestamp" => nothing(touch(it, key::ACCESSED)),
        "snapshot_add" => nothing(add_snapshot(it, input)),
        "snapshot_remove" => nothing(remove_snapshot(it, given(input)?)),
        "snapshot_rename" => nothing(rename_snapshot(it, input)),
        "snapshot_trash_add" => nothing(put_into_trash(it, given(input)?)),
        "snapshot_get" => snapshot_info(it, given(input)?),
        "set_protection_status" => nothing(protect(it, input)),
        "get_protection_status" => Ok(snapshot(it, no_head(given(input)?)?)?.protection.to_bytes()),
        "parent_attach" => nothing(attach_parent(it, input)),
        "parent_detach" => nothing(detach_parent(it)),
        "parent_get" => parent_spec(it),
        "parent_overlap_get" => Ok(overlap(it, given(input)?)?.to_bytes()),
        "child_attach" => nothing(attach_child(it, input)),
        "child_detach" => nothing(detach_child(it, input)),
        "children_list" => children(it, given(input)?),
        _ => Err(Failure::UNSUPPORTED),
    }
}

fn text(input: &[u8]) -> Result<String> {
    Ok(given::<Text>(input)?.to_string())
}

// Ids and directories.

fn set_id(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let id: Text = given(input)?;
    if !names::is_id(&id.to_string()) {
        return Err(Failure::INVALID);
    }
    if !it.data.is_empty() {
        return Err(Failure::EXISTS);
    }
    it.data = id.to_bytes();
    Ok(())
}

fn get_id(it: &ClassObject) -> Result<Vec<u8>> {
    if it.data.is_empty() {
        return Err(Failure::NOT_FOUND);
    }
    Text::from_bytes(&it.data).map(|id| id.to_bytes()).map_err(|_| Failure::IO)
}

fn add_image(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (name, id): (Text, Text) = given(input)?;
    if name == Text::default() || !names::is_id(&id.to_string()) {
        return Err(Failure::INVALID);
    }
    let (by_name, by_id) = (directory::name(&name.to_string()), directory::id(&id.to_string()));
    if it.find::<Text>(&by_name)?.is_some() {
        return Err(Failure::EXISTS);
    }
    if it.find::<Text>(&by_id)?.is_some() {
        return Err(BAD_ID);
    }
    it.set(&by_name, &id);
    it.set(&by_id, &name);
    Ok(())
}

fn remove_image(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (name, id): (Text, Text) = given(input)?;
    let (by_name, by_id) = (directory::name(&name.to_string()), directory::id(&id.to_string()));
    let stored: (Text, Text) = (it.get(&by_id)?, it.get(&by_name)?);
    if stored != (name, id) {
        return Err(Failure::STALE);
    }
    it.remove(&by_name);
    it.remove(&by_id);
    Ok(())
}

fn rename_image(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (from, to, id): (Text, Text, Text) = given(input)?;
    let by_name = |name: &Text| directory::name(&name.to_string());
    let by_id = directory::id(&id.to_string());
    let stored: (Text, Text) = (it.get(&by_name(&from))?, it.get(&by_id)?);
    if stored != (id.clone(), from.clone()) {
        return Err(Failure::STALE);
    }
    if it.find::<Text>(&by_name(&to))?.is_some() {
        return Err(Failure::EXISTS);
    }
    it.remove(&by_name(&from));
    it.set(&by_name(&to), &id);
    it.set(&by_id, &to);
    Ok(())
}

/// Keys with a prefix, without it, behind one of them.
fn listed(
    it: &ClassObject,
    prefix: &str,
    input: &[u8],
    read: impl Fn(&[u8]) -> Option<Text>,
) -> Result<Vec<u8>> {
    let (after, max): (Text, u64) = given(input)?;
    let max = if max == 0 && prefix == "metadata_" { u64::MAX } else { max };
    let mut values = BTreeMap::new();
    for (key, value) in &it.omap {
        let Some(name) = key.strip_prefix(prefix.as_bytes()) else { continue };
        if name > &after.0[..] && (values.len() as u64) < max {
            values.insert(Text(name.to_vec()), read(value).ok_or(Failure::IO)?);
        }
    }
    Ok(values.to_bytes())
}

fn set_metadata(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    for (name, value) in given::<BTreeMap<Text, Text>>(input)? {
        it.omap.insert([b"metadata_", &name.0[..]].concat(), value.0);
    }
    Ok(())
}

fn remove_metadata(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let key = [b"metadata_", &given::<Text>(input)?.0[..]].concat();
    it.omap.remove(&key);
    Ok(())
}

fn old_children(it: &mut ClassObject, method: &str, input: &[u8]) -> Result<Vec<u8>> {
    let (of, child) = match method {
        "get_children" => (given::<(u64, Text, u64)>(input)?, None),
        _ => {
            let (pool, image, snapshot, child): (u64, Text, u64, Text) = given(input)?;
            ((pool, image, snapshot), Some(child))
        }
    };
    let key = of.to_bytes();
    let stored = it.omap.get(&key).map(|bytes| BTreeSet::<Text>::from_bytes(bytes));
    let stored = stored.transpose().map_err(|_| Failure::IO)?;
    let Some(child) = child else { return Ok(stored.ok_or(Failure::NOT_FOUND)?.to_bytes()) };
    let mut children = stored.unwrap_or_default();
    match method {
        "add_child" if !children.insert(child.clone()) => return Err(Failure::EXISTS),
        "remove_child" if !children.remove(&child) => return Err(Failure::NOT_FOUND),
        _ => {}
    }
    if children.is_empty() {
        it.omap.remove(&key);
    } else {
        it.omap.insert(key, children.to_bytes());
    }
    Ok(Vec::new())
}

// The trash.

fn trash_method(it: &mut ClassObject, method: &str, input: &[u8]) -> Result<Vec<u8>> {
    match method {
        "trash_add" => {
            let (id, image): (Text, Trashed) = given(input)?;
            if !names::is_id(&id.to_string()) {
                return Err(Failure::INVALID);
            }
            let key = directory::id(&id.to_string());
            if it.find::<Trashed>(&key)?.is_some() {
                return Err(Failure::EXISTS);
            }
            it.set(&key, &image);
        }
        "trash_remove" => {
            let key = directory::id(&text(input)?);
            it.get::<Trashed>(&key)?;
            it.remove(&key);
        }
        "trash_state_set" => {
            let (id, state, expected): (Text, u8, u8) = given(input)?;
            let key = directory::id(&id.to_string());
            let image: Trashed = it.get(&key)?;
            if image.state != expected && image.state != state {
                return Err(Failure::STALE);
            }
            it.set(&key, &Trashed { state, ..image });
        }
        "trash_get" => return Ok(it.get::<Trashed>(&directory::id(&text(input)?))?.to_bytes()),
        "trash_list" => return trash_list(it, input),
        _ => return Err(Failure::UNSUPPORTED),
    }
    Ok(Vec::new())
}

fn trash_list(it: &ClassObject, input: &[u8]) -> Result<Vec<u8>> {
    let (after, max): (Text, u64) = given(input)?;
    let mut found = BTreeMap::new();
    for (key, value) in &it.omap {
        let Some(id) = key.strip_prefix(b"id_") else { continue };
        if id > &after.0[..] && (found.len() as u64) < max {
            let image = Trashed::from_bytes(value).map_err(|_| Failure::IO)?;
            found.insert(Text(id.to_vec()), image);
        }
    }
    Ok(found.to_bytes())
}

// Headers.

fn create(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (size, order, features, prefix, pool): (u64, u8, u64, Text, i64) = given(input)?;
    if features & !ALL_FEATURES != 0 {
        return Err(NOT_KNOWN);
    }
    if prefix == Text::default() {
        return Err(Failure::INVALID);
    }
    if it.find::<u64>(key::SIZE)?.is_some() {
        return Err(Failure::EXISTS);
    }
    match (Features(features).has(Features::DATA_POOL), pool) {
        (true, -1) => return Err(Failure::INVALID),
        (true, pool) => it.set(key::DATA_POOL, &pool),
        (false, -1) => {}
        (false, _) => return Err(Failure::INVALID),
    }
    it.set(key::SIZE, &size);
    it.set(key::ORDER, &order);
    it.set(key::FEATURES, &features);
    it.set(key::OBJECT_PREFIX, &prefix);
    it.set(key::SNAP_SEQ, &0_u64);
    for time in [key::CREATED, key::ACCESSED, key::MODIFIED] {
        it.set(time, &Time::default());
    }
    Ok(())
}

fn time(it: &ClassObject, key: &str) -> Result<Vec<u8>> {
    it.get::<u64>(key::SIZE)?;
    Ok(it.find::<Time>(key)?.unwrap_or_default().to_bytes())
}

fn touch(it: &mut ClassObject, key: &str) -> Result<()> {
    it.get::<u64>(key::SIZE)?;
    it.set(key, &Time::default());
    Ok(())
}

fn features(it: &ClassObject) -> Result<Features> {
    it.get(key::FEATURES).map(Features)
}

fn snapshot(it: &ClassObject, id: u64) -> Result<Snapshot> {
    it.get(&key::snapshot(id))
}

/// A snapshot's id, and not what stands for the head.
fn no_head(id: u64) -> Result<u64> {
    if id == HEAD { Err(Failure::INVALID) } else { Ok(id) }
}

fn put(it: &mut ClassObject, snapshot: &Snapshot) {
    it.set(&key::snapshot(snapshot.id), snapshot);
}

/// All snapshots, the oldest first.
fn snapshots(it: &ClassObject) -> Result<Vec<Snapshot>> {
    let values = it.omap.iter().filter(|(key, _)| key.starts_with(b"snapshot_"));
    values.map(|(_, value)| Snapshot::from_bytes(value).map_err(|_| Failure::IO)).collect()
}

fn get_size(it: &ClassObject, input: &[u8]) -> Result<Vec<u8>> {
    let order: u8 = it.get(key::ORDER)?;
    let size = match given(input)? {
        HEAD => it.get(key::SIZE)?,
        id => snapshot(it, id)?.size,
    };
    Ok((order, size).to_bytes())
}

fn set_size(it: &mut ClassObject, size: u64) -> Result<()> {
    let before: u64 = it.get(key::SIZE)?;
    it.set(key::SIZE, &size);
    let parent: Option<Parent> = it.find(key::PARENT)?;
    if let Some(mut parent) =
        parent.filter(|parent| size < before && parent.head_overlap > Some(size))
    {
        parent.head_overlap = Some(size);
        it.set(key::PARENT, &parent);
    }
    Ok(())
}

fn get_features(it: &ClassObject, input: &[u8]) -> Result<Vec<u8>> {
    let (_, only_reads): (u64, bool) = given(input)?;
    let features = features(it)?.0;
    let needed = if only_reads { Features::TO_READ } else { Features::TO_WRITE };
    Ok((features, features & needed.0).to_bytes())
}

fn set_features(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (wanted, mask): (u64, u64) = given(input)?;
    let before = features(it)?.0;
    let mask = mask & ALL_FEATURES;
    let (enabled, disabled) = (wanted & mask, !wanted & mask);
    if mask & INTERNAL != 0 || enabled & !MUTABLE != 0 || disabled & !(MUTABLE | DISABLE_ONLY) != 0
    {
        return Err(Failure::INVALID);
    }
    it.set(key::FEATURES, &(before & !mask | wanted & mask));
    Ok(())
}

fn require(it: &ClassObject, needed: Features) -> Result<()> {
    if features(it)?.has(needed) { Ok(()) } else { Err(LACKS_FEATURE) }
}

fn striping(it: &ClassObject) -> Result<Vec<u8>> {
    require(it, Features::STRIPING)?;
    let object = 1_u64 << it.get::<u8>(key::ORDER)?;
    let unit = it.find::<u64>(key::STRIPE_UNIT)?.filter(|unit| *unit > 0).unwrap_or(object);
    let count = it.find::<u64>(key::STRIPE_COUNT)?.filter(|count| *count > 0).unwrap_or(1);
    Ok((unit, count).to_bytes())
}

fn set_striping(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (unit, count): (u64, u64) = given(input)?;
    if unit == 0 || count == 0 {
        return Err(Failure::INVALID);
    }
    require(it, Features::STRIPING)?;
    let object = 1_u64 << it.get::<u8>(key::ORDER)?;
    if unit > object || !object.is_multiple_of(unit) {
        return Err(Failure::INVALID);
    }
    it.set(key::STRIPE_UNIT, &unit);
    it.set(key::STRIPE_COUNT, &count);
    Ok(())
}

fn get_flags(it: &ClassObject, of: u64) -> Result<Vec<u8>> {
    let flags = match of {
        HEAD => it.find::<u64>(key::FLAGS)?.unwrap_or(0),
        id => snapshot(it, id)?.flags,
    };
    Ok(flags.to_bytes())
}

fn set_flags(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (flags, mask, of): (u64, u64, u64) = given(input)?;
    if of == HEAD {
        let before = it.find::<u64>(key::FLAGS)?.unwrap_or(0);
        it.set(key::FLAGS, &(before & !mask | flags & mask));
        return Ok(());
    }
    let mut snapshot = snapshot(it, of)?;
    snapshot.flags = snapshot.flags & !mask | flags & mask;
    put(it, &snapshot);
    Ok(())
}

fn set_operations_asked(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (operations, mask): (u64, u64) = given(input)?;
    if mask & !ALL_OPERATIONS != 0 {
        return Err(Failure::INVALID);
    }
    set_operations(it, operations, mask)
}

/// The feature is there if any operation is.
fn set_operations(it: &mut ClassObject, operations: u64, mask: u64) -> Result<()> {
    let before = it.find::<u64>(key::OPERATIONS)?.unwrap_or(0);
    let operations = before & !mask | operations & mask;
    let features = features(it)?;
    if operations == before {
        return Ok(());
    }
    if operations == 0 {
        it.remove(key::OPERATIONS);
        it.set(key::FEATURES, &features.without(Features::OPERATIONS).0);
    } else {
        it.set(key::OPERATIONS, &operations);
        it.set(key::FEATURES, &(features | Features::OPERATIONS).0);
    }
    Ok(())
}

// Snapshots.

fn snap_context(it: &ClassObject) -> Result<Vec<u8>> {
    let newest: u64 = it.get(key::SNAP_SEQ)?;
    let ids: Vec<u64> = snapshots(it)?.iter().rev().map(|snapshot| snapshot.id).collect();
    Ok((newest, ids).to_bytes())
}

fn add_snapshot(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (name, id, purpose): (Text, u64, Purpose) = given(input)?;
    let newest: u64 = it.get(key::SNAP_SEQ)?;
    if id < newest {
        return Err(Failure::STALE);
    }
    let is_taken = |old: &Snapshot| old.id == id || old.name == name && old.purpose == purpose;
    if snapshots(it)?.iter().any(is_taken) {
        return Err(Failure::EXISTS);
    }
    let parent: Option<Parent> = it.find(key::PARENT)?;
    let snapshot = Snapshot {
        id,
        name,
        size: it.get(key::SIZE)?,
        protection: Protection::Unprotected,
        flags: it.find(key::FLAGS)?.unwrap_or(0),
        purpose,
        time: Time::default(),
        children: 0,
        parent_overlap: parent.and_then(|parent| parent.head_overlap),
    };
    put(it, &snapshot);
    it.set(key::SNAP_SEQ, &id);
    Ok(())
}

fn remove_snapshot(it: &mut ClassObject, id: u64) -> Result<()> {
    let gone = snapshot(it, id)?;
    if gone.protection != Protection::Unprotected || gone.children > 0 {
        return Err(Failure::BUSY);
    }
    it.remove(&key::snapshot(id));
    let left = snapshots(it)?;
    let parent: Option<Parent> = it.find(key::PARENT)?;
    let head_is_cut = parent.is_none_or(|parent| parent.head_overlap.is_none());
    let mut unused = 0;
    if head_is_cut && left.iter().all(|snapshot| snapshot.parent_overlap.is_none()) {
        it.remove(key::PARENT);
        unused |= operation::CLONE_CHILD;
    }
    if !left.iter().any(|snapshot| matches!(snapshot.purpose, Purpose::Trash { .. })) {
        unused |= operation::SNAP_TRASH;
    }
    set_operations(it, 0, unused)
}

fn rename_snapshot(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (id, name): (u64, Text) = given(input)?;
    if snapshots(it)?.iter().any(|other| other.name == name && other.purpose == Purpose::User) {
        return Err(Failure::EXISTS);
    }
    let mut renamed = snapshot(it, id)?;
    if renamed.purpose != Purpose::User {
        return Err(Failure::INVALID);
    }
    renamed.name = name;
    put(it, &renamed);
    Ok(())
}

fn put_into_trash(it: &mut ClassObject, id: u64) -> Result<()> {
    let mut gone = snapshot(it, id)?;
    if gone.protection != Protection::Unprotected {
        return Err(Failure::BUSY);
    }
    let purpose = match &gone.purpose {
        Purpose::User => 0,
        Purpose::Trash { .. } => return Err(Failure::EXISTS),
        Purpose::Other { purpose, .. } => *purpose,
    };
    gone.purpose = Purpose::Trash { name: gone.name, purpose };
    // Ceph draws a number at random.
    gone.name = Text::from(format!("trash-{id}").as_str());
    put(it, &gone);
    set_operations(it, operation::SNAP_TRASH, operation::SNAP_TRASH)
}

fn snapshot_info(it: &ClassObject, id: u64) -> Result<Vec<u8>> {
    let id = no_head(id)?;
    let Snapshot { id, name, size, purpose, time, children, .. } = snapshot(it, id)?;
    Ok(SnapshotInfo { id, purpose, name, size, time, children }.to_bytes())
}

fn protect(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (id, protection): (u64, Protection) = given(input)?;
    require(it, Features::LAYERING)?;
    let mut snapshot = snapshot(it, no_head(id)?)?;
    snapshot.protection = protection;
    put(it, &snapshot);
    Ok(())
}

// Parents and children.

fn parent_spec(it: &ClassObject) -> Result<Vec<u8>> {
    it.get::<u64>(key::SIZE)?;
    let parent: Option<Parent> = it.find(key::PARENT)?;
    let nothing =
        ParentSpec { pool: -1, namespace: Text::default(), image: Text::default(), snapshot: HEAD };
    Ok(parent.map_or(nothing, |parent| parent.of).to_bytes())
}

fn overlap(it: &ClassObject, of: u64) -> Result<Option<u64>> {
    it.get::<u64>(key::SIZE)?;
    match of {
        _ if !features(it)?.has(Features::LAYERING) => Ok(None),
        HEAD => Ok(it.find::<Parent>(key::PARENT)?.and_then(|parent| parent.head_overlap)),
        id => Ok(snapshot(it, id)?.parent_overlap),
    }
}

fn attach_parent(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (of, overlap, again): (ParentSpec, u64, bool) = given(input)?;
    it.get::<u64>(key::SIZE)?;
    require(it, Features::LAYERING)?;
    let exists = of.pool >= 0 && of.image != Text::default() && of.snapshot != HEAD;
    if !exists || overlap == 0 {
        return Err(Failure::INVALID);
    }
    let is_other = |old: &Parent| old.head_overlap.is_some() || old.of != of;
    if it.find::<Parent>(key::PARENT)?.as_ref().is_some_and(is_other) && !again {
        return Err(Failure::EXISTS);
    }
    let head_overlap = Some(overlap.min(it.get(key::SIZE)?));
    it.set(key::PARENT, &Parent { of, head_overlap });
    Ok(())
}

fn detach_parent(it: &mut ClassObject) -> Result<()> {
    require(it, Features::LAYERING)?;
    let features = features(it)?;
    let mut parent: Parent = it.get(key::PARENT)?;
    if parent.head_overlap.is_none() {
        return Err(Failure::NOT_FOUND);
    }
    let mut seen = snapshots(it)?;
    seen.retain(|snapshot| snapshot.parent_overlap.is_some());
    if features.has(Features::DEEP_FLATTEN) {
        for mut snapshot in std::mem::take(&mut seen) {
            snapshot.parent_overlap = None;
            put(it, &snapshot);
        }
    }
    if seen.is_empty() {
        it.remove(key::PARENT);
        return set_operations(it, 0, operation::CLONE_CHILD);
    }
    parent.head_overlap = None;
    it.set(key::PARENT, &parent);
    Ok(())
}

fn attach_child(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (id, child): (u64, Child) = given(input)?;
    let mut of = snapshot(it, id)?;
    if matches!(of.purpose, Purpose::Trash { .. }) {
        return Err(Failure::NOT_FOUND);
    }
    let mut children: Children = it.find(&key::children(id))?.unwrap_or_default();
    if !children.insert(child) {
        return Err(Failure::EXISTS);
    }
    it.set(&key::children(id), &children);
    of.children += 1;
    put(it, &of);
    set_operations(it, operation::CLONE_PARENT, operation::CLONE_PARENT)
}

fn detach_child(it: &mut ClassObject, input: &[u8]) -> Result<()> {
    let (id, child): (u64, Child) = given(input)?;
    let mut of = snapshot(it, id)?;
    let mut children: Children = it.get(&key::children(id))?;
    if !children.remove(&child) {
        return Err(Failure::NOT_FOUND);
    }
    if children.is_empty() {
        it.remove(&key::children(id));
    } else {
        it.set(&key::children(id), &children);
    }
    of.children = of.children.saturating_sub(1);
    put(it, &of);
    if snapshots(it)?.iter().all(|snapshot| snapshot.children == 0) {
        set_operations(it, 0, operation::CLONE_PARENT)?;
    }
    Ok(())
}

fn children(it: &ClassObject, id: u64) -> Result<Vec<u8>> {
    snapshot(it, id)?;
    Ok(it.get::<Children>(&key::children(id))?.to_bytes())
}

// Object maps, and data.

fn map_of(it: &ClassObject) -> Result<ObjectMap> {
    ObjectMap::from_bytes(&it.data).map_err(|_| Failure::IO)
}

fn existence(number: u8) -> Result<Existence> {
    Existence::ALL.get(usize::from(number)).copied().ok_or(Failure::INVALID)
}

fn map_method(it: &mut ClassObject, method: &str, input: &[u8]) -> Result<Vec<u8>> {
    match method {
        "object_map_load" => return Ok(map_of(it)?.to_bytes()),
        "object_map_save" => it.data = given::<ObjectMap>(input)?.to_bytes(),
        "object_map_resize" => {
            let (objects, new): (u64, u8) = given(input)?;
            resize_map(it, objects, existence(new)?)?;
        }
        "object_map_update" => {
            let (from, to, new, current): (u64, u64, u8, Option<u8>) = given(input)?;
            let current = current.map(existence).transpose()?;
            update_map(it, from, to, existence(new)?, current)?;
        }
        "object_map_snap_add" => {
            let mut map = map_of(it)?;
            map.begin_after_snapshot();
            it.data = map.to_bytes();
        }
        "object_map_snap_remove" => after_removal(it, &given(input)?)?,
        _ => return Err(Failure::UNSUPPORTED),
    }
    Ok(Vec::new())
}

fn resize_map(it: &mut ClassObject, objects: u64, new: Existence) -> Result<()> {
    let mut map = if it.data.is_empty() { ObjectMap::new(0) } else { map_of(it)? };
    let before = map.objects();
    if (objects..before).any(|object| map.get(object) != new) {
        return Err(Failure::STALE);
    }
    map.resize(objects);
    (before..objects).for_each(|object| map.set(object, new));
    it.data = map.to_bytes();
    Ok(())
}

fn update_map(
    it: &mut ClassObject,
    from: u64,
    to: u64,
    new: Existence,
    current: Option<Existence>,
) -> Result<()> {
    let mut map = map_of(it)?;
    if from >= to || to > map.objects() {
        return Err(Failure::RANGE);
    }
    for object in from..to {
        let state = map.get(object);
        // Whoever asks for what exists means what has not changed as well.
        let is_meant = current.is_none_or(|current| {
            current == state || current == Existence::Present && state == Existence::Clean
        });
        if is_meant {
            map.set(object, new);
        }
    }
    it.data = map.to_bytes();
    Ok(())
}

/// What had changed before the snapshot that goes has changed before the next one.
fn after_removal(it: &mut ClassObject, gone: &ObjectMap) -> Result<()> {
    let mut map = map_of(it)?;
    for object in 0..map.objects() {
        let was_changed = object >= gone.objects() || gone.get(object) == Existence::Present;
        if map.get(object) == Existence::Clean && was_changed {
            map.set(object, Existence::Present);
        }
    }
    it.data = map.to_bytes();
    Ok(())
}

fn copy_up(
    object: &mut Option<ClassObject>,
    parts: impl IntoIterator<Item = (u64, Vec<u8>)>,
) -> Result<Vec<u8>> {
    if object.is_none() {
        let mut new = ClassObject::default();
        for (offset, bytes) in parts {
            new.write(offset, &bytes)?;
        }
        *object = Some(new);
    }
    Ok(Vec::new())
}

fn sparse_copy_up(object: &mut Option<ClassObject>, input: &[u8]) -> Result<Vec<u8>> {
    let (extents, Text(bytes)): (BTreeMap<u64, u64>, Text) = given(input)?;
    let mut rest = &bytes[..];
    let mut parts = Vec::new();
    for (offset, length) in extents {
        let length = usize::try_from(length).map_err(|_| Failure::INVALID)?;
        let (part, after) = rest.split_at_checked(length).ok_or(Failure::INVALID)?;
        parts.push((offset, part.to_vec()));
        rest = after;
    }
    copy_up(object, parts)
}
