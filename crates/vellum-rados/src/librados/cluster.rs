//! [`Cluster`]: a connection, and what concerns all pools.
#![expect(unsafe_code, reason = "librados is called through pointers")]

use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::library::{Handle, Library, library};
use super::operation::text;
use super::pool::Pool;
use crate::counted::{Counted, Counter};
use crate::failure::{Failure, Result};

/// How a cluster is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its configuration; `None` for where Ceph looks for it: `CEPH_CONF`, then `/etc/ceph/ceph.conf`, and others.
    pub conf: Option<PathBuf>,
    /// The user, without `client.`; `None` for `admin`.
    pub user: Option<String>,
    /// How long the monitors may take to answer, when connecting and afterwards.
    pub monitor_wait: Duration,
    /// How long an object may take to answer before its operation fails with `TIMED_OUT`; `None` to wait for as long as it takes.
    pub operation_wait: Option<Duration>,
}

impl Default for Options {
    /// The monitors have 30 s, and objects all the time.
    fn default() -> Self {
        Self { conf: None, user: None, monitor_wait: Duration::from_secs(30), operation_wait: None }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The library is not there, or lacks a function.
    #[error(
        "librados.so.2 cannot be used ({0}); install Ceph's client library (Debian: librados2)"
    )]
    NoLibrary(String),
    /// The configuration cannot be used.
    #[error("read the configuration {path}")]
    Configuration {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: Failure,
    },
    /// An option was refused, or the cluster was not reached.
    #[error("{doing}")]
    Failed {
        /// What was being done.
        doing: String,
        /// Why it was not.
        #[source]
        source: Failure,
    },
}

impl ConnectError {
    fn failed(doing: impl Into<String>) -> impl FnOnce(Failure) -> Self {
        let doing = doing.into();
        |source| Self::Failed { doing, source }
    }

    /// What the cluster, or the way to it, answered.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::NoLibrary(_) => None,
            Self::Configuration { source, .. } | Self::Failed { source, .. } => Some(*source),
        }
    }
}

/// A connection to a cluster. Clones share it; it ends with the last of them and of what was opened through it.
#[derive(Clone)]
pub struct Cluster(pub(super) Arc<Connection>);

/// Connections of this process that have not ended.
static OPEN: Counter = Counter::new();

/// Waits until all connections of this process that nobody has any more have ended, or so much time has passed.
pub fn wait_for_connections(patience: Duration) {
    OPEN.wait_for_none(Instant::now() + patience);
}

unsafe extern "C" {
    /// Of POSIX: ends the process, and runs nothing of it before.
    safe fn _exit(status: c_int) -> !;
}

/// Ends the process at once where a connection has not ended: what C++ does at the end of a process destroys what the threads of
/// librados still use, and the process would die of that instead. Returns where there is none. Whatever is buffered must be written.
pub fn exit_beside_connections(code: u8) {
    if !OPEN.is_none() {
        _exit(code.into());
    }
}

/// The connection itself.
pub(super) struct Connection {
    pub(super) handle: Handle,
    pub(super) library: &'static Library,
    is_connected: bool,
    id: [u8; 16],
    /// The cluster has refused something, and will refuse all else: this client is on its blocklist.
    is_refused: AtomicBool,
    /// Taken out when it ends.
    counted: Option<Counted>,
}

