//! How events reach the guest: by KVM, which raises a vector, or by an interrupt line.
//!
//! A guest whose vCPU 0 has neither a vector of its own nor one for all is interrupted by a pin of the interrupt
//! controllers ([`CallbackPin`]); older drivers want that. KVM sets the pending bits then and raises nothing, so whatever
//! sets bits has to come here: sends of the guest to itself are not KVM's any more, eventfds of backends and the timer of
//! vCPU 0 are served by the main thread ([`LineEvents`]). The line is an irqfd that KVM lowers when the guest ends the
//! interrupt; it is raised again as long as vcpu_info says that an upcall is pending.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::bus::Timer;
use devices::chipset::InterruptRouter;
use devices::memory::GuestRam;
use devices::xen::Port;
use devices::xen::event_channel::{EventDelivery, SendTarget};
use event_manager::{EventOps, Events, MutEventSubscriber};
use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vcpu::{Task, VcpuQueue};
use super::{kvm_xen, pc};
use crate::hypercall::CallbackPin;

/// What the main thread waits for besides ports.
const RESAMPLE: u64 = 1 << 32;
/// Events of one look at the descriptors.
const BATCH: usize = 16;

/// A port that an eventfd notifies.
#[derive(Debug)]
struct Notified {
    vcpu: u32,
    event: EventFd,
}

#[derive(Debug, Default)]
struct State {
    notified: BTreeMap<u32, Notified>,
    /// Ports whose sends end in the guest: the other end and its vCPU.
    loops: BTreeMap<u32, (u32, u32)>,
    /// The pin that the guest asked for.
    pin: Option<CallbackPin>,
    /// vCPU 0 has a vector of its own.
    own_vector: bool,
    /// Where the line's irqfd is now.
    gsi: Option<u32>,
    /// What the timer of vCPU 0 raises when it expires.
    timer: Option<Port>,
}

/// What it takes to interrupt by a line.
struct Line {
    ram: Arc<GuestRam>,
    /// Where PCI pins lead to, and the alarm for the timer of vCPU 0.
    board: OnceLock<(Arc<InterruptRouter>, Arc<dyn Timer>)>,
    /// Where vcpu_info of vCPU 0 is.
    info: AtomicU64,
    trigger: EventFd,
    resample: EventFd,
    epoll: Epoll,
}

impl Line {
    fn new(ram: Arc<GuestRam>) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let line = Self {
            ram,
            board: OnceLock::new(),
            info: AtomicU64::new(kvm_xen::INVALID),
            trigger: event()?,
            resample: event()?,
            epoll: Epoll::new()?,
        };
        line.watch(ControlOperation::Add, line.resample.as_raw_fd(), RESAMPLE)?;
        Ok(line)
    }

    fn watch(&self, operation: ControlOperation, fd: i32, token: u64) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, token))
    }

    /// Whether vCPU 0 has an upcall to take.
    fn is_pending(&self) -> bool {
        let pending: Result<u8, _> = self.ram.load(GuestAddress(self.info.load(SeqCst)), SeqCst);
        pending.is_ok_and(|pending| pending != 0)
    }

    /// The global interrupt of a pin.
    fn gsi(&self, pin: CallbackPin) -> Option<u32> {
        match pin {
            CallbackPin::Gsi(gsi) => Some(gsi.into()),
            CallbackPin::Pci { device, pin } => {
                self.board.get().and_then(|(router, _)| router.input_of(device, pin)).map(u32::from)
            }
        }
    }
}

/// Events by KVM: EVTCHNOP_send on assigned ports, IPIs and timers stay in the kernel, unless they come by a line.
pub(super) struct KvmDelivery {
    vm: Arc<VmFd>,
    queues: Arc<[VcpuQueue]>,
    /// Routes of the interrupt controllers' pins, which stay.
    pins: Vec<kvm_irq_routing_entry>,
    state: Mutex<State>,
    line: Option<Line>,
    by_line: AtomicBool,
}

