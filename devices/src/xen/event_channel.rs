//! Event channels of the guest, 2-level ABI (xen/include/public/event_channel.h).
//!
//! This is the port table: who is at the other end of each port, and which vCPU it targets. Setting the
//! pending bit and interrupting a vCPU is the accelerator's work, behind [`EventDelivery`]: with Xen support
//! in KVM neither a guest's EVTCHNOP_send nor a backend's notification comes through here.
//!
//! The FIFO ABI is not offered: its operations answer -ENOSYS, and guests fall back to this one.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::types::{DomId, Port};
use crate::memory::SharedPages;

/// Ports of a 64-bit guest; a 32-bit guest has 1024.
pub const MAX_PORTS: u32 = 4096;
const MAX_PORTS_32: u32 = 1024;
/// Kinds of virtual interrupts.
pub const NR_VIRQS: u32 = 24;
/// The one-shot timer of a vCPU.
pub const VIRQ_TIMER: u32 = 0;
/// VIRQs that each vCPU binds for itself: timer, debug, xenoprof, xenpmu.
const PER_VCPU_VIRQS: [u32; 4] = [VIRQ_TIMER, 1, 7, 13];

// Offsets in shared_info (xen.h), as bytes: bit n of the array is bit n % 8 of byte n / 8.
const PENDING: usize = 2048;
const MASK_64: usize = 2560;
const MASK_32: usize = 2176;

/// Why an operation fails, as the guest's errno.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum EventError {
    /// The port or argument is not valid.
    #[error("not a valid port or argument")]
    Invalid,
    /// The other domain is not reachable.
    #[error("no such domain")]
    NoDomain,
    /// There is no such vCPU.
    #[error("no such vCPU")]
    NoVcpu,
    /// The VIRQ is bound already.
    #[error("the VIRQ is bound already")]
    Exists,
    /// All ports are in use.
    #[error("all ports are in use")]
    NoPorts,
    /// The host refused (an eventfd or KVM).
    #[error("the host cannot set up the channel")]
    Host,
}

impl EventError {
    /// The negative errno that the hypercall returns.
    pub fn errno(self) -> i64 {
        i64::from(-match self {
            EventError::Invalid => libc::EINVAL,
            EventError::NoDomain => libc::ESRCH,
            EventError::NoVcpu => libc::ENOENT,
            EventError::Exists => libc::EEXIST,
            EventError::NoPorts => libc::ENOSPC,
            EventError::Host => libc::ENOMEM,
        })
    }
}

/// Where an EVTCHNOP_send on a port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendTarget {
    /// A backend waits on this eventfd.
    EventFd(RawFd),
    /// The guest's own port (IPI, loopback), at that vCPU.
    Guest(Port, u32),
}

/// The accelerator's half: pending bits, upcalls, and sends that need not leave the kernel.
pub trait EventDelivery: Send + Sync + fmt::Debug {
    /// Sets `port` pending and, unless it is masked, raises the upcall of `vcpu`.
    fn raise(&self, port: Port, vcpu: u32);
    /// From now on serves EVTCHNOP_send on `port` by itself where it can, replacing an older target.
    fn assign_send(&self, port: Port, target: SendTarget) -> io::Result<()>;
    /// Ends [`EventDelivery::assign_send`].
    fn deassign_send(&self, port: Port);
    /// From now on each write to `event` does what [`EventDelivery::raise`] does, with `vcpu` in place of an older
    /// one. False: it has no means for that.
    fn bind_notifier(&self, port: Port, vcpu: u32, event: &EventFd) -> io::Result<bool>;
    /// Ends [`EventDelivery::bind_notifier`].
    fn unbind_notifier(&self, port: Port, event: &EventFd);
    /// The port that the timer of `vcpu` raises; `None`: no timer.
    fn set_timer_port(&self, vcpu: u32, port: Option<Port>) -> io::Result<()>;
}

/// What a backend needs of a bound port, shared with the table.
#[derive(Debug)]
struct Link {
    port: Port,
    vcpu: AtomicU32,
    /// Cleared when either end closes: then neither notifies the other.
    open: AtomicBool,
    event: EventFd,
    /// Notifies the guest when it is written to, if the backend asked for that.
    notifier: OnceLock<EventFd>,
}

