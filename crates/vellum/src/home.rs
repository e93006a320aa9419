//! The home: where pools are known by name, and the pool `default` lies.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{ErrorKind as Io, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vellum_ceph::Access;
use vellum_core::PoolName;
use vellum_engine::{Error, ErrorKind, PoolId, Result};

/// The pool of images that are named without one.
pub const DEFAULT_POOL: &str = "default";
const CONFIG: &str = "vellum.toml";
/// How long a change of it waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Where the home is.
#[derive(Clone, Debug, Default)]
pub struct HomeOptions {
    /// The home; else `$VELLUM_HOME`, else `/var/lib/vellum` for root, `$XDG_DATA_HOME/vellum` for others.
    pub home: Option<PathBuf>,
}

/// `vellum.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    pools: BTreeMap<String, PoolConfig>,
}

/// What is known of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "PoolEntry", into = "PoolEntry")]
pub enum PoolConfig {
    /// A pool of the embedded engine, in this directory.
    Directory(PathBuf),
    /// A pool on Ceph.
    Ceph(CephConfig),
}

/// Where a pool on Ceph is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CephConfig {
    /// What the cluster calls the pool.
    pub pool: String,
    /// The namespace in it; the empty one is that of who names none.
    pub namespace: String,
    /// How the cluster is reached.
    pub access: Access,
}

impl fmt::Display for PoolConfig {
    /// Its directory, or `POOL` or `POOL/NAMESPACE` on Ceph.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Ceph(CephConfig { pool, namespace, .. }) if namespace.is_empty() => pool.fmt(f),
            Self::Ceph(CephConfig { pool, namespace, .. }) => write!(f, "{pool}/{namespace}"),
        }
    }
}

/// The same, as it is written: a directory, or what there is to say of a pool on Ceph.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PoolEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceph_pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceph_namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceph_conf: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceph_user: Option<String>,
}

impl TryFrom<PoolEntry> for PoolConfig {
    type Error = &'static str;

    fn try_from(entry: PoolEntry) -> std::result::Result<Self, Self::Error> {
        match entry {
            PoolEntry {
                path: Some(path),
                ceph_pool: None,
                ceph_namespace: None,
                ceph_conf: None,
                ceph_user: None,
            } => Ok(Self::Directory(path)),
            PoolEntry {
                path: None,
                ceph_pool: Some(pool),
                ceph_namespace,
                ceph_conf,
                ceph_user,
            } => {
                let access = Access { conf: ceph_conf, user: ceph_user };
                let namespace = ceph_namespace.unwrap_or_default();
                Ok(Self::Ceph(CephConfig { pool, namespace, access }))
            }
            _ => Err(
                "a pool has a `path`, or a `ceph-pool` and what else begins with `ceph-`, and not both",
            ),
        }
    }
}

impl From<PoolConfig> for PoolEntry {
    fn from(config: PoolConfig) -> Self {
        match config {
            PoolConfig::Directory(path) => Self { path: Some(path), ..Self::default() },
            PoolConfig::Ceph(CephConfig { pool, namespace, access: Access { conf, user } }) => {
                Self {
                    path: None,
                    ceph_pool: Some(pool),
                    ceph_namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
                    ceph_conf: conf,
                    ceph_user: user,
                }
            }
        }
    }
}

/// A home directory.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Finds the home, and creates its directory if it is not there.
    pub fn open(options: &HomeOptions) -> Result<Self> {
        let path = options.home.clone().map_or_else(usual_home, Ok)?;
        let path = std::path::absolute(&path).map_err(|error| failed("find", &path, error))?;
        fs::create_dir_all(&path).map_err(|error| failed("create the home", &path, error))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pools by name; `default` is always among them.
    pub fn pools(&self) -> Result<BTreeMap<PoolName, PoolConfig>> {
        let mut pools = BTreeMap::new();
        for (name, config) in self.read()?.pools {
            let name = PoolName::new(&name).map_err(|error| {
                Error::new(ErrorKind::Invalid, format!("{}: {error}", self.config().display()))
            })?;
            pools.insert(name, config);
        }
        let default = PoolName::new(DEFAULT_POOL).expect("a good name");
        pools.entry(default).or_insert(PoolConfig::Directory(self.own_pool()));
        Ok(pools)
    }

    /// Whether a pool is the one that lies in the home, and is made when it is first used.
    pub fn is_own_pool(&self, pool: &PoolConfig) -> bool {
        *pool == PoolConfig::Directory(self.own_pool())
    }

    /// Where the holders of images say how they are reached whose pool has no directory.
    pub(crate) fn hints_of(&self, pool: PoolId) -> PathBuf {
        self.path.join("run").join(format!("pool-{pool}"))
    }

    fn own_pool(&self) -> PathBuf {
        self.path.join("pools").join(DEFAULT_POOL)
    }

    /// Makes a pool known. `Exists` if the name is taken.
    pub fn add_pool(&self, name: &PoolName, pool: PoolConfig) -> Result<()> {
        self.change(|config| {
            if config.pools.contains_key(name.as_str()) {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("a pool {name} is known already"),
                ));
            }
            config.pools.insert(name.to_string(), pool);
            Ok(())
        })
    }

    /// Forgets a pool. What is in it stays.
    pub fn forget_pool(&self, name: &PoolName) -> Result<()> {
        self.change(|config| match config.pools.remove(name.as_str()) {
            Some(_) => Ok(()),
            None if name.as_str() == DEFAULT_POOL => Err(Error::new(
                ErrorKind::Invalid,
                "the pool default belongs to its home and cannot be forgotten",
            )),
            None => Err(no_pool(self, name)),
        })
    }

    fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    fn read(&self) -> Result<Config> {
        let path = self.config();
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Error::new(ErrorKind::Invalid, format!("{} cannot be understood", path.display()))
                    .with_source(error)
            }),
            Err(error) if error.kind() == Io::NotFound => Ok(Config::default()),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// Changes the file as a whole, alone, and durably: a new one takes the old one's name.
    fn change(&self, change: impl FnOnce(&mut Config) -> Result<()>) -> Result<()> {
        let path = self.config();
        let io = |error| failed("write", &path, error);
        let lock = fs::File::create(self.path.join("vellum.toml.lock")).map_err(io)?;
        lock_in_time(&lock, &path)?;
        let mut config = self.read()?;
        change(&mut config)?;
        let text = toml::to_string(&config).map_err(|error| {
            Error::new(ErrorKind::Invalid, "write the list of pools").with_source(error)
        })?;
        let new = self.path.join("vellum.toml.new");
        let mut file = fs::File::create(&new).map_err(io)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&new, &path).map_err(io)?;
        fs::File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(io)
    }
}

