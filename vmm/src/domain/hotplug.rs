//! Devices that come and go while the guest runs, of whatever class.
//!
//! An arrival is opened by a thread made for it, because that may take its time: an image on a slow file server,
//! a target to log in to. Then its nodes are written, and the guest's driver finds it. A departure asks the
//! driver, waits for it, and hands the device to a thread that closes it; only then the client hears of it, so
//! that who detaches an image here may use it elsewhere. The main thread never waits.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use devices::ide::Ide;
use devices::xen::DomId;
use devices::xen::xenbus::{BackendDevice, DeviceId, Overdue, Removed};
use event_manager::{EventOps, Events, MutEventSubscriber};
use serde_json::Value;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::DomainDir;
use super::store_service::SharedStore;
use crate::api::Reply;
use crate::config::DomainConfig;
use crate::exit::{ExitStatus, Failure};

/// How long the guest may take to let go of a device that is gone, until the client is told that it is.
const LEAVE: Duration = Duration::from_secs(10);
/// How long a device that was taken by force may have I/O in flight until its client is told that it has.
const DRAIN: Duration = Duration::from_secs(10);

/// Changes the description of the domain: `config.json`, and what the guest has after a reboot.
pub(super) type Describe = Box<dyn FnOnce(&mut DomainConfig) + Send>;

/// Makes a device. It runs on a thread of its own and may block.
pub(super) type Open = Box<dyn FnOnce() -> Result<Opened, Failure> + Send>;

/// A device that was made.
pub(super) struct Opened {
    pub(super) device: Box<dyn BackendDevice>,
    /// Adds it to the description.
    pub(super) describe: Describe,
}

/// A device to come.
pub(super) struct Arrival {
    pub(super) id: DeviceId,
    /// What sentences call it: "xvdb".
    pub(super) name: String,
    pub(super) open: Open,
    /// What the client hears when the guest is offered the device.
    pub(super) answer: Value,
}

/// A device to go.
pub(super) struct Departure {
    pub(super) id: DeviceId,
    /// What sentences call it.
    pub(super) name: String,
    /// How long the guest may take.
    pub(super) patience: Duration,
    /// Then it goes all the same.
    pub(super) force: bool,
    /// Takes it from the description.
    pub(super) describe: Describe,
}

/// The work of a [`Change`]. The flag is set when nobody waits for it any more.
pub(super) type Work = Box<dyn FnOnce(&AtomicBool) -> Result<Describe, Failure> + Send>;

/// A change of a device that stays: the disc of a drive.
pub(super) struct Change {
    pub(super) id: DeviceId,
    /// What sentences call it.
    pub(super) name: String,
    /// Makes the change. It runs on a thread of its own and may wait.
    pub(super) work: Work,
}

/// A change that is being made.
struct Changing {
    number: u64,
    id: DeviceId,
    reply: Reply,
}

/// An arrival while its device is made.
struct Opening {
    number: u64,
    id: DeviceId,
    answer: Value,
    /// The device whose place it takes.
    before: Option<Departure>,
    reply: Reply,
}

/// A device that waits until its place is free.
struct Successor {
    opened: Opened,
    answer: Value,
}

/// A client that waits for a device to go.
struct Waiter {
    /// `None`: it waits as long as it takes.
    deadline: Option<Instant>,
    patience: Duration,
    force: bool,
    /// The device was taken; only I/O in flight keeps it.
    forced: bool,
    then: Option<Successor>,
    reply: Reply,
}

/// A device on its way out. It is kept until the device is gone, whether anybody waits for that or not.
struct Removal {
    id: DeviceId,
    name: String,
    describe: Option<Describe>,
    waiters: Vec<Waiter>,
    /// Closed on the host: until then the guest's driver may hold on to it.
    closed: Option<Instant>,
}

/// What a thread has done.
enum Outcome {
    Opened(u64, Result<Opened, Failure>),
    Closed(Option<DeviceId>),
    Changed(u64, Result<Describe, Failure>),
}

/// The threads that open and close devices, and what they have done.
struct Workers {
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    event: Arc<EventFd>,
    /// Devices that are being closed or changed.
    closing: usize,
}

