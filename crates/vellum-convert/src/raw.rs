//! [`RawSink`]: a disk written byte for byte, with holes.

use vellum_core::Extent;

use crate::Result;
use crate::destination::Destination;
use crate::sink::{Order, Sink};

/// Writes a raw file or device.
#[derive(Debug)]
pub(crate) struct RawSink {
    destination: Destination,
    order: Order,
    size: u64,
}

impl RawSink {
    pub(crate) fn new(destination: Destination, size: u64) -> Self {
        Self { destination, order: Order::new(size), size }
    }
}

impl Sink for RawSink {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let (_, skipped) = self.order.advance(offset, data.len() as u64)?;
        self.destination.zero(skipped)?;
        self.destination.write_at(data, offset)
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        let (_, skipped) = self.order.advance(extent.offset(), extent.length())?;
        self.destination.zero(Extent::between(skipped.offset(), extent.end()))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.destination.zero(self.order.rest())?;
        self.destination.publish(self.size)
    }
}