impl std::fmt::Debug for KvmDelivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmDelivery").field("by_line", &self.by_line).finish_non_exhaustive()
    }
}

impl KvmDelivery {
    /// For a machine whose interrupt controllers have these pins. Without any there are vectors only.
    pub(super) fn new(
        vm: Arc<VmFd>,
        queues: Arc<[VcpuQueue]>,
        pins: Vec<kvm_irq_routing_entry>,
        ram: &Arc<GuestRam>,
    ) -> io::Result<Self> {
        let line = (!pins.is_empty()).then(|| Line::new(Arc::clone(ram))).transpose()?;
        Ok(Self { vm, queues, pins, state: Mutex::default(), line, by_line: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who knows where PCI pins lead to, and an alarm at which [`KvmDelivery::timer_expired`] is called.
    pub(super) fn set_board(&self, router: Arc<InterruptRouter>, alarm: Arc<dyn Timer>) {
        if let Some(line) = &self.line {
            let _ = line.board.set((router, alarm));
        }
    }

    /// The pin that the guest wants to be interrupted by, or none.
    pub(super) fn set_pin(&self, pin: Option<CallbackPin>) {
        let mut state = self.lock();
        state.pin = pin;
        self.settle(&mut state);
    }

    /// vCPU 0 has a vector of its own from now on, which counts more than a pin.
    pub(super) fn set_own_vector(&self) {
        let mut state = self.lock();
        state.own_vector = true;
        self.settle(&mut state);
    }

    /// vcpu_info of vCPU 0 is there now.
    pub(super) fn set_info(&self, gpa: u64) {
        let Some(line) = &self.line else { return };
        line.info.store(gpa, SeqCst);
        self.check();
    }

    /// Whether vCPU 0 is interrupted by a line.
    pub(super) fn is_by_line(&self) -> bool {
        self.by_line.load(SeqCst)
    }

    /// Sets the timer of vCPU 0 while events come by a line: `left` ns until it expires, if it is to.
    pub(super) fn set_timer(&self, port: Option<Port>, left: Option<u64>) {
        let Some((_, alarm)) = self.line.as_ref().and_then(|line| line.board.get()) else { return };
        self.lock().timer = left.and(port);
        alarm.arm(left.and_then(|left| alarm.now().checked_add(left)));
    }

    /// The alarm rang, or rang in vain.
    pub(super) fn timer_expired(&self) {
        let port = self.lock().timer.take();
        if let Some(port) = port.filter(|_| self.is_by_line()) {
            self.raise(port, 0);
        }
    }

    /// Puts everything where it belongs: into KVM, or to the main thread.
    fn settle(&self, state: &mut State) {
        let Some(line) = &self.line else { return };
        let wanted = state.pin.is_some() && !state.own_vector;
        if wanted != self.by_line.swap(wanted, SeqCst) {
            for (port, notified) in &state.notified {
                if let Err(error) = self.move_notifier(line, wanted, *port, notified) {
                    tracing::warn!(%error, port, "events of a device do not reach the guest");
                }
            }
            for (port, (to, vcpu)) in &state.loops {
                let _ = kvm_xen::deassign(&*self.vm, *port);
                if !wanted && let Err(error) = kvm_xen::assign_port(&*self.vm, *port, *to, *vcpu) {
                    tracing::debug!(%error, port, "KVM does not serve an event channel");
                }
            }
            if let Err(error) = self.route(state) {
                tracing::warn!(%error, "KVM does not take the routes of events");
            }
            if let Some(queue) = self.queues.first() {
                queue.post(Task::Callback);
            }
        }
        self.raise_line(state, false);
    }

    fn move_notifier(&self, line: &Line, to_line: bool, port: u32, notified: &Notified) -> io::Result<()> {
        let (fd, token) = (notified.event.as_raw_fd(), u64::from(port));
        if to_line {
            let _ = self.vm.unregister_irqfd(&notified.event, self.gsi(port));
            line.watch(ControlOperation::Add, fd, token)
        } else {
            let _ = line.watch(ControlOperation::Delete, fd, token);
            self.vm.register_irqfd(&notified.event, self.gsi(port)).map_err(io::Error::from)
        }
    }

    /// Raises the line if there is something to be told by it.
    fn check(&self) {
        if self.is_by_line() {
            self.raise_line(&mut self.lock(), false);
        }
    }

    /// Raises the line if an upcall is pending, or in any case.
    fn raise_line(&self, state: &mut State, always: bool) {
        let Some(line) = &self.line else { return };
        let gsi = if self.is_by_line() { state.pin.and_then(|pin| line.gsi(pin)) } else { None };
        if gsi != state.gsi {
            if let Some(old) = state.gsi.take() {
                let _ = self.vm.unregister_irqfd(&line.trigger, old);
            }
            if let Some(gsi) = gsi {
                match self.vm.register_irqfd_with_resample(&line.trigger, &line.resample, gsi) {
                    Ok(()) => state.gsi = Some(gsi),
                    Err(error) => tracing::debug!(%error, gsi, "KVM does not take the line of events"),
                }
            }
        }
        if state.gsi.is_some() && (always || line.is_pending()) {
            let _ = line.trigger.write(1);
        }
    }

    /// The global interrupt of a port: its number, behind those of the pins.
    fn gsi(&self, port: u32) -> u32 {
        if self.pins.is_empty() { port } else { port + pc::PINS }
    }

    /// Routes the global interrupt of each notified port to its event channel.
    fn route(&self, state: &State) -> io::Result<()> {
        let events = state.notified.iter();
        let events = events.map(|(port, to)| kvm_xen::route(self.gsi(*port), *port, to.vcpu));
        let entries: Vec<_> = self.pins.iter().copied().chain(events).collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.vm.set_gsi_routing(&routing).map_err(io::Error::from)
    }

    /// Something that the main thread waits for has come.
    fn came(&self, token: u64) {
        let Some(line) = &self.line else { return };
        match token {
            RESAMPLE => {
                let _ = line.resample.read();
                self.check();
            }
            port => {
                let port = u32::try_from(port).unwrap_or(0);
                let vcpu = self.lock().notified.get(&port).map(|notified| {
                    let _ = notified.event.read();
                    notified.vcpu
                });
                if let Some(vcpu) = vcpu {
                    self.raise(Port(port), vcpu);
                }
            }
        }
    }
}

impl EventDelivery for KvmDelivery {
    fn raise(&self, port: Port, vcpu: u32) {
        // Fails only before the guest has set up shared_info: then it cannot listen either.
        match kvm_xen::send(&*self.vm, port.0, vcpu) {
            // vcpu_info may say so only when the vCPU runs again: KVM keeps what it cannot write at once.
            Ok(sent) if self.is_by_line() => self.raise_line(&mut self.lock(), sent && vcpu == 0),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, port = port.0, vcpu, "event not delivered"),
        }
    }

    fn assign_send(&self, port: Port, target: SendTarget) -> io::Result<()> {
        let mut state = self.lock();
        // An assignment can be changed in part only; a fresh one has no such limits.
        state.loops.remove(&port.0);
        let _ = kvm_xen::deassign(&*self.vm, port.0);
        match target {
            SendTarget::EventFd(fd) => kvm_xen::assign_eventfd(&*self.vm, port.0, fd),
            SendTarget::Guest(to, vcpu) => {
                if self.line.is_some() {
                    state.loops.insert(port.0, (to.0, vcpu));
                }
                if self.is_by_line() {
                    return Ok(());
                }
                kvm_xen::assign_port(&*self.vm, port.0, to.0, vcpu)
            }
        }
    }

    fn deassign_send(&self, port: Port) {
        self.lock().loops.remove(&port.0);
        let _ = kvm_xen::deassign(&*self.vm, port.0);
    }

    fn bind_notifier(&self, port: Port, vcpu: u32, event: &EventFd) -> io::Result<bool> {
        let mut state = self.lock();
        if let Some(notified) = state.notified.get_mut(&port.0) {
            let old = std::mem::replace(&mut notified.vcpu, vcpu);
            let routed = self.route(&state);
            if routed.is_err()
                && let Some(notified) = state.notified.get_mut(&port.0)
            {
                notified.vcpu = old;
            }
            return routed.map(|()| true);
        }
        let notified = Notified { vcpu, event: event.try_clone()? };
        state.notified.insert(port.0, notified);
        let bound = match &self.line {
            Some(line) if self.is_by_line() => {
                line.watch(ControlOperation::Add, self.event_of(&state, port)?, u64::from(port.0))
            }
            _ => self
                .route(&state)
                .and_then(|()| self.vm.register_irqfd(event, self.gsi(port.0)).map_err(io::Error::from)),
        };
        if bound.is_err() {
            state.notified.remove(&port.0);
        }
        bound.map(|()| true)
    }

    fn unbind_notifier(&self, port: Port, _: &EventFd) {
        let mut state = self.lock();
        let Some(notified) = state.notified.remove(&port.0) else { return };
        match &self.line {
            Some(line) if self.is_by_line() => {
                let fd = notified.event.as_raw_fd();
                let _ = line.watch(ControlOperation::Delete, fd, u64::from(port.0));
            }
            _ => {
                let _ = self.vm.unregister_irqfd(&notified.event, self.gsi(port.0));
            }
        }
        let _ = self.route(&state);
    }

    fn set_timer_port(&self, vcpu: u32, port: Option<Port>) -> io::Result<()> {
        let queue = self.queues.get(vcpu as usize).ok_or(io::ErrorKind::InvalidInput)?;
        queue.post(Task::TimerPort(port));
        Ok(())
    }
}

impl KvmDelivery {
    /// The descriptor that notifies a port.
    fn event_of(&self, state: &State, port: Port) -> io::Result<i32> {
        let notified = state.notified.get(&port.0).ok_or(io::ErrorKind::NotFound)?;
        Ok(notified.event.as_raw_fd())
    }
}

/// What the main thread does while events come by a line. It costs nothing otherwise.
pub struct LineEvents(Arc<KvmDelivery>);

impl LineEvents {
    /// For a machine that has lines.
    pub(super) fn new(delivery: &Arc<KvmDelivery>) -> Option<Self> {
        delivery.line.is_some().then(|| Self(Arc::clone(delivery)))
    }
}

impl MutEventSubscriber for LineEvents {
    fn init(&mut self, ops: &mut EventOps) {
        let Some(line) = &self.0.line else { return };
        if let Err(error) = ops.add(Events::new_raw(line.epoll.as_raw_fd(), EventSet::IN)) {
            tracing::error!(?error, "events cannot come by an interrupt line");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        let Some(line) = &self.0.line else { return };
        let mut events = [EpollEvent::default(); BATCH];
        let count = line.epoll.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            self.0.came(event.data());
        }
    }
}

/// Events where KVM has no Xen support: there is no guest that could listen.
#[derive(Debug)]
pub(super) struct NoDelivery;

impl EventDelivery for NoDelivery {
    fn raise(&self, _: Port, _: u32) {}
    fn assign_send(&self, _: Port, _: SendTarget) -> io::Result<()> {
        Ok(())
    }
    fn deassign_send(&self, _: Port) {}
    fn bind_notifier(&self, _: Port, _: u32, _: &EventFd) -> io::Result<bool> {
        Ok(false)
    }
    fn unbind_notifier(&self, _: Port, _: &EventFd) {}
    fn set_timer_port(&self, _: u32, _: Option<Port>) -> io::Result<()> {
        Ok(())
    }
}
