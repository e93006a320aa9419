//! [`CephCatalog`]: the images of a pool, or of a namespace in it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use parking_lot::Mutex;
use vellum_core::{IMAGE_SIZE_MAX, ImageName};
use vellum_engine::{
    Capabilities, Catalog, Change, ChildRef, Error, ErrorKind, Finding, Head, Heeded, ImageId,
    ImageRecord, NewImage, Pending, PoolId, Progress, Repair, Reserved, Result, RevisionId,
    RunToEnd, SnapshotId, Snapshots, Version, Wanted,
};
use vellum_rados::{Failure, Objects, ReadOp, SnapContext, SnapId, WriteOp};
use vellum_rbd::method::{Ask, CLASS, Call, directory, id as id_method};
use vellum_rbd::records::Protection;
use vellum_rbd::{Decode, names};

use crate::background::Background;
use crate::create::CloneFormat;
use crate::data::Data;
use crate::described::{Described, Home, text};
use crate::error::{corrupt, failed, no_image, no_image_with_id, unexpected};
use crate::head::{ATOMIC, CephHead};
use crate::header::described;
use crate::layer::{CephLayer, ReadsHead};
use crate::object_map;
use crate::ownership;
use crate::pending::{self, AtWork};
use crate::place::Place;
use crate::plain_head::PlainHead;
use crate::rebuild::Compared;
use crate::resize::{ReadParent, Shrink};
use crate::trash::{Deferment, TrashedImage};
use crate::watched::{Role, Watched};
use crate::{
    asking, bitmap, change, check, children, clone_v1, create, keys, protect, publish, rebuild,
    records, remove, resize, trash,
};

/// Records that are read at once.
const AT_ONCE: usize = 16;
/// The smallest block: of objects of the usual size there are as many as an object can tell of.
const BLOCK_SIZE_MIN: u32 = 1024;
/// The largest block.
const BLOCK_SIZE_MAX: u32 = 1 << 20;

/// The images of a pool. Clones share the connection, and what is open.
pub struct CephCatalog<O: Objects>(Arc<Shared<O>>);

struct Shared<O: Objects> {
    objects: O,
    home: Home,
    can: Capabilities,
    open: Mutex<HashMap<ImageId, Weak<Watched<O>>>>,
    at_work: AtWork<O>,
    background: Background,
}

impl<O: Objects> Clone for CephCatalog<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: Objects> fmt::Debug for CephCatalog<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CephCatalog({:?})", self.0.objects)
    }
}

impl<O: Objects> CephCatalog<O> {
    /// The images of a pool, whose objects are in this namespace of it. They are served on the runtime that this is called on.
    pub fn new(objects: O, namespace: &str) -> Self {
        let home = Home {
            cluster: objects.cluster(),
            pool: objects.pool(),
            namespace: namespace.to_owned(),
        };
        let can = Capabilities {
            engine: "ceph",
            size_max: IMAGE_SIZE_MAX,
            block_size_min: BLOCK_SIZE_MIN,
            block_size_max: BLOCK_SIZE_MAX,
            snapshots: Snapshots::Native,
            inherit: true,
            ack_is_durable: true,
            atomic: ATOMIC,
            persistent: true,
        };
        let background = Background::here();
        let at_work = AtWork::new(objects.clone(), background.clone());
        Self(Arc::new(Shared { objects, home, can, open: Mutex::default(), at_work, background }))
    }

    pub(crate) fn objects(&self) -> &O {
        &self.0.objects
    }

    pub(crate) fn home(&self) -> &Home {
        &self.0.home
    }

    pub(crate) fn background(&self) -> &Background {
        &self.0.background
    }

    pub(crate) fn at_work(&self) -> &AtWork<O> {
        &self.0.at_work
    }

    pub(crate) fn pool_id(&self) -> PoolId {
        let Home { cluster, pool, namespace } = &self.0.home;
        keys::pool_id(*cluster, *pool, namespace.as_bytes())
    }

    /// Where a pool is, if it is one of this cluster: in the same namespace, or in that of who names none.
    pub(crate) fn place_of(&self, pool: PoolId) -> Option<(i64, String)> {
        let own = &self.0.home.namespace;
        [own.as_str(), ""].into_iter().find_map(|namespace| {
            let number = keys::pool_number(pool, self.0.home.cluster, namespace.as_bytes())?;
            Some((number, namespace.to_owned()))
        })
    }

