//! The life of a domain: checks, start, the main loop, the end, and reboot.
//!
//! Nothing on the host is changed before all that can be refused has been looked at. What a run makes - state
//! folder, taps, sockets - goes with it, however it ends; what a killed process left, the next start removes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acpi::DomainTopology;
use blkback::{Backing, BlockDevice};
use devices::memory::PAGE_SIZE;
use devices::xen::event_channel::EventChannels;
use devices::xen::grant_table::{RESERVED_CONSOLE, RESERVED_XENSTORE};
use devices::xen::xenbus::DomainHandle;
use devices::xen::{DomId, Gfn};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control::{Control, Ending, Requests, Signals};
use super::disks::{self, LimitGroups};
use super::hotplug::Hotplug;
use super::store_service::StoreService;
use super::{DomainDir, Registry, change, discs, firmware, preflight, vif};
use crate::api::{ApiHandler, ApiServer, DeviceChange, Reply, Shutdown};
use crate::boot::{BootEntry, Initrd, Kernel, LoadRequest, MemmapEntry};
use crate::config::{DomainConfig, OnReboot};
use crate::console::Console;
use crate::display::Display;
use crate::display::vnc::VncServer;
use crate::exit::{ExitStatus, Failure};
use crate::hypercall::{DomainFacts, HvmParams, Hypercalls, StopReason};
use crate::machine::pc::{Board, BoardConfig, Timers};
use crate::machine::{
    self, ACPI_ADDRESS, Host, Layout, Machine, MachineConfig, MachineKind, Processor, SPECIAL_GFN,
};
use crate::storage;

/// Pages of the special area: the places that QEMU gives them too.
const CONSOLE_PAGE: usize = 0;
const XENSTORE_PAGE: usize = 1;
/// Lines of the console that a crash shows.
const CRASH_LINES: usize = 60;
/// How long the end of a domain waits for I/O in flight. A disk that does not answer must not keep it.
const DRAIN: Duration = Duration::from_secs(10);

type Subscriber = Rc<RefCell<dyn MutEventSubscriber>>;

/// Runs a domain until it is over, through all its reboots.
pub fn run(mut config: DomainConfig) -> Result<ExitStatus, Failure> {
    let signals =
        Signals::take().map_err(|e| Failure::new(ExitStatus::HostError, format!("no signals: {e}")))?;
    let signals = Rc::new(RefCell::new(signals));
    config.validate()?;
    if config.vnc.is_some() && config.hvm.is_none() {
        let message =
            "--vnc: a guest that is started by --kernel has no screen; leave it out, and use its console";
        return Err(Failure::new(ExitStatus::NoScreen, message));
    }
    preflight::prepare(&mut config)?;
    let mut prepared = Some(Prepared::new(&config)?);
    let registry = Registry::open(&config.run_dir)?;
    storage::iscsi::clean_up(registry.run_dir());
    // Before the folder: whose image it is shows in the other domains' folders.
    let mut images = Some(open_images(&config, &registry)?);
    let folder = Rc::new(RefCell::new(registry.create(&config)?));
    // Viewers stay through reboots.
    let display = config.hvm.is_some().then(Display::new);
    let vnc = match (&config.vnc, &display) {
        (Some(vnc), Some(display)) => {
            Some(VncServer::open(vnc, Arc::clone(display), folder.borrow().name())?)
        }
        _ => None,
    };
    let viewers = vnc.as_ref().map(|vnc| vnc.at().to_string());
    loop {
        let prepared = match prepared.take() {
            Some(prepared) => prepared,
            None => Prepared::new(&config)?,
        };
        let images = match images.take() {
            Some(images) => images,
            None => open_images(&config, &registry)?,
        };
        let watched = (display.as_ref(), viewers.clone());
        let domain = Domain::start(&config, &folder, prepared, images, &signals, watched)?;
        let (ending, last_lines) = domain.run();
        // As it is now: devices may have come and gone.
        config.disks.clone_from(&folder.borrow().config().disks);
        config.nets.clone_from(&folder.borrow().config().nets);
        match ending {
            Ending::Guest(StopReason::PowerOff) => return Ok(ExitStatus::Success),
            Ending::Guest(StopReason::Reboot | StopReason::SoftReset)
                if config.on_reboot == OnReboot::Destroy =>
            {
                return Ok(ExitStatus::Success);
            }
            Ending::Guest(StopReason::Reboot | StopReason::SoftReset) => {
                let domid = folder.borrow_mut().renew()?;
                tracing::info!(%domid, "the guest reboots");
            }
            Ending::Guest(StopReason::Suspend) => {
                let message = "the guest suspended itself, which cannot be resumed: it was stopped";
                return Err(Failure::new(ExitStatus::Forced, message));
            }
            Ending::Guest(StopReason::Crash | StopReason::Watchdog) => {
                let mut message = format!("the guest {} crashed", folder.borrow().name());
                if !last_lines.is_empty() {
                    message += "; the last lines of its console are above";
                    eprintln!("{}", last_lines.join("\n"));
                }
                return Err(Failure::new(ExitStatus::GuestCrashed, message));
            }
            Ending::Forced => {
                return Err(Failure::new(
                    ExitStatus::Forced,
                    format!("the guest {} was stopped by force", folder.borrow().name()),
                ));
            }
        }
    }
}

