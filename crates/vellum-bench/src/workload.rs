//! The workloads: the yardstick of the project, so they change only with a note in the change log. Some are compared across
//! targets, others with the same thing where nothing disturbs it.

/// What fio does to an export.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name in reports.
    pub name: &'static str,
    /// fio's `rw`.
    pub pattern: &'static str,
    /// Bytes a request.
    pub block: u64,
    /// Requests in flight.
    pub depth: u32,
    /// How much it does.
    pub amount: Amount,
    /// It gets an image made for it though it changes nothing, as what it is compared with does.
    pub own_image: bool,
    /// What was done before it begins.
    pub before: Before,
    /// What goes on beside it.
    pub beside: Beside,
}

impl Workload {
    /// Whether it is a workload of writes.
    pub fn writes(&self) -> bool {
        self.pattern.contains("write")
    }

    /// Whether its image must be made anew.
    pub fn needs_own_image(&self) -> bool {
        self.own_image || self.writes()
    }
}

/// How much a workload does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// So many bytes, at most the image.
    Bytes(u64),
    /// What it can in so many seconds.
    Seconds(u32),
}

/// What was done to an image before it is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// It is as it was made, and in the page cache if there is room.
    Nothing,
    /// What is in the page cache of the images' files was dropped.
    Cold,
    /// Every other piece of [`ALTERNATION`] bytes was written, and then the same.
    Alternating,
}

/// What goes on while an image is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// Another client writes [`WRITES`] blocks a second into the same image.
    Writer,
    /// A snapshot is made after [`SNAPSHOT_AFTER`].
    Snapshot,
}

/// As long as a cluster of the peers, and an extent that files of layers ask for: smaller pieces a peer copies up whole.
pub const ALTERNATION: u64 = 64 << 10;
/// Less than any target can take that does nothing else.
pub const WRITES: u32 = 10_000;
/// By then there is much that was written and not synced.
pub const SNAPSHOT_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
/// Long enough for what began after that to end.
const SNAPSHOT_SECONDS: u32 = 12;

/// The same thing twice, and what it is that may be worse the second time.
#[derive(Debug)]
pub struct Pair {
    /// With nothing that disturbs it.
    pub alone: Workload,
    /// Disturbed.
    pub disturbed: Workload,
    /// What is compared.
    pub metric: Metric,
    /// The names of the targets for which it means something.
    pub targets: &'static [&'static str],
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    /// Requests a second.
    Rate,
    /// How long the slowest request took.
    LongestWait,
}

/// 16,384 requests of 4 KiB.
const RANDOM_TOTAL: u64 = 16_384 * 4096;
/// At depth 1 a quarter of them shows the same.
const RANDOM_TOTAL_ONE: u64 = 4_096 * 4096;
const SEQUENTIAL_TOTAL: u64 = 2 << 30;

/// Random reads of 4 KiB, a few at once, with nothing before and nothing beside.
pub const PLAIN: Workload = Workload {
    name: "",
    pattern: "randread",
    block: 4096,
    depth: 4,
    amount: Amount::Bytes(8 * RANDOM_TOTAL),
    own_image: false,
    before: Before::Nothing,
    beside: Beside::Nothing,
};
const READING: Workload = Workload { name: "randread-4k-alone", own_image: true, ..PLAIN };
const COLD: Workload = Workload {
    name: "seqread-1m-cold",
    pattern: "read",
    block: 1 << 20,
    amount: Amount::Bytes(SEQUENTIAL_TOTAL),
    own_image: true,
    before: Before::Cold,
    ..PLAIN
};
const WRITING_ON: Workload = Workload {
    name: "randwrite-4k-alone",
    pattern: "randwrite",
    amount: Amount::Seconds(SNAPSHOT_SECONDS),
    ..PLAIN
};

/// What is compared with the same thing, undisturbed.
pub const PAIRS: &[Pair] = &[
    Pair {
        alone: READING,
        disturbed: Workload {
            name: "randread-4k-beside-writer",
            beside: Beside::Writer,
            ..READING
        },
        metric: Metric::Rate,
        targets: &["vellum-flat", "qcow2-flat", "nbdkit-file-flat"],
    },
    Pair {
        alone: COLD,
        disturbed: Workload { name: "seqread-1m-alternating", before: Before::Alternating, ..COLD },
        metric: Metric::Rate,
        targets: &["vellum-clone-sparse", "qcow2-clone-64k", "qcow2-clone-extended-l2"],
    },
    Pair {
        alone: WRITING_ON,
        disturbed: Workload {
            name: "randwrite-4k-snapshot",
            beside: Beside::Snapshot,
            ..WRITING_ON
        },
        metric: Metric::LongestWait,
        targets: &["vellum-flat", "vellum-clone-sparse"],
    },
];

/// What is compared across targets.
pub const ALL: &[Workload] = &[
    Workload {
        name: "randwrite-4k-qd32",
        pattern: "randwrite",
        block: 4096,
        depth: 32,
        amount: Amount::Bytes(RANDOM_TOTAL),
        ..PLAIN
    },
    Workload {
        name: "randwrite-4k-qd1",
        pattern: "randwrite",
        block: 4096,
        depth: 1,
        amount: Amount::Bytes(RANDOM_TOTAL_ONE),
        ..PLAIN
    },
    Workload {
        name: "randread-4k-qd32",
        pattern: "randread",
        block: 4096,
        depth: 32,
        amount: Amount::Bytes(8 * RANDOM_TOTAL),
        ..PLAIN
    },
    Workload {
        name: "randread-4k-qd1",
        pattern: "randread",
        block: 4096,
        depth: 1,
        amount: Amount::Bytes(RANDOM_TOTAL),
        ..PLAIN
    },
    Workload {
        name: "seqread-1m-qd4",
        pattern: "read",
        block: 1 << 20,
        depth: 4,
        amount: Amount::Bytes(SEQUENTIAL_TOTAL),
        ..PLAIN
    },
    Workload {
        name: "seqwrite-1m-qd4",
        pattern: "write",
        block: 1 << 20,
        depth: 4,
        amount: Amount::Bytes(SEQUENTIAL_TOTAL),
        ..PLAIN
    },
];
