//! [`Vellum`]: images by name.
//!
//! An operation on an image works the same whether nobody has it open (it is opened, changed and closed again) or another process
//! holds it (that process is asked).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Mutex;
use vellum_core::{BufferPool, Extent, ImageName, ImageSpec, PoolName, SnapshotName};
use vellum_disk::RealDisk;
use vellum_engine::{
    Catalog as _, Change, Error, ErrorKind, ImageRecord, PoolId, Result, SnapshotRecord,
};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, ImageOptions, Job, Pools, admin,
};
use vellum_local::{LocalCatalog, Mode, OpenOptions, StoreOptions};

use crate::control::{self, Request};
use crate::home::{DEFAULT_POOL, Home, HomeOptions, PoolConfig, no_pool};
use crate::{Catalog, Image};

/// How many images one look at a catalog returns.
const LIST_STEP: usize = 1000;

/// A home and its pools. Clones share them.
#[derive(Clone, Debug)]
pub struct Vellum(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    home: Home,
    disk: RealDisk,
    buffers: BufferPool,
    pools: Pools<Catalog>,
    open: Mutex<HashMap<PoolName, Catalog>>,
}

/// What a spec names.
#[derive(Clone, Debug)]
pub struct Located {
    /// The name of its pool in this home.
    pub pool: PoolName,
    /// The pool.
    pub catalog: Catalog,
    /// The image.
    pub record: ImageRecord,
    /// The snapshot, if one was named.
    pub snapshot: Option<SnapshotRecord>,
}

impl Located {
    /// `pool/image[@snap]`, without the pool if it is the default one.
    pub fn spec(&self) -> ImageSpec {
        let pool = Some(self.pool.clone()).filter(|pool| pool.as_str() != DEFAULT_POOL);
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
        ImageSpec { pool, image: self.record.name.clone(), snapshot }
    }

    fn no_snapshot_meant(&self) -> Result<()> {
        match &self.snapshot {
            None => Ok(()),
            Some(snapshot) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is a snapshot; name its image", snapshot.name),
            )),
        }
    }
}

/// An image open for reading, as it was at one moment.
#[derive(Debug)]
pub struct Reading {
    /// The image.
    pub image: Image,
    /// A snapshot that was taken for it alone.
    temporary: Option<ImageSpec>,
}

