//! The machine: memory, vCPU threads, CPUID and interrupts. All KVM calls live here.

mod apicv;
mod cpuid;
mod delivery;
mod exits;
mod kvm_xen;
mod memory;
mod msr;
pub mod pc;
mod processor;
mod pvh;
mod vcpu;
mod viridian;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use devices::memory::{GuestRam, SharedPages};
use devices::xen::event_channel::EventDelivery;
use devices::xen::grant_table::GrantTable;
use devices::xen::{DomId, Gfn};
use kvm_bindings::{
    KVM_CAP_XEN_HVM, KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
    KVM_XEN_HVM_CONFIG_HYPERCALL_MSR, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_HVM_CONFIG_RUNSTATE,
    KVM_XEN_HVM_CONFIG_SHARED_INFO, kvm_msi,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::BootEntry;
use crate::config::Viridian;
use crate::hypercall::{Callback, Errno, Hypercalls, OverlayPage, Platform, StopReason, VcpuSetting};
use cpuid::CpuidTemplate;
pub use delivery::LineEvents;
use delivery::{KvmDelivery, NoDelivery};
use exits::ExitCounters;
use kvm_xen::VcpuAttr;
use memory::AddressSpace;
pub use memory::{Layout, SPECIAL_GFN, SPECIAL_PAGES};
pub use processor::{Processor, Topology};
pub use vcpu::StopSignal;
use vcpu::{Task, VcpuQueue, VcpuThread};

/// The Xen version that guests see: 4.17.
pub const XEN_VERSION: u32 = 4 << 16 | 17;
/// I/O port of the ACPI sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x604;
/// I/O port of the ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x605;
/// I/O port of the ACPI reset register.
pub const RESET_PORT: u16 = 0x606;
/// Where the ACPI tables of a PVH guest stand, below 1 MiB.
pub const ACPI_ADDRESS: u64 = 0xe_0000;
const ACPI_END: u64 = 0x10_0000;

/// Xen features of KVM that are needed, with the names that the kernel's documentation has for them.
const NEEDED: [(u32, &str); 6] = [
    (KVM_XEN_HVM_CONFIG_HYPERCALL_MSR, "hypercall page"),
    (KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, "hypercall exits"),
    (KVM_XEN_HVM_CONFIG_SHARED_INFO, "shared_info"),
    (KVM_XEN_HVM_CONFIG_RUNSTATE, "runstate areas"),
    (KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, "event channel routes"),
    (KVM_XEN_HVM_CONFIG_EVTCHN_SEND, "event channel sends and timers"),
];

/// Why the machine cannot be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// /dev/kvm does not exist.
    #[error(
        "/dev/kvm is missing: load the kvm_intel or kvm_amd module, or enable virtualisation in the firmware"
    )]
    KvmMissing,
    /// /dev/kvm may not be opened.
    #[error("/dev/kvm: permission denied: run as root or as a member of the group kvm")]
    KvmNotPermitted,
    /// KVM is there but makes no VM.
    #[error(
        "/dev/kvm cannot run guests on this host ({0}): check that the CPU's virtualisation is usable here"
    )]
    KvmUnable(io::Error),
    /// KVM has no Xen support at all, or not enough.
    #[error("this host's KVM has no Xen support for: {0}: use Linux 5.19 or later with CONFIG_KVM_XEN=y")]
    NoXen(String),
    /// KVM does not have what the guest is to be given of Hyper-V.
    #[error("--viridian: this host's KVM has no {0}; leave that out of the groups, or use a later Linux")]
    NoViridian(String),
    /// More vCPUs than KVM runs.
    #[error("--vcpus {asked}: this host's KVM runs at most {max} vCPUs in a guest")]
    TooManyVcpus {
        /// The number asked for.
        asked: u32,
        /// KVM's limit.
        max: usize,
    },
    /// Guest memory cannot be allocated or given to KVM.
    #[error(
        "guest memory cannot be set up ({0}): give the guest less with --memory, or free some on the host"
    )]
    Memory(io::Error),
    /// The CPUID table is too long for KVM.
    #[error("KVM does not take {0} CPUID leaves")]
    Cpuid(usize),
    /// Thousands of vCPUs.
    #[error(
        "the ACPI tables of so many vCPUs ({0} bytes) do not fit below 1 MiB: give the guest fewer with --vcpus"
    )]
    AcpiTooLong(usize),
    /// A call of KVM's failed that has no reason to.
    #[error("KVM refused to set up {what}: {error}")]
    Kvm {
        /// What was set up.
        what: &'static str,
        /// The error.
        error: io::Error,
    },
}