    /// Asks an object something; `None` if there is no such object, or it holds nothing to answer with.
    pub(crate) async fn ask<T: Decode>(
        &self,
        object: &str,
        ask: Ask<T>,
        doing: impl Fn() -> String,
    ) -> Result<Option<T>> {
        Self::ask_at(&self.0.objects, object, ask, doing).await
    }

    /// The same, of an object of another pool.
    pub(crate) async fn ask_at<T: Decode>(
        objects: &O,
        object: &str,
        ask: Ask<T>,
        doing: impl Fn() -> String,
    ) -> Result<Option<T>> {
        let op = ReadOp::new().call(CLASS, ask.method, ask.input.clone());
        let done = objects.read(object, SnapId::HEAD, op).await;
        match done.result.map(|(_, mut found)| found.pop()) {
            Ok(Some(vellum_rados::Found::Output(output))) => {
                ask.read(&output).map(Some).map_err(|why| corrupt(doing(), why))
            }
            Ok(_) => Err(unexpected()),
            Err(Failure::NOT_FOUND) => Ok(None),
            Err(failure) => Err(failed(failure, doing())),
        }
    }

    /// The name of an image, as the directory has it; `None` if it has none there.
    pub(crate) async fn directory_name(&self, id: &ImageId) -> Result<Option<String>> {
        let ask = directory::dir_get_name(text(id.as_str()));
        let name = self.ask(names::DIRECTORY, ask, || format!("look up the name of image {id}"));
        Ok(name.await?.map(|name| name.to_string()))
    }

    /// The name of an image or, if it is in the trash, the one that it had.
    pub(crate) async fn name_of(&self, id: &ImageId) -> Result<String> {
        if let Some(name) = self.directory_name(id).await? {
            return Ok(name);
        }
        if let Some(found) = trash::get(self, id).await? {
            return Ok(found.name);
        }
        // It may just have come back from there.
        self.directory_name(id).await?.ok_or_else(|| no_image_with_id(id.as_str()))
    }

    /// The record of an image whose header is known.
    pub(crate) async fn record_of(&self, described: &Described) -> Result<ImageRecord> {
        described.record(&self.0.home, &self.name_of(&described.id).await?)
    }

    /// An image that is open, or will be.
    async fn watched(&self, id: &ImageId) -> Result<Arc<Watched<O>>> {
        if let Some(open) = self.0.open.lock().get(id).and_then(Weak::upgrade) {
            return Ok(open);
        }
        // Looked at first: a header that is only there until it is removed is none.
        described(&self.0.objects, id).await?;
        let new =
            Watched::begin(self.0.objects.clone(), id.clone(), self.0.background.clone()).await?;
        let mut open = self.0.open.lock();
        if let Some(other) = open.get(id).and_then(Weak::upgrade) {
            return Ok(other);
        }
        open.retain(|_, image| image.strong_count() > 0);
        open.insert(id.clone(), Arc::downgrade(&new));
        Ok(new)
    }

    /// The data objects of an image, at its head or at a snapshot.
    pub(crate) fn data(
        &self,
        described: &Described,
        snapshot: Option<u64>,
        presence: Option<crate::presence::Presence>,
    ) -> Result<Data<O>> {
        let geometry = described.geometry()?;
        let size = described.size(snapshot).ok_or_else(|| no_revision(described))?;
        let place = Place::new(geometry, size, described.block_size(&geometry));
        let objects = self.data_objects(described)?;
        let prefix = described.header.prefix.to_string();
        let at = snapshot.map_or(SnapId::HEAD, SnapId);
        Ok(Data::new(objects, prefix, place, at, presence))
    }

    /// Where the data objects of an image are.
    pub(crate) fn data_objects(&self, described: &Described) -> Result<O> {
        match described.header.data_pool {
            None => Ok(self.0.objects.clone()),
            Some(pool) => self.0.objects.at(pool, &self.0.home.namespace).map_err(|failure| {
                failed(failure, format!("reach the data pool of image {}", described.id))
            }),
        }
    }

