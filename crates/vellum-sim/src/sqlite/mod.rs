//! SQLite's way to the files of a [`SimDisk`]: a VFS.
//!
//! It does what SQLite's own for Unix does to its files, as far as a power cut can tell: the name of a new file becomes durable
//! with its first sync, a removal when SQLite asks for that. Locks and shared memory are those of a [`database`], among all
//! processes of a world. Calls are made at once, on the thread that calls SQLite, and nothing waits for another connection.

pub(crate) mod database;
mod memory;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rusqlite::ffi;

use database::Hold;

use crate::disk::{Shared, SimDisk, SimFile};

const PATH_MAX: c_int = 512;
/// As SQLite's VFS for Unix says of most file systems.
const SQLITE_SECTOR: c_int = 4096;
const ENOSPC: i32 = 28;

/// A name by which SQLite knows the disk of a process. Dropped, it is free for another.
#[derive(Debug)]
pub(crate) struct Registration(&'static Slot);

/// A VFS that SQLite knows by a name of its own, for good: SQLite may look at it for as long as a connection is being closed.
struct Slot {
    name: String,
    process: Mutex<Option<(Weak<Shared>, u64)>>,
}

/// Those that stand for no process now.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

impl Slot {
    #[expect(unsafe_code, reason = "SQLite takes a VFS as a struct of functions")]
    fn new() -> &'static Self {
        static COUNT: Mutex<u64> = Mutex::new(0);
        let mut count = COUNT.lock();
        *count += 1;
        let name = format!("vellum-sim-{count}");
        let c_name = CString::new(name.clone()).expect("it has no NUL").into_raw();
        let slot: &'static Self = Box::leak(Box::new(Self { name, process: Mutex::default() }));
        let vfs = Box::into_raw(Box::new(vfs(c_name, slot)));
        // SAFETY: the VFS is complete and lives for ever.
        let result = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
        assert_eq!(result, ffi::SQLITE_OK, "SQLite takes a VFS");
        slot
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.name)
    }
}

impl Registration {
    fn new(disk: Weak<Shared>, process: u64) -> Self {
        let free = FREE.lock().pop();
        let slot = free.unwrap_or_else(Slot::new);
        *slot.process.lock() = Some((disk, process));
        Self(slot)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        *self.0.process.lock() = None;
        FREE.lock().push(self.0);
    }
}

fn vfs(name: *const c_char, slot: &'static Slot) -> ffi::sqlite3_vfs {
    ffi::sqlite3_vfs {
        iVersion: 1,
        szOsFile: size_of::<Open>() as c_int,
        mxPathname: PATH_MAX,
        pNext: ptr::null_mut(),
        zName: name,
        pAppData: ptr::from_ref(slot).cast_mut().cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_path),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(last_error),
        xCurrentTimeInt64: None,
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// What SQLite keeps of an open file; it begins as SQLite's own struct does.
#[repr(C)]
struct Open {
    base: ffi::sqlite3_file,
    file: *mut OpenFile,
}

struct OpenFile {
    file: SimFile,
    path: PathBuf,
    /// Its name is not durable yet.
    is_new: bool,
    /// The write-ahead log stays when the last connection closes.
    keeps_log: c_int,
}

/// SQLite's VFS for Unix tells a full disk from other failures where it writes, and nowhere else.
fn done(result: io::Result<()>, otherwise: c_int) -> c_int {
    match result {
        Ok(()) => ffi::SQLITE_OK,
        Err(error)
            if otherwise == ffi::SQLITE_IOERR_WRITE && error.raw_os_error() == Some(ENOSPC) =>
        {
            ffi::SQLITE_FULL
        }
        Err(_) => otherwise,
    }
}

/// The disk of a VFS, as the process that it stands for sees it.
///
/// # Safety
/// `vfs` is one that [`Slot::new`] made.
#[expect(unsafe_code, reason = "SQLite hands the VFS back as a pointer")]
unsafe fn disk_of(vfs: *mut ffi::sqlite3_vfs) -> Option<SimDisk> {
    // SAFETY: the pointer was made from a slot, which is never freed.
    let slot: &Slot = unsafe { &*(*vfs).pAppData.cast() };
    let (disk, process) = slot.process.lock().clone()?;
    Some(SimDisk::of(disk.upgrade()?, process))
}

/// A path that SQLite gives.
///
/// # Safety
/// `name` is null or a C string.
#[expect(unsafe_code, reason = "SQLite gives paths as C strings")]
unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: it is a C string, by the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(name.to_str().ok()?))
}

