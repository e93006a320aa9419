//! What the seam promises, on the file systems of this machine.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_disk::{Disk, Durability, File, LockKind, OpenMode, RealDisk, TryRead};

/// The temporary directory, and memory where there is such a file system.
fn places() -> Vec<tempfile::TempDir> {
    let here =
        |dir: &Path| tempfile::Builder::new().prefix("vellum-disk-").tempdir_in(dir).unwrap();
    let mut places = vec![here(&std::env::temp_dir())];
    if Path::new("/dev/shm").is_dir() {
        places.push(here(Path::new("/dev/shm")));
    }
    places
}

async fn files() -> Vec<(tempfile::TempDir, RealDisk, PathBuf)> {
    places()
        .into_iter()
        .map(|dir| {
            let path = dir.path().join("file");
            (dir, RealDisk::default(), path)
        })
        .collect()
}

async fn read(file: &impl File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let (buffer, result) =
        file.read_at(Buffer::from_vec(vec![0xff; length]), 0..length, offset).await;
    result.map(|()| buffer.to_vec())
}

async fn write(file: &impl File, offset: u64, data: &[u8]) {
    file.write_at(vec![Bytes::copy_from_slice(data)], offset, Durability::AtSync).await.unwrap();
}

#[tokio::test]
async fn parts_land_one_after_another() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        let small = (0..3000u32).map(|n| Bytes::from(vec![n as u8; n as usize % 7]));
        let large = [1, 70_000, 3, 300_001, 65_536].map(|length| vec![length as u8; length].into());
        for parts in [small.collect(), Vec::from(large)] {
            for durability in [Durability::Durable, Durability::AtSync] {
                file.set_length(0).await.unwrap();
                file.write_at(parts.clone(), 5, durability).await.unwrap();
                let all = parts.concat();
                assert_eq!(file.length().await.unwrap(), 5 + all.len() as u64);
                assert!(read(&file, 5, all.len()).await.unwrap() == all);
            }
        }
    }
}

#[tokio::test]
async fn a_short_file_is_an_error_and_a_hole_is_zeros() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        file.set_length(8192).await.unwrap();
        assert_eq!(read(&file, 0, 8192).await.unwrap(), [0; 8192]);
        assert_eq!(
            read(&file, 4096, 4097).await.unwrap_err().kind(),
            std::io::ErrorKind::UnexpectedEof
        );
        assert!(matches!(file.try_read_at(&mut [0; 4097], 4096), TryRead::WouldWait));
    }
}

#[tokio::test]
async fn what_was_just_written_is_read_without_waiting() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        write(&file, 0, &[7; 4096]).await;
        let mut buffer = [0; 4096];
        // A file system may be busy for a moment; it must not stay so.
        for _ in 0..1000 {
            if matches!(file.try_read_at(&mut buffer, 0), TryRead::Done) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(buffer, [7; 4096]);
    }
}

#[tokio::test]
async fn a_write_whose_future_was_dropped_lands() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        for round in 0..50u64 {
            let data = Bytes::from(vec![round as u8 + 1; 1000]);
            let mut write = Box::pin(file.write_at(vec![data], round * 1000, Durability::AtSync));
            let _ = futures_poll_once(&mut write).await;
        }
        while read(&file, 49_000, 1000).await.ok() != Some(vec![50; 1000])
            || read(&file, 0, 1000).await.ok() != Some(vec![1; 1000])
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready())
    })
    .await
}

#[tokio::test]
async fn a_punched_range_reads_zeros_and_its_space_is_free() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        write(&file, 0, &[1; 64 << 10]).await;
        file.sync_data().await.unwrap();
        let before = file.allocated().await.unwrap();
        file.punch(Extent::new(4096, 32 << 10)).await.unwrap();
        let mut expected = vec![1; 64 << 10];
        expected[4096..4096 + (32 << 10)].fill(0);
        assert_eq!(read(&file, 0, 64 << 10).await.unwrap(), expected);
        assert!(file.allocated().await.unwrap() < before);
        assert_eq!(file.length().await.unwrap(), 64 << 10);
    }
}

#[tokio::test]
async fn allocating_changes_neither_length_nor_content() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        file.set_length(1 << 20).await.unwrap();
        file.allocate(Extent::new(0, 2 << 20)).await.unwrap();
        assert_eq!(file.length().await.unwrap(), 1 << 20);
        assert_eq!(read(&file, 0, 4096).await.unwrap(), [0; 4096]);
    }
}

