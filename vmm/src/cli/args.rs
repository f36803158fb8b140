//! The grammar of the command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::network_args::NetworkArgs;
use crate::exit::ExitStatus;

const EXAMPLES: &str = "\
Examples:
  xvmm --kernel vmlinuz-xen --disk img --net xenbr0
  xvmm --kernel /boot/vmlinuz --initrd /boot/initrd.img --cmdline 'root=/dev/xvda1 console=hvc0' \\
       --name web --memory 1G --vcpus 2 --disk web.img --disk data.img,ro --net xenbr0,mac=00:16:3e:00:00:01
  xvmm list
  xvmm console web            (Ctrl-] leaves it)
  xvmm shutdown --wait web

--disk SPEC is what xl's disk= takes, TARGET[,FORMAT[,VDEV[,ACCESS]]] and keys, and a few keys more:
  web.img                                    raw, writable, the first free one of xvda, xvdb, ...
  /dev/vg0/web,raw,xvda,ro                   a block device; formats: raw, qcow2, vhd; access: ro, rw, w!
  web.img,format=qcow2,cache=writeback       cache=none|writeback|unsafe, queues=N, iops=N, bps=N[K|M|G], group=NAME,
                                             enospc=error|pause, no-discard
  phy:/dev/vg0/web,xvda,w                    the prefixes of xend: phy:, file:, tap:qcow2:, ...
  /srv/install.iso,,hdc,cdrom                a CD-ROM
  script=block-iscsi,target=iqn=NAME,portal=ADDRESS[,multipath=y][,lun=N][,chap=FILE]
The format is raw unless it is stated. A name without a slash is looked for in the images folder, then in the
current directory. target= comes last and takes all the rest; otherwise a path with a comma in it goes into double
quotes: --disk '\"a,b.img\",ro'.
--net SPEC is what xl's vif= takes, and a few keys more; without a mac, a domain with a name always gets the same one:
  xenbr0                                     a port of the bridge xenbr0; mac=, vifname=, mtu=, devid=, queues=N, vlan=N
  xenbr0,ip=192.0.2.7,mac-filter             the guest may use this IP address, and its own MAC address alone
  xenbr0,rate=10Mb/s@50ms                    a limit of what the guest sends
  script=vif-route,ip=192.0.2.7,gatewaydev=eth0     no bridge, but a route; vif-nat; /path/to/a/script
  fd=5                                       a tap that the caller has opened
SIGTERM and SIGINT ask the guest to shut down; the second one stops it.

The variables XVMM_RUN_DIR and XVMM_IMAGES_DIR stand for --run-dir and --images-dir.";

const CD_INSERT_EXAMPLES: &str = "\
Examples:
  xvmm cd-insert winxp /srv/sp3.iso          the guest has one drive
  xvmm cd-insert web xvdc /srv/debian.iso
  xvmm cd-insert --force winxp sp3.iso       whether or not the guest has locked the drive";

const CD_EJECT_EXAMPLES: &str = "\
Examples:
  xvmm cd-eject winxp                        the guest has one drive
  xvmm cd-eject --timeout 60 web xvdc";

/// Runs one Xen guest as one process on plain Linux/KVM.
#[derive(Debug, Parser)]
#[command(name = "xvmm", version, flatten_help = true, max_term_width = 110)]
#[command(override_usage = "xvmm [run] --kernel FILE [OPTIONS]\n       xvmm COMMAND [OPTIONS]")]
#[command(after_help = format!("{EXAMPLES}\n\nExit status:\n{}", ExitStatus::table()))]
pub(super) struct Cli {
    /// Say more on stderr: once what happens, twice and more for developers
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,

