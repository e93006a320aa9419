//! Keys of an object, all of them, however many pieces the cluster answers in.

use std::collections::BTreeMap;

use vellum_engine::Result;
use vellum_rados::{Failure, Found, Objects, ReadOp, ReadStep, SnapId};

use crate::error::{failed, unexpected};

/// Keys that are read at once.
const AT_ONCE: u64 = 1000;

/// The keys that begin with a prefix, and their values. `None` if there is no such object. What is changed meanwhile may be seen in
/// part.
pub(crate) async fn all<O: Objects>(
    objects: &O,
    object: &str,
    prefix: &str,
    doing: impl Fn() -> String,
) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let step = ReadStep::Omap { after, prefix: prefix.to_owned(), max: AT_ONCE };
        let done = objects.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
        let mut found = match done.result {
            Ok((_, found)) => found,
            Err(Failure::NOT_FOUND) => return Ok(None),
            Err(failure) => return Err(failed(failure, doing())),
        };
        let Some(Found::Omap { values, more }) = found.pop() else { return Err(unexpected()) };
        let name = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let last = values.last_key_value().map(|(key, _)| name(key));
        all.extend(values.into_iter().map(|(key, value)| (name(&key), value)));
        match last {
            Some(last) if more => after = last,
            _ => return Ok(Some(all)),
        }
    }
}