impl Vellum {
    /// Opens a home; its directory is created if need be, and its default pool at its first use.
    pub async fn open(options: HomeOptions) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            home: Home::open(&options)?,
            disk: RealDisk::default(),
            buffers: BufferPool::default(),
            pools: Pools::default(),
            open: Mutex::default(),
        })))
    }

    /// The home's directory.
    pub fn home(&self) -> &Path {
        self.0.home.path()
    }

    /// Where buffers come from.
    pub fn buffers(&self) -> &BufferPool {
        &self.0.buffers
    }

    /// The pools that this home knows, whether they can be opened or not.
    pub fn pools(&self) -> Result<Vec<(PoolName, PoolConfig)>> {
        Ok(self.0.home.pools()?.into_iter().collect())
    }

    /// Creates a pool in a directory that is empty or missing, or takes one that is there, and makes it known.
    pub async fn create_pool(&self, name: &PoolName, path: &Path) -> Result<()> {
        let path = std::path::absolute(path)
            .map_err(|error| Error::io(format!("find {}", path.display()), error))?;
        if self.0.home.pools()?.contains_key(name) && name.as_str() != DEFAULT_POOL {
            return Err(Error::new(ErrorKind::Exists, format!("a pool {name} is known already")));
        }
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)
                .map_err(|error| Error::io(format!("create {}", above.display()), error))?;
        }
        self.open_pool(&path).await?;
        self.0.home.add_pool(name, PoolConfig { path })
    }

    /// Forgets a pool. What is in its directory stays.
    pub async fn forget_pool(&self, name: &PoolName) -> Result<()> {
        self.0.home.forget_pool(name)?;
        self.0.open.lock().await.remove(name);
        Ok(())
    }

    /// A pool by its name.
    pub async fn pool(&self, name: &PoolName) -> Result<Catalog> {
        let mut open = self.0.open.lock().await;
        if let Some(catalog) = open.get(name) {
            return Ok(catalog.clone());
        }
        let config =
            self.0.home.pools()?.remove(name).ok_or_else(|| no_pool(&self.0.home, name))?;
        if name.as_str() == DEFAULT_POOL {
            let above = config.path.parent().expect("the default pool lies inside the home");
            std::fs::create_dir_all(above)
                .map_err(|error| Error::io(format!("create {}", above.display()), error))?;
        }
        let catalog = if name.as_str() == DEFAULT_POOL {
            self.open_pool(&config.path).await?
        } else {
            self.open_pool_as(&config.path, Mode::Existing).await?
        };
        open.insert(name.clone(), catalog.clone());
        Ok(catalog)
    }

    async fn open_pool(&self, path: &Path) -> Result<Catalog> {
        self.open_pool_as(path, Mode::CreateIfMissing).await
    }

    async fn open_pool_as(&self, path: &Path, mode: Mode) -> Result<Catalog> {
        let store = StoreOptions {
            buffers: self.0.buffers.clone(),
            after: after_stop()?,
            ..StoreOptions::default()
        };
        let options = OpenOptions { mode, store, ..OpenOptions::default() };
        let catalog = LocalCatalog::open(self.0.disk.clone(), path, options).await?;
        self.0.pools.add(catalog.clone());
        Ok(catalog)
    }

    /// All pools, opened, so that parents and children in any of them are found. Those that cannot be opened are left out, with
    /// a warning.
    pub async fn all_pools(&self) -> Result<&Pools<Catalog>> {
        for (name, config) in self.pools()? {
            if name.as_str() == DEFAULT_POOL && !config.path.exists() {
                continue;
            }
            if let Err(error) = self.pool(&name).await {
                tracing::warn!(pool = %name, error = %error.chain(), "a pool cannot be opened");
            }
        }
        Ok(&self.0.pools)
    }

    /// The name in this home of a pool by its id.
    pub async fn pool_name(&self, id: PoolId) -> Option<PoolName> {
        let open = self.0.open.lock().await;
        open.iter().find(|(_, catalog)| catalog.pool() == id).map(|(name, _)| name.clone())
    }

    fn pool_of(spec: &ImageSpec) -> PoolName {
        spec.pool.clone().unwrap_or_else(|| PoolName::new(DEFAULT_POOL).expect("a good name"))
    }

    /// Finds an image or a snapshot. `NotFound` names the home that was looked at.
    pub async fn locate(&self, spec: &ImageSpec) -> Result<Located> {
        let pool = Self::pool_of(spec);
        let catalog = self.pool(&pool).await?;
        let record = catalog.find(&spec.image).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no image {} in pool {pool} of the home {}",
                    spec.image,
                    self.home().display()
                ),
            ),
            _ => error,
        })?;
        let snapshot = match &spec.snapshot {
            None => None,
            Some(name) => Some(record.snapshot(name).cloned().ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("image {} has no snapshot {name}", record.name),
                )
            })?),
        };
        Ok(Located { pool, catalog, record, snapshot })
    }

    /// The images of a pool, or of all pools, in the order of their names.
    pub async fn images(&self, pool: Option<&PoolName>) -> Result<Vec<Located>> {
        let names = match pool {
            Some(name) => vec![name.clone()],
            None => {
                self.all_pools().await?;
                let mut names: Vec<_> = self.0.open.lock().await.keys().cloned().collect();
                names.sort();
                names
            }
        };
        let mut images = Vec::new();
        for pool in names {
            let catalog = self.pool(&pool).await?;
            let mut after: Option<ImageName> = None;
            loop {
                let step = catalog.list(after.as_ref(), LIST_STEP).await?;
                let Some(last) = step.last() else { break };
                after = Some(last.name.clone());
                images.extend(step.into_iter().map(|record| Located {
                    pool: pool.clone(),
                    catalog: catalog.clone(),
                    record,
                    snapshot: None,
                }));
            }
        }
        Ok(images)
    }

    /// Creates an empty image.
    pub async fn create(
        &self,
        spec: &ImageSpec,
        size: u64,
        options: CreateOptions,
    ) -> Result<ImageRecord> {
        refuse_snapshot(spec)?;
        let catalog = self.pool(&Self::pool_of(spec)).await?;
        admin::create(&catalog, spec.image.clone(), size, options).await
    }

    /// Opens an image. `InUse` if somebody holds it.
    pub async fn open_image(&self, spec: &ImageSpec, what: Open) -> Result<Image> {
        self.open_located(&self.locate(spec).await?, what).await
    }

    /// Opens what was located.
    pub async fn open_located(&self, located: &Located, what: Open) -> Result<Image> {
        let pools = self.all_pools().await?;
        let options = ImageOptions { buffers: self.0.buffers.clone(), ..ImageOptions::default() };
        Image::open(pools, &located.catalog, &located.record.name, what, options).await
    }

    /// Opens an image or a snapshot for reading, also if another process holds the image: then a snapshot is taken for it.
    pub async fn read(&self, spec: &ImageSpec) -> Result<Reading> {
        let located = self.locate(spec).await?;
        if let Some(snapshot) = &located.snapshot {
            let image = self.open_located(&located, Open::Snapshot(snapshot.name.clone())).await?;
            return Ok(Reading { image, temporary: None });
        }
        match self.open_located(&located, Open::Read).await {
            Ok(image) => Ok(Reading { image, temporary: None }),
            Err(error) if error.kind() == ErrorKind::InUse => {
                let name = unused_snapshot_name();
                let temporary = ImageSpec { snapshot: Some(name.clone()), ..spec.clone() };
                self.snapshot_located(&located, name.clone(), false).await?;
                let image = self.open_located(&located, Open::Snapshot(name)).await?;
                Ok(Reading { image, temporary: Some(temporary) })
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a reading; a snapshot that was taken for it goes.
    pub async fn finish(&self, reading: Reading) -> Result<()> {
        let Reading { image, temporary } = reading;
        drop(image);
        match temporary {
            Some(spec) => self.remove_snapshot(&spec).await,
            None => Ok(()),
        }
    }

    /// Freezes an image under a name.
    pub async fn create_snapshot(&self, spec: &ImageSpec) -> Result<()> {
        let name = snapshot_of(spec)?;
        let located = self.locate(&ImageSpec { snapshot: None, ..spec.clone() }).await?;
        self.snapshot_located(&located, name, false).await
    }

    async fn snapshot_located(
        &self,
        located: &Located,
        name: SnapshotName,
        auto: bool,
    ) -> Result<()> {
        match self.open_located(located, Open::Own).await {
            Ok(image) => {
                let made = image.snapshot(name, auto).await;
                let closed = image.close().await;
                made.and(closed)
            }
            Err(error) if error.kind() == ErrorKind::InUse => {
                let request = Request::Snapshot { name: name.to_string(), auto };
                control::ask(located, request, error, |_, _| {}).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a snapshot's name away.
    pub async fn remove_snapshot(&self, spec: &ImageSpec) -> Result<()> {
        let name = snapshot_of(spec)?;
        let located = self.locate(spec).await?;
        let pools = self.all_pools().await?;
        let change = |snapshot: &SnapshotRecord| Change::RemoveSnapshot(snapshot.id.clone());
        admin::change_snapshot(pools, &located.catalog, &located.record.id, &name, change)
            .await
            .map(|_| ())
    }

    /// Makes a writable copy of a snapshot; of an image, a snapshot is taken that goes with its last child.
    pub async fn clone_image(
        &self,
        parent: &ImageSpec,
        child: &ImageSpec,
        options: CloneOptions,
    ) -> Result<ImageRecord> {
        refuse_snapshot(child)?;
        let child_catalog = self.pool(&Self::pool_of(child)).await?;
        let mut located = self.locate(parent).await?;
        let mut taken = None;
        if located.snapshot.is_none() {
            let name = unused_snapshot_name();
            self.snapshot_located(&located, name.clone(), true).await?;
            let spec = ImageSpec { snapshot: Some(name), ..parent.clone() };
            located = self.locate(&spec).await?;
            taken = Some(spec);
        }
        let snapshot = located.snapshot.as_ref().expect("a snapshot was named or taken");
        let pools = self.all_pools().await?;
        let (catalog, record) = (&located.catalog, &located.record);
        let made = admin::clone(
            pools,
            catalog,
            record,
            snapshot,
            &child_catalog,
            child.image.clone(),
            options,
        )
        .await;
        if made.is_err()
            && let Some(spec) = taken
        {
            // It has no child; if it cannot go now, `snap rm` takes it later.
            let _ = self.remove_snapshot(&spec).await;
        }
        made
    }

    /// Copies up what an image inherits, and cuts the link to its parent.
    pub async fn flatten(
        &self,
        spec: &ImageSpec,
        options: FlattenOptions,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        match self.open_located(&located, Open::Own).await {
            Ok(image) => {
                let flattened = flatten_with_progress(&image, options, progress).await;
                let closed = image.close().await;
                flattened.and(closed)
            }
            Err(error) if error.kind() == ErrorKind::InUse => {
                let FlattenOptions { copies, bytes_per_second } = options;
                let request = Request::Flatten { copies, bytes_per_second };
                control::ask(&located, request, error, progress).await
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up the content of an extent.
    pub async fn discard(&self, spec: &ImageSpec, at: Extent, policy: DiscardPolicy) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        match self.open_located(&located, Open::Own).await {
            Ok(image) => {
                let discarded = image.discard(at, policy, true).await;
                let closed = image.close().await;
                discarded.and(closed)
            }
            Err(error) if error.kind() == ErrorKind::InUse => {
                let to_parent = policy == DiscardPolicy::Inherit;
                let request =
                    Request::Discard { offset: at.offset(), length: at.length(), to_parent };
                control::ask(&located, request, error, |_, _| {}).await
            }
            Err(error) => Err(error),
        }
    }

    /// Gives an image another name. Clients that use it go on.
    pub async fn rename(&self, spec: &ImageSpec, name: &ImageName) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        let change = |_: &ImageRecord| Ok(Change::Rename(name.clone()));
        admin::change(&located.catalog, &located.record.id, change).await.map(|_| ())
    }

    /// Removes an image with its snapshots.
    pub async fn remove(&self, spec: &ImageSpec) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        admin::remove(self.all_pools().await?, &located.catalog, &located.record.id).await
    }

    /// The children of an image, or of one snapshot.
    pub async fn children(&self, spec: &ImageSpec) -> Result<Vec<Located>> {
        let located = self.locate(spec).await?;
        let pools = self.all_pools().await?;
        let mut children = Vec::new();
        for child in admin::children(pools, &located.catalog, &located.record).await? {
            let wanted = located
                .snapshot
                .as_ref()
                .is_none_or(|snapshot| snapshot.revision == child.revision);
            if let Some(pool) = self.pool_name(child.catalog.pool()).await.filter(|_| wanted) {
                children.push(Located {
                    pool,
                    catalog: child.catalog,
                    record: child.record,
                    snapshot: None,
                });
            }
        }
        Ok(children)
    }
}

/// Flattens, and tells how far it has come a few times a second.
pub(crate) async fn flatten_with_progress(
    image: &Image,
    options: FlattenOptions,
    progress: impl Fn(u64, u64),
) -> Result<()> {
    let job = Job::default();
    let flatten = image.flatten(options, &job);
    tokio::pin!(flatten);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        tokio::select! {
            result = &mut flatten => return result.map(|_| ()),
            _ = ticks.tick() => {
                let now = job.progress();
                progress(now.done, now.total);
            }
        }
    }
}

fn snapshot_of(spec: &ImageSpec) -> Result<SnapshotName> {
    spec.snapshot.clone().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("{spec} names no snapshot; write {spec}@SNAP"))
    })
}

fn refuse_snapshot(spec: &ImageSpec) -> Result<()> {
    match &spec.snapshot {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Invalid,
            format!("{spec} names a snapshot where a new image must be named"),
        )),
    }
}

fn unused_snapshot_name() -> SnapshotName {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
    SnapshotName::new(&format!("auto-{:016x}", u64::from_le_bytes(bytes))).expect("a good name")
}

/// What a user says happened, where the boot id cannot tell.
fn after_stop() -> Result<Option<vellum_local::store::AfterStop>> {
    use vellum_local::store::AfterStop;
    match std::env::var("VELLUM_AFTER").as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("process-death") => Ok(Some(AfterStop::ProcessDeath)),
        Ok("power-cut") => Ok(Some(AfterStop::PowerCut)),
        Ok(other) => Err(Error::new(
            ErrorKind::Invalid,
            format!("VELLUM_AFTER is '{other}'; it may be process-death or power-cut"),
        )),
    }
}
