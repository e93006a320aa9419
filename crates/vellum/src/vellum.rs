//! [`Vellum`]: a home, its pools, and the images in them by name.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use vellum_ceph::Clusters;
use vellum_core::{BufferPool, ImageName, ImageSpec, PoolName};
use vellum_disk::RealDisk;
use vellum_engine::{
    Catalog as _, Error, ErrorKind, ImageRecord, PoolId, Result, RevisionId, SnapshotRecord,
};
use vellum_image::{ImageOptions, Pools, ResolvedCache};
use vellum_local::store::AfterStop;
use vellum_local::{Copies, LocalCatalog, Mode, OpenOptions, StoreOptions};

use crate::Catalog;
use crate::home::{CephConfig, DEFAULT_POOL, Home, HomeOptions, PoolConfig, no_pool};

/// How many images one look at a catalog returns.
const LIST_STEP: usize = 1000;

/// A pool that could not be opened is left alone for this long, unless it is asked for by its name.
const FAILED_REST: Duration = Duration::from_secs(5);

/// A home and its pools. Clones share them.
#[derive(Clone, Debug)]
pub struct Vellum(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    home: Home,
    runtime: Handle,
    resolved: ResolvedCache,
    buffers: BufferPool,
    pools: Pools<Catalog>,
    open: Mutex<HashMap<PoolName, Catalog>>,
    clusters: Clusters,
    /// Pools that could not be opened, and when.
    failed: Mutex<HashMap<PoolName, Instant>>,
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
    /// Where the holders of the pool's images say how they are reached.
    pub(crate) hints: PathBuf,
}

impl Located {
    /// `pool/image[@snap]`, without the pool if it is the default one.
    pub fn spec(&self) -> ImageSpec {
        let pool = Some(self.pool.clone()).filter(|pool| pool.as_str() != DEFAULT_POOL);
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
        ImageSpec { pool, image: self.record.name.clone(), snapshot }
    }

    /// The revision that is meant.
    pub(crate) fn revision(&self) -> &RevisionId {
        self.snapshot.as_ref().map_or(&self.record.head, |snapshot| &snapshot.revision)
    }

    pub(crate) fn no_snapshot_meant(&self) -> Result<()> {
        match &self.snapshot {
            None => Ok(()),
            Some(snapshot) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is a snapshot; name its image", snapshot.name),
            )),
        }
    }
}

impl Vellum {
    /// Opens a home; its directory is created if need be, and its default pool at its first use. The runtime this is called on
    /// must last as long as the home, its pools and its images: pools are opened there, whoever is the first to need one, and go on
    /// working there after a request.
    pub async fn open(options: HomeOptions) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            home: Home::open(&options)?,
            runtime: Handle::current(),
            resolved: ResolvedCache::default(),
            buffers: BufferPool::default(),
            pools: Pools::default(),
            open: Mutex::default(),
            clusters: Clusters::default(),
            failed: Mutex::default(),
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

    /// What every image is opened with: what has one maximum for all of them.
    pub(crate) fn image_options(&self) -> ImageOptions {
        ImageOptions {
            buffers: self.0.buffers.clone(),
            resolved: self.0.resolved.clone(),
            ..ImageOptions::default()
        }
    }

    /// The pools that this home knows, whether they can be opened or not.
    pub fn pools(&self) -> Result<Vec<(PoolName, PoolConfig)>> {
        Ok(self.0.home.pools()?.into_iter().collect())
    }

    /// Makes a pool known: creates one in a directory that is empty or missing, or takes the one that is there; or takes one of a
    /// Ceph cluster, which has it already. `Exists` if the name or the place is known.
    pub async fn create_pool(&self, name: &PoolName, config: PoolConfig) -> Result<()> {
        let config = absolute(config)?;
        self.refuse_known(name, &config)?;
        if let PoolConfig::Directory(path) = &config {
            create_above(path)?;
        }
        let opened = self.open_pool(&config, Mode::CreateIfMissing).await?;
        if opened.right().is_some() {
            self.refuse_other_name(name, opened.pool()).await?;
        }
        let (home, name) = (self.0.home.clone(), name.clone());
        change_home(move || home.add_pool(&name, config)).await
    }

    /// `Exists` if the home knows a pool of this name, or another one at this place, by whatever path.
    fn refuse_known(&self, name: &PoolName, config: &PoolConfig) -> Result<()> {
        let known = self.0.home.pools()?;
        if known.contains_key(name) && name.as_str() != DEFAULT_POOL {
            return Err(Error::new(ErrorKind::Exists, format!("a pool {name} is known already")));
        }
        let directory = |config: &PoolConfig| match config {
            PoolConfig::Directory(path) => {
                std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
            }
            PoolConfig::Ceph(_) => None,
        };
        let here = directory(config);
        let is_here =
            |other: &PoolConfig| other == config || (here.is_some() && directory(other) == here);
        match known.iter().find(|(other, config)| *other != name && is_here(config)) {
            Some((other, _)) => Err(known_as(config, other)),
            None => Ok(()),
        }
    }