// SAFETY: librados lets any thread use a connection, also several at once.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// If there is no librados, no configuration, or no answer from the monitors in time.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let library = library().map_err(|why| ConnectError::NoLibrary(why.to_owned()))?;
        blocking(move || Connection::open(library, &options)).await.map(|open| Self(Arc::new(open)))
    }

    /// A pool by its name, and a namespace in it; the empty one is that of whoever names none.
    ///
    /// # Errors
    /// `NOT_FOUND` if there is no such pool.
    pub async fn pool(&self, name: &str, namespace: &str) -> Result<Pool> {
        let (name, namespace) = (text(name)?, text(namespace)?);
        let cluster = self.clone();
        blocking(move || {
            let Connection { handle, library, .. } = *cluster.0;
            // SAFETY: the connection is open, and the name ends with a zero byte.
            let id = unsafe { (library.pool_lookup)(handle, name.as_ptr()) };
            let id = u64::try_from(id).map_err(|_| Failure((-id) as i32))?;
            Ok(Pool::new(cluster, id as i64, namespace))
        })
        .await
    }

    /// A pool by its number.
    ///
    /// # Errors
    /// `INVALID` if the namespace has a zero byte in it. Whether there is such a pool shows when it is used.
    pub fn pool_by_id(&self, id: i64, namespace: &str) -> Result<Pool> {
        Ok(Pool::new(self.clone(), id, text(namespace)?))
    }

    /// All pools of the cluster, each by its number and its name, as of a moment after this was called.
    ///
    /// # Errors
    /// If the monitors do not answer.
    pub async fn pools(&self) -> Result<Vec<(i64, String)>> {
        // Otherwise one that was made a moment ago may be missing.
        self.wait_for_newest_map().await?;
        let cluster = self.clone();
        blocking(move || cluster.0.pools()).await
    }

    /// The cluster, which no other has the number of.
    pub fn id(&self) -> [u8; 16] {
        self.0.id
    }

    /// The number of this client at the cluster.
    pub fn client(&self) -> u64 {
        let Connection { handle, library, .. } = *self.0;
        // SAFETY: the connection is open.
        unsafe { (library.get_instance_id)(handle) }
    }

    /// The address of this client, as the monitors take it for [`blocklist`](Self::blocklist).
    ///
    /// # Errors
    /// None that a connected client could do something about.
    pub fn address(&self) -> Result<String> {
        let Connection { handle, library, .. } = *self.0;
        let mut address = ptr::null_mut();
        // SAFETY: the connection is open, and the place for the pointer there.
        let got = Failure::check(unsafe { (library.getaddrs)(handle, &raw mut address) })?;
        debug_assert_eq!(got, 0);
        if address.is_null() {
            return Err(Failure::NOT_CONNECTED);
        }
        // SAFETY: librados has allocated a text, which ends with a zero byte, and given it away.
        unsafe {
            let text = CStr::from_ptr(address).to_string_lossy().into_owned();
            (library.buffer_free)(address);
            Ok(text)
        }
    }

    /// Whether the cluster refuses whatever this client sends, since it was found to be on the blocklist. Another connection is another
    /// client.
    pub fn is_refused(&self) -> bool {
        self.0.is_refused.load(Ordering::SeqCst)
    }

    pub(super) fn note_refused(&self) {
        self.0.is_refused.store(true, Ordering::SeqCst);
    }

    /// Has the cluster refuse all that a client sends, for some time. When this returns, whatever it had sent before has landed or
    /// never will, for whoever [waits](Self::wait_for_newest_map) for the map that says so.
    ///
    /// # Errors
    /// `NOT_PERMITTED` if this user may not.
    pub async fn blocklist(&self, address: &str, time: Duration) -> Result<()> {
        let address = text(address)?;
        let seconds = whole_seconds(time);
        self.ask(move |library, handle| {
            // SAFETY: the connection is open, and the address ends with a zero byte; it is only read.
            unsafe { (library.blocklist_add)(handle, address.as_ptr().cast_mut(), seconds) }
        })
        .await
    }

    /// Waits until this client knows the newest map of the cluster, and with it who is blocklisted.
    ///
    /// # Errors
    /// If the monitors do not answer.
    pub async fn wait_for_newest_map(&self) -> Result<()> {
        self.ask(|library, handle| {
            // SAFETY: the connection is open.
            unsafe { (library.wait_for_latest_osdmap)(handle) }
        })
        .await
    }

    /// Something for which a monitor has to answer.
    async fn ask(
        &self,
        what: impl FnOnce(&'static Library, Handle) -> i32 + Send + 'static,
    ) -> Result<()> {
        let cluster = self.clone();
        let answer = blocking(move || what(cluster.0.library, cluster.0.handle)).await;
        Failure::check(answer).map(drop)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster(client {})", self.client())
    }
}

impl Connection {
    fn open(library: &'static Library, options: &Options) -> Result<Self, ConnectError> {
        let user = options.user.as_deref().map(text).transpose();
        let user = user.map_err(ConnectError::failed("take the name of the user"))?;
        let user = user.as_ref().map_or(ptr::null(), |user| user.as_ptr());
        let mut handle = ptr::null_mut();
        // SAFETY: the user is null or ends with a zero byte; the place for the handle is there.
        Failure::check(unsafe { (library.create)(&raw mut handle, user) })
            .map_err(ConnectError::failed("prepare a connection"))?;
        let counted = Some(OPEN.count());
        let is_refused = AtomicBool::new(false);
        let mut connection =
            Self { handle, library, is_connected: false, id: [0; 16], is_refused, counted };
        connection.configure(options)?;
        // SAFETY: the handle was created, and is configured and not connected.
        Failure::check(unsafe { (library.connect)(handle) })
            .map_err(ConnectError::failed("connect to the monitors"))?;
        connection.is_connected = true;
        connection.id =
            connection.fsid().map_err(ConnectError::failed("ask which cluster it is"))?;
        Ok(connection)
    }

