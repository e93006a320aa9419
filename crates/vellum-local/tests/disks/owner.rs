//! Whom the files of a pool belong to.

use std::os::unix::fs::MetadataExt;

use libtest_mimic::Trial;
use vellum_engine::Catalog;
use vellum_local::Mode;

use crate::fixture::{Home, image, open, write_blocks};
use crate::unless;

pub fn trials() -> Vec<Trial> {
    let needs_root = (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned());
    let name = "what_the_superuser_makes_belongs_to_the_owner_of_the_directory".to_owned();
    vec![unless(needs_root, name, what_the_superuser_makes_belongs_to_the_owner_of_the_directory)]
}

async fn what_the_superuser_makes_belongs_to_the_owner_of_the_directory() {
    let home = Home::new();
    let above = home.path("theirs");
    std::fs::create_dir(&above).unwrap();
    std::os::unix::fs::chown(&above, Some(12345), Some(54321)).unwrap();
    let pool = open(&above.join("pool"), Mode::CreateIfMissing).await.unwrap();
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    let mut directories = vec![above.join("pool")];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let found = path.metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), (12345, 54321), "{}", path.display());
            seen += 1;
            if found.is_dir() {
                directories.push(path);
            }
        }
    }
    assert!(
        seen >= 12,
        "catalog, log, index, lock, reserve, directories, map, data, live logs: {seen}"
    );
}