/// What is known to be good before anything is made: KVM, kernel, initrd.
struct Prepared {
    host: Host,
    program: Program,
}

/// What the guest starts with.
enum Program {
    Kernel(Kernel, Option<Initrd>),
    Firmware { bios: Vec<u8>, vgabios: Vec<u8> },
}

impl Prepared {
    fn new(config: &DomainConfig) -> Result<Self, Failure> {
        if let Some(hvm) = &config.hvm {
            let bios = firmware::read_bios(&hvm.bios)?;
            let vgabios = firmware::read_vgabios(&hvm.vgabios)?;
            let host = Host::open(config.vcpus)?;
            host.require_viridian(hvm.viridian)?;
            return Ok(Self { host, program: Program::Firmware { bios, vgabios } });
        }
        let kernel = Kernel::open(&config.kernel)?;
        let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
        kernel.check(&load_request(config, &Layout::PVH.memmap(config.memory), initrd.as_ref()))?;
        let host = Host::open(config.vcpus)?;
        host.require_xen()?;
        Ok(Self { host, program: Program::Kernel(kernel, initrd) })
    }
}

/// What the guest's RAM is to hold at the start.
fn load_request<'a>(
    config: &'a DomainConfig,
    memmap: &'a [MemmapEntry],
    initrd: Option<&'a Initrd>,
) -> LoadRequest<'a> {
    LoadRequest { memmap, initrd, cmdline: &config.cmdline, rsdp: ACPI_ADDRESS, ram_is_zero: true }
}

pub(super) fn open_images(config: &DomainConfig, registry: &Registry) -> Result<Vec<Backing>, Failure> {
    let open = |disk: &crate::config::DiskConfig| {
        disks::open_storage(disk, &config.run_dir).map_err(|error| {
            let holder = registry.find_holder(disk).ok().flatten();
            Failure::from_storage(&error, holder.as_ref())
        })
    };
    config.disks.iter().filter(|disk| disk.has_medium()).map(open).collect()
}

/// One run of a domain, from start to poweroff, reboot or crash.
struct Domain {
    machine: Arc<Machine>,
    vcpus: Vec<JoinHandle<()>>,
    manager: EventManager<Subscriber>,
    control: Rc<RefCell<Control>>,
    store: Rc<RefCell<StoreService>>,
    console: Rc<RefCell<Console>>,
    hotplug: Rc<RefCell<Hotplug>>,
    api: Rc<RefCell<ApiServer<Handler>>>,
    board: Option<Arc<Board>>,
    display: Option<Arc<Display>>,
}