impl MachineError {
    fn kvm<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| MachineError::Kvm { what, error: error.into() }
    }
}

/// KVM of this host, found able to run guests.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    /// What its Xen support lacks.
    missing: Vec<&'static str>,
}

impl Host {
    /// Opens /dev/kvm and checks that it runs guests of `vcpus` vCPUs.
    pub fn open(vcpus: u32) -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENXIO => MachineError::KvmMissing,
            libc::EACCES | libc::EPERM => MachineError::KvmNotPermitted,
            _ => MachineError::KvmUnable(e.into()),
        })?;
        if kvm.get_api_version() != 12 {
            return Err(MachineError::KvmUnable(io::Error::other("it is not the KVM interface")));
        }
        let offered = kvm.check_extension_raw(u64::from(KVM_CAP_XEN_HVM)).max(0).cast_unsigned();
        let missing = NEEDED.iter().filter(|(bit, _)| offered & bit == 0).map(|(_, name)| *name).collect();
        let max = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id());
        if vcpus as usize > max {
            return Err(MachineError::TooManyVcpus { asked: vcpus, max });
        }
        Ok(Self { kvm, missing })
    }

    /// Checks that KVM offers all that a guest with Xen's interfaces needs.
    pub fn require_xen(&self) -> Result<(), MachineError> {
        if self.missing.is_empty() { Ok(()) } else { Err(MachineError::NoXen(self.missing.join(", "))) }
    }

    /// Checks that KVM offers these of Hyper-V's interfaces.
    pub fn require_viridian(&self, wanted: Viridian) -> Result<(), MachineError> {
        viridian::check(&self.kvm, wanted)
    }

    /// Whether a guest can be given Xen's interfaces.
    pub fn has_xen(&self) -> bool {
        self.missing.is_empty()
    }
}

/// What kind of machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// Of a PVH guest: Xen's interfaces alone. KVM has to offer them.
    Pvh,
    /// A PC, with Xen's interfaces where KVM offers them.
    Pc {
        /// With local APICs.
        apic: bool,
    },
}

/// What serves the guest's accesses to I/O and to addresses without memory. Called from vCPU threads.
pub trait Exits: Send + Sync {
    /// Reads `data.len()` bytes (1, 2 or 4) at `port`.
    fn port_in(&self, port: u16, data: &mut [u8]);
    /// Writes them.
    fn port_out(&self, port: u16, data: &[u8]);
    /// Reads up to eight bytes at a guest-physical address.
    fn memory_read(&self, addr: u64, data: &mut [u8]);
    /// Writes them.
    fn memory_write(&self, addr: u64, data: &[u8]);
    /// A processor has shut down: what that means for the domain.
    fn triple_fault(&self) -> StopReason;
}

/// What the machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig {
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The domain's id.
    pub domid: DomId,
    /// What kind of machine it is.
    pub kind: MachineKind,
    /// What its processors are like.
    pub processor: Processor,
}

/// One VM with its memory and vCPUs.
pub struct Machine {
    vm: Arc<VmFd>,
    space: AddressSpace,
    ram: Arc<GuestRam>,
    grants: Arc<GrantTable>,
    shared_info: Arc<SharedPages>,
    special: Arc<SharedPages>,
    kind: MachineKind,
    /// What CPUID tells of the processor.
    cpu: acpi::CpuIdentity,
    topology: Topology,
    counters: ExitCounters,
    /// Xen's interfaces: how events get to the guest.
    xen: Option<Arc<KvmDelivery>>,
    exits: OnceLock<Arc<dyn Exits>>,
    queues: Arc<[VcpuQueue]>,
    fds: Mutex<Vec<VcpuFd>>,
    places: Mutex<HashMap<OverlayPage, Gfn>>,
    long_mode: AtomicBool,
    stop: Arc<StopSignal>,
    early: OnceLock<EarlyOutput>,
}

/// Takes early console output of the guest, from any vCPU thread, without blocking. Nothing at all: the guest's serial
/// port has room for input again.
pub type EarlyOutput = Box<dyn Fn(&[u8]) + Send + Sync>;

