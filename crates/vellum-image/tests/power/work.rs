//! [`Worker`]: reads and writes of open images, each known to the [`Book`](crate::book::Book) before it is made.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::{Buffer, Extent};
use vellum_engine::{ErrorKind, Layering, Result};
use vellum_image::{DiscardPolicy, Image, WriteOptions, ZeroOptions};
use vellum_sim::Value;

use crate::book::Shared;
use crate::ground::{Engine, Ground, alive};
use crate::known::{Known, SECTOR, SECTORS, SIZE, sectors};

/// Where in an image that lies of which something is known.
fn place(image: &Image<Engine>, at: Extent) -> Extent {
    Extent::new(image.size() - SIZE + at.offset(), at.length())
}

/// Whether a request covers all of the object that a sector lies in.
fn covers_objects(image: &Image<Engine>, request: Extent, sector: Extent) -> bool {
    let (geometry, request) = (image.geometry(), place(image, request));
    geometry.objects(place(image, sector)).all(|piece| {
        let mut parts = geometry.object_image_extents(piece.object, image.size());
        parts.all(|part| request.contains(&part))
    })
}

/// What each sector reads as; none may be torn.
pub async fn values(image: &Image<Engine>) -> Vec<Value> {
    try_values(image).await.unwrap()
}

/// The same, where the image may be taken away meanwhile.
pub async fn try_values(image: &Image<Engine>) -> Result<Vec<Value>> {
    let length = SIZE as usize;
    let at = place(image, Extent::new(0, SIZE));
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    holes?;
    let sector = |bytes: &[u8]| {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(bytes.chunks(8).all(|part| part == number.to_le_bytes()), "a sector is torn");
        Value::Holds(number)
    };
    Ok(buffer.chunks(SECTOR as usize).map(sector).collect())
}

/// One of those who work on the images of a life at the same time.
pub struct Worker<'a> {
    pub ground: Ground,
    pub open: &'a [(Shared<Known>, &'a Image<Engine>)],
    pub chance: StdRng,
}

impl Worker<'_> {
    /// One who does what it is told.
    pub fn alone(ground: &Ground) -> Self {
        Self { ground: ground.clone(), open: &[], chance: StdRng::seed_from_u64(0) }
    }

    /// Does one thing.
    pub async fn act(&mut self) {
        let (known, image) = self.open[self.chance.random_range(0..self.open.len())].clone();
        match self.chance.random_range(0..20) {
            0..8 => self.write(&known, image).await,
            8..11 => self.zero(&known, image).await,
            11..15 => self.discard(&known, image).await,
            15..18 => self.read(&known, image).await,
            _ => self.sync(&known, image).await,
        }
    }

    pub async fn sync(&self, known: &Shared<Known>, image: &Image<Engine>) {
        let began = known.borrow_mut().history.tick();
        alive(&self.ground, image.sync().await).await.unwrap();
        known.borrow_mut().history.synced(began);
    }

    fn somewhere(&mut self) -> Extent {
        let first = self.chance.random_range(0..SECTORS);
        let length = self.chance.random_range(1..40);
        let at = Extent::new(first * SECTOR, length * SECTOR).clip(SIZE);
        if self.chance.random_bool(0.5) { at.align_out(4096).clip(SIZE) } else { at }
    }

    async fn write(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let (at, number) = (self.somewhere(), self.chance.random_range(1..u64::MAX));
        let durable = self.chance.random_bool(0.15);
        self.write_at(known, image, at, number, durable).await;
    }

    /// Fills an extent with a number.
    pub async fn write_at(
        &self,
        known: &Shared<Known>,
        image: &Image<Engine>,
        at: Extent,
        number: u64,
        durable: bool,
    ) {
        let change = known.borrow_mut().history.begin(at, Value::Holds(number), false);
        let data = Bytes::from(number.to_le_bytes().repeat(at.len_usize() / 8));
        let offset = place(image, at).offset();
        let written = image.write(offset, data, WriteOptions { durable }).await;
        alive(&self.ground, written).await.unwrap();
        known.borrow_mut().history.end(at, change, durable);
    }

    async fn zero(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere();
        let options = ZeroOptions {
            no_hole: self.chance.random_bool(0.3),
            fast: self.chance.random_bool(0.3),
            durable: self.chance.random_bool(0.15),
        };
        self.zero_at(known, image, at, options).await;
    }

    /// Writes zeroes, which may be refused if that is to be fast.
    pub async fn zero_at(
        &self,
        known: &Shared<Known>,
        image: &Image<Engine>,
        at: Extent,
        options: ZeroOptions,
    ) {
        let change = known.borrow_mut().history.begin(at, Value::Holds(0), false);
        let zeroed = alive(&self.ground, image.write_zeroes(place(image, at), options).await).await;
        let history = &mut known.borrow_mut().history;
        match zeroed {
            Ok(()) => history.end(at, change, options.durable),
            Err(error) => {
                let refused = options.fast && error.kind() == ErrorKind::Unsupported;
                assert!(refused, "only fast zeroes may be refused: {error:?}");
                history.refused(at, change);
            }
        }
    }

    async fn discard(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere().align_out(4096).clip(SIZE);
        let inherit = self.chance.random_bool(0.6) && !known.borrow().flattens;
        let policy = if inherit { DiscardPolicy::Inherit } else { DiscardPolicy::Zero };
        let durable = self.chance.random_bool(0.15);
        self.discard_at(known, image, at, policy, durable).await;
    }

    /// Discards whole units.
    pub async fn discard_at(
        &self,
        known: &Shared<Known>,
        image: &Image<Engine>,
        at: Extent,
        policy: DiscardPolicy,
        durable: bool,
    ) {
        let (has_parent, inherit) =
            (known.borrow().parent.is_some(), policy == DiscardPolicy::Inherit);
        let changes: Vec<_> = sectors(at)
            .map(|sector| {
                let mut known = known.borrow_mut();
                let value = match (&known.parent, inherit) {
                    (Some(parent), true) => parent.value(sector),
                    _ => Value::Holds(0),
                };
                let at = Extent::new(sector * SECTOR, SECTOR);
                (at, known.history.begin(at, value, false))
            })
            .collect();
        let discarded =
            alive(&self.ground, image.discard(place(image, at), policy, durable).await).await;
        // A child that copies up gives whole objects back, and may leave the rest as it is.
        let by_object = has_parent && image.record().layering == Layering::CopyUp;
        let surely = |sector: Extent| !by_object || covers_objects(image, at, sector);
        let history = &mut known.borrow_mut().history;
        if let Err(error) = &discarded {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        }
        for (sector, change) in changes {
            match discarded {
                Ok(()) if surely(sector) => history.end(sector, change, durable),
                Ok(()) => {}
                Err(_) => history.refused(sector, change),
            }
        }
    }

    async fn read(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere();
        let began = known.borrow_mut().history.tick();
        let (buffer, holes) = {
            let length = at.len_usize();
            let buffer = Buffer::from_vec(vec![0xaa; length]);
            image.read(place(image, at), buffer, 0..length).await
        };
        alive(&self.ground, holes).await.unwrap();
        for (sector, bytes) in sectors(at).zip(buffer.chunks(SECTOR as usize)) {
            let value = Value::Holds(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
            let known = known.borrow();
            assert!(
                known.history.allows(sector, value, began),
                "sector {sector} of {} reads as {value:?}, and may read as {:?}",
                known.name,
                known.history.allowed_now(sector)
            );
        }
    }
}
