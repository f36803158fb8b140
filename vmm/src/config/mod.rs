//! `DomainConfig`: the one description of a guest.
//!
//! The command line parses into it, the machine is built from it, and `config.json` in the state folder is
//! its text. Nothing here looks at the host: whether files and bridges are there is asked by
//! [`crate::domain::preflight`].

pub mod disk;
mod disk_grammar;
pub mod error;
mod hvm;
mod iscsi;
pub mod net;
pub mod portal;
mod spec;
pub mod values;
pub mod vdev;
pub mod viridian;
pub mod vnc;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use disk::{Access, CacheMode, DiskConfig, DiskFormat, DiskSource, DiskSpec, IscsiTarget};
pub use error::{ConfigError, Problem};
pub(crate) use hvm::parse_switch;
pub use hvm::{CpuModel, DEFAULT_BIOS, DEFAULT_VGABIOS, HvmConfig};
pub use net::{GuestIp, MAX_DEVID, NetConfig, Rate, VifScript, VifType, nat_router};
pub use netback::MacAddr;
pub use values::{
    ConsoleTarget, DEFAULT_MEMORY, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY, OnReboot, check_name, parse_memory,
    parse_vcpus,
};
pub use vdev::Vdev;
pub use viridian::Viridian;
pub use vnc::{DEFAULT_KEYMAP, FIRST_PORT, VncConfig, VncListen};

/// The folder of state folders.
pub const DEFAULT_RUN_DIR: &str = "/run/xvmm";
/// The folder of disk images, the one that Xen's toolstack uses.
pub const DEFAULT_IMAGES_DIR: &str = "/var/lib/xen/images";
/// How long a guest may take to shut down before it is stopped.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Interfaces of the guest with the most of them; each one costs event channels, threads and descriptors.
pub const MAX_NETS: usize = 64;

/// A guest: what it is made of and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DomainConfig {
    /// The name, unique among running domains. `None`: `domain-N` after the first id.
    pub name: Option<String>,
    /// A PC with firmware, in place of a kernel.
    pub hvm: Option<HvmConfig>,
    /// The kernel image: a bzImage or an uncompressed ELF file with a PVH entry. Empty for a PC.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Disks in the order of the command line.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in the order of the command line.
    pub nets: Vec<NetConfig>,
    /// Where the console goes.
    pub console: ConsoleTarget,
    /// The folder of state folders.
    pub run_dir: PathBuf,
    /// The folder of disk images.
    pub images_dir: PathBuf,
    /// How long a guest may take to shut down before it is stopped.
    #[serde(with = "seconds")]
    pub shutdown_timeout: Duration,
    /// What happens when the guest reboots.
    pub on_reboot: OnReboot,
    /// Where viewers of the screen connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vnc: Option<VncConfig>,
}

impl Default for DomainConfig {
    fn default() -> Self {
        DomainConfig {
            name: None,
            hvm: None,
            kernel: PathBuf::new(),
            initrd: None,
            cmdline: String::new(),
            memory: DEFAULT_MEMORY,
            vcpus: 1,
            disks: Vec::new(),
            nets: Vec::new(),
            console: ConsoleTarget::default(),
            run_dir: DEFAULT_RUN_DIR.into(),
            images_dir: DEFAULT_IMAGES_DIR.into(),
            shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
            on_reboot: OnReboot::default(),
            vnc: None,
        }
    }
}

impl DomainConfig {
    /// Checks what the parsers of single values cannot see.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::new("--vcpus", self.vcpus, Problem::Vcpus));
        }
        if let Some(hvm) = &self.hvm {
            hvm.check(self)?;
        }
        if self.disks.len() > disk::MAX_DISKS {
            let problem = format!("a guest has at most {} disks; give fewer", disk::MAX_DISKS);
            let given = format!("({} times)", self.disks.len());
            return Err(ConfigError::new("--disk", given, Problem::Syntax(problem)));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let fail = |problem| ConfigError::new("--disk", &disk.source, problem);
            disk.check().map_err(fail)?;
            let mut before = self.disks.iter().take(index);
            if let Some(problem) = before.find_map(|other| disk.conflict(other)) {
                return Err(fail(problem));
            }
        }
        if self.nets.len() > MAX_NETS {
            let problem = Problem::Syntax(format!("a guest has at most {MAX_NETS} interfaces; give fewer"));
            return Err(ConfigError::new("--net", format!("({} times)", self.nets.len()), problem));
        }
        for (index, net) in self.nets.iter().enumerate() {
            let fail = |problem| ConfigError::new("--net", net.what(), problem);
            net.check().map_err(fail)?;
            let mut before = self.nets.iter().take(index);
            if let Some(problem) = before.find_map(|other| net.conflict(other)) {
                return Err(fail(problem));
            }
        }
        if let Some(vnc) = &self.vnc {
            vnc.check()?;
        }
        Ok(())
    }

    /// Gives every interface without a number the first that is free, and every one without an address one: always
    /// the same one for a domain with a name, a random one for others. A guest that reboots keeps both.
    pub fn assign_nets(&mut self) {
        for index in 0..self.nets.len() {
            let devids: Vec<u32> = self.nets.iter().filter_map(|net| net.devid).collect();
            let taken: Vec<MacAddr> = self.nets.iter().filter_map(|net| net.mac).collect();
            let Some(net) = self.nets.get_mut(index) else { continue };
            let devid = net.devid.or_else(|| (0..=net::MAX_DEVID).find(|devid| !devids.contains(devid)));
            net.devid = devid;
            if net.mac.is_none() {
                // 24 bits are few: what another interface has already is passed over.
                let salts = (0..).map_while(|round: u32| {
                    round.checked_mul(net::MAX_DEVID + 1)?.checked_add(devid.unwrap_or(0))
                });
                let mut macs = salts.map(|salt| MacAddr::for_domain(self.name.as_deref(), salt));
                net.mac = macs.find(|mac| !taken.contains(mac));
            }
        }
    }
}