#[derive(Debug, Clone)]
enum State {
    Free,
    /// The guest waits for `remote` to bind. A sticky port (xenstore, console) is never freed.
    Unbound {
        remote: DomId,
    },
    Backend(Arc<Link>),
    /// Both ends in the guest.
    Loopback(Port),
    Virq(u32),
    Ipi,
}

#[derive(Debug, Clone)]
struct Entry {
    state: State,
    vcpu: u32,
    sticky: bool,
}

const FREE: Entry = Entry { state: State::Free, vcpu: 0, sticky: false };

/// Answer of EVTCHNOP_status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// EVTCHNSTAT_*: 0 closed, 1 unbound, 2 interdomain, 4 virq, 5 ipi.
    pub status: u32,
    /// vCPU that the port targets.
    pub vcpu: u32,
    /// Remote domain, or the VIRQ.
    pub detail: u32,
    /// Remote port of an interdomain channel.
    pub remote_port: u32,
}

/// The guest's event channels.
#[derive(Debug)]
pub struct EventChannels {
    table: Mutex<Vec<Entry>>,
    delivery: Arc<dyn EventDelivery>,
    shared_info: Arc<SharedPages>,
    domid: DomId,
    vcpus: u32,
    wide: AtomicBool,
}

impl EventChannels {
    /// An empty table of domain `domid` with `vcpus` vCPUs; page 0 of `shared_info` is the guest's shared_info.
    pub fn new(
        domid: DomId,
        vcpus: u32,
        shared_info: Arc<SharedPages>,
        delivery: Arc<dyn EventDelivery>,
    ) -> Self {
        // Port 0 is never valid.
        let table = Mutex::new(vec![FREE]);
        Self { table, delivery, shared_info, domid, vcpus, wide: AtomicBool::new(true) }
    }

    /// Selects the 64-bit (4096 ports) or the 32-bit layout of shared_info.
    pub fn set_long_mode(&self, wide: bool) {
        self.wide.store(wide, SeqCst);
    }

    fn max_ports(&self) -> u32 {
        if self.wide.load(SeqCst) { MAX_PORTS } else { MAX_PORTS_32 }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self, table: &mut Vec<Entry>, entry: Entry) -> Result<Port, EventError> {
        let index = table.iter().skip(1).position(|e| matches!(e.state, State::Free)).map(|i| i + 1);
        let port = u32::try_from(index.unwrap_or(table.len())).map_err(|_| EventError::NoPorts)?;
        if port >= self.max_ports() {
            return Err(EventError::NoPorts);
        }
        match table.get_mut(port as usize) {
            Some(slot) => *slot = entry,
            None => table.push(entry),
        }
        Ok(Port(port))
    }

    fn is_self(&self, dom: DomId) -> bool {
        dom == DomId::SELF || dom == self.domid
    }

    /// EVTCHNOP_alloc_unbound: a port of the guest that `remote` may bind. Backends are domain 0.
    pub fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port, EventError> {
        if !self.is_self(dom) {
            return Err(EventError::NoDomain);
        }
        let remote = if self.is_self(remote) { self.domid } else { remote };
        if remote != DomId::DOM0 && remote != self.domid {
            return Err(EventError::NoDomain);
        }
        self.allocate(&mut self.lock(), Entry { state: State::Unbound { remote }, ..FREE })
    }

    /// EVTCHNOP_bind_interdomain by the guest: only to a port of its own that waits for it. Domain 0 owns no
    /// port that a guest could bind.
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, EventError> {
        let mut table = self.lock();
        if !self.is_self(remote) {
            return Err(if remote == DomId::DOM0 { EventError::Invalid } else { EventError::NoDomain });
        }
        match table.get(remote_port.0 as usize) {
            Some(Entry { state: State::Unbound { remote }, .. }) if *remote == self.domid => {}
            _ => return Err(EventError::Invalid),
        }
        let port = self.allocate(&mut table, Entry { state: State::Loopback(remote_port), ..FREE })?;
        if let Some(other) = table.get_mut(remote_port.0 as usize) {
            other.state = State::Loopback(port);
        }
        self.assign(&table, port)?;
        self.assign(&table, remote_port)?;
        Ok(port)
    }

