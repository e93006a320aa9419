//! Hostile input: everything that Vellum reads and somebody else may have written, as fuzz targets.
//!
//! A target is a function that takes any bytes and must end: soon, without a panic, within the memory that [`Target`] states,
//! and with each property that it asserts. Inputs are structured, so that a changed byte changes what is said and not
//! whether it is listened to: magic numbers and, where a target says so, checksums are set right behind the fuzzer's back.
//!
//! The same functions run in three ways. `cargo xtask fuzz` builds the programs in `fuzz_targets` with coverage and libFuzzer,
//! on the stable toolchain; `cargo fuzz` does with a nightly one. `cargo test -p vellum-fuzz` runs them over `seeds`, and a
//! program built as usual runs the files that it is given.
//!
//! This crate is a member of the workspace, so that it shares versions, lints and checks with what it tests, and no default
//! one. libFuzzer is a dependency only under `cfg(fuzzing)`, so nobody else compiles it.
//!
//! Modules: [`input`] reads inputs, [`memory`] counts what is allocated, [`run`](mod@run) keeps the promises; the rest is a
//! target each, with `nbd` under two of them.

pub mod canary;
pub mod ceph;
pub mod control;
pub mod input;
pub mod layer;
pub mod layer_bytes;
pub mod memory;
mod nbd;
pub mod nbd_negotiation;
pub mod nbd_transmission;
pub mod qcow2;
pub mod rbd_bytes;
pub mod run;
pub mod words;

#[doc(hidden)]
pub use run::replay;
pub use run::run;

/// A function that takes any bytes, and what it promises of each input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its program and of its directory of seeds.
    pub name: &'static str,
    /// The function.
    pub body: fn(&[u8]),
    /// The most that may be allocated at once while an input is looked at, in bytes.
    pub memory_max: usize,
}

/// The longest input, in bytes. What is longer is cut.
pub const INPUT_MAX: usize = 6144;

const KIB: usize = 1 << 10;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "nbd_negotiation",
        body: nbd_negotiation::look_at,
        memory_max: nbd_negotiation::MEMORY_MAX,
    },
    Target {
        name: "nbd_transmission",
        body: nbd_transmission::look_at,
        memory_max: nbd_transmission::MEMORY_MAX,
    },
    Target { name: "layer_bytes", body: layer_bytes::look_at, memory_max: 64 * KIB },
    Target { name: "layer", body: layer::look_at, memory_max: 8192 * KIB },
    Target { name: "qcow2", body: qcow2::look_at, memory_max: (8 + 16 + 16 + 2) * 1024 * KIB },
    Target { name: "words", body: words::look_at, memory_max: 64 * KIB },
    Target { name: "control", body: control::look_at, memory_max: 1024 * KIB },
    Target { name: "rbd_bytes", body: rbd_bytes::look_at, memory_max: 512 * KIB },
    Target { name: "ceph", body: ceph::look_at, memory_max: 8192 * KIB },
    canary::TARGET,
];

/// The target of this name.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target has this name")
}

/// The program of a target: with libFuzzer under `cfg(fuzzing)`; else one that runs the files that it is given.
#[macro_export]
macro_rules! program {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::run(
            $crate::target(stringify!($name)),
            data
        ));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            $crate::replay($crate::target(stringify!($name)))
        }
    };
}