impl Workers {
    /// Does `work` on a thread of its own, or at once if there can be none.
    fn spawn(&self, name: String, work: impl FnOnce() -> Outcome + Send + 'static) {
        let (outcomes, event) = (Arc::clone(&self.outcomes), Arc::clone(&self.event));
        let work = move || {
            let outcome = work();
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
            let _ = event.write(1);
        };
        // The thread takes the work out; what is left in it was not done.
        let slot = Arc::new(Mutex::new(Some(work)));
        let take = |slot: &Mutex<Option<_>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let theirs = Arc::clone(&slot);
        if let Err(error) = Builder::new().name(name).spawn(move || take(&theirs).map(|work| work())) {
            tracing::warn!(%error, "no thread for a device: the main loop waits for it");
            if let Some(work) = take(&slot) {
                work();
            }
        }
    }

    fn open(&self, number: u64, name: &str, open: Open) {
        self.spawn(format!("open-{name}"), move || Outcome::Opened(number, open()));
    }

    /// Drops `device`; `id` is told when it is done.
    fn close(&mut self, id: Option<DeviceId>, device: Box<dyn BackendDevice>) {
        self.closing += 1;
        self.spawn(format!("close-{}", DeviceId::of(&*device)), move || {
            drop(device);
            Outcome::Closed(id)
        });
    }

    fn change(&mut self, number: u64, name: &str, work: Work, over: &Arc<AtomicBool>) {
        self.closing += 1;
        let over = Arc::clone(over);
        self.spawn(format!("change-{name}"), move || Outcome::Changed(number, work(&over)));
    }

    fn take(&self) -> Vec<Outcome> {
        let _ = self.event.read();
        std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The devices of one run of a domain that come and go.
pub(super) struct Hotplug {
    store: SharedStore,
    folder: Rc<RefCell<DomainDir>>,
    workers: Workers,
    timer: TimerFd,
    openings: Vec<Opening>,
    removals: Vec<Removal>,
    changes: Vec<Changing>,
    last_number: u64,
    /// The run of the guest is over.
    over: Arc<AtomicBool>,
    ide: Weak<Mutex<Ide>>,
}

impl Hotplug {
    /// Of the domain with this store and state folder.
    pub(super) fn new(store: SharedStore, folder: Rc<RefCell<DomainDir>>) -> std::io::Result<Hotplug> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Hotplug {
            store,
            folder,
            workers: Workers { outcomes: Arc::default(), event, closing: 0 },
            timer: TimerFd::new().map_err(std::io::Error::from)?,
            openings: Vec::new(),
            removals: Vec::new(),
            changes: Vec::new(),
            last_number: 0,
            over: Arc::default(),
            ide: Weak::new(),
        })
    }

    /// The guest is a PC with this controller.
    pub(super) fn set_ide(&mut self, ide: Weak<Mutex<Ide>>) {
        self.ide = ide;
    }

    /// The IDE controller of a PC.
    pub(super) fn ide(&self) -> Option<Arc<Mutex<Ide>>> {
        self.ide.upgrade()
    }

    /// What the domain is made of now.
    pub(super) fn config(&self) -> DomainConfig {
        self.folder.borrow().config().clone()
    }

    /// The id of the domain, and its state folder.
    pub(super) fn domain(&self) -> (DomId, PathBuf) {
        let folder = self.folder.borrow();
        (folder.domid(), folder.path())
    }

    /// Whether the guest has the device, or it is on its way in or out.
    pub(super) fn is_taken(&self, id: DeviceId) -> bool {
        self.is_changing(id) || self.store.borrow().xenbus().contains(id)
    }

    /// Whether the device is on its way in or out.
    fn is_changing(&self, id: DeviceId) -> bool {
        self.openings.iter().any(|opening| opening.id == id)
            || self.changes.iter().any(|change| change.id == id)
            || self.removals.iter().any(|removal| removal.id == id)
            || self.store.borrow().xenbus().is_leaving(id)
    }

