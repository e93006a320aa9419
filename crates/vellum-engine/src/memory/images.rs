//! [`Images`]: the records of a pool and the rules about them, as a value. Bytes and owners are elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use vellum_core::{ImageName, SnapshotName};

use crate::{
    Below, Capabilities, Change, ChildRef, Error, ErrorKind, Finding, ImageId, ImageRecord,
    NewImage, NewParent, ParentLink, PoolId, Repair, Result, Revision, RevisionId, Severity,
    SnapshotId, SnapshotRecord, Version,
};

/// All records of a pool. Each method changes all it says, or nothing.
#[derive(Debug)]
pub(crate) struct Images {
    pool: PoolId,
    records: BTreeMap<ImageId, ImageRecord>,
    /// By the revision they hang on.
    children: BTreeMap<RevisionId, BTreeSet<ChildRef>>,
    /// Every id that an image has or had.
    used: BTreeSet<ImageId>,
    numbers: u64,
}

impl Images {
    pub fn new(pool: PoolId) -> Self {
        Self {
            pool,
            records: BTreeMap::new(),
            children: BTreeMap::new(),
            used: BTreeSet::new(),
            numbers: 0,
        }
    }

    /// A number that was never handed out before.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn unused_id(&mut self) -> ImageId {
        loop {
            let id = ImageId::new(format!("image-{}", self.number()));
            if !self.used.contains(&id) {
                return id;
            }
        }
    }

    fn unused_revision(&mut self) -> RevisionId {
        RevisionId::new(format!("revision-{}", self.number()))
    }

    pub fn get(&self, id: &ImageId) -> Result<&ImageRecord> {
        self.records.get(id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("this pool has no image with id {id}"))
        })
    }

    fn get_mut(&mut self, id: &ImageId) -> &mut ImageRecord {
        self.records.get_mut(id).expect("the image was looked up under the same lock")
    }

    pub fn find(&self, name: &ImageName) -> Result<&ImageRecord> {
        self.by_name(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("this pool has no image {name}"))
        })
    }

    fn by_name(&self, name: &ImageName) -> Option<&ImageRecord> {
        self.records.values().find(|record| record.name == *name)
    }

    pub fn list(&self, after: Option<&ImageName>, max: usize) -> Vec<ImageRecord> {
        let mut records: Vec<_> = self
            .records
            .values()
            .filter(|record| after.is_none_or(|after| record.name > *after))
            .cloned()
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records.truncate(max);
        records
    }

    /// The revision of an image. `NotFound` if it has none of this id.
    pub fn revision(&self, image: &ImageId, revision: &RevisionId) -> Result<&Revision> {
        self.get(image)?.revision(revision).ok_or_else(|| {
            let what = format!("image {image} has no revision {revision}");
            Error::new(ErrorKind::NotFound, what)
        })
    }

    /// A sealed revision that a snapshot names; only on such a one can children hang.
    fn named(&self, image: &ImageId, revision: &RevisionId) -> Result<&Revision> {
        let found = self.revision(image, revision)?;
        if self.get(image)?.snapshots.iter().any(|snapshot| snapshot.revision == *revision) {
            return Ok(found);
        }
        let what = format!("image {image} has no snapshot of revision {revision}");
        Err(Error::new(ErrorKind::NotFound, what))
    }

    pub fn create(&mut self, new: NewImage, can: &Capabilities) -> Result<ImageRecord> {
        new.check_limits(can)?;
        self.refuse_taken_name(&new.name)?;
        if let Some(id) = new.id.as_ref().filter(|id| self.used.contains(*id)) {
            let what = format!("an image with id {id} is or was there already");
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let below = match &new.parent {
            None => Below::Nothing,
            Some(parent) => self.below_of(&new, parent)?,
        };
        let id = new.id.unwrap_or_else(|| self.unused_id());
        let head = Revision { id: self.unused_revision(), size: new.size, below, sealed: false };
        if let Some(parent) = new.parent.filter(|parent| parent.link.pool == self.pool) {
            let child = ChildRef { pool: self.pool, image: id.clone() };
            self.children.entry(parent.link.revision).or_default().insert(child);
        }
        let record = ImageRecord {
            id: id.clone(),
            name: new.name,
            version: Version(1),
            geometry: new.geometry,
            layering: new.layering,
            block_size: new.block_size,
            created: SystemTime::now(),
            head: head.id.clone(),
            revisions: vec![head],
            snapshots: Vec::new(),
            meta: new.meta,
        };
        self.used.insert(id.clone());
        self.records.insert(id, record.clone());
        Ok(record)
    }

    fn below_of(&self, new: &NewImage, parent: &NewParent) -> Result<Below> {
        let mut overlap_max = new.size;
        if parent.link.pool == self.pool {
            let revision = self.named(&parent.link.image, &parent.link.revision)?;
            overlap_max = overlap_max.min(revision.size);
        }
        if parent.overlap > overlap_max {
            let what = format!(
                "{} cannot show {} bytes of its parent: the smaller of the two has {overlap_max}",
                new.name, parent.overlap
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(Below::Parent { link: parent.link.clone(), overlap: parent.overlap })
    }

    fn refuse_taken_name(&self, name: &ImageName) -> Result<()> {
        match self.by_name(name) {
            None => Ok(()),
            Some(_) => {
                let what = format!("an image {name} is there already; choose another name");
                Err(Error::new(ErrorKind::Exists, what))
            }
        }
    }

    pub fn at_version(&self, id: &ImageId, at: Version) -> Result<&ImageRecord> {
        let record = self.get(id)?;
        if record.version == at {
            return Ok(record);
        }
        let what = format!(
            "image {} was changed meanwhile (version {}, expected {}); look at it again",
            record.name, record.version.0, at.0
        );
        Err(Error::new(ErrorKind::Conflict, what))
    }

    pub fn change(&mut self, id: &ImageId, at: Version, change: Change) -> Result<ImageRecord> {
        let record = self.at_version(id, at)?;
        match change {
            Change::Rename(name) => {
                if record.name != name {
                    self.refuse_taken_name(&name)?;
                }
                self.get_mut(id).name = name;
            }
            Change::RemoveSnapshot(snapshot) => self.remove_snapshot(id, &snapshot)?,
            Change::RenameSnapshot(snapshot, name) => self.rename_snapshot(id, &snapshot, name)?,
            Change::Meta(key, Some(value)) => {
                self.get_mut(id).meta.insert(key, value);
            }
            Change::Meta(key, None) => {
                self.get_mut(id).meta.remove(&key);
            }
        }
        Ok(self.changed(id))
    }

    /// The record has changed.
    fn changed(&mut self, id: &ImageId) -> ImageRecord {
        let record = self.get_mut(id);
        record.version.0 += 1;
        record.clone()
    }

    fn remove_snapshot(&mut self, id: &ImageId, snapshot: &SnapshotId) -> Result<()> {
        let found = find_snapshot(self.get(id)?, snapshot)?;
        let children = self.children_of(&found.revision);
        if children > 0 {
            let what = format!(
                "snapshot {} has children ({children}); flatten or remove them first",
                found.name
            );
            return Err(Error::new(ErrorKind::HasChildren, what));
        }
        self.get_mut(id).snapshots.retain(|other| other.id != *snapshot);
        Ok(())
    }

    fn rename_snapshot(
        &mut self,
        id: &ImageId,
        snapshot: &SnapshotId,
        name: SnapshotName,
    ) -> Result<()> {
        let found = find_snapshot(self.get(id)?, snapshot)?;
        if found.name != name {
            self.refuse_taken_snapshot(id, &name)?;
        }
        let snapshots = &mut self.get_mut(id).snapshots;
        for found in snapshots.iter_mut().filter(|other| other.id == *snapshot) {
            found.name = name.clone();
            found.auto = false;
        }
        Ok(())
    }

    pub fn refuse_taken_snapshot(&self, id: &ImageId, name: &SnapshotName) -> Result<()> {
        if self.get(id)?.snapshot(name).is_none() {
            return Ok(());
        }
        let what = format!("the image has a snapshot {name} already; choose another name");
        Err(Error::new(ErrorKind::Exists, what))
    }

    /// Seals the head under a name and puts an empty revision above it.
    pub fn snapshot(
        &mut self,
        id: &ImageId,
        name: SnapshotName,
        auto: bool,
    ) -> Result<ImageRecord> {
        self.refuse_taken_snapshot(id, &name)?;
        let successor = self.unused_revision();
        let snapshot = SnapshotId::new(format!("snapshot-{}", self.number()));
        let record = self.get_mut(id);
        let sealed = record.head.clone();
        let size = record.size();
        for revision in record.revisions.iter_mut().filter(|revision| revision.id == sealed) {
            revision.sealed = true;
        }
        let below = Below::Own { revision: sealed.clone(), overlap: size };
        record.revisions.push(Revision { id: successor.clone(), size, below, sealed: false });
        record.head = successor;
        let created = SystemTime::now();
        record.snapshots.push(SnapshotRecord {
            id: snapshot,
            name,
            revision: sealed,
            auto,
            created,
        });
        Ok(self.changed(id))
    }

    /// Cuts the link to the parent, and takes the image from its list.
    pub fn cut_parent(&mut self, id: &ImageId) -> Result<ImageRecord> {
        let links = parent_links(self.get(id)?);
        for revision in &mut self.get_mut(id).revisions {
            if matches!(revision.below, Below::Parent { .. }) {
                revision.below = Below::Nothing;
            }
        }
        self.leave(id, &links);
        Ok(self.changed(id))
    }

    /// Removes an image that nobody holds, and says which revisions went with it.
    pub fn remove(&mut self, id: &ImageId) -> Result<Vec<RevisionId>> {
        let record = self.get(id)?;
        let children: usize =
            record.revisions.iter().map(|revision| self.children_of(&revision.id)).sum();
        if children > 0 {
            let what = format!(
                "image {} has children ({children}); flatten or remove them first",
                record.name
            );
            return Err(Error::new(ErrorKind::HasChildren, what));
        }
        let links = parent_links(record);
        let gone = record.revisions.iter().map(|revision| revision.id.clone()).collect();
        self.leave(id, &links);
        self.records.remove(id);
        Ok(gone)
    }

    fn leave(&mut self, id: &ImageId, links: &[ParentLink]) {
        let child = ChildRef { pool: self.pool, image: id.clone() };
        let pool = self.pool;
        for link in links.iter().filter(|link| link.pool == pool) {
            self.detach(&link.image, &link.revision, &child);
        }
    }

    pub fn attach(
        &mut self,
        image: &ImageId,
        revision: &RevisionId,
        child: ChildRef,
    ) -> Result<()> {
        self.named(image, revision)?;
        self.children.entry(revision.clone()).or_default().insert(child);
        Ok(())
    }

    pub fn detach(&mut self, image: &ImageId, revision: &RevisionId, child: &ChildRef) {
        let Some(children) = self.children.get_mut(revision) else { return };
        if !children.remove(child) || !children.is_empty() {
            return;
        }
        self.children.remove(revision);
        let Some(record) = self.records.get_mut(image) else { return };
        let before = record.snapshots.len();
        record.snapshots.retain(|snapshot| !(snapshot.auto && snapshot.revision == *revision));
        if record.snapshots.len() != before {
            self.changed(image);
        }
    }

    pub fn children(&self, image: &ImageId) -> Result<Vec<(RevisionId, ChildRef)>> {
        let mut all = Vec::new();
        for revision in &self.get(image)?.revisions {
            let children = self.children.get(&revision.id).into_iter().flatten();
            all.extend(children.map(|child| (revision.id.clone(), child.clone())));
        }
        Ok(all)
    }

    /// Compares the lists of children with the links of this pool. All else is one structure, and cannot disagree.
    pub fn check(&mut self, image: Option<&ImageId>, repair: Repair) -> Result<Vec<Finding>> {
        if let Some(image) = image {
            return self.get(image).map(|_| Vec::new());
        }
        let hangs_on = |child: &ChildRef, revision: &RevisionId| {
            child.pool != self.pool
                || self.get(&child.image).is_ok_and(|record| {
                    record.parent().is_some_and(|(_, link, _)| link.revision == *revision)
                })
        };
        let listed = self.children.iter();
        let listed = listed.flat_map(|(on, all)| all.iter().map(move |child| (on, child)));
        let stale: Vec<_> = listed.filter(|(on, child)| !hangs_on(child, on)).collect();
        let stale: Vec<_> =
            stale.into_iter().map(|(on, child)| (on.clone(), child.clone())).collect();
        let mut findings = Vec::new();
        for (revision, child) in stale {
            let what = format!(
                "revision {revision} lists image {} as a child, which does not hang on it",
                child.image
            );
            let mut finding = Finding::new(Severity::Stale, what);
            if repair.is_wanted() {
                self.children.entry(revision).or_default().remove(&child);
                finding = finding.repaired("took it from the list");
            }
            findings.push(finding);
        }
        Ok(findings)
    }

    fn children_of(&self, revision: &RevisionId) -> usize {
        self.children.get(revision).map_or(0, BTreeSet::len)
    }
}

fn find_snapshot<'a>(record: &'a ImageRecord, id: &SnapshotId) -> Result<&'a SnapshotRecord> {
    record.snapshots.iter().find(|snapshot| snapshot.id == *id).ok_or_else(|| {
        let what = format!("image {} has no snapshot with id {id}", record.name);
        Error::new(ErrorKind::NotFound, what)
    })
}

fn parent_links(record: &ImageRecord) -> Vec<ParentLink> {
    let links = record.revisions.iter().filter_map(|revision| match &revision.below {
        Below::Parent { link, .. } => Some(link.clone()),
        Below::Own { .. } | Below::Nothing => None,
    });
    links.collect()
}