impl Machine {
    /// Makes the VM: RAM, the special pages, and vCPUs that do not run yet.
    pub fn new(host: &Host, config: MachineConfig) -> Result<Arc<Self>, MachineError> {
        let vm = host.kvm.create_vm().map_err(|e| MachineError::KvmUnable(e.into()))?;
        let layout = match config.kind {
            MachineKind::Pvh => {
                host.require_xen()?;
                pvh::set_up(&vm)?;
                Layout::PVH
            }
            MachineKind::Pc { apic } => {
                pc::set_up(&vm, apic)?;
                Layout::PC
            }
        };
        let xen = host.has_xen();
        if xen {
            kvm_xen::configure(&vm, cpuid::hypercall_msr(config.processor))
                .map_err(MachineError::kvm("Xen hypercalls"))?;
            kvm_xen::set_xen_version(&vm, XEN_VERSION).map_err(MachineError::kvm("the Xen version"))?;
            kvm_xen::set_long_mode(&vm, true).map_err(MachineError::kvm("Xen's 64-bit layout"))?;
        } else {
            tracing::debug!("this host's KVM has no Xen support: the guest sees no Xen");
        }

        let vm = Arc::new(vm);
        let ram = Arc::new(memory::allocate(layout, config.memory)?);
        let space = AddressSpace::new(Arc::clone(&vm), Arc::clone(&ram), layout)?;
        let pages = |name, count| SharedPages::new(name, count).map(Arc::new).map_err(MachineError::Memory);
        let (shared_info, special) = (pages("xen-shared-info", 1)?, pages("xen-special", SPECIAL_PAGES)?);
        space.map_special(&special, SPECIAL_GFN).map_err(MachineError::Memory)?;
        let grants = Arc::new(GrantTable::new(Arc::clone(&ram)).map_err(MachineError::Memory)?);

        let apic = config.kind != MachineKind::Pc { apic: false };
        let queues: Arc<[VcpuQueue]> = (0..config.vcpus).map(|_| VcpuQueue::default()).collect();
        let delivery = xen
            .then(|| {
                let pins = match config.kind {
                    MachineKind::Pvh => Vec::new(),
                    MachineKind::Pc { .. } => pc::routes(),
                };
                KvmDelivery::new(Arc::clone(&vm), Arc::clone(&queues), pins, &ram).map(Arc::new)
            })
            .transpose()
            .map_err(MachineError::kvm("event channels"))?;
        let template = CpuidTemplate::new(&host.kvm, config.vcpus, config.kind, xen, config.processor)?;
        let mut fds = Vec::new();
        for id in 0..config.vcpus {
            let fd = vm.create_vcpu(id.into()).map_err(MachineError::kvm("a vCPU"))?;
            let tsc_khz = fd.get_tsc_khz().map_err(MachineError::kvm("the TSC"))?;
            let cpuid = template.for_vcpu(id, config.domid.0, tsc_khz)?;
            fd.set_cpuid2(&cpuid).map_err(MachineError::kvm("CPUID"))?;
            if xen {
                kvm_xen::set_vcpu_attr(&fd, VcpuAttr::Id(id)).map_err(MachineError::kvm("the vCPU id"))?;
            }
            viridian::enable(&fd, config.processor.viridian)?;
            if !apic {
                pc::disable_apic(&fd).map_err(MachineError::kvm("a vCPU without a local APIC"))?;
            }
            fds.push(fd);
        }
        Ok(Arc::new(Self {
            vm,
            space,
            ram,
            grants,
            shared_info,
            special,
            kind: config.kind,
            cpu: template.identity(),
            topology: template.topology(),
            counters: ExitCounters::default(),
            xen: delivery,
            exits: OnceLock::new(),
            queues,
            fds: Mutex::new(fds),
            places: Mutex::default(),
            long_mode: AtomicBool::new(true),
            stop: Arc::new(StopSignal::new().map_err(MachineError::kvm("an eventfd"))?),
            early: OnceLock::new(),
        }))
    }

    /// What serves I/O; set once, before the vCPUs start. Without, it is a PVH guest's few ports.
    pub fn set_exits(&self, exits: Arc<dyn Exits>) {
        let _ = self.exits.set(exits);
    }