    /// Why the place is not free.
    fn taken(&self, id: DeviceId, name: &str) -> Failure {
        if self.is_changing(id) {
            let sentence =
                format!("{name}: the device is just being attached or detached; try again when that is done");
            return Failure::new(ExitStatus::DeviceBusy, sentence);
        }
        let sentence =
            format!("{name}: the guest has a device of this name; choose another one, or detach that one");
        Failure::new(ExitStatus::SameVdev, sentence)
    }

    /// Makes a device and offers it to the guest. The place must be free; with `before`, the device that has it
    /// goes as soon as the new one is made, and stays if that fails.
    pub(super) fn attach(&mut self, arrival: Arrival, before: Option<Departure>, reply: Reply) {
        let Arrival { id, name, open, answer } = arrival;
        if self.is_changing(id) || (before.is_none() && self.is_taken(id)) {
            return reply.send(Err(self.taken(id, &name)));
        }
        self.last_number += 1;
        self.workers.open(self.last_number, &name, open);
        self.openings.push(Opening { number: self.last_number, id, answer, before, reply });
    }

    /// Takes a device from the guest. Who asks again waits too, and with `force` takes it after all.
    pub(super) fn detach(&mut self, departure: Departure, reply: Reply) {
        if self.openings.iter().any(|opening| opening.id == departure.id) {
            return reply.send(Err(self.taken(departure.id, &departure.name)));
        }
        self.depart(departure, None, reply);
        self.advance(Instant::now());
    }

    /// Changes a device that stays.
    pub(super) fn change(&mut self, change: Change, reply: Reply) {
        let Change { id, name, work } = change;
        if self.is_changing(id) {
            return reply.send(Err(self.taken(id, &name)));
        }
        self.last_number += 1;
        self.changes.push(Changing { number: self.last_number, id, reply });
        self.workers.change(self.last_number, &name, work, &self.over);
        self.advance(Instant::now());
    }

    fn changed(&mut self, number: u64, result: Result<Describe, Failure>) {
        self.workers.closing = self.workers.closing.saturating_sub(1);
        let Some(index) = self.changes.iter().position(|change| change.number == number) else { return };
        let Changing { id, reply, .. } = self.changes.swap_remove(index);
        match result {
            Ok(describe) => {
                tracing::info!(device = %id, "a device was changed");
                self.describe(describe, reply);
            }
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Changes the description alone.
    pub(super) fn describe(&mut self, describe: Describe, reply: Reply) {
        let described = self.folder.borrow_mut().update(describe);
        reply.send(described.map(|()| Value::Null).map_err(Failure::from));
    }

    /// Asks the guest; who waits is told later.
    fn depart(&mut self, departure: Departure, then: Option<Successor>, reply: Reply) {
        let Departure { id, name, patience, force, describe } = departure;
        let index = match self.removals.iter().position(|removal| removal.id == id) {
            Some(index) => index,
            None if self.store.borrow_mut().request_removal(id) => {
                tracing::info!(device = %id, name, "asking the guest to let go of a device");
                self.removals.push(Removal {
                    id,
                    name,
                    describe: Some(describe),
                    waiters: Vec::new(),
                    closed: None,
                });
                self.removals.len() - 1
            }
            None => {
                if let Some(successor) = then {
                    self.workers.close(None, successor.opened.device);
                }
                return reply.send(Err(no_such_device(&name)));
            }
        };
        if let Some(removal) = self.removals.get_mut(index) {
            // A timeout that no clock reaches is no limit.
            let deadline = Instant::now().checked_add(patience);
            removal.waiters.push(Waiter { deadline, patience, force, forced: false, then, reply });
        }
    }

    /// Does all that can be done at `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        for outcome in self.workers.take() {
            match outcome {
                Outcome::Opened(number, result) => self.opened(number, result),
                Outcome::Closed(id) => self.closed(id, now),
                Outcome::Changed(number, result) => self.changed(number, result),
            }
        }
        self.expire(now);
        self.store.borrow_mut().pump();
        let removed = self.store.borrow_mut().take_removed();
        for removed in removed {
            self.removed(removed);
        }
        self.finish_removals(now);
        self.set_timer(now);
    }

