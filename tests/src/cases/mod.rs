//! The tests: one function each, and the table of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::guest::{self, Spec};
use crate::packages::run;
use crate::{Result, check, fail};

pub mod boot;
mod cost;
mod disk;
mod hotplug;
pub mod isolation;
mod life;
pub mod net;
pub mod network;
mod pc;
mod programs;
mod pvhvm;
mod refusals;
mod storage;
mod xenstore;

/// The host that a test needs.
#[derive(Clone, Copy, PartialEq)]
pub enum HostKind {
    /// A KVM that supports Xen guests.
    Usual,
    /// A KVM built without that support: always nested, with an older kernel.
    WithoutXen,
    /// With device mapper, LVM and iSCSI, whose devices are everybody's: always nested.
    Storage,
    /// With the programs of a host's networks: always nested.
    Network,
}

/// The guest's kernel (a label) and its number of vCPUs.
#[derive(Clone, Copy, PartialEq)]
pub struct Config {
    /// Label of the kernel.
    pub kernel: &'static str,
    /// Number of vCPUs.
    pub vcpus: usize,
}

const SMALL: Config = Config { kernel: "6.12", vcpus: 1 };
const LARGE: Config = Config { kernel: "6.12", vcpus: 4 };
const OLD: Config = Config { kernel: "6.1", vcpus: 1 };
const OLD_LARGE: Config = Config { kernel: "6.1", vcpus: 4 };

/// A test of the table.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// Its body.
    pub run: fn(&Bench) -> Result<()>,
    /// The configuration of the default level.
    pub config: Config,
    /// With `--full`, it runs in all configurations.
    pub matrix: bool,
    /// The host it needs.
    pub host: HostKind,
    /// It is not part of the default level.
    pub full_only: bool,
    /// It must have the host for itself, because it measures.
    pub alone: bool,
    /// After this time it counts as hung.
    pub limit: Duration,
}

impl Test {
    const fn new(name: &'static str, config: Config, run: fn(&Bench) -> Result<()>) -> Test {
        let limit = Duration::from_secs(1500);
        Test { name, run, config, matrix: true, host: HostKind::Usual, full_only: false, alone: false, limit }
    }

    const fn single(mut self) -> Test {
        self.matrix = false;
        self
    }

    const fn full_only(mut self) -> Test {
        self.full_only = true;
        self
    }

    const fn alone(mut self) -> Test {
        self.alone = true;
        self
    }

    const fn limit(mut self, seconds: u64) -> Test {
        self.limit = Duration::from_secs(seconds);
        self
    }

    const fn on(mut self, host: HostKind) -> Test {
        self.host = host;
        self
    }
}

