//! Hypercalls: what the kernel part of KVM does not serve itself arrives here.
//!
//! One file per hypercall. A call is answered on the vCPU thread that made it. Arguments are guest virtual
//! addresses: each structure is copied in once ([`GuestCopy`]), checked, and copied out at the end. What a call
//! changes outside its own tables goes through [`Platform`], so nothing here knows of KVM.

mod console_io;
mod event_channel;
mod grant_table;
mod guest_copy;
mod hvm;
mod memory;
mod sched;
mod vcpu;
mod version;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use devices::memory::GuestRam;
use devices::xen::event_channel::EventChannels;
use devices::xen::grant_table::GrantTable;
use devices::xen::{DomId, Gfn};

pub use guest_copy::{GuestCopy, Translate};
pub use hvm::HvmParams;

/// Answer of a hypercall: a result >= 0, or an errno.
pub type Reply = Result<i64, Errno>;

/// A positive Linux errno, which Xen shares. The guest gets it negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    const PERM: Errno = Errno(libc::EPERM);
    const NOENT: Errno = Errno(libc::ENOENT);
    const FAULT: Errno = Errno(libc::EFAULT);
    const INVAL: Errno = Errno(libc::EINVAL);
    const NOSYS: Errno = Errno(libc::ENOSYS);
}

/// Why the guest stopped, by its own doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SHUTDOWN_poweroff, or ACPI S5.
    PowerOff,
    /// SHUTDOWN_reboot, or the ACPI reset register.
    Reboot,
    /// SHUTDOWN_suspend.
    Suspend,
    /// SHUTDOWN_crash (a panic), a triple fault, or a watchdog that ran out.
    Crash,
    /// SHUTDOWN_watchdog.
    Watchdog,
    /// SHUTDOWN_soft_reset.
    SoftReset,
}

/// A page of xvmm's that the guest maps at a frame of its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverlayPage {
    /// The shared_info page.
    SharedInfo,
    /// A frame of the grant table.
    GrantFrame(u32),
}

/// A setting of one vCPU. Addresses are guest physical and lie in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuSetting {
    /// Moves vcpu_info there.
    Info(u64),
    /// The secondary time area; `None` ends it.
    TimeArea(Option<u64>),
    /// The runstate area.
    Runstate(u64),
    /// The vector of the upcall.
    UpcallVector(u8),
    /// The one-shot timer, in ns of guest time; 0 stops it.
    Timer(u64),
    /// Sleeps until an event or interrupt comes.
    Block,
}

/// A pin of the interrupt controllers that tells vCPU 0 of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackPin {
    /// A global interrupt, below 24.
    Gsi(u8),
    /// What a pin (0 to 3: INTA# to INTD#) of a PCI device (0 to 31) leads to.
    Pci {
        /// The device.
        device: u8,
        /// The pin.
        pin: u8,
    },
}

/// How a guest wants to learn of events (HVM_PARAM_CALLBACK_IRQ).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// It does not.
    None,
    /// By this vector, on any vCPU.
    Vector(u8),
    /// By this pin, vCPU 0 alone.
    Pin(CallbackPin),
}

/// What hypercalls do to the machine.
pub trait Platform: Send + Sync {
    /// Shows `page` at `gfn`, instead of where it was before.
    fn overlay(&self, page: OverlayPage, gfn: Gfn) -> Result<(), Errno>;
    /// Ends the overlay at `gfn`; false if there is none.
    fn remove_overlay(&self, gfn: Gfn) -> Result<bool, Errno>;
    /// Drops the content of a page of RAM; false if it is not RAM.
    fn discard(&self, gfn: Gfn) -> bool;
    /// The layout of shared structures: 64-bit or 32-bit.
    fn set_long_mode(&self, on: bool);
    /// How vCPUs without a vector of their own learn of events.
    fn set_callback(&self, callback: Callback) -> Result<(), Errno>;
    /// Whether KVM marks updates of runstate areas.
    fn set_runstate_update_flag(&self, on: bool) -> Result<(), Errno>;
    /// Applies a setting to vCPU `id` before it runs guest code again.
    fn set_vcpu(&self, id: u32, setting: VcpuSetting) -> Result<(), Errno>;
    /// Nanoseconds of guest time (`system_time` of the pvclock).
    fn now_ns(&self) -> u64;
    /// Stops the domain.
    fn stop(&self, reason: StopReason);
    /// Early console output.
    fn early_output(&self, text: &[u8]);
}

/// One hypercall as a vCPU made it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Hypercall number.
    pub nr: u64,
    /// Arguments.
    pub args: [u64; 6],
    /// Made in 64-bit mode: structures have the 64-bit layout.
    pub long_mode: bool,
    /// Privilege level of the caller.
    pub cpl: u32,
    /// The calling vCPU.
    pub vcpu: u32,
}

/// What is fixed about a domain.
#[derive(Clone, Debug)]
pub struct DomainFacts {
    /// Its id.
    pub domid: DomId,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Pages of RAM.
    pub ram_pages: u64,
    /// The memory map: XENMEM_memory_map.
    pub memmap: Vec<crate::boot::MemmapEntry>,
    /// XENVER_guest_handle.
    pub uuid: [u8; 16],
    /// Kernel command line, for XENVER_commandline.
    pub cmdline: String,
}