    /// EVTCHNOP_bind_virq.
    pub fn bind_virq(&self, virq: u32, vcpu: u32) -> Result<Port, EventError> {
        if virq >= NR_VIRQS {
            return Err(EventError::Invalid);
        }
        if vcpu >= self.vcpus {
            return Err(EventError::NoVcpu);
        }
        let per_vcpu = PER_VCPU_VIRQS.contains(&virq);
        if !per_vcpu && vcpu != 0 {
            return Err(EventError::Invalid);
        }
        let mut table = self.lock();
        if table
            .iter()
            .any(|e| matches!(e.state, State::Virq(v) if v == virq) && (!per_vcpu || e.vcpu == vcpu))
        {
            return Err(EventError::Exists);
        }
        let port = self.allocate(&mut table, Entry { state: State::Virq(virq), vcpu, sticky: false })?;
        if virq == VIRQ_TIMER && self.delivery.set_timer_port(vcpu, Some(port)).is_err() {
            self.release(&mut table, port);
            return Err(EventError::Host);
        }
        Ok(port)
    }

    /// EVTCHNOP_bind_ipi.
    pub fn bind_ipi(&self, vcpu: u32) -> Result<Port, EventError> {
        if vcpu >= self.vcpus {
            return Err(EventError::NoVcpu);
        }
        let mut table = self.lock();
        let port = self.allocate(&mut table, Entry { state: State::Ipi, vcpu, sticky: false })?;
        if let Err(e) = self.assign(&table, port) {
            self.release(&mut table, port);
            return Err(e);
        }
        Ok(port)
    }

    /// EVTCHNOP_close. A port of the toolstack's (xenstore, console) stays reserved for a later bind.
    pub fn close(&self, port: Port) -> Result<(), EventError> {
        let mut table = self.lock();
        match table.get(port.0 as usize) {
            Some(e) if !matches!(e.state, State::Free) => {}
            _ => return Err(EventError::Invalid),
        }
        self.release(&mut table, port);
        Ok(())
    }

    /// Ends what `port` is bound to, and frees it.
    fn release(&self, table: &mut [Entry], port: Port) {
        let Some(entry) = table.get_mut(port.0 as usize) else { return };
        let old = std::mem::replace(entry, FREE);
        if old.sticky {
            // The guest may only stop listening: the channel of xenstore and console outlives its driver.
            *entry = old;
            return;
        }
        match old.state {
            State::Backend(link) => {
                self.part(&link);
                // Who waits for the guest's events learns that there will be none.
                let _ = link.event.write(1);
            }
            State::Loopback(other) => {
                self.delivery.deassign_send(port);
                self.delivery.deassign_send(other);
                if let Some(entry) = table.get_mut(other.0 as usize) {
                    entry.state = State::Unbound { remote: self.domid };
                }
            }
            State::Ipi => self.delivery.deassign_send(port),
            State::Virq(VIRQ_TIMER) => {
                let _ = self.delivery.set_timer_port(old.vcpu, None);
            }
            State::Virq(_) | State::Unbound { .. } | State::Free => {}
        }
        self.clear_pending(port);
    }

    /// EVTCHNOP_reset: closes all ports of the guest.
    pub fn reset(&self) {
        let mut table = self.lock();
        for index in 1..table.len() {
            if let Ok(index) = u32::try_from(index) {
                self.release(&mut table, Port(index));
            }
        }
    }

    /// EVTCHNOP_status.
    pub fn status(&self, port: Port) -> Result<Status, EventError> {
        let table = self.lock();
        if port.0 == 0 || port.0 >= self.max_ports() {
            return Err(EventError::Invalid);
        }
        let entry = table.get(port.0 as usize).unwrap_or(&FREE);
        let (status, detail, remote_port) = match &entry.state {
            State::Free => (0, 0, 0),
            State::Unbound { remote } => (1, u32::from(remote.0), 0),
            State::Backend(_) => (2, u32::from(DomId::DOM0.0), port.0),
            State::Loopback(other) => (2, u32::from(self.domid.0), other.0),
            State::Virq(virq) => (4, *virq, 0),
            State::Ipi => (5, 0, 0),
        };
        Ok(Status { status, vcpu: entry.vcpu, detail, remote_port })
    }

    /// EVTCHNOP_send, when the accelerator did not serve it.
    pub fn send(&self, port: Port) -> Result<(), EventError> {
        let table = self.lock();
        let entry = table.get(port.0 as usize).ok_or(EventError::Invalid)?;
        match &entry.state {
            State::Backend(link) => {
                let _ = link.event.write(1);
            }
            State::Loopback(other) => {
                let vcpu = table.get(other.0 as usize).map_or(0, |e| e.vcpu);
                self.delivery.raise(*other, vcpu);
            }
            State::Ipi => self.delivery.raise(port, entry.vcpu),
            State::Unbound { .. } => {}
            State::Virq(_) | State::Free => return Err(EventError::Invalid),
        }
        Ok(())
    }