/// An open file that SQLite gives.
///
/// # Safety
/// `file` was opened by [`open`] and not closed.
#[expect(unsafe_code, reason = "SQLite hands open files back as pointers")]
unsafe fn file_of<'a>(file: *mut ffi::sqlite3_file) -> &'a mut OpenFile {
    // SAFETY: SQLite calls with files it has opened, one call at a time for each.
    unsafe { &mut *(*file.cast::<Open>()).file }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let opened = file.cast::<Open>();
    // SAFETY: SQLite gives room for `szOsFile` bytes; without methods it will not close what could not be opened.
    unsafe { (*opened).base.pMethods = ptr::null() };
    // SAFETY: the arguments are SQLite's.
    let (Some(disk), Some(path)) = (unsafe { disk_of(vfs) }, unsafe { path_of(name) }) else {
        return ffi::SQLITE_CANTOPEN;
    };
    match disk.open_at_once(&path, flags & ffi::SQLITE_OPEN_CREATE != 0) {
        Err(_) => ffi::SQLITE_CANTOPEN,
        Ok((file, is_new)) => {
            let inner = Box::new(OpenFile { file, path, is_new, keeps_log: 0 });
            // SAFETY: as above; `out_flags` may be null.
            unsafe {
                (*opened).file = Box::into_raw(inner);
                (*opened).base.pMethods = &METHODS;
                if !out_flags.is_null() {
                    *out_flags = flags;
                }
            }
            ffi::SQLITE_OK
        }
    }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes what it opened, once.
    drop(unsafe { Box::from_raw((*file.cast::<Open>()).file) });
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite gives an open file and a buffer of `length` bytes, which need not be initialised and is filled here.
    let (file, buffer) = unsafe {
        ptr::write_bytes(buffer.cast::<u8>(), 0, length as usize);
        (file_of(file), std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length as usize))
    };
    match file.file.read_at_once(buffer, offset as u64) {
        Ok(read) if read == buffer.len() => ffi::SQLITE_OK,
        Ok(_) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(_) => ffi::SQLITE_IOERR_READ,
    }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite gives an open file and `length` bytes.
    let (file, bytes) =
        unsafe { (file_of(file), std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize)) };
    done(file.file.write_at_once(bytes, offset as u64), ffi::SQLITE_IOERR_WRITE)
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { file_of(file) };
    done(file.file.set_length_at_once(length as u64), ffi::SQLITE_IOERR_TRUNCATE)
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { file_of(file) };
    let result = file.file.sync_at_once();
    if let (Ok(()), true, Some(directory)) = (&result, file.is_new, file.path.parent()) {
        // SQLite's VFS for Unix does not tell whether this failed, and does not try again.
        file.is_new = false;
        let _ = file.file.disk().sync_dir_at_once(directory);
    }
    done(result, ffi::SQLITE_IOERR_FSYNC)
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: SQLite gives an open file.
    let length = unsafe { file_of(file) }.file.length_at_once();
    // SAFETY: SQLite says where the answer goes.
    let answered = length.map(|length| unsafe { *size = length as i64 });
    done(answered, ffi::SQLITE_IOERR_FSTAT)
}

