//! Pooled, owned buffers for the data path.
//!
//! A request owns its buffer from the socket to the file and back, so that it may outlive the caller that stopped waiting.
//! Buffers come in power-of-two classes and return to their pool when dropped; the pool keeps at most a stated number
//! of bytes and frees the rest. The pool bounds what it *keeps*; what is in use is bounded by whoever admits requests.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The smallest class: 4 KiB.
const SMALLEST_SHIFT: u32 = 12;
/// The largest class that is kept: 32 MiB. Larger buffers are allocated and freed.
const LARGEST_SHIFT: u32 = 25;
const CLASSES: usize = (LARGEST_SHIFT - SMALLEST_SHIFT + 1) as usize;

/// Hands out [`Buffer`]s and takes them back. Clones share one pool.
#[derive(Clone)]
pub struct BufferPool(Arc<Shared>);

struct Shared {
    kept: Mutex<Kept>,
    kept_bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    classes: [Vec<Vec<u8>>; CLASSES],
}

impl BufferPool {
    /// A pool that keeps at most `kept_bytes_max` bytes of buffers that nobody uses.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self(Arc::new(Shared { kept: Mutex::default(), kept_bytes_max }))
    }

    /// A buffer of `length` bytes. **Its content is arbitrary** (zeros, or what an earlier request left): whoever takes a
    /// buffer fills all of it before showing it to anybody.
    pub fn take(&self, length: usize) -> Buffer {
        let data = match class_of(length) {
            None => vec![0; length],
            Some(class) => {
                let size = class_size(class);
                let mut kept = self.0.kept.lock();
                match kept.classes[class].pop() {
                    Some(data) => {
                        kept.bytes -= size;
                        data
                    }
                    None => {
                        drop(kept);
                        vec![0; size]
                    }
                }
            }
        };
        Buffer { data, length, pool: Some(self.clone()) }
    }

    /// A buffer of `length` zeros.
    pub fn take_zeroed(&self, length: usize) -> Buffer {
        let mut buffer = self.take(length);
        buffer.fill(0);
        buffer
    }

    /// How many bytes of memory a buffer of `length` bytes takes: those of its class, which is 4 KiB at least and less than twice as long.
    pub fn footprint(length: usize) -> usize {
        class_of(length).map_or(length, class_size)
    }

    /// How many bytes lie in the pool unused.
    pub fn kept_bytes(&self) -> usize {
        self.0.kept.lock().bytes
    }

    fn give_back(&self, data: Vec<u8>) {
        let Some(class) = class_of(data.len()).filter(|class| class_size(*class) == data.len())
        else {
            return;
        };
        let mut kept = self.0.kept.lock();
        if kept.bytes + data.len() <= self.0.kept_bytes_max {
            kept.bytes += data.len();
            kept.classes[class].push(data);
        }
    }
}

impl Default for BufferPool {
    /// A pool that keeps up to 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} of {} bytes kept)", self.kept_bytes(), self.0.kept_bytes_max)
    }
}

fn class_of(length: usize) -> Option<usize> {
    let shift = length.max(1).next_power_of_two().trailing_zeros().max(SMALLEST_SHIFT);
    (shift <= LARGEST_SHIFT).then_some((shift - SMALLEST_SHIFT) as usize)
}

fn class_size(class: usize) -> usize {
    1 << (class as u32 + SMALLEST_SHIFT)
}

/// Bytes owned by one request. Dereferences to a slice of exactly the length asked for.
pub struct Buffer {
    /// As long as its class, so that it needs no initialising when it is taken again; `length` bytes are in use.
    data: Vec<u8>,
    length: usize,
    pool: Option<BufferPool>,
}

impl Buffer {
    /// A buffer that belongs to no pool, for tests and cold paths.
    pub fn from_vec(data: Vec<u8>) -> Self {
        Self { length: data.len(), data, pool: None }
    }

    /// Shortens the buffer in use to `length` bytes; no effect if it is not longer.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Turns it into shared, read-only bytes; the memory returns to the pool with the last clone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.data[..self.length]
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.data));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again_by_its_class() {
        let pool = BufferPool::new(1 << 20);
        let buffer = pool.take(5000);
        assert_eq!(buffer.len(), 5000);
        let at = buffer.as_ptr();
        drop(buffer);
        assert_eq!(pool.kept_bytes(), 8192);
        assert_eq!(pool.take(8192).as_ptr(), at);
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_limit() {
        let pool = BufferPool::new(8192);
        let buffers: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
        drop(buffers);
        assert_eq!(pool.kept_bytes(), 8192);
    }

    #[test]
    fn frozen_bytes_return_with_the_last_clone() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(3);
        buffer.copy_from_slice(b"abc");
        let bytes = buffer.freeze();
        let other = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&other[..], pool.kept_bytes()), (&b"bc"[..], 0));
        drop(other);
        assert_eq!(pool.kept_bytes(), 4096);
    }

    #[test]
    fn a_buffer_beyond_the_largest_class_is_not_kept() {
        let pool = BufferPool::default();
        drop(pool.take((32 << 20) + 1));
        assert_eq!(pool.kept_bytes(), 0);
    }
}