const HYPERCALLS: [(u64, &str); 8] = [
    (12, "memory_op"),
    (17, "xen_version"),
    (18, "console_io"),
    (20, "grant_table_op"),
    (24, "vcpu_op"),
    (29, "sched_op"),
    (32, "event_channel_op"),
    (34, "hvm_op"),
];
const SET_TIMER_OP: u64 = 15;
const VM_ASSIST: u64 = 21;
/// EVTCHNOP_send: counted by itself, because none may leave the kernel on a data path.
const EVTCHNOP_SEND: u64 = 4;
const VMASST_ENABLE: u64 = 0;
const VMASST_DISABLE: u64 = 1;
const VMASST_RUNSTATE_UPDATE_FLAG: u64 = 5;

#[derive(Debug, Default)]
struct Counters {
    known: [AtomicU64; HYPERCALLS.len()],
    other: AtomicU64,
    unknown: AtomicU64,
    evtchn_send: AtomicU64,
}

/// The hypercalls of one domain, shared by its vCPU threads.
pub struct Hypercalls {
    facts: DomainFacts,
    ram: Arc<GuestRam>,
    grants: Arc<GrantTable>,
    events: Arc<EventChannels>,
    params: HvmParams,
    platform: Arc<dyn Platform>,
    counters: Counters,
    /// vCPUs whose vcpu_info stands where the guest wants it.
    registered_info: Vec<AtomicBool>,
}

impl Hypercalls {
    /// The hypercalls of a domain that has not run yet.
    pub fn new(
        facts: DomainFacts,
        grants: Arc<GrantTable>,
        events: Arc<EventChannels>,
        params: HvmParams,
        platform: Arc<dyn Platform>,
    ) -> Self {
        let registered_info = (0..facts.vcpus).map(|_| AtomicBool::new(false)).collect();
        let ram = Arc::clone(grants.ram());
        Self { facts, ram, grants, events, params, platform, counters: Counters::default(), registered_info }
    }

    /// Answers a call: what goes into RAX.
    pub fn dispatch(&self, call: &Call, translate: &dyn Translate) -> u64 {
        let result = match self.answer(call, translate) {
            Ok(value) => value,
            Err(Errno(errno)) => -i64::from(errno),
        };
        result.cast_unsigned()
    }

    fn answer(&self, call: &Call, translate: &dyn Translate) -> Reply {
        self.count(call);
        if call.cpl > 0 {
            return Err(Errno::PERM);
        }
        let copy = &GuestCopy::new(&self.ram, translate, call.long_mode);
        let [a0, a1, a2, ..] = call.args;
        match call.nr {
            12 => self.memory_op(a0, a1, copy),
            SET_TIMER_OP => self.platform.set_vcpu(call.vcpu, VcpuSetting::Timer(a0)).map(|()| 0),
            17 => self.xen_version(a0, a1, copy),
            18 => self.console_io(a0, a1, a2, copy),
            20 => self.grant_table_op(a0, a1, a2, copy),
            VM_ASSIST => self.vm_assist(a0, a1),
            24 => self.vcpu_op(a0, a1, a2, copy),
            29 => self.sched_op(call.vcpu, a0, a1, copy),
            32 => self.event_channel_op(a0, a1, copy),
            34 => self.hvm_op(a0, a1, copy),
            _ => {
                self.counters.unknown.fetch_add(1, Relaxed);
                tracing::debug!(nr = call.nr, "unknown hypercall");
                Err(Errno::NOSYS)
            }
        }
    }

    fn vm_assist(&self, command: u64, kind: u64) -> Reply {
        match (command, kind) {
            (VMASST_ENABLE | VMASST_DISABLE, VMASST_RUNSTATE_UPDATE_FLAG) => {
                self.platform.set_runstate_update_flag(command == VMASST_ENABLE).map(|()| 0)
            }
            _ => Err(self.unknown("vm_assist", command)),
        }
    }

    /// An operation that is not offered: counted, logged for a developer only.
    fn unknown(&self, hypercall: &str, op: u64) -> Errno {
        self.counters.unknown.fetch_add(1, Relaxed);
        tracing::debug!(hypercall, op, "unknown operation");
        Errno::NOSYS
    }

    fn count(&self, call: &Call) {
        let known =
            HYPERCALLS.iter().position(|(nr, _)| *nr == call.nr).and_then(|i| self.counters.known.get(i));
        known.unwrap_or(&self.counters.other).fetch_add(1, Relaxed);
        if call.nr == 32 && call.args.first() == Some(&EVTCHNOP_SEND) {
            self.counters.evtchn_send.fetch_add(1, Relaxed);
        }
    }

    /// Exits for hypercalls so far, by name, for `xvmm info`.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut map = BTreeMap::new();
        let mut total = self.counters.other.load(Relaxed);
        map.insert("other".to_owned(), total);
        for ((_, name), counter) in HYPERCALLS.iter().zip(&self.counters.known) {
            total += counter.load(Relaxed);
            map.insert((*name).to_owned(), counter.load(Relaxed));
        }
        map.insert("event_channel_op.send".to_owned(), self.counters.evtchn_send.load(Relaxed));
        map.insert("unknown".to_owned(), self.counters.unknown.load(Relaxed));
        map.insert("total".to_owned(), total);
        map
    }

    /// The layout of structures that the guest has chosen by the mode in which it sets them up.
    fn set_long_mode(&self, on: bool) {
        self.events.set_long_mode(on);
        self.platform.set_long_mode(on);
    }

    fn is_self(&self, domid: u16) -> bool {
        domid == DomId::SELF.0 || domid == self.facts.domid.0
    }

    fn require_self(&self, domid: u16) -> Result<(), Errno> {
        if self.is_self(domid) { Ok(()) } else { Err(Errno::PERM) }
    }
}