    /// The folder of running domains [default: /run/xvmm]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) run_dir: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a guest until it switches itself off (the default command)
    Run(Box<RunArgs>),
    /// List the running domains
    List,
    /// Attach to the console of a domain; Ctrl-] leaves it
    Console(DomainArg),
    /// Describe a domain, as JSON
    Info(DomainArg),
    /// Ask a guest to switch itself off
    Shutdown(ShutdownArgs),
    /// Ask a guest to reboot
    Reboot(RebootArgs),
    /// Stop a guest at once
    Destroy(DomainArg),
    /// Give a running guest one more disk; prints its name
    BlockAttach(BlockAttachArgs),
    /// Take a disk from a running guest
    BlockDetach(BlockDetachArgs),
    /// List the disks of a guest
    BlockList(BlockListArgs),
    /// Put another medium into a CD-ROM drive of a running guest
    #[command(override_usage = "xvmm cd-insert [OPTIONS] <DOMAIN> [VDEV] <FILE>", after_help = CD_INSERT_EXAMPLES)]
    CdInsert(CdInsertArgs),
    /// Take the medium out of a CD-ROM drive of a running guest
    #[command(after_help = CD_EJECT_EXAMPLES)]
    CdEject(CdEjectArgs),
    /// Make and take away networks of the host: xenbr0 with a network card in it, virbr0 of the host alone
    Network(NetworkArgs),
    /// Give a running guest one more network interface; prints its number
    NetworkAttach(NetworkAttachArgs),
    /// Take a network interface from a running guest
    NetworkDetach(NetworkDetachArgs),
    /// List the network interfaces of a guest
    NetworkList(BlockListArgs),
    /// Write the screen of a guest to a PNG file
    Screenshot(ScreenshotArgs),
    /// Press keys on the keyboard of a guest
    Sendkey(SendkeyArgs),
    /// Show the screen of a guest with vncviewer, or tell where viewers connect
    Vncviewer(DomainArg),
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The kernel: a bzImage or an ELF image with a PVH entry
    #[arg(long, value_name = "FILE", required_unless_present = "hvm")]
    pub(super) kernel: Option<PathBuf>,
    /// A PC that starts its firmware, in place of a kernel
    #[arg(long)]
    pub(super) hvm: bool,
    /// The PC's firmware [default: SeaBIOS of the package seabios]
    #[arg(long, value_name = "FILE", requires = "hvm")]
    pub(super) bios: Option<PathBuf>,
    /// The firmware of the PC's screen [default: that of the package seabios]
    #[arg(long, value_name = "FILE", requires = "hvm")]
    pub(super) vgabios: Option<PathBuf>,
    /// What the PC boots from, in this order: c disk, d CD-ROM, n network
    #[arg(long, value_name = "ORDER", default_value = "cdn", requires = "hvm")]
    pub(super) boot: String,
    /// What is in the PC's CD-ROM drive, as hdc; '' for an empty drive
    #[arg(long, value_name = "FILE", requires = "hvm")]
    pub(super) cdrom: Option<OsString>,
    /// The PC's clock shows the host's time zone
    #[arg(long, requires = "hvm")]
    pub(super) localtime: bool,
    /// The PC's power management: on or off
    #[arg(long, value_name = "SWITCH", default_value = "on", requires = "hvm")]
    pub(super) acpi: String,
    /// The PC's APICs: on or off
    #[arg(long, value_name = "SWITCH", default_value = "on", requires = "hvm")]
    pub(super) apic: String,
    /// The PC's event timer (HPET): on or off
    #[arg(long, value_name = "SWITCH", default_value = "off", requires = "hvm")]
    pub(super) hpet: String,
    /// The PC's processor: host, or xp for one that Windows XP knows
    #[arg(long, value_name = "MODEL", default_value = "host", requires = "hvm")]
    pub(super) cpu: String,
    /// What the PC has of Hyper-V's interfaces: on, off, or groups as in xl.cfg, such as base,freq,reference_tsc
    #[arg(long, value_name = "GROUPS", default_value = "off", requires = "hvm")]
    pub(super) viridian: String,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(super) cmdline: String,
    /// Memory of the guest, in MiB or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M", allow_hyphen_values = true)]
    pub(super) memory: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "1", allow_hyphen_values = true)]
    pub(super) vcpus: String,
    /// Name of the domain, unique among those that run
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub(super) name: Option<String>,
    /// A disk: FILE[,FORMAT[,VDEV[,ACCESS]]][,KEY=VALUE..], as in xl.cfg; may be given several times
    #[arg(long, value_name = "SPEC")]
    pub(super) disk: Vec<String>,
    /// A network interface: BRIDGE[,mac=..][,ip=..][,KEY=VALUE..], as in xl.cfg; may be given several times
    #[arg(long, value_name = "SPEC")]
    pub(super) net: Vec<String>,
    /// Where the console goes: tty, pty, file=PATH or null
    #[arg(long, value_name = "TARGET", default_value = "tty")]
    pub(super) console: String,
    /// What happens when the guest reboots: restart or destroy
    #[arg(long, value_name = "ACTION", default_value = "restart")]
    pub(super) on_reboot: String,
    /// The folder of disk images [default: /var/lib/xen/images]
    #[arg(long, value_name = "DIR")]
    pub(super) images_dir: Option<PathBuf>,
    /// How long the guest may take to shut down before it is stopped
    #[arg(long, value_name = "SECONDS", default_value = "60", allow_hyphen_values = true)]
    pub(super) shutdown_timeout: String,
    /// Where VNC viewers connect: HOST:DISPLAY[,unused] or unix:PATH; display 0 is port 5900
    #[arg(long, value_name = "ADDRESS")]
    pub(super) vnc: Option<String>,
    /// A file with the password that VNC viewers need, in its first line
    #[arg(long, value_name = "FILE", requires = "vnc")]
    pub(super) vnc_password_file: Option<PathBuf>,
    /// The layout of the guest's keyboard, for VNC viewers that send characters: en-us, en-gb, de, fr
    #[arg(long, value_name = "NAME", requires = "vnc")]
    pub(super) keymap: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DomainArg {
    /// Name or id
    pub(super) domain: String,
}