    fn opened(&mut self, number: u64, result: Result<Opened, Failure>) {
        let Some(index) = self.openings.iter().position(|opening| opening.number == number) else { return };
        let Opening { answer, before, reply, .. } = self.openings.swap_remove(index);
        let opened = match result {
            Ok(opened) => opened,
            Err(failure) => return reply.send(Err(failure)),
        };
        let successor = Successor { opened, answer };
        match before.filter(|before| self.store.borrow().xenbus().contains(before.id)) {
            Some(before) => self.depart(before, Some(successor), reply),
            None => self.offer(successor, reply),
        }
    }

    /// Offers a device to the guest.
    fn offer(&mut self, successor: Successor, reply: Reply) {
        let Successor { opened: Opened { device, describe }, answer } = successor;
        let id = DeviceId::of(&*device);
        // First the description: a device that the next reboot would lose is none.
        let described = if self.is_taken(id) {
            Err(self.taken(id, &id.to_string()))
        } else {
            self.folder.borrow_mut().update(describe).map_err(Failure::from)
        };
        if let Err(failure) = described {
            self.workers.close(None, device);
            return reply.send(Err(failure));
        }
        let offered = self.store.borrow_mut().add(device);
        tracing::info!(device = %id, "the guest is offered a device");
        reply.send(offered.map(|()| answer).map_err(|error| Failure::new(ExitStatus::DeviceBusy, error)));
    }

    /// The guest has a device no more: closes it.
    fn removed(&mut self, removed: Removed) {
        tracing::info!(device = %removed.id, "the guest has let go of a device");
        let removal = self.removals.iter_mut().find(|removal| removal.id == removed.id);
        if let Some(describe) = removal.and_then(|removal| removal.describe.take())
            && let Err(error) = self.folder.borrow_mut().update(describe)
        {
            tracing::warn!(%error, "a device that was detached is still in the description of the domain");
        }
        self.workers.close(Some(removed.id), removed.device);
    }

    /// A device is closed.
    fn closed(&mut self, id: Option<DeviceId>, now: Instant) {
        self.workers.closing = self.workers.closing.saturating_sub(1);
        if let Some(removal) = self.removals.iter_mut().find(|removal| Some(removal.id) == id) {
            removal.closed = Some(now + LEAVE);
        }
    }

    /// What is closed, and the guest has let go of, is gone: who waits for that hears of it, and its successor
    /// comes.
    fn finish_removals(&mut self, now: Instant) {
        let store = Rc::clone(&self.store);
        let done = |removal: &mut Removal| {
            removal
                .closed
                .is_some_and(|limit| limit <= now || !store.borrow().xenbus().is_leaving(removal.id))
        };
        let done: Vec<Removal> = self.removals.extract_if(.., done).collect();
        for waiter in done.into_iter().flat_map(|removal| removal.waiters) {
            match waiter.then {
                Some(successor) => self.offer(successor, waiter.reply),
                None => waiter.reply.send(Ok(Value::Null)),
            }
        }
        // What was offered just now is to be seen.
        self.store.borrow_mut().pump();
    }

    /// Looks for clients that have waited long enough.
    fn expire(&mut self, now: Instant) {
        for mut removal in std::mem::take(&mut self.removals) {
            // What is being closed is gone: that is waited for.
            if removal.describe.is_none() {
                self.removals.push(removal);
                continue;
            }
            let (due, waiting): (Vec<_>, Vec<_>) =
                removal.waiters.drain(..).partition(|waiter| waiter.deadline.is_some_and(|end| end <= now));
            removal.waiters = waiting;
            if due.is_empty() {
                self.removals.push(removal);
                continue;
            }
            let keep = if due.iter().any(|waiter| waiter.force) {
                self.take_by_force(&mut removal, due, now)
            } else {
                self.give_up(&mut removal, due)
            };
            if keep {
                self.removals.push(removal);
            }
        }
    }

    /// Returns whether the removal goes on.
    fn take_by_force(&mut self, removal: &mut Removal, due: Vec<Waiter>, now: Instant) -> bool {
        tracing::info!(device = %removal.id, "taking a device from the guest by force");
        self.store.borrow_mut().force_removal(removal.id);
        for mut waiter in due {
            (waiter.force, waiter.forced, waiter.deadline) = (false, true, Some(now + DRAIN));
            removal.waiters.push(waiter);
        }
        true
    }