/// Every test there is.
const TESTS: &[Test] = &[
    Test::new("boot", SMALL, boot::boot),
    Test::new("disk", LARGE, disk::disk),
    Test::new("disks", OLD, disk::disks),
    Test::new("file-system", SMALL, disk::file_system),
    Test::new("resize", SMALL, disk::resize).single(),
    Test::new("hotplug", LARGE, hotplug::hotplug).limit(3000),
    Test::new("media", OLD, hotplug::media),
    Test::new("net", OLD_LARGE, net::net).limit(3000),
    Test::new("three-guests", SMALL, net::three_guests),
    Test::new("reboot", SMALL, life::reboot),
    Test::new("panic", OLD, life::panic),
    Test::new("signals", SMALL, life::signals),
    Test::new("shutdown-timeout", SMALL, life::shutdown_timeout).single(),
    Test::new("killed", SMALL, life::killed).single(),
    Test::new("reload", LARGE, life::reload).limit(3000),
    Test::new("xenstore", SMALL, xenstore::xenstore),
    Test::new("foreign-domains", SMALL, isolation::foreign_domains).single(),
    Test::new("many-vcpus", SMALL, boot::many_vcpus).single().limit(3000),
    Test::new("much-memory", SMALL, boot::much_memory).single(),
    Test::new("eight-interfaces", SMALL, boot::eight_interfaces).single(),
    Test::new("grub", SMALL, boot::grub).single(),
    Test::new("pc-grub", SMALL, pc::grub).single(),
    Test::new("pc-linux", SMALL, pc::linux::linux).single().limit(6000),
    Test::new("pc-reboots", SMALL, pc::linux::reboots).single().full_only().limit(6000),
    Test::new("pc-tables", SMALL, pc::tables::tables).single(),
    Test::new("pc-processor", SMALL, programs::processor).single(),
    Test::new("pc-viridian", SMALL, programs::viridian).single(),
    Test::new("pc-discs", SMALL, programs::discs).single(),
    Test::new("pc-ticks", SMALL, programs::ticks).single(),
    Test::new("pc-vga", SMALL, pc::screen::screen).single(),
    Test::new("pc-idle", SMALL, programs::idle).single(),
    Test::new("pc-pvhvm", SMALL, pvhvm::pvhvm).limit(3000),
    Test::new("pc-pvhvm-intx", OLD, pvhvm::intx).limit(3000),
    Test::new("pc-pvhvm-never", SMALL, pvhvm::not_unplugged).full_only(),
    Test::new("again-and-again", SMALL, boot::again_and_again).full_only().limit(3000),
    Test::new("formats", SMALL, boot::formats).single().full_only().limit(3000),
    Test::new("refusals", SMALL, refusals::refusals).single(),
    Test::new("without-xen", SMALL, refusals::without_xen).single().on(HostKind::WithoutXen),
    Test::new("blk-files", LARGE, storage::backends::files).on(HostKind::Storage).limit(3000),
    Test::new("blk-volumes", OLD_LARGE, storage::backends::volumes).on(HostKind::Storage).limit(3000),
    Test::new("blk-features", LARGE, storage::features::features).on(HostKind::Storage).limit(3000),
    Test::new("blk-kills", SMALL, storage::kills::kills).single().on(HostKind::Storage).limit(3000),
    Test::new("blk-errors", SMALL, storage::faults::errors).single().on(HostKind::Storage),
    Test::new("blk-full", SMALL, storage::faults::full).single().on(HostKind::Storage),
    Test::new("blk-full-pause", OLD, storage::faults::full_pause).single().on(HostKind::Storage),
    Test::new("blk-iscsi", OLD, storage::iscsi::iscsi).single().on(HostKind::Storage),
    Test::new("blk-hotplug", SMALL, storage::hotplug::hotplug).on(HostKind::Storage),
    Test::new("net-traffic", LARGE, network::traffic::traffic).on(HostKind::Network).limit(3000),
    Test::new("net-offloads", SMALL, network::offloads::offloads).on(HostKind::Network),
    Test::new("net-filters", LARGE, network::vifs::filters).on(HostKind::Network),
    Test::new("net-hotplug", OLD, network::vifs::hotplug).on(HostKind::Network),
    Test::new("net-vlans", SMALL, network::vifs::vlans).single().on(HostKind::Network),
    Test::new("net-private", SMALL, network::host::private).single().on(HostKind::Network),
    Test::new("net-shared", OLD, network::host::shared).single().on(HostKind::Network),
    Test::new("net-xdp", LARGE, network::xdp::xdp).single().on(HostKind::Network),
    Test::new("counters", LARGE, cost::counters).alone(),
    Test::new("sleeping", LARGE, cost::sleeping).alone(),
    Test::new("memory", SMALL, cost::memory).single().alone(),
];

/// A test with one configuration.
#[derive(Clone, Copy)]
pub struct Case {
    /// The test.
    pub test: Test,
    /// The configuration.
    pub config: Config,
    /// It belongs to `--full` only.
    pub full: bool,
}