    /// Where early console output goes; set once, before the vCPUs start.
    pub fn set_early_output(&self, early: EarlyOutput) {
        let _ = self.early.set(early);
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The grant table.
    pub fn grants(&self) -> &Arc<GrantTable> {
        &self.grants
    }

    /// The page of shared_info.
    pub fn shared_info(&self) -> &Arc<SharedPages> {
        &self.shared_info
    }

    /// The special pages, from [`SPECIAL_GFN`].
    pub fn special(&self) -> &Arc<SharedPages> {
        &self.special
    }

    /// How often the vCPUs left the kernel, and why.
    pub fn exit_counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.read()
    }

    /// Tells when and why the guest stopped.
    pub fn stop_signal(&self) -> &Arc<StopSignal> {
        &self.stop
    }

    /// Whether the guest sees Xen.
    pub fn has_xen(&self) -> bool {
        self.xen.is_some()
    }

    /// The delivery of events by KVM.
    pub fn delivery(&self) -> Arc<dyn EventDelivery> {
        match &self.xen {
            Some(delivery) => Arc::clone(delivery) as _,
            None => Arc::new(NoDelivery),
        }
    }

    /// What the main thread has to do with events that come by an interrupt line, where there can be such.
    pub fn line_events(&self) -> Option<LineEvents> {
        LineEvents::new(self.xen.as_ref()?)
    }

    /// Starts all vCPU threads; vCPU 0 at the kernel's entry, or where a processor starts after its reset; the others
    /// wait for its INIT and SIPI.
    pub fn start(
        self: &Arc<Self>,
        entry: Option<&BootEntry>,
        hypercalls: &Arc<Hypercalls>,
    ) -> Result<Vec<JoinHandle<()>>, MachineError> {
        let fds = std::mem::take(&mut *self.fds.lock().unwrap_or_else(PoisonError::into_inner));
        vcpu::install_kick_handler().map_err(MachineError::kvm("the kick signal"))?;
        self.exits.get_or_init(|| Arc::new(pvh::PvhPorts::new(self)));
        let mut threads = Vec::new();
        for (id, fd) in (0u32..).zip(fds) {
            if let (0, Some(entry)) = (id, entry) {
                pvh::set_state(&fd, entry).map_err(MachineError::kvm("the registers"))?;
            }
            let thread = VcpuThread::new(id, fd, Arc::clone(self), Arc::clone(hypercalls));
            let spawned = std::thread::Builder::new().name(format!("vcpu{id}")).spawn(move || thread.run());
            match spawned {
                Ok(handle) => threads.push(handle),
                Err(e) => {
                    self.stop_vcpus();
                    return Err(MachineError::kvm("a vCPU thread")(e));
                }
            }
        }
        Ok(threads)
    }

    /// Makes all vCPU threads end.
    pub fn stop_vcpus(&self) {
        for queue in self.queues.iter() {
            queue.post(Task::End);
        }
    }

    /// Raises `vector` on the local APIC of vCPU `id`.
    fn inject(&self, id: u32, vector: u8) -> io::Result<()> {
        // Intel SDM vol. 3, 11.11: destination in bits 19:12, the rest of an x2APIC id above in the high half.
        let msi = kvm_msi {
            address_lo: 0xfee0_0000 | (id & 0xff) << 12,
            address_hi: id & !0xff,
            data: vector.into(),
            ..Default::default()
        };
        self.vm.signal_msi(msi).map(drop).map_err(io::Error::from)
    }

    fn post(&self, id: u32, task: Task) -> Result<(), Errno> {
        self.queues.get(id as usize).ok_or(Errno(libc::ENOENT))?.post(task);
        Ok(())
    }
}

fn host_error(e: &io::Error) -> Errno {
    Errno(e.raw_os_error().unwrap_or(libc::ENOMEM))
}

