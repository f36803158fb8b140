//! vCPU threads.
//!
//! Attributes of a vCPU can only be set while it is outside KVM_RUN, so other threads post [`Task`]s to its
//! queue and kick it. A kick is complete before post() returns: the vCPU runs no guest code before it has done
//! the task, which is what makes a hypercall on one vCPU that changes another one safe to answer at once.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use devices::xen::Port;
use kvm_bindings::{
    KVM_EXIT_HYPERV_HCALL, KVM_EXIT_XEN, KVM_EXIT_XEN_HCALL, KVM_MP_STATE_HALTED, KVM_SYSTEM_EVENT_CRASH,
    kvm_mp_state, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Machine;
use super::exits::ExitKind;
use super::kvm_xen::{self, VcpuAttr};
use super::viridian;
use crate::hypercall::{Call, Hypercalls, Platform, StopReason};

/// vCPUs whose vcpu_info is in shared_info until they register another place (XEN_LEGACY_MAX_VCPUS).
pub(super) const SHARED_INFO_VCPUS: u32 = 32;
/// Bytes of vcpu_info.
pub(super) const VCPU_INFO_SIZE: u64 = 64;
/// Offset of vcpu_info.time: the pvclock, which is KVM's to write.
const TIME_OFFSET: usize = 32;
/// Places of evtchn_pending_sel in vcpu_info, in the 64-bit and the 32-bit layout.
const SELECTOR_64: Range<usize> = 8..16;
const SELECTOR_32: Range<usize> = 4..8;
/// What a vCPU thread does for others between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Sets an attribute.
    Attr(VcpuAttr),
    /// vcpu_info is at its place in shared_info, unless the guest has moved it.
    DefaultInfo(u64),
    /// Moves vcpu_info: what is pending moves with it.
    MoveInfo(u64),
    /// The vector of the upcall.
    UpcallVector(u8),
    /// The port of the timer.
    TimerPort(Option<Port>),
    /// The next expiry of the timer, in guest ns; 0: off.
    Timer(u64),
    /// Events come another way than before: by a vector, or by an interrupt line.
    Callback,
    /// Sleeps until an interrupt.
    Block,
    /// Ends the thread.
    End,
}

/// Tasks of a vCPU thread, and what it takes to kick it.
#[derive(Debug, Default)]
pub(super) struct VcpuQueue {
    tasks: Mutex<Vec<Task>>,
    thread: AtomicI32,
    immediate_exit: AtomicPtr<u8>,
}

impl VcpuQueue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task and makes the vCPU do it before it runs guest code again.
    pub(super) fn post(&self, task: Task) {
        let mut tasks = self.lock();
        // Bounded: a later setting of the same kind replaces an earlier one that was not done yet. A guest may
        // repeat such hypercalls for a vCPU that never gets to run.
        tasks.retain(|old| !old.is_replaced_by(&task));
        tasks.push(task);
        let thread = self.thread.load(SeqCst);
        // SAFETY: gettid has no preconditions.
        if thread == 0 || thread == unsafe { libc::gettid() } {
            return;
        }
        let flag = self.immediate_exit.load(SeqCst);
        // SAFETY: the flag is in the kvm_run page of the vCPU, which its thread unregisters under this lock
        // before it unmaps it; the thread is alive for the same reason. Signals to it are handled.
        unsafe {
            AtomicU8::from_ptr(flag).store(1, SeqCst);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal());
        }
    }

    fn register(&self, immediate_exit: *mut u8) {
        let _tasks = self.lock();
        self.immediate_exit.store(immediate_exit, SeqCst);
        // SAFETY: gettid has no preconditions.
        self.thread.store(unsafe { libc::gettid() }, SeqCst);
    }

    fn unregister(&self) {
        let _tasks = self.lock();
        self.thread.store(0, SeqCst);
    }

    fn take(&self) -> Vec<Task> {
        std::mem::take(&mut *self.lock())
    }
}

