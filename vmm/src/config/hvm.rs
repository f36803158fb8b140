//! A PC: what a guest with firmware is made of, beside what every guest has.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::vdev::VdevKind;
use super::{ConfigError, DiskSpec, DomainConfig, Problem, Vdev, Viridian};

/// The firmware of Debian's package seabios.
pub const DEFAULT_BIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// The screen's firmware of the same package.
pub const DEFAULT_VGABIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// Which processor the PC has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// The host's, with all that KVM can give of it.
    #[default]
    Host,
    /// One of the years of Windows XP: family 6, and nothing in CPUID that came after 2008.
    Xp,
}

impl std::str::FromStr for CpuModel {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        match name {
            "host" => Ok(CpuModel::Host),
            "xp" => Ok(CpuModel::Xp),
            _ => {
                let problem = Problem::Syntax("no such processor; write host or xp".into());
                Err(ConfigError { flag: "--cpu", value: name.to_owned(), problem })
            }
        }
    }
}

/// The PC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HvmConfig {
    /// The firmware's image.
    pub bios: PathBuf,
    /// With ACPI: power management and a power button.
    pub acpi: bool,
    /// With APICs.
    pub apic: bool,
    /// With an event timer (HPET).
    pub hpet: bool,
    /// The screen's firmware.
    pub vgabios: PathBuf,
    /// The clock shows the host's time zone, as Windows likes it.
    pub localtime: bool,
    /// What is booted from: letters c (disk), d (CD-ROM), n (network), in this order.
    pub boot: String,
    /// The processor.
    pub cpu: CpuModel,
    /// What the guest finds of Hyper-V.
    pub viridian: Viridian,
}

/// APIC ids are bytes, and 255 is for all.
const MAX_PC_VCPUS: u32 = 255;

impl Default for HvmConfig {
    fn default() -> Self {
        Self {
            bios: DEFAULT_BIOS.into(),
            acpi: true,
            apic: true,
            hpet: false,
            vgabios: DEFAULT_VGABIOS.into(),
            localtime: false,
            boot: "cdn".into(),
            cpu: CpuModel::default(),
            viridian: Viridian::default(),
        }
    }
}

impl HvmConfig {
    /// Names disks without a name `hda` to `hdd`, as long as there are such names, and then from `xvde` on.
    pub fn name_disks(specs: &mut [DiskSpec]) {
        let used: Vec<Vdev> = specs.iter().filter_map(|spec| spec.vdev).collect();
        let drives = ["hda", "hdb", "hdc", "hdd"].iter().filter_map(|name| name.parse().ok());
        let others = (IDE_DRIVES..).map_while(Vdev::xvd);
        let mut free = drives
            .chain(others)
            .filter(|name| used.iter().all(|other| !other.overlaps(*name) && !is_one_disk(*other, *name)));
        for spec in specs.iter_mut().filter(|spec| spec.vdev.is_none()) {
            spec.vdev = free.next();
        }
    }

    /// Checks what goes together.
    pub(super) fn check(&self, config: &DomainConfig) -> Result<(), ConfigError> {
        let fail = |flag, value: &str, problem: &str| {
            Err(ConfigError { flag, value: value.to_owned(), problem: Problem::Syntax(problem.to_owned()) })
        };
        if !config.kernel.as_os_str().is_empty() {
            let kernel = config.kernel.to_string_lossy();
            return fail(
                "--kernel",
                &kernel,
                "an HVM guest starts its firmware; leave out --kernel or --hvm",
            );
        }
        let letters = self.boot.chars();
        let repeated =
            letters.clone().enumerate().any(|(n, c)| self.boot.chars().take(n).any(|other| other == c));
        if self.boot.is_empty() || repeated || !letters.clone().all(|c| "cdn".contains(c)) {
            return fail(
                "--boot",
                &self.boot,
                "not an order of c (disk), d (CD-ROM) and n (network); write dc, say",
            );
        }
        for (index, disk) in config.disks.iter().enumerate() {
            let same = config.disks.iter().skip(index + 1).find(|other| is_one_disk(disk.vdev, other.vdev));
            if let Some(other) = same.filter(|other| !disk.cdrom && !other.cdrom) {
                let problem = format!(
                    "the guest's drivers show {} under the same name; give one of them another one",
                    disk.vdev
                );
                return fail("--disk", &other.vdev.to_string(), &problem);
            }
        }
        if config.vcpus > MAX_PC_VCPUS {
            let why = "a PC has at most 255, since its APICs have ids of a byte; write at most 255, or leave out --hvm";
            return fail("--vcpus", &config.vcpus.to_string(), why);
        }
        if !self.apic && config.vcpus > 1 {
            return fail("--apic", "off", "without APICs there is one vCPU; leave out --vcpus or --apic off");
        }
        if !self.apic && !self.viridian.is_off() {
            let value = self.viridian.to_string();
            return fail("--viridian", &value, "it needs local APICs; leave out --viridian or --apic off");
        }
        Ok(())
    }
}