impl Domain {
    fn start(
        config: &DomainConfig,
        shared_folder: &Rc<RefCell<DomainDir>>,
        prepared: Prepared,
        images: Vec<Backing>,
        signals: &Rc<RefCell<Signals>>,
        (display, viewers): (Option<&Arc<Display>>, Option<String>),
    ) -> Result<Self, Failure> {
        let folder = shared_folder.borrow();
        let folder = &*folder;
        let fail = |what: &str| {
            let what = what.to_owned();
            move |e: std::io::Error| Failure::new(ExitStatus::HostError, format!("{what}: {e}"))
        };
        let domid = folder.domid();
        // Taps first: the most likely to be refused of what is left.
        let nics = vif::make_all(config, domid, &folder.path())?;
        let kind = match &config.hvm {
            Some(hvm) => MachineKind::Pc { apic: hvm.apic },
            None => MachineKind::Pvh,
        };
        let processor = config.hvm.as_ref().map(|hvm| Processor { model: hvm.cpu, viridian: hvm.viridian });
        let processor = processor.unwrap_or_default();
        let shape = MachineConfig { memory: config.memory, vcpus: config.vcpus, domid, kind, processor };
        let machine = Machine::new(&prepared.host, shape)?;
        let events = Arc::new(EventChannels::new(
            domid,
            config.vcpus,
            Arc::clone(machine.shared_info()),
            machine.delivery(),
        ));
        let handle = DomainHandle {
            grants: Arc::clone(machine.grants()),
            events: Arc::clone(&events),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).map_err(fail("no eventfd"))?),
        };
        let reserved = |page: usize| {
            let channel = events.open_reserved();
            channel
                .map(|c| (Gfn(SPECIAL_GFN.0 + page as u64), c))
                .map_err(|e| Failure::new(ExitStatus::Internal, e))
        };
        let (store_gfn, store_channel) = reserved(XENSTORE_PAGE)?;
        let (console_gfn, console_channel) = reserved(CONSOLE_PAGE)?;
        handle.grants.set_reserved(RESERVED_XENSTORE, store_gfn);
        handle.grants.set_reserved(RESERVED_CONSOLE, console_gfn);
        let (store_port, console_port) = (store_channel.port().0, console_channel.port().0);
        let params = HvmParams::new((store_gfn.0, store_port), (console_gfn.0, console_port));

        let special = machine.special();
        let mut console = Console::new(Arc::clone(special), CONSOLE_PAGE, console_channel)?;
        console.attach(&config.console)?;
        console.listen(&folder.console_socket())?;
        let early = console.early_output();
        machine.set_early_output(Box::new(move |text| match text {
            [] => early.wake(),
            text => early.write(text),
        }));

        let socket = folder.xenstored_socket();
        let mut store =
            StoreService::new(domid, special, XENSTORE_PAGE, store_channel, &socket, handle.clone())
                .map_err(fail("xenstore cannot be started"))?;
        let tty = console.pty_path().map(|p| p.display().to_string());
        let ring_keys = [(store_gfn.0, store_port), (console_gfn.0, console_port)];
        let uuid = uuid(folder.name(), domid);
        populate(&mut store, config, folder, &ring_keys, tty.as_deref(), &uuid);
        let groups = LimitGroups::default();
        let mut drives = Vec::new();
        let mut images = images.into_iter();
        for disk in &config.disks {
            let image = if disk.has_medium() { images.next() } else { None };
            let shown = disks::shown(disk, config.disks.first() == Some(disk), &groups);
            if config.hvm.is_some()
                && let Some(place) = disks::ide_place(disk)
            {
                let (drive, shared) = disks::ide_drive(place, disk, &shown, image)?;
                drives.push(drive);
                // The PV half is there from the start, as with Xen's toolstack: drivers unplug the other one first.
                if let Some(shared) = shared.filter(|_| machine.has_xen()) {
                    let added = store.add(Box::new(BlockDevice::of(shown, shared)));
                    added.map_err(|e| Failure::new(ExitStatus::SameVdev, e))?;
                }
                continue;
            }
            let Some(image) = image else { continue };
            let added = store.add(Box::new(BlockDevice::new(shown, image)));
            added.map_err(|e| Failure::new(ExitStatus::SameVdev, e))?;
        }
        for nic in nics {
            store.add(Box::new(nic)).map_err(|e| Failure::new(ExitStatus::Internal, e))?;
        }

        let mut timers = Timers::default();
        let (memmap, entry, board) = match &prepared.program {
            Program::Kernel(kernel, initrd) => {
                let memmap = Layout::PVH.memmap(config.memory);
                let entry = load_kernel(config, &machine, &memmap, kernel, initrd.as_ref())?;
                (memmap, Some(entry), None)
            }
            Program::Firmware { bios, vgabios } => {
                let hvm = config.hvm.clone().unwrap_or_default();
                let board = BoardConfig {
                    memory: config.memory,
                    vcpus: config.vcpus,
                    uuid: *uuid.as_bytes(),
                    firmware: bios,
                    vgabios: Some(vgabios),
                    acpi: hvm.acpi,
                    apic: hvm.apic,
                    localtime: hvm.localtime,
                    boot: firmware::boot_order(&hvm.boot),
                    hpet: hvm.hpet,
                };
                let board = Board::build(&machine, &board, drives, &mut timers)?;
                if let Some(display) = display {
                    display.connect(Box::new(board.screen()), Arc::new(board.input()));
                }
                let serial = Arc::clone(&board);
                console.set_serial(move |bytes| serial.type_in(bytes));
                (Layout::PC.memmap(config.memory), None, Some(board))
            }
        };
        drop(prepared);
        give_back_freed_memory();

        let facts = DomainFacts {
            domid,
            vcpus: config.vcpus,
            ram_pages: config.memory / PAGE_SIZE as u64,
            memmap,
            uuid: *uuid.as_bytes(),
            cmdline: config.cmdline.clone(),
        };
        let hypercalls = Arc::new(Hypercalls::new(
            facts,
            Arc::clone(&handle.grants),
            events,
            params,
            Arc::clone(&machine) as _,
        ));

        let store = Rc::new(RefCell::new(store));
        let requests = Rc::new(Requests::default());
        let escape = Rc::clone(&requests);
        console.set_on_escape(move || escape.interrupt());
        let console = Rc::new(RefCell::new(console));
        let control = Control::new(
            Arc::clone(machine.stop_signal()),
            Rc::clone(signals),
            Rc::clone(&requests),
            Rc::clone(&store),
            config.shutdown_timeout,
            board.clone(),
        )
        .map_err(fail("no timer"))?;
        let control = Rc::new(RefCell::new(control));
        let mut hotplug =
            Hotplug::new(Rc::clone(&store), Rc::clone(shared_folder)).map_err(fail("no timer"))?;
        if let Some(board) = &board {
            hotplug.set_ide(board.ide());
        }
        let hotplug = Rc::new(RefCell::new(hotplug));
        let handler = Handler {
            domid,
            store: Rc::clone(&store),
            requests,
            hypercalls: Arc::clone(&hypercalls),
            hotplug: Rc::clone(&hotplug),
            machine: Arc::clone(&machine),
            groups,
            display: display.cloned(),
            viewers,
        };
        let api =
            ApiServer::bind(&folder.api_socket(), handler).map_err(fail("the API cannot be started"))?;
        let api = Rc::new(RefCell::new(api));

        let mut manager =
            EventManager::new().map_err(|e| Failure::new(ExitStatus::HostError, format!("{e:?}")))?;
        let subscribers: [Subscriber; 6] = [
            Rc::new(RefCell::new(timers)) as _,
            Rc::clone(&control) as _,
            Rc::clone(&store) as _,
            Rc::clone(&console) as _,
            Rc::clone(&hotplug) as _,
            Rc::clone(&api) as _,
        ];
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        if let Some(events) = machine.line_events() {
            manager.add_subscriber(Rc::new(RefCell::new(events)));
        }
        let vcpus = machine.start(entry.as_ref(), &hypercalls)?;
        tracing::info!(%domid, name = folder.name(), "the guest runs");
        Ok(Self {
            machine,
            vcpus,
            manager,
            control,
            store,
            console,
            hotplug,
            api,
            board,
            display: display.cloned(),
        })
    }

    /// The main loop, then the end. How it ended, and the console's last lines.
    fn run(mut self) -> (Ending, Vec<String>) {
        let ending = loop {
            if let Some(ending) = self.control.borrow_mut().check() {
                break ending;
            }
            if let Err(error) = self.manager.run() {
                tracing::error!(?error, "the main loop cannot go on: stopping the guest");
                break Ending::Forced;
            }
        };
        self.machine.stop_vcpus();
        for vcpu in self.vcpus.drain(..) {
            let _ = vcpu.join();
        }
        if let Some(display) = &self.display {
            display.disconnect();
        }
        if let Some(board) = &self.board {
            board.finish();
        }
        self.hotplug.borrow_mut().finish(DRAIN);
        self.api.borrow_mut().finish();
        self.drain();
        let mut console = self.console.borrow_mut();
        console.finish();
        let last_lines = console.log().last_lines(CRASH_LINES);
        drop(console);
        (ending, last_lines)
    }

    /// Ends the backends; writes that the guest saw completed are with the host's kernel by then.
    fn drain(&self) {
        let mut store = self.store.borrow_mut();
        store.stop_all();
        let end = Instant::now() + DRAIN;
        while !store.all_stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("a disk or interface of the guest does not finish its I/O: going on without");
                break;
            }
            wait_readable(store.kick(), left);
        }
    }
}