    /// `Exists` if an open pool of another name is the same: a cluster can be reached in several ways.
    async fn refuse_other_name(&self, name: &PoolName, id: PoolId) -> Result<()> {
        self.all_pools().await?;
        match self.pool_name(id).await.filter(|other| other != name) {
            Some(other) => {
                let what = format!("this pool is known already as {other}");
                Err(Error::new(ErrorKind::Exists, what))
            }
            None => Ok(()),
        }
    }

    /// Forgets a pool. What is in it stays.
    pub async fn forget_pool(&self, name: &PoolName) -> Result<()> {
        let (home, forgotten) = (self.0.home.clone(), name.clone());
        change_home(move || home.forget_pool(&forgotten)).await?;
        self.0.open.lock().await.remove(name);
        self.0.failed.lock().await.remove(name);
        Ok(())
    }

    /// A pool by its name.
    pub async fn pool(&self, name: &PoolName) -> Result<Catalog> {
        let mut open = self.0.open.lock().await;
        match open.get(name) {
            Some(Catalog::Right(ceph)) if ceph.is_refused() => {
                tracing::error!(pool = %name, "the cluster refuses this client, since another has taken an image of it; connecting anew");
            }
            Some(catalog) => return Ok(catalog.clone()),
            None => {}
        }
        let config =
            self.0.home.pools()?.remove(name).ok_or_else(|| no_pool(&self.0.home, name))?;
        let mode = match &config {
            PoolConfig::Directory(path) if self.0.home.is_own_pool(&config) => {
                create_above(path)?;
                Mode::CreateIfMissing
            }
            _ => Mode::Existing,
        };
        let catalog = self.open_pool(&config, mode).await?;
        open.insert(name.clone(), catalog.clone());
        Ok(catalog)
    }

