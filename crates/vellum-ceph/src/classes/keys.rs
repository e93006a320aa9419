//! Keys of an object, as values of a type.

use vellum_rados::memory::ClassObject;
use vellum_rados::{Failure, Result};
use vellum_rbd::{Decode, Encode};

/// What a method is given.
pub(super) fn given<T: Decode>(input: &[u8]) -> Result<T> {
    T::from_bytes(input).map_err(|_| Failure::INVALID)
}

/// The keys of an object.
pub(super) trait Keys {
    /// The value of a key. `NOT_FOUND` if there is none, `IO` if it is of another type.
    fn get<T: Decode>(&self, key: &str) -> Result<T>;

    /// As [`get`](Self::get), and `None` if there is none.
    fn find<T: Decode>(&self, key: &str) -> Result<Option<T>> {
        match self.get(key) {
            Ok(value) => Ok(Some(value)),
            Err(Failure::NOT_FOUND) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Sets a key.
    fn set(&mut self, key: &str, value: &impl Encode);

    /// Removes a key.
    fn remove(&mut self, key: &str);
}

impl Keys for ClassObject {
    fn get<T: Decode>(&self, key: &str) -> Result<T> {
        let bytes = self.omap.get(key.as_bytes()).ok_or(Failure::NOT_FOUND)?;
        T::from_bytes(bytes).map_err(|_| Failure::IO)
    }

    fn set(&mut self, key: &str, value: &impl Encode) {
        self.omap.insert(key.into(), value.to_bytes());
    }

    fn remove(&mut self, key: &str) {
        self.omap.remove(key.as_bytes());
    }
}