/// Waits until an event comes, or the time is over.
pub(super) fn wait_readable(event: &EventFd, limit: Duration) {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, millis) };
}

/// Writes the tables and the kernel into guest RAM.
fn load_kernel(
    config: &DomainConfig,
    machine: &Machine,
    memmap: &[MemmapEntry],
    kernel: &Kernel,
    initrd: Option<&Initrd>,
) -> Result<BootEntry, Failure> {
    let tables = DomainTopology {
        ports: acpi::PowerPorts {
            sleep_control: machine::SLEEP_CONTROL_PORT,
            sleep_status: machine::SLEEP_STATUS_PORT,
            reset: machine::RESET_PORT,
        },
        ..DomainTopology::new(config.vcpus)
    };
    let tables = tables.pvh_tables(ACPI_ADDRESS).map_err(|e| Failure::new(ExitStatus::Usage, e))?;
    machine::write_acpi(machine.ram(), &tables.bytes)?;
    Ok(kernel.load_into(machine.ram(), &load_request(config, memmap, initrd))?)
}

/// The unpacked kernel was tens of MiB; what the allocator keeps of that would be ours for good.
fn give_back_freed_memory() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// A uuid that stays the same for a named domain.
fn uuid(name: &str, _domid: DomId) -> uuid::Uuid {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, format!("xvmm:{name}").as_bytes())
}

