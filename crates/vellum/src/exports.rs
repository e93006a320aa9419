//! The images of a home as NBD exports: which there are, what they are called, and which of them this server offers.
//!
//! An export is called what its image is called: `image` or `default/image` in the default pool, `pool/image` elsewhere, and
//! `...@snap` for a snapshot, which takes no writes. Asking what there is never takes ownership.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vellum_core::ImageSpec;
use vellum_engine::{Error, ErrorKind, ImageId};
use vellum_image::image::Open;
use vellum_nbd::{ExportInfo, Exports, Listed, OpenError};

use crate::export::ImageExport;
use crate::holding::{Holdings, Key, User};
use crate::home::DEFAULT_POOL;
use crate::vellum::Located;
use crate::{Catalog, Image, LocalPool, Vellum};

/// What an export is advised to be used in, unless its blocks are larger.
const PREFERRED_BLOCK: u32 = 4096;

/// Which images a server offers.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Those, or all of the home if there are none.
    pub specs: Vec<ImageSpec>,
    /// Whether none of them takes writes.
    pub read_only: bool,
    /// How long an image is kept after its last connection.
    pub grace: Duration,
    /// Where this process is asked about the images it holds.
    pub control: PathBuf,
}

/// The images of a home as exports. Clones share what is held.
#[derive(Clone)]
pub struct ImageExports {
    vellum: Vellum,
    specs: Arc<[ImageSpec]>,
    read_only: bool,
    holdings: Holdings,
}

impl fmt::Debug for ImageExports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageExports").field("holdings", &self.holdings).finish_non_exhaustive()
    }
}

impl ImageExports {
    /// The images of a home.
    pub fn new(vellum: Vellum, options: ExportOptions) -> Self {
        let ExportOptions { specs, read_only, grace, control } = options;
        let holdings = Holdings::new(vellum.clone(), control, grace);
        Self { vellum, specs: specs.into(), read_only, holdings }
    }

    /// The image with this id, if this process holds it, and what keeps it held.
    pub(crate) fn held(&self, pool: &str, image: &str) -> Option<(Image, User)> {
        let user = self.holdings.find(&key(pool, image)?)?;
        Some((user.image().clone(), user))
    }

    /// How many clients use an image, if this process holds it.
    pub(crate) fn clients(&self, pool: &str, image: &str) -> Option<usize> {
        self.holdings.clients(&key(pool, image)?)
    }

    /// Gives up all that is held, after the last connection. Says whether every image was synced in time.
    pub async fn close_all(&self, within: Duration) -> bool {
        self.holdings.close_all(within).await
    }

    fn allows(&self, spec: &ImageSpec) -> bool {
        let pool = |spec: &ImageSpec| {
            spec.pool.as_ref().map_or(DEFAULT_POOL, |pool| pool.as_str()).to_owned()
        };
        let same = |allowed: &ImageSpec| {
            pool(allowed) == pool(spec)
                && allowed.image == spec.image
                && (allowed.snapshot.is_none() || allowed.snapshot == spec.snapshot)
        };
        self.specs.is_empty() || self.specs.iter().any(same)
    }

    async fn locate(&self, name: &str) -> Result<Located, OpenError> {
        let spec: ImageSpec = name
            .parse()
            .map_err(|error| OpenError::Unknown(format!("export '{name}': {error}")))?;
        if !self.allows(&spec) {
            return Err(OpenError::Unknown(format!("export '{name}' is not offered here")));
        }
        match self.vellum.locate(&spec).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let renamed = self.holdings.renamed(name).await;
                renamed.ok_or_else(|| OpenError::Unknown(error.chain()))
            }
            result => result.map_err(refused),
        }
    }

    fn describe(&self, located: &Located) -> ExportInfo {
        let record = &located.record;
        let snapshot =
            located.snapshot.as_ref().and_then(|snapshot| record.revision(&snapshot.revision));
        ExportInfo {
            size: snapshot.map_or_else(|| record.size(), |revision| revision.size),
            read_only: self.takes_no_writes(located),
            description: String::new(),
            preferred_block: record.block_size.max(PREFERRED_BLOCK),
        }
    }

    /// Whether the server, the medium or the nature of snapshots forbids it.
    fn takes_no_writes(&self, located: &Located) -> bool {
        self.read_only || located.snapshot.is_some() || is_read_only(&located.catalog)
    }

    /// The names that a list shows of an image. Snapshots that an operation took for itself can be opened and are not shown.
    fn names(&self, mut located: Located) -> Vec<Listed> {
        let kept = std::mem::take(&mut located.record.snapshots).into_iter();
        let kept = kept.filter(|snapshot| !snapshot.auto).map(Some);
        let specs = std::iter::once(None).chain(kept).map(|snapshot| {
            located.snapshot = snapshot;
            located.spec()
        });
        specs
            .filter(|spec| self.allows(spec))
            .map(|spec| Listed { name: spec.to_string(), description: String::new() })
            .collect()
    }
}

impl Exports for ImageExports {
    type Export = ImageExport;

    async fn list(&self) -> Result<Vec<Listed>, OpenError> {
        let images = self.vellum.images(None).await.map_err(refused)?;
        Ok(images.into_iter().flat_map(|located| self.names(located)).collect())
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        Ok(self.describe(&self.locate(name).await?))
    }

    async fn open(&self, name: &str) -> Result<Arc<ImageExport>, OpenError> {
        let located = self.locate(name).await?;
        let info = self.describe(&located);
        let what = match &located.snapshot {
            Some(snapshot) => Open::Snapshot(snapshot.name.clone()),
            None if self.takes_no_writes(&located) => Open::Read,
            None => {
                let user = self.holdings.own(&located, name).await.map_err(refused)?;
                return Ok(Arc::new(ImageExport::held(user, info)));
            }
        };
        let image = self.vellum.open_located(&located, what).await.map_err(refused)?;
        Ok(Arc::new(ImageExport::read_only(image, info)))
    }
}

fn key(pool: &str, image: &str) -> Option<Key> {
    Some((pool.parse().ok()?, ImageId::new(image)))
}

fn refused(error: Error) -> OpenError {
    OpenError::Refused(error.chain())
}

/// Whether a pool can only be looked at, as one on a read-only medium.
fn is_read_only(catalog: &Catalog) -> bool {
    catalog.left().is_some_and(LocalPool::is_read_only)
}
