//! [`submit`]: an operation that librados works on, as a future.
//!
//! What librados reads and writes meanwhile lies in a box that belongs to the operation until it is done, whoever stopped waiting.
#![expect(unsafe_code, reason = "librados calls back with the pointer that it was given")]

use std::ffi::{c_int, c_void};
use std::ptr;

use tokio::sync::oneshot;

use super::library::{Handle, Library};
use crate::failure::{Failure, Result};

/// An operation under way: what it keeps, and who waits for it.
struct Pending<T> {
    kept: T,
    done: oneshot::Sender<(c_int, u64, T)>,
    library: &'static Library,
}

/// Begins an operation and waits for its end. `start` gets what is kept, in its final place, and the completion; if it answers
/// below zero it has begun nothing. What is kept may be gone as soon as the operation was begun, so `start` looks at it only before.
///
/// The answer, unless it is a failure, is the version of the object that was worked on.
///
/// Begun when this is called, and not when what it returns is first polled.
pub(super) fn submit<T: Send + 'static, S: FnOnce(*mut T, Handle) -> c_int>(
    library: &'static Library,
    kept: T,
    start: S,
) -> impl Future<Output = (Result<u64>, Option<T>)> + Send + use<T, S> {
    let (done, answer) = oneshot::channel();
    let pending = Box::into_raw(Box::new(Pending { kept, done, library }));
    let mut completion: Handle = ptr::null_mut();
    // SAFETY: the box lives until `complete` takes it back, which is called once, when the operation is done; or until
    // below, where it was not begun, so that nobody calls.
    let made = unsafe {
        (library.aio_create_completion2)(pending.cast(), Some(complete::<T>), &raw mut completion)
    };
    let begun = if made < 0 {
        made
    } else {
        // SAFETY: the box is there, and only its address is taken.
        start(unsafe { &raw mut (*pending).kept }, completion)
    };
    let refused = (begun < 0).then(|| {
        // SAFETY: no operation was begun, so `complete` is never called, and the box is still ours.
        let pending = unsafe { Box::from_raw(pending) };
        if made >= 0 {
            // SAFETY: it was made above, and nobody uses it.
            unsafe { (library.aio_release)(completion) };
        }
        (Failure::check(begun).map(u64::from), Some(pending.kept))
    });
    async move {
        match refused {
            Some(refused) => refused,
            // Whoever sends is dropped without having sent only if the connection went, and with it all that was under way.
            None => {
                let answered = answer.await;
                answered.map_or((Err(Failure::NOT_CONNECTED), None), |(answer, version, kept)| {
                    (Failure::check(answer).map(|_| version), Some(kept))
                })
            }
        }
    }
}

/// Called on a thread of librados. It must not wait for anything.
unsafe extern "C" fn complete<T>(completion: Handle, argument: *mut c_void) {
    // SAFETY: `argument` is the box of `submit`, which nobody else frees once the operation was begun; this is called once.
    let pending = unsafe { Box::from_raw(argument.cast::<Pending<T>>()) };
    let Pending { kept, done, library } = *pending;
    // SAFETY: the completion is valid until it is released, which nobody else does. librados holds it for as long as it
    // needs it itself.
    let (answer, version) = unsafe {
        let answer = (library.aio_get_return_value)(completion);
        let version = (library.aio_get_version)(completion);
        (library.aio_release)(completion);
        (answer, version)
    };
    // Nobody may be waiting any more: what was kept goes here.
    let _ = done.send((answer, version, kept));
}
