//! What a guest is made of: a kernel of Debian's with its modules, and programs.

use std::path::{Path, PathBuf};

use vellum_testkit::tools;

/// A kernel and where its modules lie.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub image: PathBuf,
    pub modules: PathBuf,
}

const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
];

/// Why no guest can be booted here, if so.
pub fn unavailable() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("guests are x86-64 machines".to_owned());
    }
    let missing = PROGRAMS.iter().find(|(program, _)| tools::find(program).is_none());
    if let Some((program, package)) = missing {
        return Some(format!("{program} is missing: apt-get install {package}"));
    }
    find().is_none().then(|| "no kernel for a guest: cargo xtask test fetches one".to_owned())
}

/// Why a guest has no NBD client of the kernel's, if so.
pub fn without_client() -> Option<String> {
    let missing = tools::find("nbd-client").is_none();
    unavailable()
        .or(missing.then(|| "nbd-client is missing: apt-get install nbd-client".to_owned()))
}

/// The newest kernel that was fetched for this, or one that this machine has.
pub fn find() -> Option<Kernel> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    newest(&target.join("guest-kernel")).or_else(|| newest(Path::new("/")))
}

fn newest(root: &Path) -> Option<Kernel> {
    let files = std::fs::read_dir(root.join("boot")).ok()?.flatten();
    let kernels = files.filter_map(|file| {
        let version = file.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = root.join("lib/modules").join(version);
        let usable =
            std::fs::File::open(file.path()).is_ok() && modules.join("modules.dep").is_file();
        usable.then(|| Kernel { image: file.path(), modules })
    });
    kernels.max_by_key(|kernel| kernel.image.clone())
}