impl Case {
    /// `boot@6.12x4`: the test's name, the kernel and the number of vCPUs; `+` marks the full level.
    pub fn id(&self) -> String {
        let mark = if self.full { "+" } else { "" };
        format!("{}@{}x{}{mark}", self.test.name, self.config.kernel, self.config.vcpus)
    }

    /// True if the pattern names this case: a test's name, an id, or the start of one and a `*`.
    pub fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(start) => self.id().starts_with(start),
            None => pattern == self.test.name || pattern == self.id(),
        }
    }
}

/// The cases of the default level, or of the full one.
pub fn all(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for test in TESTS.iter().filter(|test| full || !test.full_only) {
        let configs: &[Config] = match test.matrix && full {
            true => &[SMALL, LARGE, OLD, OLD_LARGE],
            false => &[test.config],
        };
        cases.extend(configs.iter().map(|config| Case { test: *test, config: *config, full }));
    }
    cases
}

/// The case with this id.
pub fn find(id: &str) -> Result<Case> {
    match all(id.ends_with('+')).into_iter().find(|case| case.id() == id) {
        Some(case) => Ok(case),
        None => fail!("there is no test {id}"),
    }
}

/// What a test works with: its configuration and a folder of its own.
pub struct Bench {
    /// The configuration.
    pub config: Config,
    /// The long form of the test is wanted.
    pub full: bool,
    /// An empty folder, removed after the test.
    pub folder: PathBuf,
}

impl Bench {
    /// A bench in `folder`.
    pub fn new(case: &Case, folder: PathBuf) -> Result<Bench> {
        fs::create_dir_all(folder.join("run"))?;
        Ok(Bench { config: case.config, full: case.full, folder })
    }

    /// A guest with the test's kernel and vCPUs.
    pub fn guest(&self) -> Spec {
        Spec::new(&self.folder, self.config.kernel, self.config.vcpus)
    }

    /// Makes a bridge with an address, for instance `10.0.0.1/24`.
    pub fn bridge(&self, name: &str, address: &str) -> Result<()> {
        run(Command::new("brctl").args(["addbr", name]))?;
        run(Command::new("ip").args(["addr", "add", address, "dev", name]))?;
        run(Command::new("ip").args(["link", "set", name, "up"]))?;
        Ok(())
    }

    /// Makes an image file full of zeros.
    pub fn disk(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.folder.join(name);
        File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }

    /// Runs a subcommand of xvmm, which must succeed, and returns what it prints.
    pub fn xvmm(&self, words: &[&str]) -> Result<String> {
        run(guest::xvmm(&self.folder).args(words))
    }

    /// The folder in which running domains have theirs.
    pub fn run_folder(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Fails if a domain left anything behind: an interface or a folder.
    pub fn nothing_is_left(&self) -> Result<()> {
        let interfaces = interfaces()?;
        check!(interfaces.is_empty(), "interfaces are left: {}", interfaces.join(" "));
        let domains = self.domains()?;
        check!(domains.is_empty(), "folders are left in the run folder: {domains:?}");
        Ok(())
    }

    /// The ids that have a folder.
    pub fn domains(&self) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.run_folder())? {
            if let Ok(id) = entry?.file_name().to_string_lossy().parse() {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// The interfaces of guests that exist now.
pub fn interfaces() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("vif") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The sha256 sum of the first `length` bytes of a file on this host.
pub fn checksum(path: &Path, length: u64) -> Result<String> {
    let output =
        run(Command::new("sh").args(["-c", &format!("head -c {length} '{}' | sha256sum", path.display())]))?;
    Ok(output.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A program of the prepared tools, with its libraries.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(tool_file("bin").join(name));
    command.env("LD_LIBRARY_PATH", tool_file("lib"));
    command
}

/// A file of the prepared tools.
pub fn tool_file(name: &str) -> PathBuf {
    guest::tools().join(name)
}

/// A program that is an ELF file, but no kernel.
pub fn a_static_program() -> PathBuf {
    PathBuf::from("/bin/busybox")
}