#[derive(Debug, Args)]
pub(super) struct ShutdownArgs {
    /// Name or id
    pub(super) domain: String,
    /// Return when the domain has ended
    #[arg(long)]
    pub(super) wait: bool,
    /// How long the guest may take before it is stopped [default: as it was started]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RebootArgs {
    /// Name or id
    pub(super) domain: String,
    /// How long the guest may take before it is stopped [default: as it was started]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct BlockAttachArgs {
    /// Name or id
    pub(super) domain: String,
    /// The disk, as behind --disk; several arguments are put together with commas
    #[arg(required = true, value_name = "SPEC")]
    pub(super) spec: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct BlockDetachArgs {
    /// Name or id
    pub(super) domain: String,
    /// The guest's name for the disk (xvdb), or its number in xenstore (51728)
    pub(super) vdev: String,
    /// Take it away even if the guest does not let go of it in time
    #[arg(long)]
    pub(super) force: bool,
    /// How long the guest may take to let go of it [default: 10, with --force 5]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct BlockListArgs {
    /// Name or id
    pub(super) domain: String,
    /// As JSON, with all settings and counters
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CdInsertArgs {
    /// Name or id
    pub(super) domain: String,
    /// The image; before it, where there are several drives, the guest's name for one, or its number in xenstore
    #[arg(required = true, num_args = 1..=2, value_name = "[VDEV] FILE")]
    pub(super) medium: Vec<PathBuf>,
    /// Take the medium before away even if the guest does not let go of it in time
    #[arg(long)]
    pub(super) force: bool,
    /// How long the guest may take to let go of the medium before [default: 10, with --force 5]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CdEjectArgs {
    /// Name or id
    pub(super) domain: String,
    /// The guest's name for the drive, or its number in xenstore, where there are several
    pub(super) vdev: Option<String>,
    /// Take the medium away even if the guest does not let go of it in time
    #[arg(long)]
    pub(super) force: bool,
    /// How long the guest may take to let go of it [default: 10, with --force 5]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct NetworkAttachArgs {
    /// Name or id
    pub(super) domain: String,
    /// The interface, as behind --net; several arguments are put together with commas
    #[arg(value_name = "SPEC")]
    pub(super) spec: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct NetworkDetachArgs {
    /// Name or id
    pub(super) domain: String,
    /// The number of the interface, its MAC address, or its name on the host
    pub(super) vif: String,
    /// Take it away even if the guest does not let go of it in time
    #[arg(long)]
    pub(super) force: bool,
    /// How long the guest may take to let go of it [default: 10, with --force 5]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ScreenshotArgs {
    /// Name or id
    pub(super) domain: String,
    /// The file; - for the standard output
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct SendkeyArgs {
    /// Name or id
    pub(super) domain: String,
    /// Keys that are held together, with dashes between their names: ctrl-alt-delete, f1, ret; one after the other
    #[arg(required = true, value_name = "KEYS")]
    pub(super) keys: Vec<String>,
    /// How long they are held [default: 100]
    #[arg(long, value_name = "MS")]
    pub(super) hold: Option<u64>,
}

/// Puts `run` where the command is missing: `xvmm --kernel x` is `xvmm run --kernel x`.
pub(super) fn with_default_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const COMMANDS: [&str; 24] = [
        "run",
        "list",
        "console",
        "info",
        "shutdown",
        "reboot",
        "destroy",
        "block-attach",
        "block-detach",
        "block-list",
        "cd-insert",
        "cd-eject",
        "network",
        "network-attach",
        "network-detach",
        "network-list",
        "screenshot",
        "sendkey",
        "vncviewer",
        "help",
        "-h",
        "--help",
        "-V",
        "--version",
    ];
    let mut args: Vec<OsString> = args.into_iter().collect();
    let mut rest = args.iter().skip(1).map(OsString::as_os_str);
    let has_command = loop {
        let Some(arg) = rest.next().map(OsStr::to_string_lossy) else { break false };
        if arg == "--run-dir" {
            // Its value is the next one.
            rest.next();
        } else if !is_global(&arg) {
            break COMMANDS.contains(&&*arg);
        }
    };
    if !has_command {
        args.insert(args.len().min(1), "run".into());
    }
    args
}

fn is_global(arg: &str) -> bool {
    let short =
        arg.strip_prefix('-').is_some_and(|flags| !flags.is_empty() && flags.bytes().all(|b| b == b'v'));
    short || arg == "--verbose" || arg.starts_with("--run-dir=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str) -> String {
        let args = with_default_command(line.split(' ').map(OsString::from));
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn run_is_the_default_command() {
        for (line, expected) in [
            ("xvmm", "xvmm run"),
            ("xvmm --kernel x", "xvmm run --kernel x"),
            ("xvmm --kernel list", "xvmm run --kernel list"),
            ("xvmm run --kernel x", "xvmm run --kernel x"),
            ("xvmm -vv --kernel x", "xvmm run -vv --kernel x"),
            ("xvmm -v list", "xvmm -v list"),
            ("xvmm --run-dir list --kernel x", "xvmm run --run-dir list --kernel x"),
            ("xvmm --run-dir x list", "xvmm --run-dir x list"),
            ("xvmm --run-dir=x list", "xvmm --run-dir=x list"),
            ("xvmm network list", "xvmm network list"),
            ("xvmm block-attach web a.img", "xvmm block-attach web a.img"),
            ("xvmm --version", "xvmm --version"),
            ("xvmm frobnicate", "xvmm run frobnicate"),
        ] {
            assert_eq!(completed(line), expected);
        }
    }

    #[test]
    fn the_grammar_contradicts_itself_nowhere() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
