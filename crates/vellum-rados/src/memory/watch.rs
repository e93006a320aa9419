//! Who watches which object, and what they are told.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Address, MemoryCluster};
use crate::contract::{Event, Watch};
use crate::failure::{Failure, Result};

/// Who a watch belongs to: a client, and the number of the watch.
type Watcher = (u64, u64);

/// All watches of a cluster, and what is being said.
#[derive(Default)]
pub(super) struct Watchers {
    numbers: u64,
    open: BTreeMap<Address, BTreeMap<Watcher, mpsc::UnboundedSender<Event>>>,
    /// By the number of what was said, and who has to answer it.
    said: HashMap<(u64, Watcher), oneshot::Sender<Vec<u8>>>,
}

impl Watchers {
    /// Lets a client hear what is said about an object.
    pub(super) fn begin(
        &mut self,
        address: Address,
        client: u64,
    ) -> (u64, mpsc::UnboundedReceiver<Event>) {
        self.numbers += 1;
        let (send, events) = mpsc::unbounded_channel();
        self.open.entry(address).or_default().insert((client, self.numbers), send);
        (self.numbers, events)
    }

    fn end(&mut self, address: &Address, watcher: Watcher) {
        if let Some(open) = self.open.get_mut(address) {
            open.remove(&watcher);
        }
        // Nobody waits for the answers of who is gone.
        self.said.retain(|(_, from), _| *from != watcher);
    }

    /// Tells all watches of a client that they are lost.
    pub(super) fn lose(&mut self, client: u64) {
        self.said.retain(|(_, from), _| from.0 != client);
        for open in self.open.values_mut() {
            for (_, lost) in open.extract_if(.., |watcher, _| watcher.0 == client) {
                let _ = lost.send(Event::Lost(Failure::NOT_CONNECTED));
            }
        }
    }

    /// Says something, and returns who is to answer.
    pub(super) fn say(
        &mut self,
        address: &Address,
        client: u64,
        bytes: &[u8],
    ) -> Vec<(Watcher, oneshot::Receiver<Vec<u8>>)> {
        self.numbers += 1;
        let said = self.numbers;
        let mut answers = Vec::new();
        for (watcher, send) in self.open.get(address).into_iter().flatten() {
            let (answer, answered) = oneshot::channel();
            self.said.insert((said, *watcher), answer);
            let _ = send.send(Event::Said { said, client, bytes: bytes.to_vec() });
            answers.push((*watcher, answered));
        }
        answers
    }
}

/// Waits for answers, and puts them together as a cluster does: those that came, by who gave them; and who gave none.
pub(super) async fn gather(
    mut asked: Vec<(Watcher, oneshot::Receiver<Vec<u8>>)>,
    wait: Duration,
) -> Vec<u8> {
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    let until = tokio::time::Instant::now() + wait;
    for (watcher, answer) in &mut asked {
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(answer)) => answers.push((*watcher, answer)),
            // It ended meanwhile, and is asked no more.
            Ok(Err(_)) => {}
            Err(_) => silent.push(*watcher),
        }
    }
    let mut out = (answers.len() as u32).to_le_bytes().to_vec();
    for ((client, watch), answer) in answers {
        out.extend([client.to_le_bytes(), watch.to_le_bytes()].concat());
        out.extend((answer.len() as u32).to_le_bytes());
        out.extend(answer);
    }
    out.extend((silent.len() as u32).to_le_bytes());
    for (client, watch) in silent {
        out.extend([client.to_le_bytes(), watch.to_le_bytes()].concat());
    }
    out
}

/// A watch on an object in memory. Ends when it is dropped.
pub struct MemoryWatch {
    pub(super) cluster: MemoryCluster,
    pub(super) address: Address,
    pub(super) client: u64,
    pub(super) id: u64,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
}

impl Watch for MemoryWatch {
    fn id(&self) -> u64 {
        self.id
    }

    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    async fn answer(&self, said: u64, answer: Vec<u8>) -> Result<()> {
        let mut state = self.cluster.0.state.lock();
        let waiting = state.watchers.said.remove(&(said, (self.client, self.id)));
        // Whoever said it may have stopped waiting.
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        let watcher = (self.client, self.id);
        self.cluster.0.state.lock().watchers.end(&self.address, watcher);
    }
}

impl fmt::Debug for MemoryWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryWatch({})", self.id)
    }
}