    /// Returns whether the removal goes on.
    fn give_up(&mut self, removal: &mut Removal, due: Vec<Waiter>) -> bool {
        let name = &removal.name;
        // While others wait yet, nothing is taken back.
        let overdue = if removal.waiters.is_empty() {
            self.store.borrow_mut().removal_overdue(removal.id)
        } else {
            Some(Overdue::Ignored)
        };
        if overdue == Some(Overdue::Removed) {
            removal.waiters = due;
            return true;
        }
        for waiter in due {
            let failure = if waiter.forced || overdue == Some(Overdue::Draining) {
                let sentence =
                    "the host has not finished the device's I/O; it is gone as soon as that is done";
                Failure::new(ExitStatus::HostError, format!("{name}: {sentence}"))
            } else if overdue == Some(Overdue::InUse) {
                let sentence = "the guest uses the device, and lets go of it when it does not any more; unmount it \
                                there, or take it away with --force";
                Failure::new(ExitStatus::DeviceKept, format!("{name}: {sentence}"))
            } else {
                let seconds = waiter.patience.as_secs_f64();
                let sentence = "keeps it; give it more time with --timeout, or take it away with --force";
                let sentence =
                    format!("{name}: the guest did not let go of the device in {seconds} s and {sentence}");
                Failure::new(ExitStatus::DeviceKept, sentence)
            };
            if let Some(successor) = waiter.then {
                self.workers.close(None, successor.opened.device);
            }
            waiter.reply.send(Err(failure));
        }
        matches!(overdue, Some(Overdue::InUse | Overdue::Draining)) || !removal.waiters.is_empty()
    }

    /// Wakes up when the next client has waited long enough.
    fn set_timer(&mut self, now: Instant) {
        let waiting = self.removals.iter().filter(|removal| removal.describe.is_some());
        let deadlines = waiting.flat_map(|removal| &removal.waiters).filter_map(|waiter| waiter.deadline);
        let next = deadlines.chain(self.removals.iter().filter_map(|removal| removal.closed)).min();
        // Zero would switch the timer off.
        let left = next.map(|next| next.saturating_duration_since(now).max(Duration::from_millis(1)));
        let set = match left {
            Some(left) => self.timer.reset(left, None),
            None => self.timer.clear(),
        };
        if let Err(error) = set {
            tracing::error!(%error, "no timer for the devices that the guest is asked for");
        }
    }

    /// The run of the guest is over: nothing comes or goes any more, and who waits is told. Waits for devices
    /// that are being closed, at most `limit`.
    pub(super) fn finish(&mut self, limit: Duration) {
        self.openings.clear();
        self.removals.clear();
        self.changes.clear();
        self.over.store(true, Relaxed);
        let end = Instant::now() + limit;
        loop {
            for outcome in self.workers.take() {
                if let Outcome::Closed(_) | Outcome::Changed(..) = outcome {
                    self.workers.closing = self.workers.closing.saturating_sub(1);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.workers.closing == 0 || left.is_zero() {
                return;
            }
            super::life_cycle::wait_readable(&self.workers.event, left);
        }
    }

    /// The descriptors that wake it up.
    fn descriptors(&self) -> [RawFd; 3] {
        let removed = self.store.borrow().removed_event().as_raw_fd();
        [self.workers.event.as_raw_fd(), self.timer.as_raw_fd(), removed]
    }
}

impl MutEventSubscriber for Hotplug {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in self.descriptors() {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(?error, "devices cannot be attached and detached");
            }
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        // The descriptors are read, and the timer is set, wherever something is taken: an event may be seen
        // after what it tells of was done.
        self.advance(Instant::now());
    }
}

/// The guest has no device of this name.
pub(super) fn no_such_device(name: &str) -> Failure {
    let sentence = format!("{name}: the guest has no device of this name; `xvmm info` shows those it has");
    Failure::new(ExitStatus::NoSuchDevice, sentence)
}

#[cfg(test)]
mod tests;
