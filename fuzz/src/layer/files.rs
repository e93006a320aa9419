//! [`Files`]: what a life of the engine left on a disk, and what was done to it since.

use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_disk::{Disk, Durability as OnDisk, File, OpenMode};
use vellum_engine::{Durability, Guard, Guarded, SetTo, Write};
use vellum_local::fuzzing::{self, seal_log, seal_map};
use vellum_local::store::Access;
use vellum_sim::{Call, Fault, SimDisk};

use super::{IMAGES, LAYER, PAGE_UNITS, facts, open};
use crate::input::Input;

const DIRECTORY: &str = "/pool/layers/00000000000000ab";
/// The map first: logs name it by its number on the disk, which is the first.
const NAMES: [&str; 4] = [
    "/pool/layers/00000000000000ab/map",
    "/pool/layers/00000000000000ab/data.0",
    "/pool/live/00000000000000ab.0",
    "/pool/live/00000000000000ab.1",
];
/// What is done to files at most.
const CHANGES_MAX: u8 = 24;
const EIO: i32 = 5;

/// The files of a layer, by the order of [`NAMES`]; `None` where there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Files([Option<Content>; 4]);

/// A file: its length, and what is no hole in it.
#[derive(Clone, Debug, Default)]
struct Content {
    length: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Files {
    /// What an input says that there is.
    pub(super) fn read(input: &mut Input<'_>, image: usize) -> Self {
        let left = lives(image);
        let flags = input.u8();
        let mut files = left[usize::from(flags >> 4) % left.len()].clone();
        for _ in 0..input.u8() % (CHANGES_MAX + 1) {
            files.change(input, left);
        }
        if flags & 1 != 0 {
            files.seal(0, seal_map);
        }
        if flags & 2 != 0 {
            files.seal(2, seal_log);
            files.seal(3, seal_log);
        }
        files
    }

    fn change(&mut self, input: &mut Input<'_>, left: &[Files]) {
        let what = input.u8();
        let which = usize::from(what & 3);
        let at = u64::from(input.u16());
        let file = &mut self.0[which];
        match what >> 2 & 7 {
            0..=3 => {
                let length = input.u8();
                let bytes = input.bytes(length.into());
                file.get_or_insert_default().put(at, bytes);
            }
            4 => {
                let bits = input.u8();
                file.get_or_insert_default().flip(at, bits);
            }
            5 => {
                // To a multiple of a sector, or to some byte.
                let length = if at & 1 != 0 { at / 2 * 512 } else { at / 2 };
                file.get_or_insert_default().set_length(length);
            }
            6 => *file = None,
            // What another life left, an earlier one or that of a layer beside.
            _ => file.clone_from(&left[at as usize % left.len()].0[which]),
        }
    }

    /// Sets checksums right in a file.
    fn seal(&mut self, which: usize, seal: impl Fn(u64, &mut [u8])) {
        let Some(file) = &mut self.0[which] else { return };
        let end = file.pieces.iter().map(|(at, piece)| at + piece.len() as u64).max().unwrap_or(0);
        let mut bytes = vec![0; end.min(file.length).next_multiple_of(512) as usize];
        file.copy_to(&mut bytes);
        seal(LAYER, &mut bytes);
        bytes.truncate(file.length as usize);
        file.pieces.retain(|(at, _)| *at >= bytes.len() as u64);
        // Holes of whole pages stay holes.
        let pages =
            bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        file.pieces.extend(pages.map(|(number, page)| (number as u64 * 4096, page.to_vec())));
    }

    /// A disk with these files on it, all of it durable, and nobody there.
    pub(super) async fn restore(&self) -> SimDisk {
        let disk = SimDisk::new(1);
        self.put_on(&disk).await.expect("the disk is sound");
        disk.process_death()
    }

    async fn put_on(&self, disk: &SimDisk) -> std::io::Result<()> {
        disk.create_dir(Path::new(DIRECTORY)).await?;
        for (name, content) in NAMES.iter().zip(&self.0) {
            let file = disk.open(Path::new(name), OpenMode::Create).await?;
            let Some(content) = content else {
                disk.remove_file(Path::new(name)).await?;
                continue;
            };
            file.set_length(content.length).await?;
            for (at, piece) in &content.pieces {
                let here = piece.len().min(content.length.saturating_sub(*at) as usize);
                let bytes = Bytes::copy_from_slice(&piece[..here]);
                file.write_at(vec![bytes], *at, OnDisk::AtSync).await?;
            }
            file.sync_data().await?;
        }
        for directory in [DIRECTORY, "/pool/layers", "/pool/live"] {
            disk.sync_dir(Path::new(directory)).await?;
        }
        Ok(())
    }

    /// What there is on a disk.
    async fn capture(disk: &SimDisk) -> Self {
        let mut files = Files::default();
        for (name, content) in NAMES.iter().zip(&mut files.0) {
            if let Ok(file) = disk.open(Path::new(name), OpenMode::Read).await {
                *content = Some(Content::of(&file).await.expect("the disk is sound"));
            }
        }
        files
    }
}

impl Content {
    async fn of(file: &impl File) -> std::io::Result<Self> {
        let mut content = Self { length: file.length().await?, pieces: Vec::new() };
        let mut at = 0;
        while let Some(extent) = file.next_data(at).await? {
            let length = extent.len_usize();
            let buffer = Buffer::from_vec(vec![0; length]);
            let (bytes, result) = file.read_at(buffer, 0..length, extent.offset()).await;
            result?;
            content.pieces.push((extent.offset(), bytes.to_vec()));
            at = extent.end();
        }
        Ok(content)
    }

