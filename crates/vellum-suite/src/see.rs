//! How cases look at a layer: both ways of reading, checked against each other, and what an error says.

use std::time::Duration;

use vellum_core::{Buffer, Extent, Run, Runs, State};
use vellum_engine::{ErrorKind, Happened, Layer, TryRead};

use crate::Result;

/// What a buffer holds before it is read into.
const BEFORE: u8 = 0xee;

/// How many bytes of the buffer lie before and behind what is read into.
const AROUND: usize = 13;

/// How long something that must come may take.
const EVENTUALLY: Duration = Duration::from_secs(30);

/// Bytes, and the states they come from. Inherited bytes are arbitrary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub bytes: Vec<u8>,
    pub runs: Runs,
}

/// Reads while nobody writes: both ways, which must agree with each other and with the states.
pub(crate) async fn read<L: Layer>(layer: &L, at: Extent) -> Result<Seen> {
    let seen = read_beside(layer, at).await?;
    let mut inline = vec![BEFORE; at.len_usize()];
    let mut runs = Runs::new();
    if layer.try_read(at, &mut inline, &mut runs) == TryRead::Done {
        assert_eq!(runs, seen.runs, "try_read and read of {at} disagree on the states");
        assert!(inline == seen.bytes, "try_read and read of {at} disagree on the bytes");
    }
    assert_eq!(states(layer, at).await?, seen.runs, "states and read of {at} disagree");
    Ok(seen)
}

/// Reads while others may write. Checks that only what is defined was touched, and nothing outside.
pub(crate) async fn read_beside<L: Layer>(layer: &L, at: Extent) -> Result<Seen> {
    let length = at.len_usize();
    let buffer = Buffer::from_vec(vec![BEFORE; length + 2 * AROUND]);
    let (buffer, result) = layer.read(at, buffer, AROUND..AROUND + length).await;
    let runs = result?;
    assert_covers(&runs, at);
    let (before, rest) = buffer.split_at(AROUND);
    let (bytes, behind) = rest.split_at(length);
    let outside = before.iter().chain(behind);
    assert!(outside.copied().all(|byte| byte == BEFORE), "a read of {at} wrote beside its part");
    for run in &runs {
        let bytes = &bytes[at.range_of(&run.extent)];
        match run.state {
            State::Data => {}
            State::Zero => assert!(bytes.iter().all(|byte| *byte == 0), "{run:?} is not zeros"),
            State::Inherited => {
                assert!(bytes.iter().all(|byte| *byte == BEFORE), "{run:?} was not left alone");
            }
        }
    }
    Ok(Seen { bytes: bytes.to_vec(), runs })
}

/// The states of all of an extent.
pub(crate) async fn states<L: Layer>(layer: &L, at: Extent) -> Result<Runs> {
    states_by(layer, at, usize::MAX).await
}

/// The states of all of an extent, asked for some runs at a time.
pub(crate) async fn states_by<L: Layer>(layer: &L, at: Extent, runs_max: usize) -> Result<Runs> {
    let (mut all, mut some, mut rest) = (Runs::new(), Runs::new(), at);
    while !rest.is_empty() {
        layer.load_states(rest, runs_max, &mut some).await?;
        assert!(some.len() <= runs_max, "{} runs were asked for: {some:?}", runs_max);
        let end = end_of(&some, rest);
        assert!(end > rest.offset(), "load_states of {rest} says nothing");
        for run in &some {
            all.push(run.extent, run.state);
        }
        rest = rest.split(end).1;
    }
    assert_covers(&all, at);
    Ok(all)
}

/// Where runs end that begin where an extent does; and that they do.
pub(crate) fn end_of(runs: &Runs, at: Extent) -> u64 {
    if let Some(first) = runs.first() {
        assert_eq!(first.extent.offset(), at.offset(), "{runs:?} do not begin where {at} does");
    }
    let end = runs.last().map_or(at.offset(), |run| run.extent.end());
    assert!(end <= at.end(), "{runs:?} reach beyond {at}");
    end
}

fn assert_covers(runs: &Runs, at: Extent) {
    assert_eq!(end_of(runs, at), at.end(), "{runs:?} do not cover {at}");
}

/// Runs of these states, one after the other.
pub(crate) fn runs<const N: usize>(expected: [(Extent, State); N]) -> Runs {
    let mut runs = Runs::new();
    for (extent, state) in expected {
        runs.push(extent, state);
    }
    runs
}

/// Whether a run is of one state only.
pub(crate) fn one(extent: Extent, state: State) -> Vec<Run> {
    vec![Run { extent, state }]
}

/// Checks that a call failed as it should, and had no effect.
#[track_caller]
pub(crate) fn refused<T>(result: vellum_engine::Result<T>, kind: ErrorKind) {
    match result {
        Ok(_) => panic!("it must fail with {kind:?}, and did not"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error:?}");
            assert_eq!(error.happened(), Happened::NotDone, "{error:?}");
        }
    }
}

/// Waits until something holds that must come by itself.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let begun = tokio::time::Instant::now();
    while !holds().await? {
        anyhow::ensure!(begun.elapsed() < EVENTUALLY, "{what}: not after {EVENTUALLY:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
