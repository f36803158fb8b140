//! Who is connected, and who may be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::protocol::Refusal;

/// Viewers at a time.
pub const VIEWERS_MAX: usize = 16;
/// Connections at a time that are not viewers yet. When one more comes, the oldest of them has to go: those who only
/// connect lock nobody out.
pub const STRANGERS_MAX: usize = 16;

/// What makes a connection's thread stop.
#[derive(Clone, Debug)]
pub struct Stop {
    stopped: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Stop {
    /// By this event.
    pub fn new(wake: Arc<EventFd>) -> Stop {
        Stop { stopped: Arc::default(), wake }
    }

    /// Whether it has to stop.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Stops it.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stranger,
    Sharing,
    Alone,
}

#[derive(Debug)]
struct Peer {
    kind: Kind,
    stop: Stop,
}

/// All connections of a server.
#[derive(Debug, Default)]
pub struct Peers(Mutex<(u64, BTreeMap<u64, Peer>)>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Peer>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection: its number. It is there until [`Peers::remove`].
    pub fn add(&self, stop: Stop) -> u64 {
        let mut peers = self.lock();
        let (last, peers) = &mut *peers;
        let strangers =
            || peers.values().filter(|peer| peer.kind == Kind::Stranger && !peer.stop.is_stopped());
        if strangers().count() >= STRANGERS_MAX {
            strangers().take(1).for_each(|peer| peer.stop.stop());
        }
        *last += 1;
        peers.insert(*last, Peer { kind: Kind::Stranger, stop });
        *last
    }

    /// Whether there are so many, those included that are about to go, that no further one can be served.
    pub fn is_full(&self) -> bool {
        self.lock().1.len() >= 2 * (VIEWERS_MAX + STRANGERS_MAX)
    }

    /// A connection becomes a viewer. One that does not share ends the others; while it is there, nobody who would
    /// share comes in.
    ///
    /// # Errors
    /// There is one that does not share, or there are too many.
    pub(super) fn admit(&self, id: u64, shared: bool) -> Result<(), Refusal> {
        let mut peers = self.lock();
        let viewers = |(other, peer): &(&u64, &mut Peer)| {
            **other != id && peer.kind != Kind::Stranger && !peer.stop.is_stopped()
        };
        if shared {
            let others: Vec<Kind> = peers.1.iter_mut().filter(viewers).map(|(_, peer)| peer.kind).collect();
            if others.contains(&Kind::Alone) {
                return Err(Refusal::NotShared);
            }
            if others.len() >= VIEWERS_MAX {
                return Err(Refusal::TooMany);
            }
        } else {
            peers.1.iter_mut().filter(viewers).for_each(|(_, peer)| peer.stop.stop());
        }
        if let Some(peer) = peers.1.get_mut(&id) {
            peer.kind = if shared { Kind::Sharing } else { Kind::Alone };
        }
        Ok(())
    }

    /// The connection has ended.
    pub fn remove(&self, id: u64) {
        self.lock().1.remove(&id);
    }

    /// How many viewers there are.
    pub fn viewers(&self) -> usize {
        self.lock().1.values().filter(|peer| peer.kind != Kind::Stranger).count()
    }

    /// Ends all connections.
    pub fn stop_all(&self) {
        self.lock().1.values().for_each(|peer| peer.stop.stop());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stop() -> Stop {
        Stop::new(Arc::new(EventFd::new(0).unwrap()))
    }

    #[test]
    fn viewers_that_share_are_limited() {
        let peers = Peers::default();
        let ids: Vec<u64> = (0..VIEWERS_MAX).map(|_| peers.add(stop())).collect();
        for id in &ids {
            assert_eq!(peers.admit(*id, true), Ok(()));
        }
        let more = peers.add(stop());
        assert_eq!(peers.admit(more, true), Err(Refusal::TooMany));
        peers.remove(ids[3]);
        assert_eq!(peers.admit(more, true), Ok(()));
        assert_eq!(peers.viewers(), VIEWERS_MAX);
    }

    #[test]
    fn one_that_does_not_share_ends_the_others() {
        let peers = Peers::default();
        let stops = [stop(), stop(), stop(), stop()];
        let ids = stops.each_ref().map(|stop| peers.add(stop.clone()));
        assert_eq!(peers.admit(ids[0], true), Ok(()));
        assert_eq!(peers.admit(ids[1], false), Ok(()));
        assert_eq!(stops.each_ref().map(Stop::is_stopped), [true, false, false, false]);
        assert_eq!(peers.admit(ids[2], true), Err(Refusal::NotShared));
        assert_eq!(peers.admit(ids[3], false), Ok(()));
        assert!(stops[1].is_stopped());
    }

    #[test]
    fn the_oldest_stranger_makes_room() {
        let peers = Peers::default();
        let first = stop();
        let id = peers.add(first.clone());
        let second = stop();
        peers.add(second.clone());
        assert_eq!(peers.admit(id, true), Ok(()));
        for _ in 1..STRANGERS_MAX {
            peers.add(stop());
        }
        assert!(!second.is_stopped());
        peers.add(stop());
        assert!(second.is_stopped() && !first.is_stopped());
    }
}