    /// Later pieces lie over earlier ones.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.pieces.push((at, bytes.to_vec()));
            self.length = self.length.max(at + bytes.len() as u64);
        }
    }

    fn flip(&mut self, at: u64, bits: u8) {
        let mut byte = [0];
        for (start, piece) in &self.pieces {
            if let Some(found) = at.checked_sub(*start).and_then(|at| piece.get(at as usize)) {
                byte = [*found];
            }
        }
        self.put(at, &[byte[0] ^ bits]);
    }

    fn set_length(&mut self, length: u64) {
        self.length = length;
        self.pieces.retain(|(at, _)| *at < length);
        for (at, piece) in &mut self.pieces {
            piece.truncate((length - *at) as usize);
        }
    }

    fn copy_to(&self, bytes: &mut [u8]) {
        for (at, piece) in &self.pieces {
            let at = *at as usize;
            if let Some(room) = bytes.len().checked_sub(at) {
                let here = piece.len().min(room);
                bytes[at..at + here].copy_from_slice(&piece[..here]);
            }
        }
    }
}

/// How a life ends whose files are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Before anything was written.
    Unused,
    /// In good order.
    Closed,
    /// It died with changes in its log.
    Died,
    /// It died in a sync: both logs count.
    DiedInSync,
    /// It died in a sync, when the map was written.
    DiedAfterSync,
    /// A sync failed.
    Poisoned,
}

const ENDS: [End; 6] =
    [End::Unused, End::Closed, End::Died, End::DiedInSync, End::DiedAfterSync, End::Poisoned];

/// What lives of the engine leave, made once for each image.
fn lives(image: usize) -> &'static [Files] {
    static LIVES: [OnceLock<Vec<Files>>; IMAGES.len()] = [const { OnceLock::new() }; IMAGES.len()];
    LIVES[image].get_or_init(|| {
        // On a thread of its own, since this is asked for in the middle of an input.
        let live = move |end| std::thread::spawn(move || crate::run::on_runtime(live(image, end)));
        ENDS.map(|end| live(end).join().expect("a life on a sound disk")).to_vec()
    })
}

/// A life: data and zeros at the front, at the seam of two pages and at the end, a sync, and more of both.
async fn live(image: usize, end: End) -> Files {
    let disk = SimDisk::new(7);
    let facts = facts(IMAGES[image]);
    if end == End::Unused {
        return Files::default();
    }
    let layer = open(&disk, &facts, Access::Own).await.expect("nothing is there");
    let block = u64::from(facts.block_size);
    let units = facts.size.div_ceil(block);
    let places = [0, PAGE_UNITS.saturating_sub(1), units - 2].map(|unit| unit.min(units - 2));
    let mark = async |first: u64, byte: u8| {
        let at = Extent::new(first * block, block);
        let data = Bytes::from(vec![byte; at.len_usize()]);
        let (guard, durability) = (Guard::Edges, Durability::AtSync);
        let write = Write { offset: at.offset(), data, guard, durability };
        assert_eq!(fuzzing::write(&layer, write).await.expect("a sound disk"), Guarded::Done);
        let next = Extent::between(at.end(), at.end() + block).clip(facts.size);
        let set = fuzzing::set(&layer, next, SetTo::Zero).await.expect("a sound disk");
        assert_eq!(set, Guarded::Done);
    };
    for place in places {
        mark(place, b'a').await;
    }
    match end {
        End::Closed => fuzzing::close(&layer).await.expect("a sound disk"),
        End::Poisoned => {
            fuzzing::sync(&layer).await.expect("a sound disk");
            mark(4, b'b').await;
            disk.fail(Fault { call: Call::SyncData, file: "map", error: EIO, skip: 0, times: 1 });
            assert!(fuzzing::sync(&layer).await.is_err());
        }
        _ => {
            fuzzing::sync(&layer).await.expect("a sound disk");
            mark(4, b'b').await;
        }
    }
    if matches!(end, End::DiedInSync | End::DiedAfterSync) {
        // What is written while the sync stands still goes to the other log.
        let file = if end == End::DiedInSync { "data.0" } else { "map" };
        let hold = disk.hold(Call::SyncData, file);
        let syncing = fuzzing::sync(&layer);
        let writing = async {
            hold.arrived().await;
            mark(6, b'c').await;
        };
        tokio::select! {
            _ = syncing => panic!("it stands still"),
            () = writing => {}
        }
        return Files::capture(&disk).await;
    }
    Files::capture(&disk).await
}