#[tokio::test]
async fn copies_keep_the_bytes() {
    for (dir, disk, path) in files().await {
        let source = disk.open(&path, OpenMode::Create).await.unwrap();
        let file = disk.open(&dir.path().join("other"), OpenMode::Create).await.unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        write(&source, 100, &data).await;
        file.copy_from(&source, Extent::new(100, data.len() as u64), 7).await.unwrap();
        assert!(read(&file, 7, data.len()).await.unwrap() == data);
        let short = file.copy_from(&source, Extent::new(2_999_000, 2000), 0).await;
        assert_eq!(short.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn data_is_found_behind_holes() {
    for (_dir, disk, path) in files().await {
        let file = disk.open(&path, OpenMode::Create).await.unwrap();
        file.set_length(64 << 20).await.unwrap();
        assert_eq!(file.next_data(0).await.unwrap(), None);
        write(&file, 32 << 20, &[1; 4096]).await;
        let found = file.next_data(0).await.unwrap().unwrap();
        assert!(
            found.contains(&Extent::new(32 << 20, 4096)) && found.offset() > 1 << 20,
            "{found:?}"
        );
        assert_eq!(file.next_data(found.end()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn locks_belong_to_descriptions_and_last_as_long_as_a_clone() {
    for (_dir, disk, path) in files().await {
        let first = disk.open(&path, OpenMode::Create).await.unwrap();
        let second = disk.open(&path, OpenMode::ReadWrite).await.unwrap();
        let (byte, other) = (Extent::new(1 << 60, 1), Extent::new((1 << 60) + 1, 1));
        assert!(first.try_lock(byte, LockKind::Exclusive).unwrap());
        assert!(!second.try_lock(byte, LockKind::Shared).unwrap());
        assert!(second.try_lock(other, LockKind::Exclusive).unwrap());
        let clone = first.clone();
        drop(first);
        assert!(!second.try_lock(byte, LockKind::Exclusive).unwrap());
        drop(clone);
        assert!(second.try_lock(byte, LockKind::Exclusive).unwrap());
        second.unlock(byte).unwrap();
        let third = disk.open(&path, OpenMode::ReadWrite).await.unwrap();
        assert!(third.try_lock(byte, LockKind::Shared).unwrap());
        assert!(second.try_lock(byte, LockKind::Shared).unwrap());
        assert!(!second.try_lock(byte, LockKind::Exclusive).unwrap());
    }
}

#[tokio::test]
async fn opening_says_what_was_wrong() {
    for (dir, disk, path) in files().await {
        let kind = |result: std::io::Result<_>| result.map(|_| ()).unwrap_err().kind();
        assert_eq!(kind(disk.open(&path, OpenMode::Read).await), std::io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open(&path, OpenMode::ReadWrite).await), std::io::ErrorKind::NotFound);
        let file = disk.open(&path, OpenMode::ReadWriteOrCreate).await.unwrap();
        assert_eq!(
            kind(disk.open(&path, OpenMode::Create).await),
            std::io::ErrorKind::AlreadyExists
        );
        let again = disk.open(&path, OpenMode::Read).await.unwrap();
        assert_eq!(again.identity(), file.identity());
        disk.create_dir(&dir.path().join("d")).await.unwrap();
        assert_eq!(
            disk.create_dir(&dir.path().join("d")).await.unwrap_err().kind(),
            std::io::ErrorKind::AlreadyExists
        );
        assert_eq!(disk.list_dir(dir.path()).await.unwrap().len(), 2);
        disk.sync_dir(dir.path()).await.unwrap();
        disk.remove_file(&path).await.unwrap();
        disk.remove_dir(&dir.path().join("d")).await.unwrap();
        assert!(disk.list_dir(dir.path()).await.unwrap().is_empty());
        // The name is gone; what is open stays.
        assert_eq!(file.length().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn the_file_system_is_known() {
    for (dir, disk, _) in files().await {
        let found = disk.file_system(dir.path()).await.unwrap();
        assert!(found.local && !found.read_only && found.available > 0, "{found:?}");
    }
    assert_eq!(RealDisk::default().file_system(Path::new("/proc")).await.unwrap().name, "0x9fa0");
}
