//! What a frontend may change while its queues run, and what follows from it for each frame to the guest.
//!
//! The main thread (keys of xenstore) and the control ring's thread write [`Settings`]; the queues read them, before
//! they take frames. A frame that the table of queues gives to another queue than the one whose tap had it goes there
//! through a [`Mailbox`]. That one is bounded, and what is too much is dropped: as in a switch.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::hash::{HashConfig, PacketHash};
use crate::multicast::Multicast;
use crate::protocol::RxExtras;

/// Bytes of room before the data that a frontend can have: what Linux asks for (XDP_PACKET_HEADROOM). A frame of 1500
/// bytes fits a page behind it, and so do the first bytes of each that are looked at.
pub(crate) const MAX_HEADROOM: u16 = 256;
/// Frames that wait for another queue's thread.
const MAX_MAIL: usize = 256;
/// Bytes that frames for all queues have, divided among them.
const MAX_MAIL_BYTES: usize = 1 << 20;
/// Bytes for each queue at least: two of the largest frames.
const MIN_MAIL_BYTES: usize = 2 << 16;

/// A frame on the way to another queue.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) frame: Vec<u8>,
    /// Of its first slot, as far as they are known.
    pub(crate) flags: u16,
    pub(crate) extras: RxExtras,
}

/// Frames for a queue that other queues' taps had.
#[derive(Debug)]
pub(crate) struct Mailbox {
    mail: Mutex<(VecDeque<Mail>, usize)>,
    /// Bytes that there is room for.
    room: usize,
    filled: AtomicBool,
    /// Wakes the queue's thread. Never read, as it is polled edge-triggered.
    doorbell: EventFd,
}