impl Platform for Machine {
    fn overlay(&self, page: OverlayPage, gfn: Gfn) -> Result<(), Errno> {
        if gfn.0 >= SPECIAL_GFN.0 && gfn.0 < SPECIAL_GFN.0 + SPECIAL_PAGES as u64 {
            return Err(Errno(libc::EINVAL));
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = places.remove(&page) {
            self.space.remove_overlay(old).map_err(|e| host_error(&e))?;
        }
        // Another page that stood there is gone from the guest's view.
        places.retain(|_, at| *at != gfn);
        let (pages, index) = match page {
            OverlayPage::SharedInfo => (&*self.shared_info, 0),
            OverlayPage::GrantFrame(index) => (self.grants.frames(), index),
        };
        self.space.overlay(pages, index, gfn).map_err(|e| host_error(&e))?;
        places.insert(page, gfn);
        if page == OverlayPage::SharedInfo {
            kvm_xen::set_shared_info(&*self.vm, gfn.0).map_err(|e| host_error(&e))?;
            for (id, queue) in (0u32..).zip(self.queues.iter()).take(vcpu::SHARED_INFO_VCPUS as usize) {
                queue.post(Task::DefaultInfo(
                    gfn.gpa().unwrap_or_default() + u64::from(id) * vcpu::VCPU_INFO_SIZE,
                ));
            }
        }
        Ok(())
    }

    fn remove_overlay(&self, gfn: Gfn) -> Result<bool, Errno> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let shared_info = places.get(&OverlayPage::SharedInfo) == Some(&gfn);
        places.retain(|_, at| *at != gfn);
        if shared_info {
            kvm_xen::set_shared_info(&*self.vm, kvm_xen::INVALID).map_err(|e| host_error(&e))?;
        }
        self.space.remove_overlay(gfn).map_err(|e| host_error(&e))
    }

    fn discard(&self, gfn: Gfn) -> bool {
        self.space.discard(gfn)
    }

    fn set_long_mode(&self, on: bool) {
        self.long_mode.store(on, SeqCst);
        if let Err(error) = kvm_xen::set_long_mode(&*self.vm, on) {
            tracing::warn!(%error, "KVM refused the layout of shared_info");
        }
    }

    fn set_callback(&self, callback: Callback) -> Result<(), Errno> {
        let (vector, pin) = match callback {
            Callback::None => (0, None),
            Callback::Vector(vector) => (vector, None),
            Callback::Pin(pin) => (0, Some(pin)),
        };
        kvm_xen::set_upcall_vector(&*self.vm, vector).map_err(|e| host_error(&e))?;
        if let Some(delivery) = &self.xen {
            delivery.set_pin(pin);
        }
        Ok(())
    }

    fn set_runstate_update_flag(&self, on: bool) -> Result<(), Errno> {
        kvm_xen::set_runstate_update_flag(&*self.vm, on).map_err(|e| host_error(&e))
    }

    fn set_vcpu(&self, id: u32, setting: VcpuSetting) -> Result<(), Errno> {
        let task = match setting {
            VcpuSetting::Info(gpa) => Task::MoveInfo(gpa),
            VcpuSetting::TimeArea(gpa) => Task::Attr(VcpuAttr::TimeInfo(gpa.unwrap_or(kvm_xen::INVALID))),
            VcpuSetting::Runstate(gpa) => Task::Attr(VcpuAttr::Runstate(gpa)),
            // It would be a local APIC's.
            VcpuSetting::UpcallVector(_) if self.kind == (MachineKind::Pc { apic: false }) => {
                return Err(Errno(libc::EINVAL));
            }
            VcpuSetting::UpcallVector(vector) => Task::UpcallVector(vector),
            VcpuSetting::Timer(deadline) => Task::Timer(deadline),
            VcpuSetting::Block => Task::Block,
        };
        self.post(id, task)
    }

    fn now_ns(&self) -> u64 {
        self.vm.get_clock().map_or(0, |c| c.clock)
    }

    fn stop(&self, reason: StopReason) {
        self.stop.set(reason);
    }

    fn early_output(&self, text: &[u8]) {
        if let Some(early) = self.early.get() {
            early(text);
        }
    }
}

/// Translation by the page tables of a vCPU.
impl crate::hypercall::Translate for VcpuFd {
    fn translate(&self, gva: u64) -> Option<u64> {
        self.translate_gva(gva).ok().filter(|t| t.valid != 0).map(|t| t.physical_address)
    }
}

/// Writes the ACPI tables into guest memory.
pub fn write_acpi(ram: &GuestRam, tables: &[u8]) -> Result<(), MachineError> {
    if tables.len() as u64 > ACPI_END - ACPI_ADDRESS {
        return Err(MachineError::AcpiTooLong(tables.len()));
    }
    ram.write_slice(tables, GuestAddress(ACPI_ADDRESS)).map_err(|e| MachineError::Memory(io::Error::other(e)))
}