/// Drives of the IDE controller.
const IDE_DRIVES: u32 = 4;

/// Whether the names are an IDE drive and the disk that its PV half is in the guest: `hda` becomes `xvda`.
fn is_one_disk(one: Vdev, other: Vdev) -> bool {
    let kinds = [one.kind(), other.kind()];
    kinds.contains(&VdevKind::Hd) && kinds.contains(&VdevKind::Xvd) && one.disk() == other.disk()
}

/// What `--acpi` and `--apic` take.
pub(crate) fn parse_switch(flag: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "on" | "1" => Ok(true),
        "off" | "0" => Ok(false),
        _ => {
            let problem = Problem::Syntax("neither on nor off; write one of them".into());
            Err(ConfigError { flag, value: value.to_owned(), problem })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn disks_without_a_name_are_ide_drives_first() {
        let names = |specs: &[&str]| {
            let mut specs: Vec<_> = specs.iter().map(|spec| DiskSpec::parse(spec).unwrap()).collect();
            HvmConfig::name_disks(&mut specs);
            let disks = DiskSpec::assign(specs).unwrap();
            disks.iter().map(|disk| disk.vdev.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&["a", "vdev=hdc,devtype=cdrom,target=c"]), "hda hdc");
        assert_eq!(names(&["a", "b,,hda", "c,,xvdb", "d", "e", "f"]), "hdc hda xvdb hdd xvde xvdf");
    }

    #[test]
    fn what_does_not_go_together_is_told() {
        let guest = |hvm, vcpus, kernel: &str| {
            let config =
                DomainConfig { hvm: Some(hvm), vcpus, kernel: kernel.into(), ..DomainConfig::default() };
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(guest(HvmConfig::default(), 4, ""), Ok(()));
        assert_eq!(guest(HvmConfig::default(), 255, ""), Ok(()));
        assert!(
            guest(HvmConfig::default(), 256, "")
                .unwrap_err()
                .starts_with("--vcpus 256: a PC has at most 255")
        );
        let apic = HvmConfig { apic: false, ..HvmConfig::default() };
        assert_eq!(guest(apic.clone(), 1, ""), Ok(()));
        assert!(guest(apic, 2, "").unwrap_err().starts_with("--apic off: without APICs there is one vCPU"));
        assert!(
            guest(HvmConfig::default(), 1, "/k").unwrap_err().starts_with("--kernel /k: an HVM guest starts")
        );
    }

    #[test]
    fn two_disks_that_drivers_call_alike_are_told() {
        let check = |specs: &[&str]| {
            let specs = specs.iter().map(|spec| DiskSpec::parse(spec).unwrap()).collect();
            let disks = DiskSpec::assign(specs).unwrap();
            let config = DomainConfig { hvm: Some(HvmConfig::default()), disks, ..DomainConfig::default() };
            config.validate().map_err(|error| error.to_string())
        };
        let expected =
            "--disk xvda: the guest's drivers show hda under the same name; give one of them another one";
        assert_eq!(check(&["/a,,hda", "/b,,xvda"]).unwrap_err(), expected);
        assert!(check(&["/a,,hdb", "/b,,xvda"]).is_ok() && check(&["/a,,hdc,cdrom", "/b,,xvdc"]).is_ok());
    }

    #[test]
    fn a_switch_is_on_or_off() {
        assert_eq!(parse_switch("--acpi", "on"), Ok(true));
        assert_eq!(parse_switch("--acpi", "0"), Ok(false));
        assert!(parse_switch("--acpi", "maybe").is_err());
    }
}