    /// The number of the cluster, which librados writes as UUIDs are written.
    fn fsid(&self) -> Result<[u8; 16]> {
        let mut text = [0_u8; 37];
        // SAFETY: the connection is open; there is as much room as said, a zero byte included.
        let length = Failure::check(unsafe {
            (self.library.cluster_fsid)(self.handle, text.as_mut_ptr().cast(), text.len())
        })?;
        let digits = text.iter().take(length as usize).filter(|byte| **byte != b'-');
        let digits: Vec<u32> = digits.filter_map(|byte| (*byte as char).to_digit(16)).collect();
        let (pairs, []) = digits.as_chunks::<2>() else { return Err(Failure::INVALID) };
        let bytes = pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect::<Vec<u8>>();
        bytes.try_into().map_err(|_| Failure::INVALID)
    }

    fn pools(&self) -> Result<Vec<(i64, String)>> {
        loop {
            let all = self.pool_names()?.into_iter().map(|name| {
                // SAFETY: the connection is open, and the name ends with a zero byte.
                let id = unsafe { (self.library.pool_lookup)(self.handle, name.as_ptr()) };
                let id = u64::try_from(id).map_err(|_| Failure((-id) as i32))?;
                Ok((id as i64, name.to_string_lossy().into_owned()))
            });
            match all.collect() {
                // One was removed meanwhile, or has another name.
                Err(Failure::NOT_FOUND) => {}
                all => return all,
            }
        }
    }

    fn pool_names(&self) -> Result<Vec<CString>> {
        let mut names: Vec<u8> = Vec::new();
        loop {
            // SAFETY: the connection is open; there is as much room as said, and none is written to where it is none.
            let needed = Failure::check(unsafe {
                (self.library.pool_list)(self.handle, names.as_mut_ptr().cast(), names.len())
            })?;
            if needed as usize <= names.len() {
                break;
            }
            names.resize(needed as usize, 0);
        }
        // Each name ends with a zero byte, and an empty one follows the last.
        let names = names.split(|byte| *byte == 0).take_while(|name| !name.is_empty());
        names.map(|name| CString::new(name).map_err(|_| Failure::INVALID)).collect()
    }

    fn configure(&self, options: &Options) -> Result<(), ConnectError> {
        let path = options.conf.as_ref().map(|path| CString::new(path.as_os_str().as_bytes()));
        let named = || match &options.conf {
            Some(path) => path.display().to_string(),
            None => "that Ceph looks for itself".to_owned(),
        };
        let failed = |source| ConnectError::Configuration { path: named(), source };
        let path = path.transpose().map_err(|_| failed(Failure::INVALID))?;
        let path = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: the handle was created; the path is null or ends with a zero byte.
        Failure::check(unsafe { (self.library.conf_read_file)(self.handle, path) })
            .map_err(failed)?;
        let monitor = options.monitor_wait.as_secs().max(1);
        self.set("client_mount_timeout", monitor)?;
        self.set("rados_mon_op_timeout", monitor)?;
        self.set(
            "rados_osd_op_timeout",
            options.operation_wait.map_or(0, |wait| wait.as_secs().max(1)),
        )
    }

    fn set(&self, option: &str, value: u64) -> Result<(), ConnectError> {
        let failed = |source| ConnectError::Failed { doing: format!("set {option}"), source };
        let (name, value) = (text(option).map_err(failed)?, value.to_string());
        let value = text(&value).map_err(failed)?;
        // SAFETY: the handle was created; both texts end with a zero byte.
        let set = unsafe { (self.library.conf_set)(self.handle, name.as_ptr(), value.as_ptr()) };
        Failure::check(set).map(drop).map_err(failed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        /// The handle on its way to the thread that ends it.
        struct Last(Handle);
        // SAFETY: nobody else has it any more.
        unsafe impl Send for Last {}
        let (last, library, counted) = (Last(self.handle), self.library, self.counted.take());
        let end = move || {
            let (last, _counted) = (last, counted);
            // SAFETY: all operations are done, since each keeps the connection, and nobody has the handle.
            unsafe { (library.shutdown)(last.0) };
        };
        // The last to let go may be a thread of librados itself, which must not wait for its own end.
        if self.is_connected {
            let _ = std::thread::Builder::new().name("rados-shutdown".to_owned()).spawn(end);
        } else {
            end();
        }
    }
}

/// A time as Ceph counts it: in whole seconds, and at least one, since none is as long as the other side likes.
pub(super) fn whole_seconds(time: Duration) -> u32 {
    time.as_millis().div_ceil(1000).clamp(1, u32::MAX.into()) as u32
}

/// Does what librados has no callback for, on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(what).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending, and so is whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}