impl Mailbox {
    fn new(room: usize) -> io::Result<Self> {
        Ok(Self {
            room,
            mail: Mutex::default(),
            filled: AtomicBool::new(false),
            doorbell: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Hands a frame over and wakes the thread; false if there is no room for it.
    pub(crate) fn put(&self, mail: Mail) -> bool {
        let mut guard = lock(&self.mail);
        let (queue, bytes) = &mut *guard;
        if queue.len() >= MAX_MAIL || *bytes + mail.frame.len() > self.room {
            return false;
        }
        *bytes += mail.frame.len();
        queue.push_back(mail);
        drop(guard);
        // One event for all that come before the thread looks.
        if !self.filled.swap(true, SeqCst) {
            self.ring();
        }
        true
    }

    /// The next frame.
    pub(crate) fn take(&self) -> Option<Mail> {
        if !self.filled.load(SeqCst) {
            return None;
        }
        let mut guard = lock(&self.mail);
        let (queue, bytes) = &mut *guard;
        let mail = queue.pop_front();
        *bytes -= mail.as_ref().map_or(0, |mail| mail.frame.len());
        // Inside the lock: who puts something next rings again.
        self.filled.store(!queue.is_empty(), SeqCst);
        mail
    }

    /// Throws all away: how many.
    pub(crate) fn clear(&self) -> u64 {
        (0..MAX_MAIL).take_while(|_| self.take().is_some()).map(|_| 1).sum()
    }

    /// Whether there is something to take.
    pub(crate) fn is_filled(&self) -> bool {
        self.filled.load(SeqCst)
    }

    /// To poll.
    pub(crate) fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    fn ring(&self) {
        let _ = self.doorbell.write(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the queues look at for each frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) hash: Arc<HashConfig>,
    /// Bytes of room before the data in each page.
    pub(crate) headroom: u16,
}

/// Settings of a connection, shared by its queues.
#[derive(Debug)]
pub(crate) struct Settings {
    rules: Mutex<Rules>,
    /// One more with each change of the rules.
    generation: AtomicU64,
    /// Of the last change of the headroom, which has to be in force in all queues before the frontend is told.
    headroom_generation: AtomicU64,
    /// Of the rules that each queue goes by.
    in_force: Vec<AtomicU64>,
    pub(crate) multicast: Multicast,
    mailboxes: Vec<Mailbox>,
}

impl Settings {
    /// Of a frontend that has just connected, with so many queues.
    pub(crate) fn new(queues: usize) -> io::Result<Self> {
        let room = (MAX_MAIL_BYTES / queues.max(1)).max(MIN_MAIL_BYTES);
        Ok(Self {
            rules: Mutex::default(),
            generation: AtomicU64::new(0),
            headroom_generation: AtomicU64::new(0),
            in_force: (0..queues).map(|_| AtomicU64::new(0)).collect(),
            multicast: Multicast::default(),
            mailboxes: (0..queues).map(|_| Mailbox::new(room)).collect::<io::Result<_>>()?,
        })
    }

    /// Queues of the connection.
    pub(crate) fn queues(&self) -> usize {
        self.mailboxes.len()
    }

    /// Where frames for a queue are put.
    pub(crate) fn mailbox(&self, queue: usize) -> Option<&Mailbox> {
        self.mailboxes.get(queue)
    }

    /// Changes how packets are hashed.
    pub(crate) fn set_hash(&self, hash: HashConfig) {
        let mut rules = lock(&self.rules);
        rules.hash = Arc::new(hash);
        self.generation.fetch_add(1, SeqCst);
    }

    /// Changes the room before the data, in bytes, and tells the queues. True if it is another one than before.
    pub(crate) fn set_headroom(&self, headroom: u16) -> bool {
        let mut rules = lock(&self.rules);
        if rules.headroom == headroom {
            return false;
        }
        rules.headroom = headroom;
        let generation = self.generation.fetch_add(1, SeqCst) + 1;
        self.headroom_generation.store(generation, SeqCst);
        drop(rules);
        self.mailboxes.iter().for_each(Mailbox::ring);
        true
    }

    /// The room before the data.
    pub(crate) fn headroom(&self) -> u16 {
        lock(&self.rules).headroom
    }

    /// Whether all queues go by the last headroom.
    pub(crate) fn is_in_force(&self) -> bool {
        let wanted = self.headroom_generation.load(SeqCst);
        self.in_force.iter().all(|queue| queue.load(SeqCst) >= wanted)
    }
}

/// The settings as one queue goes by them.
#[derive(Debug)]
pub(crate) struct View {
    settings: Arc<Settings>,
    queue: usize,
    generation: u64,
    rules: Rules,
}

/// What becomes of a frame from the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is for this queue.
    Here(Option<PacketHash>),
    /// It is for that one.
    There(usize, Option<PacketHash>),
    /// The guest does not want it.
    Drop,
}

impl View {
    pub(crate) fn new(settings: Arc<Settings>, queue: usize) -> Self {
        let mut view = Self { settings, queue, generation: 0, rules: Rules::default() };
        view.refresh();
        view
    }

    /// Goes by the settings of now. Not while frames are being read into pages. True: the last headroom may be in
    /// force in all queues with that.
    pub(crate) fn refresh(&mut self) -> bool {
        if self.generation == self.settings.generation.load(SeqCst) {
            return false;
        }
        let rules = lock(&self.settings.rules);
        self.rules = rules.clone();
        let before = std::mem::replace(&mut self.generation, self.settings.generation.load(SeqCst));
        drop(rules);
        if let Some(own) = self.settings.in_force.get(self.queue) {
            own.store(self.generation, SeqCst);
        }
        before < self.settings.headroom_generation.load(SeqCst) && self.settings.is_in_force()
    }

    /// Bytes of room before the data in each page.
    pub(crate) fn headroom(&self) -> u16 {
        self.rules.headroom
    }

    /// Whether frames may have a hash.
    pub(crate) fn hashes(&self) -> bool {
        self.rules.hash.is_on()
    }

    /// Whether frames have to be looked at, other than for offloads.
    pub(crate) fn looks(&self) -> bool {
        self.rules.hash.is_on() || self.settings.multicast.is_on()
    }

    /// What becomes of a frame of `total` bytes, whose first ones are in `head`.
    pub(crate) fn judge(&self, head: &[u8], total: usize) -> Verdict {
        if !head.first_chunk().is_some_and(|to: &[u8; 6]| self.settings.multicast.passes(*to)) {
            return Verdict::Drop;
        }
        let hash = self.rules.hash.hash(head, total);
        match self.rules.hash.queue(hash, self.settings.queues()) {
            Some(queue) if queue != self.queue => Verdict::There(queue, hash),
            _ => Verdict::Here(hash),
        }
    }

    /// Hands a frame to another queue; false if that has too many already.
    pub(crate) fn hand_over(&self, queue: usize, mail: Mail) -> bool {
        self.settings.mailbox(queue).is_some_and(|mailbox| mailbox.put(mail))
    }

    /// Whether other queues handed something over.
    pub(crate) fn has_mail(&self) -> bool {
        self.mailbox().is_some_and(Mailbox::is_filled)
    }

    /// The frames that other queues handed over.
    pub(crate) fn mailbox(&self) -> Option<&Mailbox> {
        self.settings.mailbox(self.queue)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::hash::{ALL_KINDS, KEY_LEN};
    use crate::multicast::Membership;
    use crate::testing::tcp_frame;

    fn settings(queues: usize) -> (Arc<Settings>, Vec<View>) {
        let settings = Arc::new(Settings::new(queues).unwrap());
        let views = (0..queues).map(|queue| View::new(Arc::clone(&settings), queue)).collect();
        (settings, views)
    }

    fn hashing(mapping: &[u16]) -> HashConfig {
        HashConfig { toeplitz: true, kinds: ALL_KINDS, key: [7; KEY_LEN], mapping: mapping.to_vec() }
    }

    fn mail(len: usize) -> Mail {
        Mail { frame: vec![0; len], flags: 0, extras: RxExtras::default() }
    }

    #[test]
    fn without_settings_each_frame_stays_where_it_is() {
        let (_, views) = settings(2);
        let frame = tcp_frame(false, 10);
        for view in &views {
            assert!(!view.looks());
            assert_eq!(view.judge(&frame, frame.len()), Verdict::Here(None));
        }
    }

    #[test]
    fn a_hashed_frame_goes_to_the_queue_of_the_table() {
        let (settings, mut views) = settings(3);
        settings.set_hash(hashing(&[2, 2]));
        let frame = tcp_frame(true, 10);
        assert_eq!(views[0].judge(&frame, frame.len()), Verdict::Here(None), "not read yet");
        assert!(!views.iter_mut().any(View::refresh), "no headroom");
        let hash = hashing(&[]).hash(&frame, frame.len());
        assert!(hash.is_some() && views[0].looks());
        assert_eq!(views[0].judge(&frame, frame.len()), Verdict::There(2, hash));
        assert_eq!(views[2].judge(&frame, frame.len()), Verdict::Here(hash));
    }

    #[test]
    fn an_unwanted_multicast_is_dropped_in_all_queues_at_once() {
        let (settings, views) = settings(2);
        let mut frame = tcp_frame(false, 10);
        frame[0] = 1;
        let group = *frame.first_chunk().unwrap();
        settings.multicast.set_filter(true);
        assert!(views.iter().all(|view| view.judge(&frame, frame.len()) == Verdict::Drop));
        assert!(settings.multicast.change(Membership::Join(group)));
        assert!(views.iter().all(|view| view.judge(&frame, frame.len()) == Verdict::Here(None)));
    }

    #[test]
    fn a_headroom_is_in_force_when_the_last_queue_goes_by_it() {
        let (settings, mut views) = settings(2);
        assert!(settings.is_in_force() && !settings.set_headroom(0));
        assert!(settings.set_headroom(256));
        assert!(!settings.is_in_force());
        assert!(!views[0].refresh() && views[1].refresh());
        assert!(settings.is_in_force() && views.iter().all(|view| view.headroom() == 256));
        // A new hash does not undo that.
        settings.set_hash(hashing(&[]));
        assert!(settings.is_in_force() && !views[0].refresh());
        assert_eq!(settings.mailbox(0).unwrap().doorbell.read().unwrap(), 1, "the queues are woken for it");
    }

    #[test]
    fn mail_is_taken_in_order_and_rings_once() {
        let (settings, views) = settings(2);
        for len in [60, 61, 62] {
            assert!(views[0].hand_over(1, mail(len)));
        }
        let mailbox = settings.mailbox(1).unwrap();
        assert_eq!(mailbox.doorbell.read().unwrap(), 1);
        assert!(mailbox.is_filled());
        let lens: Vec<_> = std::iter::from_fn(|| mailbox.take()).map(|mail| mail.frame.len()).collect();
        assert_eq!(lens, [60, 61, 62]);
        assert!(!mailbox.is_filled() && mailbox.put(mail(9)));
        assert_eq!(mailbox.doorbell.read().unwrap(), 1);
    }

    #[test]
    fn mail_is_bounded_in_frames_and_bytes() {
        let (_, views) = settings(2);
        let put = |len| (0..1000).take_while(|_| views[0].hand_over(1, mail(len))).count();
        let empty = || std::iter::from_fn(|| views[1].mailbox().unwrap().take()).count();
        assert_eq!((put(60), empty()), (MAX_MAIL, MAX_MAIL));
        assert_eq!((put(65_536), empty()), (8, 8));
        assert_eq!(put(60), MAX_MAIL);
        assert!(!views[0].hand_over(2, mail(60)), "there is no such queue");
    }
}