/// A duration as a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> DomainConfig {
        DomainConfig {
            name: Some("web".into()),
            kernel: "/boot/vmlinuz".into(),
            disks: DiskSpec::assign(vec![
                DiskSpec::parse("/a.img").unwrap(),
                DiskSpec::parse("/b.img,ro").unwrap(),
            ])
            .unwrap(),
            nets: vec!["xenbr0".parse().unwrap(), "br1,mac=00:16:3e:00:00:01".parse().unwrap()],
            console: ConsoleTarget::File("/tmp/log".into()),
            ..DomainConfig::default()
        }
    }

    #[test]
    fn a_description_survives_json() {
        let config = sample();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DomainConfig>(&json).unwrap(), config);
    }

    #[test]
    fn json_of_an_older_or_newer_release_is_read() {
        let config: DomainConfig = serde_json::from_str(r#"{"name":"web","colour":"blue"}"#).unwrap();
        assert_eq!(config, DomainConfig { name: Some("web".into()), ..DomainConfig::default() });
    }

    #[test]
    fn a_good_description_is_valid() {
        assert_eq!(sample().validate(), Ok(()));
    }

    #[test]
    fn contradictions_are_found() {
        type Change = fn(&mut DomainConfig);
        let table: [(Change, &str); 13] = [
            (|c| c.vcpus = 0, "--vcpus 0: a guest has 1 to 512 vCPUs"),
            (|c| c.vcpus = 513, "--vcpus 513: a guest has 1 to 512 vCPUs"),
            (
                |c| c.name = Some("7".into()),
                "--name 7: a name is not a number, because numbers are domain ids; add a letter",
            ),
            (
                |c| c.disks[1].vdev = c.disks[0].vdev,
                "--disk /b.img: two disks are called xvda; give one of them another vdev",
            ),
            (
                |c| c.disks[1].source = c.disks[0].source.clone(),
                "--disk /a.img: the image is given twice; a writable image can be one disk only, unless both say w!",
            ),
            (
                |c| c.disks[1].vdev = "xvda7".parse().unwrap(),
                "--disk /b.img: xvda7 is a part of xvda, which is a disk too; give one of them another vdev",
            ),
            (|c| c.disks[1].queues = Some(0), "--disk /b.img: a disk has 1 to 16 queues; write queues=N so"),
            (
                |c| c.disks[1].source = DiskSource::Empty {},
                "--disk (empty): only a CD-ROM drive can be empty; add cdrom, or name an image with target=FILE",
            ),
            (
                |c| c.nets[0].mac = c.nets[1].mac,
                "--net bridge=br1,mac=00:16:3e:00:00:01: two interfaces have the address 00:16:3e:00:00:01; give one of them \
                 another mac",
            ),
            (
                |c| c.nets.iter_mut().for_each(|net| net.devid = Some(3)),
                "--net bridge=br1,mac=00:16:3e:00:00:01,devid=3: two interfaces have the number 3; give one of them another \
                 devid",
            ),
            (
                |c| c.nets.iter_mut().for_each(|net| net.vifname = Some("web".into())),
                "--net bridge=br1,mac=00:16:3e:00:00:01,vifname=web: two interfaces are called web; give one of them another \
                 vifname",
            ),
            (
                |c| c.nets[0].fds = vec![7],
                "--net bridge=xenbr0,fd=7: fd= takes a tap as its caller has set it up; leave out bridge=",
            ),
            (|c| c.name = Some(String::new()), "--name : a name has 1 to 64 characters"),
        ];
        for (change, sentence) in table {
            let mut config = sample();
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn one_image_may_be_two_disks_that_nobody_writes() {
        let mut config = sample();
        config.disks[0].readonly = true;
        config.disks[1].source = config.disks[0].source.clone();
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_named_domain_keeps_its_addresses() {
        let (mut first, mut second) = (sample(), sample());
        first.assign_nets();
        second.assign_nets();
        assert_eq!(first, second);
        assert_eq!(first.nets[0].mac, Some(MacAddr::for_domain(Some("web"), 0)));
        assert_eq!(first.nets[1].mac, Some("00:16:3e:00:00:01".parse().unwrap()));
    }

    #[test]
    fn no_two_interfaces_get_one_address() {
        let mut config = sample();
        config.nets[1].mac = Some(MacAddr::for_domain(Some("web"), 0));
        config.assign_nets();
        assert_ne!(config.nets[0].mac, config.nets[1].mac);
        assert!(config.nets[0].mac.is_some());
    }

    #[test]
    fn an_address_in_json_that_is_none_is_refused() {
        let json = r#"{"nets":[{"bridge":"xenbr0","mac":"01:00:00:00:00:00"}]}"#;
        assert!(serde_json::from_str::<DomainConfig>(json).is_err());
    }
}
