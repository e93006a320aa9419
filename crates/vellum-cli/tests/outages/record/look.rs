//! What a look finds after an outage: it settles what was under way, and must not contradict what was answered.

use anyhow::{Context, Result, bail, ensure};
use vellum_core::Extent;
use vellum_sim::Value;

use super::{Known, Listed, Outage, Record, stamps};
use crate::content::{SECTOR, anatomy};
use crate::tally::Tally;

/// What stands behind the name of an image that is not complete.
const IMPORTING: &str = ".importing-";

/// What snapshots made for a clone are called.
const AUTOMATIC: &str = "auto-";

impl Record {
    /// Images that an import left which an outage ended: they never got the name that they were to have.
    pub fn half_imported(&self, listed: &[Listed]) -> Vec<String> {
        let is_half = |name: &&Listed| {
            let whole =
                name.name.split_once(IMPORTING).and_then(|(whole, _)| self.images.get(whole));
            whole.is_some_and(|known| !known.certain && known.parent.is_none())
        };
        listed.iter().filter(is_half).map(|half| half.name.clone()).collect()
    }

    /// Holds what the program lists against what is known. What was under way is settled by it.
    pub fn take_stock(&mut self, listed: &[Listed]) -> Result<()> {
        let missing: Vec<String> =
            self.names_of(|name, _| !listed.iter().any(|seen| seen.name == name));
        for name in missing {
            ensure!(!self.known(&name).certain, "image {name} is gone");
            self.images.remove(&name);
            self.tally.undone += 1;
        }
        for seen in listed {
            let known = self.images.get_mut(&seen.name);
            let known = known.with_context(|| format!("image {} is back", seen.name))?;
            known.certain = true;
            known.stock_snapshots(seen, &mut self.tally)?;
            known.stock_parent(seen)?;
        }
        self.settle_seals();
        Ok(())
    }

    /// What was sealed, as it turned out, holds what had ended when that began.
    fn settle_seals(&mut self) {
        for image in self.names_of(|_, _| true) {
            for (name, made_for) in self.known(&image).unsettled() {
                let clone = made_for.filter(|clone| self.images.contains_key(clone));
                match clone {
                    Some(clone) => {
                        let sealed = self.end_seal(&image, &name);
                        self.known(&clone).base = Some(sealed);
                    }
                    None if self.known(&image).snapshots[&name].made_for.is_some() => {
                        self.known(&image).snapshots.remove(&name);
                    }
                    None => drop(self.end_seal(&image, &name)),
                }
            }
        }
    }

    /// Everything there is to be read: images and their snapshots with a name, snapshots first.
    pub fn readable(&self) -> Vec<(String, Option<String>)> {
        let snapshots = self.snapshots().into_iter().map(|(image, name)| (image, Some(name)));
        let heads = self.images.keys().map(|image| (image.clone(), None));
        snapshots.chain(heads).collect()
    }

    /// What a snapshot reads as, after whatever outage.
    pub fn judge_snapshot(
        &mut self,
        image: &str,
        name: &str,
        at: Extent,
        bytes: &[u8],
    ) -> Result<()> {
        let frozen = self.known(image).snapshots[name].content.clone();
        let frozen = frozen.context("a snapshot that is read is settled")?;
        for (sector, value) in stamps(at, bytes) {
            let allowed = frozen.values(sector);
            match value {
                Some(value) if allowed.contains(&value) => frozen.is(sector, value),
                _ => bail!(
                    "{image}@{name}: sector {sector} reads {value:?}, and may read {allowed:?}"
                ),
            }
        }
        self.tally.judged += at.length() / SECTOR;
        Ok(())
    }

    /// What an image reads as after an outage. What was found is what is there from now on.
    pub fn judge_image(
        &mut self,
        image: &str,
        at: Extent,
        bytes: &[u8],
        outage: Outage,
    ) -> Result<()> {
        let known = self.images.get_mut(image).expect("it was listed");
        for ((sector, value), bytes) in stamps(at, bytes).zip(bytes.chunks_exact(SECTOR as usize)) {
            let now = known.history.allowed_now(sector);
            let allowed = match outage {
                Outage::Death | Outage::DeathBeforePower => now.clone(),
                Outage::Power => known.history.allowed_after_power_cut(sector),
            };
            let value = known.explain(sector, value, &allowed).with_context(|| {
                let anatomy = anatomy(sector, bytes, &known.all_values(sector));
                format!("{image} after {outage:?}: {}: {anatomy}", known.history.story(sector))
            })?;
            self.tally.lost += u64::from(known.explain(sector, Some(value), &now).is_err());
            match outage {
                Outage::DeathBeforePower => known.history.see(sector, Value::Holds(value)),
                Outage::Death | Outage::Power => {
                    known.history.settle(sector, Value::Holds(value));
                }
            }
        }
        self.tally.judged += at.length() / SECTOR;
        Ok(())
    }
}

impl Known {
    fn stock_snapshots(&mut self, seen: &Listed, tally: &mut Tally) -> Result<()> {
        let image = &seen.name;
        for name in seen.snapshots.iter().filter(|name| !name.starts_with(AUTOMATIC)) {
            let snapshot = self.snapshots.get_mut(name);
            let snapshot = snapshot.with_context(|| format!("snapshot {image}@{name} is back"))?;
            snapshot.certain = true;
        }
        let missing = self.snapshots.iter().filter(|(name, snapshot)| {
            snapshot.made_for.is_none() && !seen.snapshots.contains(name)
        });
        for name in missing.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            ensure!(!self.snapshots[&name].certain, "snapshot {image}@{name} is gone");
            self.snapshots.remove(&name);
            tally.undone += 1;
        }
        Ok(())
    }

    fn stock_parent(&mut self, seen: &Listed) -> Result<()> {
        let image = &seen.name;
        match (&self.parent, &seen.parent) {
            (None, None) => {}
            (None, Some(parent)) => bail!("{image} hangs on {parent:?} again"),
            (Some(link), None) => {
                ensure!(self.flattens, "{image} has lost its parent {link:?}");
                self.parent = None;
            }
            (Some(link), Some((of, snapshot))) => {
                let same = link
                    .snapshot
                    .as_ref()
                    .map_or_else(|| snapshot.starts_with(AUTOMATIC), |known| known == snapshot);
                ensure!(
                    link.image == *of && same,
                    "{image} hangs on {of}@{snapshot}, not {link:?}"
                );
            }
        }
        Ok(())
    }

    /// What may have been sealed, and which clone it was for.
    fn unsettled(&self) -> Vec<(String, Option<String>)> {
        let open = self.snapshots.iter().filter(|(_, snapshot)| snapshot.content.is_none());
        open.map(|(name, snapshot)| (name.clone(), snapshot.made_for.clone())).collect()
    }
}
