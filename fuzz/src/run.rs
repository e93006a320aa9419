//! Running an input, with all that is promised of it; and running files again.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::{INPUT_MAX, Target, memory};

/// How long anything that an input makes wait may take. libFuzzer is told less by its own clock.
const TIME_MAX: Duration = Duration::from_secs(60);

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Looks at an input, alone in this process.
///
/// # Panics
/// If the target does, in whatever task, or if it takes more memory than it states.
pub fn run(target: &Target, data: &[u8]) {
    static BEGUN: Once = Once::new();
    static WARM: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    BEGUN.call_once(count_panics);
    if WARM.lock().insert(target.name) {
        // What is made once stays, and is nobody's input's.
        (target.body)(&[]);
    }
    let data = &data[..data.len().min(INPUT_MAX)];
    let panics = PANICS.load(Ordering::Relaxed);
    let before = memory::restart();
    (target.body)(data);
    let used = memory::peak() - before;
    assert!(used <= target.memory_max, "{used} bytes, at most {} are stated", target.memory_max);
    assert_eq!(PANICS.load(Ordering::Relaxed), panics, "a task has panicked");
}

/// A runtime catches what its tasks panic with. libFuzzer ends the process at once, and needs no count.
fn count_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(panic);
    }));
}

/// Runs a future on a runtime of its own, to which nothing that it leaves behind is kept.
///
/// # Panics
/// If it does not end in time.
pub(crate) fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime of one thread can be had");
    runtime.block_on(async {
        tokio::time::timeout(TIME_MAX, future).await.expect("it ends, and does not hang")
    })
}

/// Runs the files, and those in the directories, that this program is given.
///
/// # Errors
/// If one of them cannot be read.
pub fn replay(target: &Target) -> io::Result<()> {
    let mut files = Vec::new();
    for argument in std::env::args_os().skip(1).map(PathBuf::from) {
        if argument.is_dir() {
            files.extend(files_in(&argument)?);
        } else {
            files.push(argument);
        }
    }
    for file in &files {
        println!("{}", file.display());
        run(target, &std::fs::read(file)?);
    }
    println!("{}: {} inputs", target.name, files.len());
    Ok(())
}

/// The files in a directory, by name.
///
/// # Errors
/// If it cannot be listed.
pub fn files_in(directory: &std::path::Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.is_file());
    files.sort_unstable();
    Ok(files)
}