impl Task {
    fn is_replaced_by(&self, newer: &Task) -> bool {
        match (self, newer) {
            (Task::Attr(a), Task::Attr(b)) => std::mem::discriminant(a) == std::mem::discriminant(b),
            // Moved once, and never replaced by the default.
            (Task::MoveInfo(_), _) => false,
            _ => std::mem::discriminant(self) == std::mem::discriminant(newer),
        }
    }
}

fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Kicks are signals without an effect of their own.
pub(super) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a zeroed sigaction with a handler that does nothing is valid.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Set when the guest stops, once; the main thread waits for it.
#[derive(Debug)]
pub struct StopSignal {
    reason: Mutex<Option<StopReason>>,
    is_set: AtomicBool,
    event: EventFd,
}

impl StopSignal {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            is_set: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Stops the domain for `reason`, unless it has stopped already.
    pub fn set(&self, reason: StopReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.is_set.store(true, SeqCst);
        let _ = self.event.write(1);
    }

    /// Whether a reason was set.
    pub fn is_set(&self) -> bool {
        self.is_set.load(SeqCst)
    }

    /// The first reason that was set.
    pub fn get(&self) -> Option<StopReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when a reason is set.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// One vCPU and its thread.
pub(super) struct VcpuThread {
    id: u32,
    fd: VcpuFd,
    machine: Arc<Machine>,
    hypercalls: Arc<Hypercalls>,
    timer_port: Option<Port>,
    upcall_vector: Option<u8>,
    /// Where vcpu_info is, and whether the guest chose the place.
    info: Option<(u64, bool)>,
}

/// What an exit counts as.
fn kind(exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> ExitKind {
    match exit {
        Ok(VcpuExit::IoIn(..)) => ExitKind::PortIn,
        Ok(VcpuExit::IoOut(..)) => ExitKind::PortOut,
        Ok(VcpuExit::MmioRead(..)) => ExitKind::MemoryRead,
        Ok(VcpuExit::MmioWrite(..)) => ExitKind::MemoryWrite,
        Ok(VcpuExit::X86Rdmsr(_)) => ExitKind::MsrRead,
        Ok(VcpuExit::X86Wrmsr(_)) => ExitKind::MsrWrite,
        Ok(VcpuExit::Unsupported(KVM_EXIT_XEN)) => ExitKind::Xen,
        Ok(VcpuExit::Hyperv) => ExitKind::HyperV,
        Ok(VcpuExit::Intr) | Err(_) => ExitKind::Interrupted,
        Ok(_) => ExitKind::Other,
    }
}

/// What to do after an exit.
enum Next {
    Run,
    End,
}

impl VcpuThread {
    pub(super) fn new(id: u32, fd: VcpuFd, machine: Arc<Machine>, hypercalls: Arc<Hypercalls>) -> Self {
        Self { id, fd, machine, hypercalls, timer_port: None, upcall_vector: None, info: None }
    }

    pub(super) fn run(mut self) {
        let machine = Arc::clone(&self.machine);
        let Some(queue) = machine.queues.get(self.id as usize) else { return };
        queue.register(&raw mut self.fd.get_kvm_run().immediate_exit);
        loop {
            self.fd.set_kvm_immediate_exit(0);
            if matches!(self.do_tasks(queue), Next::End) || matches!(self.run_guest(), Next::End) {
                break;
            }
        }
        queue.unregister();
    }

    fn do_tasks(&mut self, queue: &VcpuQueue) -> Next {
        for task in queue.take() {
            let result = match task {
                Task::Attr(attr) => kvm_xen::set_vcpu_attr(&self.fd, attr),
                Task::UpcallVector(vector) => {
                    self.upcall_vector = Some(vector);
                    let attr = VcpuAttr::UpcallVector(vector);
                    let set = kvm_xen::set_vcpu_attr(&self.fd, attr).and_then(|()| self.upcall_if_pending());
                    if let (0, Some(delivery)) = (self.id, &self.machine.xen) {
                        delivery.set_own_vector();
                    }
                    set
                }
                Task::DefaultInfo(gpa) => match self.info {
                    Some((_, true)) => Ok(()),
                    _ => self.place_info(gpa, false),
                },
                Task::MoveInfo(gpa) => self.move_info(gpa),
                Task::TimerPort(port) => {
                    self.timer_port = port;
                    self.set_timer(0)
                }
                Task::Timer(deadline) => self.set_timer(deadline),
                Task::Callback => self.set_timer(0),
                Task::Block => {
                    let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
                    self.fd.set_mp_state(halted).map_err(io::Error::from)
                }
                Task::End => return Next::End,
            };
            if let Err(error) = result {
                // The guest gave an address that is no RAM any more, or the host is out of memory.
                tracing::debug!(%error, vcpu = self.id, ?task, "KVM refused a setting");
            }
        }
        Next::Run
    }

    /// 0: off.
    fn set_timer(&self, deadline: u64) -> io::Result<()> {
        let mut port = self.timer_port.map_or(0, |p| p.0);
        if let (0, Some(delivery)) = (self.id, &self.machine.xen)
            && delivery.is_by_line()
        {
            let left = (deadline != 0).then(|| deadline.saturating_sub(self.machine.now_ns()));
            delivery.set_timer(self.timer_port, left);
            // Without a port KVM leaves the guest's calls to us.
            port = 0;
        }
        kvm_xen::set_vcpu_attr(&self.fd, VcpuAttr::Timer(port, deadline))
    }

    fn place_info(&mut self, gpa: u64, chosen: bool) -> io::Result<()> {
        kvm_xen::set_vcpu_attr(&self.fd, VcpuAttr::Info(gpa))?;
        self.info = Some((gpa, chosen));
        if let (0, Some(delivery)) = (self.id, &self.machine.xen) {
            delivery.set_info(gpa);
        }
        Ok(())
    }

    /// Moves vcpu_info. An event that comes while it is moved may still go to the old place: what is pending
    /// there afterwards is taken along.
    fn move_info(&mut self, gpa: u64) -> io::Result<()> {
        let ram = Arc::clone(&self.machine.ram);
        let old = self.info.map(|(old, _)| GuestAddress(old));
        let mut info = [0; TIME_OFFSET];
        if let Some(old) = old {
            ram.read_slice(&mut info, old).map_err(io::Error::other)?;
        }
        ram.write_slice(&info, GuestAddress(gpa)).map_err(io::Error::other)?;
        self.place_info(gpa, true)?;
        if let Some(old) = old {
            let selector = if self.machine.long_mode.load(SeqCst) { SELECTOR_64 } else { SELECTOR_32 };
            let mut late = [0; TIME_OFFSET];
            ram.read_slice(&mut late, old).map_err(io::Error::other)?;
            for (at, byte) in late.iter().enumerate().take(selector.end).skip(selector.start) {
                // A byte of the selector, atomically, for the guest and KVM write to it as well.
                let byte_gpa = GuestAddress(gpa + at as u64);
                let place = ram.get_slice(byte_gpa, 1).map_err(io::Error::other)?;
                let place = place.get_atomic_ref::<AtomicU8>(0).map_err(io::Error::other)?;
                place.fetch_or(*byte, SeqCst);
            }
            if late[0] != 0 {
                ram.store(1u8, GuestAddress(gpa), SeqCst).map_err(io::Error::other)?;
            }
        }
        self.upcall_if_pending()
    }

    /// Raises the upcall if vcpu_info says that one is pending: KVM only does so when an event makes it so.
    fn upcall_if_pending(&self) -> io::Result<()> {
        let (Some((info, _)), Some(vector)) = (self.info, self.upcall_vector) else { return Ok(()) };
        let pending: u8 = self.machine.ram.load(GuestAddress(info), SeqCst).map_err(io::Error::other)?;
        if pending == 0 { Ok(()) } else { self.machine.inject(self.id, vector) }
    }

    fn run_guest(&mut self) -> Next {
        let machine = Arc::clone(&self.machine);
        let Some(exits) = machine.exits.get() else { return Next::End };
        // Points into the vCPU's kvm_run page, which is mapped as long as the vCPU is there. Only the size of an
        // I/O access is read through it, which the slice of that access does not cover.
        let run: *const kvm_run = self.fd.get_kvm_run();
        let exit = self.fd.run();
        machine.counters.count(kind(&exit));
        match exit {
            // String instructions come as several elements.
            Ok(VcpuExit::IoOut(port, data)) => {
                // SAFETY: as above; the exit is one for I/O, so this member of the union is valid.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                data.chunks(usize::from(size).max(1)).for_each(|element| exits.port_out(port, element));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                // SAFETY: as above.
                let size = unsafe { (*run).__bindgen_anon_1.io.size };
                data.chunks_mut(usize::from(size).max(1)).for_each(|element| exits.port_in(port, element));
            }
            Ok(VcpuExit::MmioRead(addr, data)) => exits.memory_read(addr, data),
            Ok(VcpuExit::MmioWrite(addr, data)) => exits.memory_write(addr, data),
            Ok(VcpuExit::X86Rdmsr(msr)) => super::msr::read(self.id, msr),
            Ok(VcpuExit::X86Wrmsr(msr)) => super::msr::write(self.id, msr),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Unsupported(KVM_EXIT_XEN)) => return self.hypercall(),
            Ok(VcpuExit::Hyperv) => self.hyper_v(),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                tracing::error!(vcpu = self.id, "the guest crashed: it says so itself");
                machine.stop(StopReason::Crash);
                return Next::End;
            }
            Ok(VcpuExit::Shutdown) => {
                let reason = exits.triple_fault();
                match reason {
                    StopReason::Crash => tracing::error!(vcpu = self.id, "the guest crashed: triple fault"),
                    _ => tracing::debug!(vcpu = self.id, ?reason, "triple fault"),
                }
                machine.stop(reason);
                return Next::End;
            }
            Ok(exit) => {
                let exit = format!("{exit:?}");
                tracing::error!(vcpu = self.id, exit, "the guest cannot go on: KVM cannot run its code");
                self.machine.stop(StopReason::Crash);
                return Next::End;
            }
            // EINTR: kicked. EAGAIN: an INIT was taken while waiting for SIPI.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => {
                tracing::error!(vcpu = self.id, %error, "KVM_RUN failed");
                self.machine.stop(StopReason::Crash);
                return Next::End;
            }
        }
        // Stopped by this very access: the guest expects not to run any more.
        if machine.stop.is_set() { Next::End } else { Next::Run }
    }

    /// KVM does nothing about a hypercall, or tells of a change of its synthetic interrupt controller.
    fn hyper_v(&mut self) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason says that the kernel filled in this member of the union; the type says which of its own
        // members counts, and all are plain numbers.
        unsafe {
            let exit = &mut run.__bindgen_anon_1.hyperv;
            if exit.type_ == KVM_EXIT_HYPERV_HCALL {
                exit.u.hcall.result = viridian::UNKNOWN_HYPERCALL;
            }
        }
    }

    fn hypercall(&mut self) -> Next {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason says that the kernel filled in this member of the union.
        let (kind, hcall) = unsafe { (run.__bindgen_anon_1.xen.type_, run.__bindgen_anon_1.xen.u.hcall) };
        if kind != KVM_EXIT_XEN_HCALL {
            return Next::Run;
        }
        let call = Call {
            nr: hcall.input,
            args: hcall.params,
            long_mode: hcall.longmode != 0,
            cpl: hcall.cpl,
            vcpu: self.id,
        };
        let result = self.hypercalls.dispatch(&call, &self.fd);
        self.fd.get_kvm_run().__bindgen_anon_1.xen.u.hcall.result = result;
        // Stopped by this very call: the guest expects not to run any more.
        if self.machine.stop.get().is_some() { Next::End } else { Next::Run }
    }
}