/// The nodes that a toolstack writes before a guest starts (xen docs/misc/xenstore-paths.pandoc).
fn populate(
    store: &mut StoreService,
    config: &DomainConfig,
    folder: &DomainDir,
    rings: &[(u64, u32); 2],
    tty: Option<&str>,
    uuid: &uuid::Uuid,
) {
    let kib = (config.memory >> 10).to_string();
    store.make_directory("", false);
    for own in ["control", "data", "device", "drivers", "error", "feature", "attr"] {
        store.make_directory(own, own != "control");
    }
    // Written by the guest in answer to us.
    for own in [
        "control/shutdown",
        "control/sysrq",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
    ] {
        store.make_directory(own, true);
    }
    let vm = format!("/vm/{uuid}");
    let mut nodes: Vec<(String, String)> = [
        ("vm", vm.as_str()),
        ("name", folder.name()),
        ("memory/static-max", &kib),
        ("memory/target", &kib),
        ("memory/videoram", "0"),
        ("control/platform-feature-xs_reset_watches", "1"),
        ("console/type", "xenconsoled"),
        ("console/limit", "1048576"),
        ("console/output", "pty"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    nodes.push(("domid".into(), folder.domid().to_string()));
    for (name, (gfn, port)) in ["store", "console"].into_iter().zip(rings) {
        nodes.push((format!("{name}/ring-ref"), gfn.to_string()));
        nodes.push((format!("{name}/port"), port.to_string()));
    }
    nodes.push(("console/tty".into(), tty.unwrap_or_default().into()));
    for cpu in 0..config.vcpus {
        nodes.push((format!("cpu/{cpu}/availability"), "online".into()));
    }
    for (key, value) in nodes {
        store.write(&key, &value);
    }
    let _ = store.store().write(&format!("{vm}/name"), folder.name());
    let _ = store.store().write(&format!("{vm}/uuid"), uuid.to_string());
}

/// What the API can ask of a running domain.
struct Handler {
    domid: DomId,
    store: Rc<RefCell<StoreService>>,
    requests: Rc<Requests>,
    hypercalls: Arc<Hypercalls>,
    hotplug: Rc<RefCell<Hotplug>>,
    machine: Arc<Machine>,
    groups: LimitGroups,
    display: Option<Arc<Display>>,
    /// Where VNC viewers connect.
    viewers: Option<String>,
}

impl ApiHandler for Handler {
    fn info(&self) -> serde_json::Value {
        let (store, hotplug) = (self.store.borrow(), self.hotplug.borrow());
        let config = hotplug.config();
        let devices: Vec<_> = store
            .xenbus()
            .devices()
            .map(|status| {
                let counters = status.device.counters();
                let counters: serde_json::Map<_, _> =
                    counters.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
                serde_json::json!({
                    "class": status.device.class(),
                    "index": status.device.index(),
                    "connected": status.connected,
                    "state": status.state.name(),
                    "detaching": status.removing,
                    "counters": counters,
                })
            })
            .collect();
        serde_json::json!({
            "domid": self.domid.0,
            "config": config,
            "devices": devices,
            "hypercalls": self.hypercalls.counters(),
            "vnc": self.viewers,
            "drives": discs::describe(&hotplug, &config),
            "exits": self.machine.exit_counters(),
        })
    }

    fn display(&self) -> Option<Arc<Display>> {
        self.display.clone()
    }

    fn shutdown(&mut self, what: Shutdown) -> Result<(), String> {
        self.requests.shutdown(what.word(), what.timeout);
        Ok(())
    }

    fn destroy(&mut self) -> Result<(), String> {
        self.requests.destroy();
        Ok(())
    }

    fn change_devices(&mut self, change: DeviceChange, reply: Reply) {
        change::change(&mut self.hotplug.borrow_mut(), &self.groups, change, reply);
    }
}
