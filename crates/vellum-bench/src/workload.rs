//! The workloads: the yardstick of the project, so they change only with a note in the change log.

/// What fio does to an export.
#[derive(Debug)]
pub struct Workload {
    /// Its name in reports.
    pub name: &'static str,
    /// fio's `rw`.
    pub pattern: &'static str,
    /// Bytes a request.
    pub block: u64,
    /// Requests in flight.
    pub depth: u32,
    /// Bytes moved in all, at most the image.
    pub total: u64,
}

impl Workload {
    /// Whether it changes the image, which then must be made anew.
    pub fn writes(&self) -> bool {
        self.pattern.contains("write")
    }
}

/// 16,384 requests of 4 KiB.
const RANDOM_TOTAL: u64 = 16_384 * 4096;
/// At depth 1 a quarter of them shows the same.
const RANDOM_TOTAL_ONE: u64 = 4_096 * 4096;
const SEQUENTIAL_TOTAL: u64 = 2 << 30;

/// All workloads.
pub const ALL: &[Workload] = &[
    Workload {
        name: "randwrite-4k-qd32",
        pattern: "randwrite",
        block: 4096,
        depth: 32,
        total: RANDOM_TOTAL,
    },
    Workload {
        name: "randwrite-4k-qd1",
        pattern: "randwrite",
        block: 4096,
        depth: 1,
        total: RANDOM_TOTAL_ONE,
    },
    Workload {
        name: "randread-4k-qd32",
        pattern: "randread",
        block: 4096,
        depth: 32,
        total: 8 * RANDOM_TOTAL,
    },
    Workload {
        name: "randread-4k-qd1",
        pattern: "randread",
        block: 4096,
        depth: 1,
        total: RANDOM_TOTAL,
    },
    Workload {
        name: "seqread-1m-qd4",
        pattern: "read",
        block: 1 << 20,
        depth: 4,
        total: SEQUENTIAL_TOTAL,
    },
    Workload {
        name: "seqwrite-1m-qd4",
        pattern: "write",
        block: 1 << 20,
        depth: 4,
        total: SEQUENTIAL_TOTAL,
    },
];
