//! Long programs of random operations against a model of single bytes. The seeds are fixed: what fails, fails again.

use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;
use vellum_engine::{Guarded, Head, Layer};

use crate::Result;
use crate::act::{data, done, fill, inherit, snapshot, write, write_of, zero, zeros};
use crate::harness::Harness;
use crate::model::Model;
use crate::pool::{Pool, UNITS};
use crate::see::eventually;

super::cases! {
    a_program_of_one_task_does_what_the_model_does,
    a_program_survives_deaths_between_its_steps,
    a_program_survives_power_cuts_after_its_syncs,
    a_program_with_snapshots_freezes_each,
    programs_side_by_side_do_not_meet,
}

const STEPS: usize = 300;

/// Units that one task works on, what they must hold, and where its operations come from.
struct Program {
    at: Extent,
    unit: u64,
    inherits: bool,
    model: Model,
    random: StdRng,
}

impl Program {
    fn new<H: Harness>(pool: &Pool<H>, at: Extent, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { at, unit: pool.block(), inherits: pool.can().inherit, model: pool.model(), random }
    }

    /// Some bytes of this program's part of the image.
    fn bytes(&mut self) -> Extent {
        let offset = self.random.random_range(self.at.offset()..self.at.end());
        let length = self.random.random_range(1..=3 * self.unit);
        Extent::new(offset, length).clip(self.at.end())
    }

    /// Some units of it.
    fn units(&mut self) -> Extent {
        self.bytes().align_out(self.unit).clip(self.at.end())
    }

    async fn step<H: Head>(&mut self, head: &H) -> Result<()> {
        let byte = self.random.random_range(1..=255);
        match self.random.random_range(0..10) {
            0..4 => self.write(head, byte).await,
            4 => {
                let at = self.units();
                self.model.put_inherited(at, byte);
                done(fill(head, [data(at, byte)], None).await?)
            }
            5 => {
                let at = self.units();
                self.model.put_inherited(at, 0);
                done(fill(head, [zeros(at)], None).await?)
            }
            6 => {
                let at = self.units();
                self.model.put(at, 0);
                zero(head, at).await
            }
            7 if self.inherits => {
                let at = self.units();
                self.model.inherit(at);
                inherit(head, at).await
            }
            8 => Ok(head.sync().await?),
            _ => {
                let at = self.bytes();
                self.model.check_at(head.layer(), at).await
            }
        }
    }

    /// A guarded write; what is missing is filled with one byte.
    async fn write<H: Head>(&mut self, head: &H, byte: u8) -> Result<()> {
        let at = self.bytes();
        let whole = |edge: u64| Extent::new(edge, 1).align_out(self.unit).clip(head.layer().size());
        let edges = [whole(at.offset()), whole(at.end() - 1)];
        let mut missing: Vec<Extent> = edges
            .into_iter()
            .filter(|edge| !at.contains(edge) && !self.model.is_defined(*edge))
            .collect();
        missing.dedup();
        match write(head, at, byte).await? {
            Guarded::Done => assert!(missing.is_empty(), "{missing:?} were missing for {at}"),
            Guarded::Missing(found) => {
                let found: Vec<Extent> = found.iter().flat_map(|at| at.chunks(self.unit)).collect();
                assert_eq!(found, missing, "for {at}");
                let parts: Vec<_> = missing.iter().map(|unit| data(*unit, byte / 2)).collect();
                done(fill(head, parts, Some(write_of(at, byte))).await?)?;
                for unit in missing {
                    self.model.put(unit, byte / 2);
                }
            }
            Guarded::Sealed => anyhow::bail!("the head is sealed"),
        }
        self.model.put(at, byte);
        Ok(())
    }
}

async fn a_program_of_one_task_does_what_the_model_does<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut program = Program::new(&pool, pool.all(), 1);
    for step in 0..STEPS {
        program.step(&head).await?;
        if step % 25 == 0 {
            program.model.check(head.layer()).await?;
        }
    }
    program.model.check(head.layer()).await
}

async fn a_program_survives_deaths_between_its_steps<H: Harness>(mut pool: Pool<H>) -> Result<()> {
    pool.needs_persistent()?;
    let record = pool.create("image").await?;
    let mut program = Program::new(&pool, pool.all(), 2);
    for _ in 0..12 {
        let head = pool.own(&record).await?;
        program.model.check(head.layer()).await?;
        for _ in 0..STEPS / 12 {
            program.step(&head).await?;
        }
        drop(head);
        pool = pool.reborn().await?;
        pool.wait_until_free(&record).await?;
    }
    program.model.check(pool.own(&record).await?.layer()).await
}

async fn a_program_survives_power_cuts_after_its_syncs<H: Harness>(
    mut pool: Pool<H>,
) -> Result<()> {
    let record = pool.create("image").await?;
    let mut program = Program::new(&pool, pool.all(), 3);
    for _ in 0..8 {
        let head = pool.own(&record).await?;
        program.model.check(head.layer()).await?;
        for _ in 0..STEPS / 8 {
            program.step(&head).await?;
        }
        head.sync().await?;
        pool = pool.cut_power().await?;
        drop(head);
        pool.wait_until_free(&record).await?;
    }
    program.model.check(pool.own(&record).await?.layer()).await
}

async fn a_program_with_snapshots_freezes_each<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, mut head) = pool.own_new().await?;
    let mut program = Program::new(&pool, pool.all(), 4);
    let mut frozen = Vec::new();
    for number in 0..6 {
        for _ in 0..STEPS / 6 {
            program.step(&head).await?;
        }
        let (record, successor) = snapshot(&head, &format!("s{number}")).await?;
        let sealed = record.snapshots[number].revision.clone();
        frozen.push((sealed, std::mem::replace(&mut program.model, pool.model())));
        head = successor;
        for (revision, model) in &frozen {
            let layer = vellum_engine::Catalog::layer(&pool.catalog, &record.id, revision).await?;
            model.check(&layer).await?;
        }
    }
    Ok(())
}

async fn programs_side_by_side_do_not_meet<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut whole = pool.model();
    let tasks = (0..UNITS / 4).map(|task| {
        let mut program = Program::new(&pool, pool.units(4 * task, 4), 5 + task);
        let head = head.clone();
        tokio::spawn(async move {
            for _ in 0..STEPS {
                program.step(&head).await?;
            }
            anyhow::Ok(program)
        })
    });
    for program in try_join_all(tasks).await? {
        let program = program?;
        whole.copy(&program.model, program.at);
    }
    whole.check(head.layer()).await?;
    drop(head);
    eventually("the image is owned again", async || {
        let Ok(head) = pool.own(&record).await else { return Ok(false) };
        whole.check(head.layer()).await?;
        Ok(true)
    })
    .await
}
