//! [`MemoryPool`]: the seam, for one client of a cluster in memory.

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;

use super::object::{Caller, Object, look};
use super::watch::{MemoryWatch, gather};
use super::{Address, MemoryCluster, State};
use crate::failure::{Failure, Result};
use crate::{DataRead, Found, List, Objects, ReadDone, ReadOp, SnapContext, SnapId, WriteOp};

/// The objects of one pool, in one namespace, for one client.
#[derive(Clone)]
pub struct MemoryPool {
    cluster: MemoryCluster,
    client: u64,
    pool: i64,
    namespace: String,
}

impl MemoryPool {
    pub(super) fn new(cluster: MemoryCluster, client: u64, pool: i64, namespace: &str) -> Self {
        Self { cluster, client, pool, namespace: namespace.to_owned() }
    }

    /// The same client at another pool, or namespace.
    ///
    /// # Panics
    /// If there is no such pool.
    #[must_use]
    pub fn other(&self, pool: &str, namespace: &str) -> Self {
        let pool = self.cluster.0.state.lock().pools[pool];
        Self::new(self.cluster.clone(), self.client, pool, namespace)
    }

    fn address(&self, object: &str) -> Result<Address> {
        if object.contains('\0') {
            return Err(Failure::INVALID);
        }
        Ok((self.pool, self.namespace.clone(), object.to_owned()))
    }

    fn caller(&self) -> Caller<'_> {
        Caller { classes: &self.cluster.0.classes, client: self.client }
    }

    /// Runs a call on all that the cluster knows, alone, if the cluster still listens to this client.
    fn with<T>(&self, call: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.cluster.0.state.lock();
        if state.blocklisted.contains(&self.client) {
            return Err(Failure::BLOCKLISTED);
        }
        call(&mut state)
    }

    /// The same, if this client may change what is in this pool.
    fn may_change<T>(&self, call: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.with(|state| match state.read_only.contains(&(self.client, self.pool)) {
            true => Err(Failure::NOT_PERMITTED),
            false => call(state),
        })
    }

    fn write_now(&self, object: &str, context: &SnapContext, op: &WriteOp) -> Result<()> {
        let address = self.address(object)?;
        op.check()?;
        self.may_change(|state| {
            let mut object: Object = state.objects.get(&address).cloned().unwrap_or_default();
            let (bytes, pieces) = object.space();
            state.version += 1;
            object.write(state.version, context, &op.steps, &self.caller())?;
            // As the storage daemons reckon it: attributes and keys do not count.
            let (more_bytes, more_pieces) = object.space();
            if state.is_full && (more_bytes > bytes || more_pieces > pieces) {
                return Err(Failure::NO_SPACE);
            }
            match object.is_gone() {
                true => state.objects.remove(&address),
                false => state.objects.insert(address, object),
            };
            state.has_changed(self.client)
        })
    }

    fn read_now(
        &self,
        object: &str,
        at: SnapId,
        op: &mut ReadOp,
    ) -> Result<(u64, (usize, Vec<Found>))> {
        let address = self.address(object)?;
        self.with(|state| {
            let object = state.objects.get(&address);
            let version = object.map_or(0, Object::version);
            let object = object.and_then(|object| object.at(at));
            let found = look(object, &op.steps, &self.caller())?;
            let object = object.ok_or(Failure::NOT_FOUND)?;
            let Some(DataRead { offset, buffer, into }) = &mut op.data else {
                return Ok((version, (0, found)));
            };
            let into = buffer.get_mut(into.clone()).ok_or(Failure::INVALID)?;
            let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(object.data.len());
            let read = into.len().min(object.data.len() - start);
            into[..read].copy_from_slice(&object.data[start..start + read]);
            Ok((version, (read, found)))
        })
    }
}

impl Objects for MemoryPool {
    type Watch = MemoryWatch;

    fn cluster(&self) -> [u8; 16] {
        self.cluster.0.id
    }

    fn pool(&self) -> i64 {
        self.pool
    }

    fn client(&self) -> u64 {
        self.client
    }

    fn at(&self, pool: i64, namespace: &str) -> Result<Self> {
        Ok(Self::new(self.cluster.clone(), self.client, pool, namespace))
    }

    async fn pools(&self) -> Result<Vec<(i64, String)>> {
        self.with(|state| {
            Ok(state.pools.iter().map(|(name, pool)| (*pool, name.clone())).collect())
        })
    }

    async fn fence(&self, client: u64, _address: &str) -> Result<()> {
        self.with(|_| Ok(()))?;
        self.cluster.blocklist(client);
        Ok(())
    }

    async fn write(&self, object: &str, context: &SnapContext, op: WriteOp) -> Result<()> {
        if op.steps.is_empty() { Ok(()) } else { self.write_now(object, context, &op) }
    }

    async fn read(&self, object: &str, at: SnapId, mut op: ReadOp) -> ReadDone {
        let (version, result) = match self.read_now(object, at, &mut op) {
            Ok((version, found)) => (version, Ok(found)),
            Err(failure) => (0, Err(failure)),
        };
        ReadDone { buffer: op.data.map(|data| data.buffer), version, result }
    }

    fn list(&self) -> List {
        let (names, list) = mpsc::channel(1);
        let all = self.with(|state| {
            let here = |address: &&Address| (address.0, &address.1) == (self.pool, &self.namespace);
            let there = state.objects.iter().filter(|(_, object)| object.is_there());
            Ok(there
                .map(|(address, _)| address)
                .filter(here)
                .map(|(.., name)| name.clone())
                .collect())
        });
        names.try_send(all).expect("it has room for one");
        List(list)
    }

    async fn create_snapshot(&self) -> Result<u64> {
        self.may_change(|state| {
            let newest = state.snapshots.entry(self.pool).or_default();
            *newest += 1;
            let newest = *newest;
            state.has_changed(self.client).map(|()| newest)
        })
    }

    async fn remove_snapshot(&self, snapshot: u64) -> Result<()> {
        self.may_change(|state| {
            for (_, object) in
                state.objects.iter_mut().filter(|(address, _)| address.0 == self.pool)
            {
                object.forget(snapshot);
            }
            state.objects.retain(|_, object| !object.is_gone());
            state.has_changed(self.client)
        })
    }

    async fn watch(&self, object: &str) -> Result<MemoryWatch> {
        let address = self.address(object)?;
        let (id, events) = self.may_change(|state| {
            if !state.objects.get(&address).is_some_and(Object::is_there) {
                return Err(Failure::NOT_FOUND);
            }
            Ok(state.watchers.begin(address.clone(), self.client))
        })?;
        Ok(MemoryWatch { cluster: self.cluster.clone(), address, client: self.client, id, events })
    }

    async fn notify(&self, object: &str, says: Vec<u8>, wait: Duration) -> Result<Vec<u8>> {
        let address = self.address(object)?;
        let asked = self.with(|state| {
            if !state.objects.get(&address).is_some_and(Object::is_there) {
                return Err(Failure::NOT_FOUND);
            }
            Ok(state.watchers.say(&address, self.client, &says))
        })?;
        Ok(gather(asked, wait).await)
    }
}

impl fmt::Debug for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MemoryPool({}, namespace {:?}, client {})",
            self.pool, self.namespace, self.client
        )
    }
}