    /// Gives a pool that is a copy of another one an id of its own, so that both can be used. Links between its own images
    /// follow; children in other pools stay with the original. With a path, the pool there is made known by the name too.
    /// `Invalid` if it is no copy.
    pub async fn give_new_id(&self, name: &PoolName, path: Option<&Path>) -> Result<PoolId> {
        let (path, is_new) = match (path, self.0.home.pools()?.remove(name)) {
            (None, None) => return Err(no_pool(&self.0.home, name)),
            (None, Some(PoolConfig::Directory(path))) => (path, false),
            (None, Some(PoolConfig::Ceph(_))) => {
                let what = format!("pool {name} is on Ceph, where no pool is a copy of another");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            (Some(path), _) => {
                let path = absolute_path(path)?;
                self.refuse_known(name, &PoolConfig::Directory(path.clone()))?;
                (path, true)
            }
        };
        match self.open_copy(&path, Mode::Existing, Copies::Refuse).await {
            Ok(_) => {
                let what = format!(
                    "the pool at {} is no copy, and keeps its id; name the copy",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            // A copy is refused as invalid. If it is invalid for another reason, it still is below.
            Err(error) if error.kind() == ErrorKind::Invalid => {}
            Err(error) => return Err(error),
        }
        let catalog = self.open_copy(&path, Mode::Existing, Copies::GiveNewId).await?;
        if is_new {
            let (home, name) = (self.0.home.clone(), name.clone());
            change_home(move || home.add_pool(&name, PoolConfig::Directory(path))).await?;
        }
        Ok(catalog.pool())
    }

    async fn open_pool(&self, config: &PoolConfig, mode: Mode) -> Result<Catalog> {
        match config {
            PoolConfig::Directory(path) => self.open_copy(path, mode, Copies::Refuse).await,
            PoolConfig::Ceph(config) => self.open_ceph(config).await,
        }
    }

    async fn open_ceph(&self, config: &CephConfig) -> Result<Catalog> {
        let (clusters, config) = (self.0.clusters.clone(), config.clone());
        let open = async move {
            let CephConfig { pool, namespace, access } = config;
            clusters.pool(&access, &pool, &namespace).await
        };
        self.opened(open, Catalog::Right).await
    }

    async fn open_copy(&self, path: &Path, mode: Mode, copies: Copies) -> Result<Catalog> {
        let store = StoreOptions {
            buffers: self.0.buffers.clone(),
            after: after_stop()?,
            ..StoreOptions::default()
        };
        let options = OpenOptions { mode, copies, store, ..OpenOptions::default() };
        // Threads of its own: a disk that does not answer holds up nobody who waits for another one.
        let path = path.to_owned();
        let open = async move { LocalCatalog::open(RealDisk::default(), &path, options).await };
        self.opened(open, Catalog::Left).await
    }

    /// Opens a pool on the runtime of the home, and lets it be found from others.
    async fn opened<C: Send + 'static>(
        &self,
        open: impl Future<Output = Result<C>> + Send + 'static,
        of_its_engine: impl FnOnce(C) -> Catalog,
    ) -> Result<Catalog> {
        let opened = self.0.runtime.spawn(open).await;
        let opened = opened.map_err(|error| {
            Error::new(ErrorKind::Io, "a pool was not opened").with_source(error)
        })??;
        let catalog = of_its_engine(opened);
        self.0.pools.add(catalog.clone());
        Ok(catalog)
    }

    /// All pools, opened, so that parents and children in any of them are found. Those that cannot be opened are left out, with
    /// a warning.
    pub async fn all_pools(&self) -> Result<&Pools<Catalog>> {
        for (name, config) in self.pools()? {
            if self.is_made_at_its_first_use(&config) || self.failed_lately(&name).await {
                continue;
            }
            if let Err(error) = self.pool(&name).await {
                tracing::warn!(pool = %name, error = %error.chain(), "a pool cannot be opened");
                self.0.failed.lock().await.insert(name, Instant::now());
            }
        }
        Ok(&self.0.pools)
    }

    /// Whether a pool is that of the home itself, and nobody has used it yet. One that somebody put elsewhere is there, or is missed.
    pub fn is_made_at_its_first_use(&self, config: &PoolConfig) -> bool {
        match config {
            PoolConfig::Directory(path) => self.0.home.is_own_pool(config) && !path.exists(),
            PoolConfig::Ceph(_) => false,
        }
    }

    /// Where the holders of a pool's images say how they are reached: in the pool if that is a directory, since processes with
    /// different homes may share it, and else in the home.
    pub(crate) fn hints_of(&self, catalog: &Catalog) -> PathBuf {
        match catalog {
            Catalog::Left(local) => local.live_dir(),
            Catalog::Right(ceph) => self.0.home.hints_of(ceph.pool()),
        }
    }

    /// The pools that could not be opened: what is told of all pools leaves out what is in these.
    pub async fn closed_pools(&self) -> Vec<PoolName> {
        let open = self.0.open.lock().await;
        let failed = self.0.failed.lock().await;
        let mut closed: Vec<_> =
            failed.keys().filter(|name| !open.contains_key(*name)).cloned().collect();
        closed.sort();
        closed
    }

    async fn failed_lately(&self, name: &PoolName) -> bool {
        self.0.failed.lock().await.get(name).is_some_and(|when| when.elapsed() < FAILED_REST)
    }

    /// The name in this home of a pool by its id.
    pub async fn pool_name(&self, id: PoolId) -> Option<PoolName> {
        let open = self.0.open.lock().await;
        open.iter().find(|(_, catalog)| catalog.pool() == id).map(|(name, _)| name.clone())
    }

    pub(crate) fn pool_of(spec: &ImageSpec) -> PoolName {
        spec.pool.clone().unwrap_or_else(|| PoolName::new(DEFAULT_POOL).expect("a good name"))
    }

    /// What was found in a pool.
    pub(crate) fn located(
        &self,
        pool: &PoolName,
        catalog: &Catalog,
        record: ImageRecord,
        snapshot: Option<SnapshotRecord>,
    ) -> Located {
        let (pool, catalog, hints) = (pool.clone(), catalog.clone(), self.hints_of(catalog));
        Located { pool, catalog, record, snapshot, hints }
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
        Ok(self.located(&pool, &catalog, record, snapshot))
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
                let located = |record| self.located(&pool, &catalog, record, None);
                images.extend(step.into_iter().map(located));
            }
        }
        Ok(images)
    }
}

/// The same, whatever directory this process is in later.
fn absolute(config: PoolConfig) -> Result<PoolConfig> {
    Ok(match config {
        PoolConfig::Directory(path) => PoolConfig::Directory(absolute_path(&path)?),
        PoolConfig::Ceph(mut config) => {
            config.access.conf = config.access.conf.as_deref().map(absolute_path).transpose()?;
            PoolConfig::Ceph(config)
        }
    })
}

fn absolute_path(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("find {}", path.display()), error))
}

fn known_as(config: &PoolConfig, name: &PoolName) -> Error {
    Error::new(ErrorKind::Exists, format!("{config} is known already as pool {name}"))
}

fn create_above(path: &Path) -> Result<()> {
    let Some(above) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(above)
        .map_err(|error| Error::io(format!("create {}", above.display()), error))
}

/// Changes the list of pools on a thread that may wait.
async fn change_home(change: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(change)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// What a user says happened, where the boot id cannot tell.
fn after_stop() -> Result<Option<AfterStop>> {
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
