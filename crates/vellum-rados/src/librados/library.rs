//! The functions of librados.so.2, resolved when they are first needed.
//!
//! Signatures are those of `rados/librados.h` of Ceph 16.2. The library is never unloaded: it has threads of its own.
#![expect(unsafe_code, reason = "a library that is found at run time is called through pointers")]

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::sync::OnceLock;

/// What librados hands out. Each is a pointer that only librados looks behind.
pub(super) type Handle = *mut c_void;
/// Called when an operation is done, with it and what was given along.
pub(super) type Callback = unsafe extern "C" fn(Handle, *mut c_void);
/// Called for each thing that a watch hears.
pub(super) type WatchCallback =
    unsafe extern "C" fn(*mut c_void, u64, u64, u64, *mut c_void, usize);
/// Called when a watch is lost.
pub(super) type WatchErrorCallback = unsafe extern "C" fn(*mut c_void, u64, c_int);

type Text = *const c_char;
type Texts = *const *const c_char;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions, by their names without `rados_`.
        #[derive(Debug)]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl Library {
            fn load(file: &str) -> Result<Self, libloading::Error> {
                // SAFETY: what the library does when it is loaded is no more than to prepare itself, as for each program
                // that is linked with it. The types of the functions are those of its header, for this number of its interface.
                unsafe {
                    let library = libloading::Library::new(file)?;
                    let found = Self {
                        $($name: *library.get(concat!("rados_", stringify!($name)).as_bytes())?,)*
                    };
                    // It stays for as long as the process.
                    std::mem::forget(library);
                    Ok(found)
                }
            }
        }
    };
}

functions! {
    create(*mut Handle, Text) -> c_int;
    conf_read_file(Handle, Text) -> c_int;
    conf_set(Handle, Text, Text) -> c_int;
    connect(Handle) -> c_int;
    shutdown(Handle);
    get_instance_id(Handle) -> u64;
    cluster_fsid(Handle, *mut c_char, usize) -> c_int;
    getaddrs(Handle, *mut *mut c_char) -> c_int;
    pool_lookup(Handle, Text) -> i64;
    pool_list(Handle, *mut c_char, usize) -> c_int;
    wait_for_latest_osdmap(Handle) -> c_int;
    blocklist_add(Handle, *mut c_char, u32) -> c_int;
    buffer_free(*mut c_char);

    ioctx_create2(Handle, i64, *mut Handle) -> c_int;
    ioctx_destroy(Handle);
    ioctx_set_namespace(Handle, Text);
    set_pool_full_try(Handle);
    ioctx_snap_set_read(Handle, u64);
    ioctx_selfmanaged_snap_set_write_ctx(Handle, u64, *mut u64, c_int) -> c_int;
    aio_ioctx_selfmanaged_snap_create(Handle, *mut u64, Handle);
    aio_ioctx_selfmanaged_snap_remove(Handle, u64, Handle);

    aio_create_completion2(*mut c_void, Option<Callback>, *mut Handle) -> c_int;
    aio_get_return_value(Handle) -> c_int;
    aio_get_version(Handle) -> u64;
    aio_release(Handle);

    create_write_op() -> Handle;
    release_write_op(Handle);
    write_op_assert_exists(Handle);
    write_op_assert_version(Handle, u64);
    write_op_cmpxattr(Handle, Text, u8, Text, usize);
    write_op_omap_cmp2(Handle, Text, u8, Text, usize, usize, *mut c_int);
    write_op_cmpext(Handle, Text, usize, u64, *mut c_int);
    write_op_create(Handle, c_int, Text);
    write_op_write(Handle, Text, usize, u64);
    write_op_write_full(Handle, Text, usize);
    write_op_zero(Handle, u64, u64);
    write_op_truncate(Handle, u64);
    write_op_remove(Handle);
    write_op_setxattr(Handle, Text, Text, usize);
    write_op_rmxattr(Handle, Text);
    write_op_omap_set2(Handle, Texts, Texts, *const usize, *const usize, usize);
    write_op_omap_rm_keys2(Handle, Texts, *const usize, usize);
    write_op_exec(Handle, Text, Text, Text, usize, *mut c_int);
    write_op_set_alloc_hint2(Handle, u64, u64, u32);
    aio_write_op_operate(Handle, Handle, Handle, Text, *mut libc_time, c_int) -> c_int;

    create_read_op() -> Handle;
    release_read_op(Handle);
    read_op_assert_exists(Handle);
    read_op_stat(Handle, *mut u64, *mut libc_time, *mut c_int);
    read_op_read(Handle, u64, usize, *mut c_char, *mut usize, *mut c_int);
    read_op_getxattrs(Handle, *mut Handle, *mut c_int);
    read_op_omap_get_vals2(Handle, Text, Text, u64, *mut Handle, *mut c_uchar, *mut c_int);
    read_op_omap_get_vals_by_keys2(Handle, Texts, usize, *const usize, *mut Handle, *mut c_int);
    read_op_exec(Handle, Text, Text, Text, usize, *mut *mut c_char, *mut usize, *mut c_int);
    aio_read_op_operate(Handle, Handle, Handle, Text, c_int) -> c_int;
    getxattrs_next(Handle, *mut Text, *mut Text, *mut usize) -> c_int;
    getxattrs_end(Handle);
    omap_get_next2(Handle, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize) -> c_int;
    omap_get_end(Handle);

    nobjects_list_open(Handle, *mut Handle) -> c_int;
    nobjects_list_next(Handle, *mut Text, *mut Text, *mut Text) -> c_int;
    nobjects_list_close(Handle);

    aio_watch2(Handle, Text, Handle, *mut u64, WatchCallback, WatchErrorCallback, u32, *mut c_void) -> c_int;
    aio_unwatch(Handle, u64, Handle) -> c_int;
    watch_flush(Handle) -> c_int;
    aio_notify(Handle, Text, Handle, Text, c_int, u64, *mut *mut c_char, *mut usize) -> c_int;
    notify_ack(Handle, Text, u64, u64, Text, c_int) -> c_int;
}

/// `time_t`.
#[expect(non_camel_case_types, reason = "it is C's")]
pub(super) type libc_time = i64;

/// The library, or why there is none.
pub(super) fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let found =
        LIBRARY.get_or_init(|| Library::load("librados.so.2").map_err(|error| error.to_string()));
    found.as_ref().map_err(String::as_str)
}
