//! The VMMs that are compared, and how each is started.

use std::path::Path;
use std::process::Command;

use crate::{guest, nested};

/// RAM of the guest in MiB.
pub const MEMORY_MIB: u64 = 256;
/// The bridge that all guests are in.
pub const BRIDGE: &str = "xenbr0";
/// The host's address in it.
pub const HOST_ADDRESS: &str = "10.0.5.1";
/// The tap of the peers that do not make one themselves.
pub const TAP: &str = "benchtap";

const MAC: &str = "00:16:3e:00:05:02";

#[derive(Clone, Copy, PartialEq)]
enum Vmm {
    Xvmm,
    QemuXen,
    Microvm,
}

/// A VMM with one form of the kernel.
#[derive(Clone, Copy, PartialEq)]
pub struct Peer {
    vmm: Vmm,
    elf: bool,
}

/// What is put on a guest after it has booted.
#[derive(Clone, Copy, PartialEq)]
pub enum Load {
    /// It ends at once.
    Nothing,
    /// On its disk.
    Disk,
    /// On its network.
    Net,
}

impl Peer {
    /// Every peer, in the order of a round.
    pub const ALL: [Peer; 6] = [
        Peer { vmm: Vmm::Xvmm, elf: false },
        Peer { vmm: Vmm::QemuXen, elf: false },
        Peer { vmm: Vmm::Microvm, elf: false },
        Peer { vmm: Vmm::Xvmm, elf: true },
        Peer { vmm: Vmm::QemuXen, elf: true },
        Peer { vmm: Vmm::Microvm, elf: true },
    ];

    /// The peer of that name.
    pub fn find(name: &str) -> Option<Peer> {
        Peer::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// A sentence with all names.
    pub fn list() -> String {
        format!("the peers are {}", Peer::ALL.map(|peer| peer.name()).join(", "))
    }

    /// Name, as on the command line.
    pub fn name(self) -> &'static str {
        match (self.vmm, self.elf) {
            (Vmm::Xvmm, false) => "xvmm-bz",
            (Vmm::Xvmm, true) => "xvmm-elf",
            (Vmm::QemuXen, false) => "qemu-xen-bz",
            (Vmm::QemuXen, true) => "qemu-xen-elf",
            (Vmm::Microvm, false) => "microvm-bz",
            (Vmm::Microvm, true) => "microvm-elf",
        }
    }

    /// Disk and network are measured with the bzImage only: the kernel's form makes no difference to them.
    pub fn takes_load(self) -> bool {
        !self.elf
    }

    /// True where the tap must be there before.
    pub fn wants_tap(self) -> bool {
        self.vmm != Vmm::Xvmm
    }

    /// True for the program under test.
    pub fn is_xvmm(self) -> bool {
        self.vmm == Vmm::Xvmm
    }

    /// The command; the guest's console is its stdout.
    pub fn command(self, folder: &Path, disk: &Path, load: Load) -> Command {
        let material = guest::material("bench");
        let kernel = material.join(if self.elf { "vmlinux" } else { "vmlinuz" });
        let initrd = material.join(if load == Load::Nothing { "initrd" } else { "initrd-load" });
        let console = if self.vmm == Vmm::Xvmm { "hvc0" } else { "ttyS0" };
        let words = match load {
            Load::Nothing => "",
            Load::Disk => " bench.disk",
            Load::Net => " bench.net",
        };
        let command_line = format!("console={console} quiet panic=-1 mitigations=off{words}");
        let disk = disk.display();
        if self.vmm == Vmm::Xvmm {
            let mut command = guest::xvmm(folder);
            command
                .arg("--kernel")
                .arg(kernel)
                .arg("--initrd")
                .arg(initrd)
                .args(["--cmdline", &command_line]);
            command.args(["--memory", &format!("{MEMORY_MIB}M"), "--vcpus", "1", "--console", "tty"]);
            command.args(["--disk", &format!("path={disk},vdev=xvda")]);
            command.args(["--net", &format!("bridge={BRIDGE},mac={MAC}")]);
            return command;
        }
        let mut command = nested::unpacked(&material.join("qemu"));
        command.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-monitor", "none", "-serial", "stdio", "-cpu", "host", "-smp", "1"]);
        command.args(["-m", &MEMORY_MIB.to_string()]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", &command_line]);
        command.args(["-drive", &format!("file={disk},if=none,id=disk,format=raw,cache=none")]);
        let tap = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off");
        command.args(["-netdev", &tap]);
        let (machine, accelerator, devices) = match self.vmm {
            Vmm::Microvm => (
                "microvm,pit=off,pic=off,rtc=off",
                "kvm",
                ["virtio-blk-device,drive=disk", "virtio-net-device,netdev=net"],
            ),
            Vmm::Xvmm | Vmm::QemuXen => (
                "q35",
                "kvm,xen-version=0x40011,kernel-irqchip=split",
                ["xen-disk,drive=disk,vdev=xvda", "xen-net-device,netdev=net"],
            ),
        };
        command.args(["-M", machine, "-accel", accelerator]);
        let [disk, net] = devices;
        command.args(["-device", disk, "-device", &format!("{net},mac={MAC}")]);
        command
    }
}
