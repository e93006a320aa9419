//! [`Logs`]: what an earlier owner of a layer left in its two live logs, and whether it can be believed.
//!
//! A log that is damaged is not one that ends there, where this boot wrote it: what it said is lost, and the layer is corrupt. One
//! of another boot says nothing, whatever became of it.

use std::path::Path;

use vellum_core::Buffer;
use vellum_disk::{BootId, Disk, File, FileIdentity, OpenMode};
use vellum_engine::{Error, Result};

use crate::format::live::{self, Found, LiveLog, LogHeader};
use crate::log::LOG_SIZE;
use crate::place::cannot_open;
use crate::store::{LayerFacts, Shared};

/// So often a log is read whose bytes go on changing.
const READS_MAX: usize = 100;

/// The logs of a layer, as far as they can be read.
pub(crate) struct Logs {
    logs: Vec<LiveLog>,
    /// What lies in their place.
    of_another: Option<LogHeader>,
}

impl Logs {
    /// Reads both. An error where one that this boot wrote cannot be read: begun together, they were both of it or none.
    pub(crate) async fn read<D: Disk>(shared: &Shared<D>, facts: &LayerFacts) -> Result<Self> {
        let number = facts.id.number();
        let [first, second] = [shared.log_path(facts.id, 0), shared.log_path(facts.id, 1)];
        let found = [
            read(&shared.disk, &first, number, shared.boot).await?,
            read(&shared.disk, &second, number, shared.boot).await?,
        ];
        let is_now = |found: &Found| match found {
            Found::Log(log) => shared.is_this_boot(log.header.boot).unwrap_or(false),
            Found::Unreadable { of_this_boot } => *of_this_boot,
            Found::Nothing | Found::OfAnother(_) => false,
        };
        let is_bad = |found: &Found| matches!(found, Found::Unreadable { .. });
        let may_be_now = shared.boot.is_none() && found.iter().any(is_bad);
        let any_is_now = found.iter().any(is_now) || (may_be_now && shared.is_this_boot(None)?);
        if any_is_now && let Some(bad) = found.iter().position(is_bad) {
            let path = [first, second].into_iter().nth(bad).unwrap_or_default();
            return Err(damaged(facts, &format!("{} is no log any more", path.display())));
        }
        let mut logs = Self { logs: Vec::new(), of_another: None };
        for found in found {
            match found {
                Found::Log(log) => logs.logs.push(log),
                Found::OfAnother(header) => logs.of_another = Some(header),
                Found::Nothing | Found::Unreadable { .. } => {}
            }
        }
        Ok(logs)
    }

    /// Those that count for a map, in the order in which they are replayed. See [`live::which_count`].
    pub(crate) fn that_count<D: Disk>(
        &self,
        shared: &Shared<D>,
        facts: &LayerFacts,
        epoch: u64,
        map: FileIdentity,
    ) -> Result<Vec<&LiveLog>> {
        let same_boot = |boot| shared.is_this_boot(boot);
        live::which_count(&self.logs, epoch, map, same_boot).map_err(|error| match error.kind() {
            vellum_engine::ErrorKind::Corrupt => damaged(facts, &error.to_string()),
            _ => error,
        })
    }

    /// Whether the layer was written in this boot.
    pub(crate) fn say_it_was_written(&self, boot: BootId) -> bool {
        self.logs.iter().any(|log| log.header.boot == Some(boot) && log.says_something())
    }

    /// Why something that was acknowledged may be missing, though nothing is damaged: a log of this boot that is not of the past,
    /// and does not count for this map.
    pub(crate) fn doubt<D: Disk>(
        &self,
        shared: &Shared<D>,
        epoch: u64,
        map: FileIdentity,
    ) -> Option<String> {
        let is_now = |header: &LogHeader| shared.is_this_boot(header.boot).unwrap_or(false);
        if let Some(header) = self.of_another.as_ref().filter(|header| is_now(header)) {
            let layer = header.layer;
            return Some(format!("in the place of its live log lies that of layer {layer:016x}"));
        }
        let ahead_by = |log: &LiveLog| log.header.epoch.wrapping_sub(epoch).cast_signed();
        let later = self
            .logs
            .iter()
            .filter(|log| is_now(&log.header) && log.says_something() && ahead_by(log) >= 0);
        let (of_this, of_another): (Vec<_>, Vec<_>) = later.partition(|log| log.header.map == map);
        if let Some(FileIdentity { device, inode }) = of_another.first().map(|log| log.header.map) {
            return Some(format!(
                "its live log continues another map (inode {inode} on device {device}): the pool was copied, or moved to another \
                 file system, while the image was in use or after its process was killed, and what was written there since the \
                 last sync is not here; use the original, or copy it again with its images closed"
            ));
        }
        let has_first = self.logs.iter().any(|log| log.header.map == map && ahead_by(log) == 0);
        let counts_until = i64::from(has_first);
        of_this.iter().any(|log| ahead_by(log) > counts_until).then(|| {
            "its live log continues a later state of the map: the map is an earlier one, or the other log was lost, and what was \
             written since is not here"
                .to_owned()
        })
    }
}

/// What lies in the place of a log. Somebody may be writing it meanwhile: so it is damaged only if it stays as it is.
async fn read<D: Disk>(disk: &D, path: &Path, layer: u64, boot: Option<BootId>) -> Result<Found> {
    let mut bytes = read_bytes(disk, path).await?;
    for _ in 1..READS_MAX {
        let mut found = live::find(layer, boot, &bytes);
        let looks_damaged = match &mut found {
            Found::Log(LiveLog { damage: Some(damage), .. }) => {
                *damage = format!("{} {damage}", path.display());
                true
            }
            Found::Unreadable { .. } => true,
            Found::Log(_) | Found::Nothing | Found::OfAnother(_) => false,
        };
        if !looks_damaged {
            return Ok(found);
        }
        let again = read_bytes(disk, path).await?;
        if again == bytes {
            return Ok(found);
        }
        bytes = again;
    }
    Ok(live::find(layer, boot, &bytes))
}

/// The bytes of a log; none if it is not there.
async fn read_bytes<D: Disk>(disk: &D, path: &Path) -> Result<Vec<u8>> {
    let file = match disk.open(path, OpenMode::Read).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_open(format!("open {}", path.display()), error)),
    };
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let length = file.length().await.map_err(failed)?.min(LOG_SIZE) as usize;
    let (bytes, result) = file.read_at(Buffer::from_vec(vec![0; length]), 0..length, 0).await;
    result.map_err(failed)?;
    Ok(bytes.to_vec())
}

fn damaged(facts: &LayerFacts, what: &str) -> Error {
    let (layer, image) = (facts.id, &facts.image_name);
    Error::corrupt(format!(
        "{what}; what was written to layer {layer} of image {image} since its last sync may be lost: bring the file back, or remove \
         live/{layer}.0 and live/{layer}.1 to do without what was written"
    ))
}