/// What SQLite is told of a lock.
fn locked(taken: bool) -> c_int {
    if taken { ffi::SQLITE_OK } else { ffi::SQLITE_BUSY }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { &file_of(file).file };
    match file.disk().must_live() {
        Ok(()) => locked(file.with_database(|database, holder| database.lock(holder, level))),
        Err(_) => ffi::SQLITE_IOERR_LOCK,
    }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { &file_of(file).file };
    if file.disk().must_live().is_ok() {
        file.with_database(|database, holder| database.unlock(holder, level));
    }
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: SQLite gives an open file, and says where the answer goes.
    unsafe {
        *held = c_int::from(file_of(file).file.with_database(|database, _| database.is_reserved()));
    }
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    grow: c_int,
    address: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { &file_of(file).file };
    let mapped = file.disk().must_live().and_then(|()| {
        file.with_database(|database, holder| {
            database.map(holder, region, size as usize, grow != 0)
        })
    });
    // SAFETY: SQLite says where the answer goes.
    unsafe { *address = mapped.as_ref().ok().and_then(|at| *at).unwrap_or(ptr::null_mut()) };
    if mapped.is_ok() { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHMMAP }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { &file_of(file).file };
    if file.disk().must_live().is_err() {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    let at = first as usize..(first + count) as usize;
    let shared = flags & ffi::SQLITE_SHM_SHARED != 0;
    let hold = if shared { Hold::Shared } else { Hold::Exclusive };
    file.with_database(|database, holder| {
        if flags & ffi::SQLITE_SHM_UNLOCK == 0 {
            return locked(database.lock_memory(holder, at, hold));
        }
        database.unlock_memory(holder, at);
        ffi::SQLITE_OK
    })
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn shm_barrier(_file: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: SQLite gives an open file.
    let file = unsafe { &file_of(file).file };
    file.with_database(|database, holder| database.unmap(holder));
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    if operation != ffi::SQLITE_FCNTL_PERSIST_WAL {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: SQLite gives an open file; the argument of this operation is an int, which is set or, if negative, asked for.
    unsafe {
        let (file, argument) = (file_of(file), argument.cast::<c_int>());
        if *argument < 0 {
            *argument = file.keeps_log;
        } else {
            file.keeps_log = *argument;
        }
    }
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    SQLITE_SECTOR
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_directory: c_int,
) -> c_int {
    // SAFETY: the arguments are SQLite's.
    let (Some(disk), Some(path)) = (unsafe { disk_of(vfs) }, unsafe { path_of(name) }) else {
        return ffi::SQLITE_IOERR_DELETE;
    };
    match disk.remove_at_once(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => ffi::SQLITE_IOERR_DELETE_NOENT,
        Err(_) => ffi::SQLITE_IOERR_DELETE,
        Ok(()) if sync_directory == 0 => ffi::SQLITE_OK,
        Ok(()) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            done(disk.sync_dir_at_once(directory), ffi::SQLITE_IOERR_DIR_FSYNC)
        }
    }
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are SQLite's.
    let (Some(disk), Some(path)) = (unsafe { disk_of(vfs) }, unsafe { path_of(name) }) else {
        return ffi::SQLITE_IOERR_ACCESS;
    };
    // An empty file counts as none, as on Unix.
    let exists = disk.length_of(&path).is_some_and(|length| length > 0);
    // SAFETY: SQLite says where the answer goes.
    unsafe { *answer = c_int::from(exists) };
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn full_path(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives a C string.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if bytes.len() > room as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: SQLite gives `room` bytes, of which these are not more; the two do not overlap.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len()) };
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn randomness(
    _vfs: *mut ffi::sqlite3_vfs,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    // The same each time: what SQLite draws from it only keeps logs apart.
    // SAFETY: SQLite gives `length` bytes.
    unsafe { ptr::write_bytes(out, 0x5a, length as usize) };
    length
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, _microseconds: c_int) -> c_int {
    0
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, days: *mut f64) -> c_int {
    // SAFETY: SQLite says where the answer goes.
    unsafe { *days = 2_460_000.5 };
    ffi::SQLITE_OK
}

#[expect(unsafe_code, reason = "called by SQLite")]
unsafe extern "C" fn last_error(
    _vfs: *mut ffi::sqlite3_vfs,
    _room: c_int,
    _out: *mut c_char,
) -> c_int {
    0
}

/// The name of a process's disk, taken when SQLite first needs it.
pub(crate) fn registered(shared: &Arc<Shared>, process: u64) -> String {
    let mut names = shared.sqlite.lock();
    let registration =
        names.entry(process).or_insert_with(|| Registration::new(Arc::downgrade(shared), process));
    registration.0.name.clone()
}