    /// EVTCHNOP_unmask: clears the mask and delivers what came meanwhile.
    pub fn unmask(&self, port: Port) -> Result<(), EventError> {
        if port.0 >= self.max_ports() {
            return Err(EventError::Invalid);
        }
        let vcpu = self.lock().get(port.0 as usize).map_or(0, |e| e.vcpu);
        if self.change_bit(self.mask_offset(), port, false) {
            self.redeliver(port, vcpu);
        }
        Ok(())
    }

    /// EVTCHNOP_bind_vcpu: the port interrupts another vCPU from now on.
    pub fn bind_vcpu(&self, port: Port, vcpu: u32) -> Result<(), EventError> {
        if vcpu >= self.vcpus {
            return Err(EventError::NoVcpu);
        }
        let mut table = self.lock();
        let entry = table.get_mut(port.0 as usize).ok_or(EventError::Invalid)?;
        let partner = match &entry.state {
            State::Backend(link) => {
                if let Some(event) = link.notifier.get() {
                    self.delivery.bind_notifier(port, vcpu, event).map_err(|_| EventError::Host)?;
                }
                link.vcpu.store(vcpu, SeqCst);
                None
            }
            State::Loopback(other) => Some(*other),
            State::Unbound { .. } => None,
            State::Virq(virq) if !PER_VCPU_VIRQS.contains(virq) => None,
            State::Virq(_) | State::Ipi | State::Free => return Err(EventError::Invalid),
        };
        entry.vcpu = vcpu;
        if let Some(other) = partner {
            self.assign(&table, other)?;
        }
        drop(table);
        if !self.bit(self.mask_offset(), port) {
            self.redeliver(port, vcpu);
        }
        Ok(())
    }

    /// Whether the port is pending (SCHEDOP_poll).
    pub fn is_pending(&self, port: Port) -> bool {
        port.0 < self.max_ports() && self.bit(PENDING, port)
    }

    /// The port of a per-vCPU VIRQ, if it is bound.
    pub fn virq_port(&self, virq: u32, vcpu: u32) -> Option<Port> {
        let index = self
            .lock()
            .iter()
            .position(|e| matches!(e.state, State::Virq(v) if v == virq) && e.vcpu == vcpu)?;
        u32::try_from(index).ok().map(Port)
    }

    /// Raises a VIRQ of the guest, if it listens.
    pub fn raise_virq(&self, virq: u32, vcpu: u32) {
        if let Some(port) = self.virq_port(virq, vcpu) {
            self.delivery.raise(port, vcpu);
        }
    }

    /// A port that is bound to domain 0 before the guest runs: of the xenstore or console ring.
    pub fn open_reserved(self: &Arc<Self>) -> Result<BackendChannel, EventError> {
        let mut table = self.lock();
        let remote = DomId::DOM0;
        let port =
            self.allocate(&mut table, Entry { state: State::Unbound { remote }, vcpu: 0, sticky: true })?;
        self.attach(&mut table, port)
    }

    /// A backend binds to a port that the guest allocated for domain 0.
    pub fn bind_backend(self: &Arc<Self>, port: Port) -> Result<BackendChannel, EventError> {
        self.attach(&mut self.lock(), port)
    }

    fn attach(self: &Arc<Self>, table: &mut [Entry], port: Port) -> Result<BackendChannel, EventError> {
        let entry = table.get_mut(port.0 as usize).ok_or(EventError::Invalid)?;
        if !matches!(entry.state, State::Unbound { remote: DomId::DOM0 }) {
            return Err(EventError::Invalid);
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|_| EventError::Host)?;
        let (vcpu, open) = (AtomicU32::new(entry.vcpu), AtomicBool::new(true));
        let link = Arc::new(Link { port, vcpu, open, event, notifier: OnceLock::new() });
        entry.state = State::Backend(Arc::clone(&link));
        if let Err(e) = self.assign(table, port) {
            self.detach(table, &link);
            return Err(e);
        }
        Ok(BackendChannel { link, channels: Arc::clone(self) })
    }