    async fn layer_of(&self, image: &ImageId, revision: &RevisionId) -> Result<CephLayer<O>> {
        let watched = self.watched(image).await?;
        let described = described(&self.0.objects, image).await?;
        let snapshot = match described.snapshot_of(revision) {
            Some(Some(snapshot)) => snapshot,
            Some(None) => {
                let what = format!("the head of image {image} is not sealed; open it as such");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            None => return Err(no_revision(&described)),
        };
        watched.saw(&described);
        let presence = match described.sparse {
            Some(_) => bitmap::load(&self.0.objects, image, Some(snapshot)).await?,
            None => object_map::of_snapshot(self, &described, snapshot).await?,
        };
        let data = Arc::new(self.data(&described, Some(snapshot), presence)?);
        Ok(CephLayer::new(revision.clone(), data, watched, None))
    }

    async fn owned(&self, image: &ImageId) -> Result<CephHead<O>> {
        let objects = &self.0.objects;
        let watched = self.watched(image).await?;
        let (described, acquisition) = ownership::acquire(objects, &watched, image).await?;
        match self.open_head(&described, &watched, acquisition).await {
            Ok(head) => {
                watched.set_lent(false);
                if let Err(error) = resize::finish(head.owned(), &described).await {
                    let _ = head.close().await;
                    return Err(error);
                }
                Ok(head)
            }
            Err(error) => {
                watched.change_role(Role::Owner(acquisition), Role::Releasing(acquisition));
                let _ = ownership::release(objects, &watched, image, acquisition).await;
                Err(error)
            }
        }
    }

    async fn open_head(
        &self,
        described: &Described,
        watched: &Arc<Watched<O>>,
        acquisition: u64,
    ) -> Result<CephHead<O>> {
        let (plain, presence) = if described.sparse.is_none() {
            let plain = PlainHead::open(self, described).await?;
            let presence = plain.map().map(|map| map.presence());
            (Some(plain), presence)
        } else {
            let presence = bitmap::load(&self.0.objects, &described.id, None).await?;
            bitmap::invalidate(&self.0.objects, &described.id, None).await?;
            (None, presence)
        };
        let data = Arc::new(self.data(described, None, presence)?);
        let revision = keys::head_revision(described.id.as_str());
        let layer = CephLayer::new(revision, data, watched.clone(), None);
        let context = change::context(described);
        Ok(CephHead::new(self.clone(), described.id.clone(), layer, context, plain, acquisition))
    }

    async fn head_for_reading(&self, image: &ImageId) -> Result<CephLayer<O>> {
        let objects = &self.0.objects;
        let watched = self.watched(image).await?;
        let described = ownership::begin_reading(objects, &watched, image).await?;
        let reads = ReadsHead::new(objects.clone(), watched.clone(), image.clone());
        let presence = bitmap::load(objects, image, None).await?;
        let data = Arc::new(self.data(&described, None, presence)?);
        let revision = keys::head_revision(image.as_str());
        Ok(CephLayer::new(revision, data, watched, Some(reads)))
    }

    /// Makes a sparse image a plain one, which Ceph's own tools open. Costs a look at each object, and a write to each that has a
    /// block which is not data. Can be done again after a failure; until it succeeds the image is sparse.
    ///
    /// # Errors
    /// `Unsupported` while it has a parent or snapshots, or if it is a plain image; `InUse` if somebody has it.
    pub async fn publish(&self, image: &ImageId) -> Result<ImageRecord> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { publish::publish(&this, &image).await }).await
    }

    /// Gives an image another size, as `rbd resize` does. Owns it for as long as that takes. What grew reads as zeros, whatever was there
    /// before; snapshots keep their sizes and what they hold; what the head sees of a parent ends with the image, and does not come
    /// back. That it has this size is fine.
    ///
    /// What lies beyond the new end of an image becomes zeros first, and then one change of the header, which is atomic and durable, sets
    /// the size and the overlap. One that died in the middle, or failed, leaves an image of the old size whose end reads as before, as
    /// zeros, or as some of both; or one of the new size, with what [`check`](Catalog::check) finds, and the next owner removes.
    ///
    /// Costs nothing for what grows. A shrink costs a look at each object beyond the new end that there may be and, in a plain image whose
    /// snapshots see a parent, a copy of each that they see through; the copies are read from `parent`, which nothing else needs.
    ///
    /// # Errors
    /// `Invalid` for a size that this engine, or the image's object map, does not have, and for a smaller one where nobody allows a
    /// [shrink](Shrink::Refused); `InUse` if somebody has the image; `Unsupported` for a plain image that can only be read; whatever
    /// `parent` fails with.
    pub async fn resize(
        &self,
        image: &ImageId,
        size: u64,
        shrink: Shrink,
        parent: impl ReadParent,
    ) -> Result<ImageRecord> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { resize::resize(&this, &image, size, shrink, &parent).await })
            .await
    }

    /// Whether a snapshot is protected.
    ///
    /// # Errors
    /// `NotFound` if there is no such image, or it has no such snapshot.
    pub async fn protection(&self, image: &ImageId, snapshot: &SnapshotId) -> Result<Protection> {
        protect::protection(self, image, snapshot).await
    }

    /// Protects a snapshot, as `rbd snap protect` does: it cannot be removed, and clones of RBD's first format can be made of it.
    /// One atomic change of the header, durable when this returns; idempotent. Needs no ownership of the image.
    ///
    /// # Errors
    /// `NotFound` if there is no such image, or it has no such snapshot; `Unsupported` if the image lacks the feature layering.
    pub async fn protect(&self, image: &ImageId, snapshot: &SnapshotId) -> Result<ImageRecord> {
        let (this, image, snapshot) = (self.clone(), image.clone(), snapshot.clone());
        RunToEnd::new(async move { protect::protect(&this, &image, &snapshot).await }).await
    }

    /// Ends the protection of a snapshot, as `rbd snap unprotect` does. Idempotent, and durable when this returns.
    ///
    /// Looks for clones of the first format in all pools of the cluster, in the namespace of this one, where alone they can be; so this
    /// client must be able to read them all. Children that the image's header names do not need the protection, and are not in the
    /// way. One that died in the middle leaves a snapshot of which no more clones can be made, and that cannot be removed: this, or
    /// [`protect`](Self::protect), can be called again.
    ///
    /// # Errors
    /// `HasChildren` if there are such clones, `Io` if a pool cannot be looked at: then the snapshot is protected as before. `NotFound`
    /// and `Unsupported` as for [`protect`](Self::protect).
    pub async fn unprotect(&self, image: &ImageId, snapshot: &SnapshotId) -> Result<ImageRecord> {
        let (this, image, snapshot) = (self.clone(), image.clone(), snapshot.clone());
        RunToEnd::new(async move { protect::unprotect(&this, &image, &snapshot).await }).await
    }

    /// [Creates](Catalog::create) a clone in this format, where `create` makes one of the second format, or of the first if this user
    /// may not write the header of the parent and the snapshot is protected. The parent may be in any pool of this cluster, and is not
    /// attached to before.
    ///
    /// # Errors
    /// Those of `create`. `Invalid` if there is no parent in this cluster and, for the first format, if its snapshot is not protected, or
    /// in another namespace. A clone that could not be made leaves nothing, or what [`Catalog::pending`] lists.
    pub async fn create_clone(&self, new: NewImage, format: CloneFormat) -> Result<ImageRecord> {
        let this = self.clone();
        RunToEnd::new(async move { create::create(&this, new, Some(format)).await }).await
    }

    /// Moves an image to the trash, as `rbd trash mv` does: its name is free for another, and it is not removed before this time is over
    /// unless somebody [insists](Deferment::Ignored). It keeps its id, by which its clones, and [`Catalog::get`], find it as before;
    /// [`Catalog::find`] and [`Catalog::list`] do not.
    ///
    /// Several changes, each of which is durable: one that died in the middle leaves what `pending` lists, and what this, or
    /// `rbd trash mv`, finishes when it is called again.
    ///
    /// # Errors
    /// `NotFound` if there is no such image; `Invalid` if it is in the trash; `InUse` while somebody owns it, reads its head, or has it
    /// open with Ceph's own library, or is at work at it. Then it is where it was.
    pub async fn trash_move(&self, image: &ImageId, keep: Duration) -> Result<TrashedImage> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { trash::put(&this, &image, keep).await }).await
    }

    /// Up to `max` images in the trash, in the order of their ids, beginning after `after`; also those that somebody else put there.
    ///
    /// # Errors
    /// `Corrupt` if what the trash holds cannot be read, `Io` if it cannot be reached.
    pub async fn trash_list(
        &self,
        after: Option<&ImageId>,
        max: usize,
    ) -> Result<Vec<TrashedImage>> {
        trash::list(self, after, max).await
    }

    /// Brings an image back from the trash, under the name that it had or another, as `rbd trash restore` does.
    ///
    /// Several changes, each of which is durable: one that died in the middle leaves what `pending` lists, and what this, or
    /// `rbd trash restore`, finishes when it is called again.
    ///
    /// # Errors
    /// `NotFound` if the trash has no such image; `Exists` if another image has the name: then it is still in the trash; `Invalid` if
    /// no name is given and its old one cannot be used here; `InUse` while somebody moves or removes it; `Unsupported` for one that a
    /// migration has put there.
    pub async fn trash_restore(
        &self,
        image: &ImageId,
        name: Option<&ImageName>,
    ) -> Result<ImageRecord> {
        let (this, image, name) = (self.clone(), image.clone(), name.cloned());
        RunToEnd::new(async move { trash::restore(&this, &image, name.as_ref()).await }).await
    }

    /// Removes an image that is in the trash, with its snapshots. It is done as by [`Catalog::remove`], and what one that died in the
    /// middle leaves is finished in the same way, or by this.
    ///
    /// # Errors
    /// `NotFound` if the trash has no such image; `Invalid` if it was to be kept for longer and nobody insists, or a snapshot is
    /// protected; `HasChildren` if children hang on it; `InUse` if it is open, or somebody moves it; `Unsupported` for one that a
    /// migration has put there. Then it is still in the trash.
    pub async fn trash_remove(&self, image: &ImageId, deferment: Deferment) -> Result<()> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { trash::remove(&this, &image, deferment).await }).await
    }

    /// Compares the allocation bitmap of a revision of a sparse image with its objects. Costs a look at each object that there may be.
    ///
    /// # Errors
    /// `Unsupported` for a plain image, whose object map Ceph's own tools check.
    pub async fn compare_bitmap(&self, image: &ImageId, of: &RevisionId) -> Result<Compared> {
        rebuild::compare(self, image, of).await
    }

    /// Makes the allocation bitmap of a revision of a sparse image anew. Costs the same, and can be done again after a failure.
    ///
    /// # Errors
    /// `Unsupported` for a plain image; `InUse` for the head if somebody has it open.
    pub async fn build_bitmap(&self, image: &ImageId, of: &RevisionId) -> Result<()> {
        let (this, image, of) = (self.clone(), image.clone(), of.clone());
        RunToEnd::new(async move { rebuild::build(&this, &image, &of).await }).await
    }

    /// Takes a child from the list of its parent, as it was described before it was cut off, if that is in this pool. The parent's
    /// snapshot may go with it, and so the parent of that, and so on.
    pub(crate) fn leave<'a>(&'a self, child: &'a Described) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some(link) = child.parent_link(&self.0.home) else { return Ok(()) };
            if let Some(on) = clone_v1::parent(child) {
                return clone_v1::remove(self.objects(), on, &child.id).await;
            }
            if link.pool != self.pool_id() {
                return Ok(());
            }
            let left = ChildRef { pool: self.pool_id(), image: child.id.clone() };
            children::detach(self, self.objects(), &link.image, &link.revision, &left).await
        })
    }
}