/// A `vellum.toml`, as it is understood, written again; `None` if it is not.
#[cfg(feature = "fuzzing")]
pub(crate) fn config_again(text: &str) -> Option<String> {
    let config: Config = toml::from_str(text).ok()?;
    Some(toml::to_string(&config).expect("what was read can be written"))
}

/// Takes a lock, but does not wait for ever for a process that was stopped while it had it.
fn lock_in_time(lock: &fs::File, path: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_POLL);
            }
            Err(fs::TryLockError::WouldBlock) => {
                let what = format!(
                    "another process has been changing {} for {LOCK_WAIT:?}",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Busy, what));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", path, error)),
        }
    }
}

/// That no pool has this name here.
pub(crate) fn no_pool(home: &Home, name: &PoolName) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("the home {} knows no pool {name}", home.path().display()),
    )
}

fn usual_home() -> Result<PathBuf> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = variable("VELLUM_HOME") {
        return Ok(home);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/vellum"));
    }
    variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("vellum"))
        .ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "there is no HOME; say --home DIR or set VELLUM_HOME")
        })
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("{doing} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> PoolName {
        name.parse().unwrap()
    }

    #[test]
    fn pools_are_remembered_and_forgotten_and_default_is_always_there() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&HomeOptions { home: Some(dir.path().join("home")) }).unwrap();
        assert_eq!(
            home.pools().unwrap().keys().map(PoolName::as_str).collect::<Vec<_>>(),
            ["default"]
        );
        let pool = PoolConfig::Directory("/somewhere".into());
        home.add_pool(&name("fast"), pool.clone()).unwrap();
        assert_eq!(
            home.add_pool(&name("fast"), pool.clone()).unwrap_err().kind(),
            ErrorKind::Exists
        );
        assert_eq!(home.pools().unwrap()[&name("fast")], pool);
        home.forget_pool(&name("fast")).unwrap();
        assert_eq!(home.forget_pool(&name("fast")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(home.forget_pool(&name("default")).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_pool_on_ceph_is_remembered_with_all_that_is_known_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&HomeOptions { home: Some(dir.path().into()) }).unwrap();
        let all = CephConfig {
            pool: "rbd".into(),
            namespace: "mine".into(),
            access: Access { conf: Some("/etc/ceph/ceph.conf".into()), user: Some("me".into()) },
        };
        let least =
            CephConfig { pool: "rbd".into(), namespace: String::new(), access: Access::default() };
        for (known, config, text) in [("all", all, "rbd/mine"), ("least", least, "rbd")] {
            let config = PoolConfig::Ceph(config);
            assert_eq!(config.to_string(), text);
            home.add_pool(&name(known), config.clone()).unwrap();
            assert_eq!(home.pools().unwrap()[&name(known)], config);
        }
        let text = fs::read_to_string(dir.path().join("vellum.toml")).unwrap();
        assert!(text.contains("[pools.least]\nceph-pool = \"rbd\"\n"), "{text}");
    }

    #[test]
    fn a_file_that_makes_no_sense_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&HomeOptions { home: Some(dir.path().into()) }).unwrap();
        for entry in
            ["directory = 3", "", "ceph-user = \"me\"", "path = \"/p\"\nceph-pool = \"rbd\""]
        {
            fs::write(dir.path().join("vellum.toml"), format!("[pools.x]\n{entry}\n")).unwrap();
            let error = home.pools().unwrap_err();
            assert!(
                error.kind() == ErrorKind::Invalid && error.to_string().contains("vellum.toml"),
                "{entry}: {error:?}"
            );
        }
    }
}
