//! [`Model`]: what an image must read as, byte by byte.

use vellum_core::{Extent, State};
use vellum_engine::Layer;

use crate::{Result, see};

/// The bytes of a layer; `None` where it inherits. Of states it knows only whether a byte is defined: zeros may be data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Model(Vec<Option<u8>>);

impl Model {
    /// A layer that defines nothing.
    pub fn new(size: u64) -> Self {
        Self(vec![None; usize::try_from(size).unwrap_or(usize::MAX)])
    }

    /// The layer reads as this byte here.
    pub fn put(&mut self, at: Extent, byte: u8) {
        self.slice(at).fill(Some(byte));
    }

    /// The layer reads as this byte where it inherited.
    pub fn put_inherited(&mut self, at: Extent, byte: u8) {
        for one in self.slice(at).iter_mut().filter(|one| one.is_none()) {
            *one = Some(byte);
        }
    }

    /// The layer inherits here.
    pub fn inherit(&mut self, at: Extent) {
        self.slice(at).fill(None);
    }

    /// Whether all of this is defined.
    pub fn is_defined(&self, at: Extent) -> bool {
        self.0[range(at)].iter().all(Option::is_some)
    }

    /// Takes over what another model says of an extent.
    pub fn copy(&mut self, from: &Self, at: Extent) {
        self.slice(at).copy_from_slice(&from.0[range(at)]);
    }

    /// Checks that all of a layer is as the model says.
    pub async fn check<L: Layer>(&self, layer: &L) -> Result<()> {
        self.check_at(layer, Extent::new(0, layer.size())).await
    }

    /// Checks that a part of a layer is as the model says.
    pub async fn check_at<L: Layer>(&self, layer: &L, at: Extent) -> Result<()> {
        let seen = see::read(layer, at).await?;
        for run in &seen.runs {
            let found = &seen.bytes[at.range_of(&run.extent)];
            for (index, expected) in self.0[range(run.extent)].iter().enumerate() {
                let found = (run.state != State::Inherited).then_some(found[index]);
                let offset = run.extent.offset() + index as u64;
                assert_eq!(found, *expected, "at offset {offset} (None is inherited), in {run:?}");
            }
        }
        Ok(())
    }

    fn slice(&mut self, at: Extent) -> &mut [Option<u8>] {
        &mut self.0[range(at)]
    }
}

fn range(at: Extent) -> std::ops::Range<usize> {
    Extent::new(0, at.end()).range_of(&at)
}