/// The image has no such revision.
pub(crate) fn no_revision(described: &Described) -> Error {
    Error::new(ErrorKind::NotFound, format!("image {} has no such revision", described.id))
}

/// Has a method of RBD's class change an object.
pub(crate) async fn call<O: Objects>(
    objects: &O,
    object: &str,
    call: Call,
) -> vellum_rados::Result<()> {
    let op = WriteOp::new().call(CLASS, call.method, call.input);
    objects.write(object, &SnapContext::default(), op).await
}

impl<O: Objects> Catalog for CephCatalog<O> {
    type Layer = CephLayer<O>;
    type Head = CephHead<O>;

    fn pool(&self) -> PoolId {
        self.pool_id()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.can
    }

    async fn create(&self, new: NewImage) -> Result<ImageRecord> {
        let this = self.clone();
        RunToEnd::new(async move { create::create(&this, new, None).await }).await
    }

    fn unused_id(&self) -> ImageId {
        let chance = getrandom::u32().expect("the system has random numbers");
        ImageId::new(names::new_id(self.0.objects.client(), chance))
    }

    async fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        let (this, id) = (self.clone(), id.clone());
        RunToEnd::new(async move {
            let kept = pending::reserve(&this.0.objects, &this.0.at_work, &id).await?;
            Ok(Reserved::new(kept))
        })
        .await
    }

    async fn is_gone(&self, id: &ImageId) -> Result<bool> {
        if Described::read(&self.0.objects, id).await?.is_some() {
            return Ok(false);
        }
        match pending::of(&self.0.objects, id).await? {
            None => Ok(true),
            Some(note) => Ok(!self.0.at_work.is_somebody_at(id, note.client).await?),
        }
    }

    async fn find(&self, name: &ImageName) -> Result<ImageRecord> {
        let doing = || format!("look up image {name}");
        let object = names::id_object(name.as_str());
        let id = self.ask(&object, id_method::get_id(), doing).await?;
        let id = id.ok_or_else(|| no_image(name.as_str()))?;
        let id = ImageId::new(id.to_string());
        let described = Described::read(&self.0.objects, &id).await?;
        let described = described.ok_or_else(|| no_image(name.as_str()))?;
        described.record(&self.0.home, name.as_str())
    }

    async fn get(&self, id: &ImageId) -> Result<ImageRecord> {
        let (described, name) = futures::join!(described(&self.0.objects, id), self.name_of(id));
        described?.record(&self.0.home, &name?)
    }

    async fn list(&self, after: Option<&ImageName>, max: usize) -> Result<Vec<ImageRecord>> {
        let mut all = Vec::new();
        let mut after = after.map_or_else(String::new, |name| name.as_str().to_owned());
        while all.len() < max {
            let page = records::page(self, &after).await?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            let reads = page.into_iter().map(|(name, id)| async move {
                let described = Described::read(&self.0.objects, &id).await;
                let record = described.and_then(|described| {
                    described.map(|described| described.record(&self.0.home, &name)).transpose()
                });
                match record {
                    // One image that is damaged, or newer than this program, hides no other; a check tells more of it.
                    Err(error)
                        if [ErrorKind::Corrupt, ErrorKind::Unsupported].contains(&error.kind()) =>
                    {
                        tracing::warn!(image = name, "it is left out: {}", error.chain());
                        Ok(None)
                    }
                    record => record,
                }
            });
            let mut reads = stream::iter(reads).buffered(AT_ONCE);
            while let Some(read) = reads.next().await {
                all.extend(read?);
            }
        }
        all.truncate(max);
        Ok(all)
    }

    async fn change(&self, id: &ImageId, at: Version, change: Change) -> Result<ImageRecord> {
        let (this, id) = (self.clone(), id.clone());
        RunToEnd::new(async move { records::change(&this, &id, at, change).await }).await
    }

    async fn remove(&self, id: &ImageId, at: Version) -> Result<()> {
        let (this, id) = (self.clone(), id.clone());
        RunToEnd::new(async move { remove::remove(&this, &id, at).await }).await
    }

    async fn attach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        children::attach(self, image, revision, child).await
    }

    async fn detach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        let (this, image) = (self.clone(), image.clone());
        let (revision, child) = (revision.clone(), child.clone());
        RunToEnd::new(async move {
            children::detach(&this, this.objects(), &image, &revision, &child).await
        })
        .await
    }

    async fn children(&self, image: &ImageId) -> Result<Vec<(RevisionId, ChildRef)>> {
        let described = described(&self.0.objects, image).await?;
        children::of(self, &described).await
    }

    async fn pending(&self) -> Result<Vec<Pending>> {
        let left = records::left_behind(self).await?;
        Ok(left.into_iter().map(|(pending, _)| pending).collect())
    }

    async fn resume(&self, pending: &Pending) -> Result<()> {
        let (this, pending) = (self.clone(), pending.clone());
        RunToEnd::new(async move { records::resume(&this, &pending).await }).await
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<CephLayer<O>> {
        self.layer_of(image, revision).await
    }

    async fn read_head(&self, image: &ImageId) -> Result<CephLayer<O>> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { this.head_for_reading(&image).await }).await
    }

    async fn own(&self, image: &ImageId) -> Result<CephHead<O>> {
        let (this, image) = (self.clone(), image.clone());
        RunToEnd::new(async move { this.owned(&image).await }).await
    }

    async fn ask_owner(
        &self,
        image: &ImageId,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> Result<Heeded> {
        let watched = self.watched(image).await?;
        asking::ask_owner(&self.0.objects, &watched, image, wanted, progress).await
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<CephHead<O>> {
        let described = described(&self.0.objects, image).await?;
        match described.snapshot_of(revision) {
            None => Err(no_revision(&described)),
            Some(None) => {
                let what = format!("the head of image {image} is written by who owns it");
                Err(Error::new(ErrorKind::Invalid, what))
            }
            Some(Some(_)) => {
                let what = "what a snapshot on Ceph keeps cannot be changed; the head is filled";
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    async fn check(&self, image: Option<&ImageId>, repair: Repair) -> Result<Vec<Finding>> {
        check::check(self, image, repair).await
    }

    async fn stored_bytes(&self, image: &ImageId, revision: &RevisionId) -> Result<u64> {
        let described = described(&self.0.objects, image).await?;
        let snapshot = described.snapshot_of(revision).ok_or_else(|| no_revision(&described))?;
        let data = self.data(&described, snapshot, None)?;
        let numbers = remove::numbers(self, data.objects(), &described, snapshot).await?;
        records::stored_bytes(&data, numbers).await
    }
}
