//! A temporary home, its users and its servers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use vellum::{Error, HomeOptions, Image, ServeOptions, Serving, Vellum};
use vellum_core::{Extent, ImageSpec};
use vellum_image::WriteOptions;
use vellum_image::image::Open;
use vellum_testkit::nbd::Client;

pub const MIB: u64 = 1 << 20;

/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A home of its own.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("vellum-it-").tempdir().unwrap() }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A user of the home who shares nothing with the others but the files.
    pub async fn user(&self) -> Vellum {
        Vellum::open(HomeOptions { home: Some(self.home()) }).await.unwrap()
    }

    /// A server of everything on a socket of this name.
    pub async fn serve(&self, vellum: &Vellum, socket: &str) -> Serving {
        let options = ServeOptions { socket: Some(self.file(socket)), ..ServeOptions::default() };
        vellum.serve(options).await.unwrap()
    }

    /// A client of an export.
    pub async fn client(&self, socket: &str, export: &str) -> Client {
        self.try_client(socket, export).await.unwrap()
    }

    /// A client of an export, or why there is none.
    pub async fn try_client(&self, socket: &str, export: &str) -> anyhow::Result<Client> {
        let (socket, export) = (self.file(socket), export.to_owned());
        within(tokio::task::spawn_blocking(move || Client::connect(&socket, &export)))
            .await
            .unwrap()
    }

    /// The hints that holders of images of the default pool have left.
    pub fn hints(&self) -> Vec<String> {
        let live = self.home().join("pools/default/live");
        let Ok(entries) = std::fs::read_dir(live) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("holder")).collect()
    }
}

pub fn spec(text: &str) -> ImageSpec {
    text.parse().unwrap()
}

/// Bytes that differ from place to place and from seed to seed, and are never zero.
pub fn pattern(length: u64, seed: u8) -> Vec<u8> {
    (0..length).map(|at| ((at / 512 * 7 + at) % 251) as u8 ^ seed | 1).collect()
}

/// Makes an image with this content.
pub async fn filled(vellum: &Vellum, name: &str, content: &[u8]) {
    vellum.create(&spec(name), content.len() as u64, Default::default()).await.unwrap();
    let image = vellum.open_image(&spec(name), Open::Own).await.unwrap();
    write(&image, 0, content).await.unwrap();
    image.close().await.unwrap();
}

pub async fn write(image: &Image, offset: u64, data: &[u8]) -> Result<(), Error> {
    for (number, piece) in data.chunks(MIB as usize).enumerate() {
        let at = offset + number as u64 * MIB;
        image.write(at, Bytes::copy_from_slice(piece), WriteOptions::default()).await?;
    }
    Ok(())
}

/// All that an image or a snapshot holds.
pub async fn content(vellum: &Vellum, name: &str) -> Vec<u8> {
    let reading = vellum.read(&spec(name)).await.unwrap();
    let size = reading.image.size();
    let mut content = Vec::with_capacity(size as usize);
    for piece in Extent::new(0, size).chunks(MIB) {
        let buffer = reading.image.buffers().take(piece.len_usize());
        let (buffer, read) = reading.image.read(piece, buffer, 0..piece.len_usize()).await;
        read.unwrap();
        content.extend_from_slice(&buffer);
    }
    vellum.finish(reading).await.unwrap();
    content
}

/// Fails rather than hang.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in good time")
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