    /// The backend's end goes away: the guest's port waits for another one.
    fn detach(&self, table: &mut [Entry], link: &Arc<Link>) {
        let Some(entry) = table.get_mut(link.port.0 as usize) else { return };
        if matches!(&entry.state, State::Backend(current) if Arc::ptr_eq(current, link)) {
            entry.state = State::Unbound { remote: DomId::DOM0 };
            self.part(link);
        }
    }

    /// Neither end of the channel notifies the other any more.
    fn part(&self, link: &Link) {
        link.open.store(false, SeqCst);
        self.delivery.deassign_send(link.port);
        if let Some(event) = link.notifier.get() {
            self.delivery.unbind_notifier(link.port, event);
        }
    }

    fn assign(&self, table: &[Entry], port: Port) -> Result<(), EventError> {
        let Some(entry) = table.get(port.0 as usize) else { return Err(EventError::Invalid) };
        let target = match &entry.state {
            State::Backend(link) => SendTarget::EventFd(link.event.as_raw_fd()),
            State::Loopback(other) => {
                SendTarget::Guest(*other, table.get(other.0 as usize).map_or(0, |e| e.vcpu))
            }
            State::Ipi => SendTarget::Guest(port, entry.vcpu),
            State::Free | State::Unbound { .. } | State::Virq(_) => return Ok(()),
        };
        self.delivery.assign_send(port, target).map_err(|_| EventError::Host)
    }

    fn mask_offset(&self) -> usize {
        if self.wide.load(SeqCst) { MASK_64 } else { MASK_32 }
    }

    fn bit(&self, array: usize, port: Port) -> bool {
        let byte = self.shared_info.u8_at(array + port.0 as usize / 8);
        byte.is_some_and(|b| b.load(SeqCst) & (1 << (port.0 % 8)) != 0)
    }

    /// Sets or clears a bit; returns what it was.
    fn change_bit(&self, array: usize, port: Port, set: bool) -> bool {
        let bit = 1u8 << (port.0 % 8);
        let Some(byte) = self.shared_info.u8_at(array + port.0 as usize / 8) else { return false };
        let old = if set { byte.fetch_or(bit, SeqCst) } else { byte.fetch_and(!bit, SeqCst) };
        old & bit != 0
    }

    fn clear_pending(&self, port: Port) {
        self.change_bit(PENDING, port, false);
    }

    /// Delivers an event again that is pending but whose upcall was not raised, or on another vCPU. Taking the
    /// pending bit away first makes the accelerator go the whole way; at worst the guest sees one event twice.
    fn redeliver(&self, port: Port, vcpu: u32) {
        if self.change_bit(PENDING, port, false) {
            self.delivery.raise(port, vcpu);
        }
    }
}

/// A backend's end of an event channel. Dropping it closes this end.
#[derive(Debug)]
pub struct BackendChannel {
    link: Arc<Link>,
    channels: Arc<EventChannels>,
}

impl BackendChannel {
    /// The guest's port.
    pub fn port(&self) -> Port {
        self.link.port
    }

    /// Becomes readable when the guest sends, and when it closes its end. Non-blocking.
    pub fn event(&self) -> &EventFd {
        &self.link.event
    }

    /// Whether the guest has not closed its end.
    pub fn is_open(&self) -> bool {
        self.link.open.load(SeqCst)
    }

    /// Notifies the guest. Cheap and lock-free; callable from any thread.
    pub fn notify(&self) {
        if self.is_open() {
            self.channels.delivery.raise(self.link.port, self.link.vcpu.load(SeqCst));
        }
    }

    /// An eventfd whose writes notify the guest as [`BackendChannel::notify`] does, for those who have others write
    /// it, as io_uring; `None`: the accelerator has no means for that, or the channel is closed. Once it is closed
    /// writes do nothing. The descriptor lives as long as the channel.
    pub fn notifier(&self) -> Option<RawFd> {
        // The table is locked, so that the guest does not close the port meanwhile.
        let _table = self.channels.lock();
        let link = &self.link;
        if link.notifier.get().is_none() && link.open.load(SeqCst) {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).ok()?;
            if self.channels.delivery.bind_notifier(link.port, link.vcpu.load(SeqCst), &event).ok()? {
                let _ = link.notifier.set(event);
            }
        }
        link.notifier.get().map(|event| event.as_raw_fd())
    }
}

impl Drop for BackendChannel {
    fn drop(&mut self) {
        let mut table = self.channels.lock();
        self.channels.detach(&mut table, &self.link);
    }
}

#[cfg(test)]
mod tests;
