//! Random operations on the cluster in memory and on a real one, which must answer the same and hold the same.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Buffer;
use vellum_rados::memory::MemoryCluster;
use vellum_rados::{
    Found, Objects, ReadOp, ReadStep, Result, SnapContext, SnapId, WriteOp, WriteStep,
};
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::Place;

const OBJECTS: [&str; 3] = ["same.a", "same.b", "same.c"];
const OPERATIONS: usize = 400;

pub(crate) async fn a_cluster_in_memory_answers_and_holds_what_a_real_one_does(
    cluster: Arc<Cluster>,
) {
    let real = cluster.client().await;
    let memory = MemoryCluster::new(&POOLS).client(POOLS[0], "");
    for seed in 1..=3 {
        do_the_same(&memory, &real, &mut StdRng::seed_from_u64(seed)).await;
    }
}

async fn do_the_same(memory: &impl Objects, real: &impl Objects, chance: &mut StdRng) {
    // Snapshots by their numbers in memory and on the real cluster, the newest first.
    let mut snapshots: Vec<(u64, u64)> = Vec::new();
    let mut newest = (0, 0);
    for number in 0..OPERATIONS {
        let mut done = None;
        match chance.random_range(0..20) {
            // None is removed: the real cluster takes its time to forget what it kept.
            0 if snapshots.len() < 6 => {
                newest = (
                    memory.create_snapshot().await.unwrap(),
                    real.create_snapshot().await.unwrap(),
                );
                snapshots.insert(0, newest);
            }
            _ => {
                let object = OBJECTS[chance.random_range(0..OBJECTS.len())];
                let op = operation(chance);
                // Now and then that of somebody who does not know of the newest snapshots, or of none.
                let known = match chance.random_range(0..8) {
                    0 => &[][..],
                    1 if !snapshots.is_empty() => &snapshots[1..],
                    _ => &snapshots[..],
                };
                let newest = if known.len() == snapshots.len() {
                    newest
                } else {
                    known.first().copied().unwrap_or_default()
                };
                let context = |newest, side: fn(&(u64, u64)) -> u64| SnapContext {
                    newest,
                    snapshots: known.iter().map(side).collect(),
                };
                let (in_memory, on_real) =
                    (context(newest.0, |both| both.0), context(newest.1, |both| both.1));
                let answers = (
                    memory.write(object, &in_memory, op.clone()).await,
                    real.write(object, &on_real, op.clone()).await,
                );
                assert_eq!(
                    answers.0, answers.1,
                    "{number}: {op:?} under {known:?} of {snapshots:?}"
                );
                done = Some((object, op, known.to_vec(), answers.0));
            }
        }
        for object in OBJECTS {
            let heads = [(SnapId::HEAD, SnapId::HEAD)].into_iter();
            let all = heads.chain(snapshots.iter().map(|both| (SnapId(both.0), SnapId(both.1))));
            for (in_memory, on_real) in all {
                let both =
                    (all_of(memory, object, in_memory).await, all_of(real, object, on_real).await);
                assert_eq!(both.0, both.1, "{number}: {object} at {in_memory:?} after {done:?}");
            }
        }
    }
}

/// All that an object holds.
async fn all_of(pool: &impl Objects, object: &str, at: SnapId) -> Result<(Vec<u8>, Vec<Found>)> {
    let omap = ReadStep::Omap { after: String::new(), prefix: String::new(), max: 1000 };
    let op = ReadOp::new().then(ReadStep::Stat).then(ReadStep::Xattrs).then(omap);
    let done = pool.read(object, at, op.data(0, Buffer::from_vec(vec![0; 100]), 0..100)).await;
    let (read, found) = done.result?;
    Ok((done.buffer.unwrap()[..read].to_vec(), found))
}

/// One to three steps.
fn operation(chance: &mut StdRng) -> WriteOp {
    let mut steps: Vec<_> = (0..chance.random_range(1..4)).map(|_| step(chance)).collect();
    steps.sort_by_key(|step| !step.only_looks());
    if steps.contains(&WriteStep::Remove) {
        steps.retain(|step| step.only_looks() || *step == WriteStep::Remove);
        steps.dedup();
    }
    WriteOp { steps }
}

fn step(chance: &mut StdRng) -> WriteStep {
    let few = |chance: &mut StdRng| -> Vec<u8> {
        (0..chance.random_range(0..3)).map(|_| chance.random_range(0..2)).collect()
    };
    let name = |chance: &mut StdRng| ["a", "b"][chance.random_range(0..2)].to_owned();
    let place = |chance: &mut StdRng| chance.random_range(0..40_u64);
    match chance.random_range(0..18) {
        0 => WriteStep::AssertExists,
        1 => WriteStep::CompareXattr { name: name(chance), value: few(chance) },
        2 => WriteStep::CompareOmap { key: name(chance).into_bytes(), value: few(chance) },
        3 => WriteStep::CompareExtent { offset: place(chance), data: few(chance).into() },
        4 => WriteStep::Create { exclusive: chance.random_bool(0.5) },
        5..9 => {
            let data = vec![chance.random::<u8>(); chance.random_range(1..20)];
            WriteStep::Write { offset: place(chance), data: data.into() }
        }
        9 => WriteStep::WriteFull(vec![chance.random::<u8>(); chance.random_range(1..20)].into()),
        10 => WriteStep::Zero { offset: place(chance), length: place(chance) + 1 },
        11 => WriteStep::Truncate(place(chance)),
        12 => WriteStep::Remove,
        13 => WriteStep::SetXattr { name: name(chance), value: few(chance) },
        14 => WriteStep::RemoveXattr(name(chance)),
        15 => WriteStep::SetOmap([(name(chance).into_bytes(), few(chance))].into()),
        16 => WriteStep::RemoveOmap([name(chance).into_bytes()].into()),
        _ => WriteStep::AllocHint { object_size: 4 << 20, write_size: 4 << 20 },
    }
}
