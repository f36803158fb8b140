//! Exit statuses of the `xvmm` program: one number per cause.

use std::fmt;
use std::process::ExitCode;

use blkback::ImageError as DiskImageError;
use netback::TapError;

use crate::api::ApiError;
use crate::boot::{BootError, ImageError as KernelImageError};
use crate::config::{ConfigError, Problem};
use crate::console::ConsoleError;
use crate::display::vnc::VncError;
use crate::domain::preflight::{FileProblem, PreflightError};
use crate::domain::{DomainEntry, DomainError, StorageError};
use crate::machine::MachineError;
use crate::network::NetworkError;
use crate::network::host::HostNetError;
use crate::storage::{IscsiError, IscsiProblem};

/// Declares the statuses with the sentence that `xvmm --help` and the documentation show.
macro_rules! statuses {
    ($($name:ident = $number:literal $text:literal;)*) => {
        /// How a run of `xvmm` ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ExitStatus {
            $(#[doc = $text] $name = $number,)*
        }

        impl ExitStatus {
            /// All statuses in the order of their numbers.
            pub const ALL: &[ExitStatus] = &[$(ExitStatus::$name,)*];

            /// What the status means.
            pub fn description(self) -> &'static str {
                match self { $(ExitStatus::$name => $text,)* }
            }
        }
    };
}

statuses! {
    Success = 0 "the guest switched itself off, or the command did its work";
    HostError = 1 "the host refused something that has no status of its own";
    Usage = 2 "wrong usage: an unknown flag, a missing one, or a value that breaks its grammar";
    Internal = 3 "xvmm itself failed";
    GuestCrashed = 4 "the guest crashed";
    Forced = 5 "the guest was stopped by force: destroyed, or it did not shut down in time";
    KernelMissing = 10 "there is no such kernel, or it cannot be read";
    NotAKernel = 11 "the kernel file is not a kernel image";
    KernelTruncated = 12 "the bzImage is cut short";
    KernelCorrupt = 13 "the kernel's payload does not unpack";
    NoPvhEntry = 14 "the kernel has no PVH entry note";
    InitrdMissing = 15 "there is no such initrd, or it cannot be read";
    InitrdTooLarge = 16 "the initrd does not fit into the guest's memory";
    MemoryTooSmall = 17 "the guest has too little memory";
    TooManyVcpus = 18 "no vCPU, or more than KVM allows";
    DiskMissing = 20 "a disk image is missing";
    DiskNotAFile = 21 "a disk image is a directory, or otherwise neither a file nor a block device";
    DiskEmpty = 22 "a disk image is empty";
    DiskUnaligned = 23 "the size of a disk image is not a multiple of 512 bytes";
    DiskNotPermitted = 24 "a disk image cannot be opened: not writable, or not readable";
    DiskInUse = 25 "a disk image is in use by another domain, or given twice";
    SameVdev = 26 "two disks have one vdev, or two interfaces one devid";
    InvalidVdev = 27 "the vdev of a disk is not one";
    UnknownKey = 28 "an unknown key in --disk or --net";
    DiskFormat = 29 "a disk image is not of the format that was stated, is damaged, or has a part that is not supported";
    BridgeMissing = 30 "there is no such bridge";
    NotABridge = 31 "the interface is not a bridge";
    InvalidMac = 32 "a MAC address is invalid, multicast, or given twice";
    TapFailed = 33 "the guest's network interface cannot be made on the host";
    IscsiFailed = 34 "an iSCSI disk cannot be had: open-iscsi, the portal, the target or its LUN";
    NetNotPermitted = 35 "the host's interfaces may not be changed: CAP_NET_ADMIN is missing";
    TapUnfit = 36 "the tap that was passed in with fd= cannot be used";
    FilterFailed = 37 "the rules of an interface (ip=, mac-filter, vif-nat) cannot be made: nft is missing, or refuses them";
    ScriptFailed = 38 "the script of an interface is missing or failed";
    KvmMissing = 40 "/dev/kvm is missing";
    KvmNotPermitted = 41 "/dev/kvm may not be opened";
    KvmUnusable = 42 "/dev/kvm cannot run guests";
    KvmNoXen = 43 "KVM has no Xen support and this guest needs it";
    KvmNoViridian = 44 "KVM lacks what --viridian asks for";
    NameTaken = 50 "a running domain has the name";
    InvalidName = 51 "the name breaks the rules";
    NoSuchDomain = 52 "no running domain has this name or id";
    RunDirUnusable = 53 "the folder of running domains cannot be used";
    NoSuchDevice = 54 "the guest has no such device";
    DeviceBusy = 55 "the device is just being attached or detached";
    DeviceKept = 56 "the guest does not let go of the device";
    VncUnusable = 57 "viewers cannot connect: the VNC display is taken, or the password file is of no use";
    NoScreen = 58 "the guest has no screen";
    NetworkExists = 60 "there is a network or an interface of the name already, and it is something else";
    NoSuchNetwork = 61 "there is no network of this name";
    UplinkUnusable = 62 "the uplink does not exist, or cannot be a port of a bridge";
    SubnetTaken = 63 "the subnet of a private network overlaps with another one";
    PortTaken = 64 "a port that dnsmasq needs is taken";
    ToolMissing = 65 "a program that a network needs is not installed";
    NetworkNotPermitted = 66 "not permitted to change the host's network";
    ManagerInTheWay = 67 "a program that looks after the uplink would undo the change";
    NetworkUndone = 68 "the change of a network failed, and everything is as it was before";
    NetworkHalfMade = 69 "the change of a network was interrupted, waits to be confirmed, or could not be undone";
    NothingToConfirm = 70 "no change of the network waits to be confirmed";
    NetworkInUse = 71 "guests are plugged into the network";
}

impl ExitStatus {
    /// The number, as the shell shows it.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The status of this number.
    pub fn from_code(code: u8) -> Option<ExitStatus> {
        Self::ALL.iter().copied().find(|status| status.code() == code)
    }

    /// The table of all statuses, a line each.
    pub fn table() -> String {
        let lines =
            Self::ALL.iter().map(|status| format!("  {:>3}  {}", status.code(), status.description()));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status.code())
    }
}

/// What the program says when it cannot go on: one sentence, and the status that names the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The cause.
    pub status: ExitStatus,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// A failure with a sentence of its own.
    pub fn new(status: ExitStatus, message: impl fmt::Display) -> Failure {
        Failure { status, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    /// The sentence on one line: a name on the host or a text of the user may have line breaks and control
    /// sequences in it, which neither a terminal nor a log should get.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.message.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let status = match &error.problem {
            Problem::Syntax(_) => ExitStatus::Usage,
            Problem::UnknownKey { .. } => ExitStatus::UnknownKey,
            Problem::Vdev(_) => ExitStatus::InvalidVdev,
            Problem::SameVdev(_) | Problem::VdevPart { .. } | Problem::SameDevid(_) => ExitStatus::SameVdev,
            Problem::Format(_) => ExitStatus::DiskFormat,
            Problem::SameImage => ExitStatus::DiskInUse,
            Problem::Mac(_) | Problem::SameMac(_) => ExitStatus::InvalidMac,
            Problem::MemoryTooSmall => ExitStatus::MemoryTooSmall,
            Problem::Name(_) => ExitStatus::InvalidName,
            Problem::Vcpus => ExitStatus::TooManyVcpus,
        };
        Failure::new(status, error)
    }
}

impl From<DomainError> for Failure {
    fn from(error: DomainError) -> Failure {
        let status = match &error {
            DomainError::RunDir { .. }
            | DomainError::RunDirTooLong { .. }
            | DomainError::RunDirUnsafe { .. } => ExitStatus::RunDirUnusable,
            DomainError::State { .. } => ExitStatus::RunDirUnusable,
            DomainError::NameTaken { .. } => ExitStatus::NameTaken,
            DomainError::DiskInUse { .. } => ExitStatus::DiskInUse,
            DomainError::NoSuchDomain { .. } => ExitStatus::NoSuchDomain,
            DomainError::NoFreeId => ExitStatus::HostError,
        };
        Failure::new(status, error)
    }
}

impl From<PreflightError> for Failure {
    fn from(error: PreflightError) -> Failure {
        let status = match error {
            PreflightError::Domain(error) => return error.into(),
            PreflightError::Net(error) => return error.into(),
            PreflightError::Disk(error) => return Failure::from_storage(&error, None),
            PreflightError::Kernel { problem: FileProblem::Empty, .. } => ExitStatus::NotAKernel,
            PreflightError::Kernel { .. } | PreflightError::Bios { .. } | PreflightError::NoSeaBios(_) => {
                ExitStatus::KernelMissing
            }
            PreflightError::Initrd { .. } => ExitStatus::InitrdMissing,
            PreflightError::InitrdTooLarge { .. } => ExitStatus::InitrdTooLarge,
            PreflightError::NoSuchImage { .. } => ExitStatus::DiskMissing,
            PreflightError::SameImage { .. } => ExitStatus::DiskInUse,
            PreflightError::Host { .. } => ExitStatus::HostError,
        };
        Failure::new(status, error)
    }
}

impl Failure {
    /// A disk that cannot be opened; `holder` is the domain that has it, if it is known.
    pub fn from_storage(error: &StorageError, holder: Option<&DomainEntry>) -> Failure {
        match (error, holder) {
            (StorageError::Image(DiskImageError::Locked(path)), Some(holder)) => {
                DomainError::disk_in_use(path, holder).into()
            }
            (StorageError::Image(image), _) => Failure::new(disk_status(image), format!("--disk: {error}")),
            (StorageError::Iscsi(iscsi), _) => Failure::new(iscsi_status(iscsi), format!("--disk: {error}")),
            (StorageError::NoMedium(_), _) => {
                Failure::new(ExitStatus::DiskMissing, format!("--disk: {error}"))
            }
        }
    }
}

fn disk_status(error: &DiskImageError) -> ExitStatus {
    match error {
        DiskImageError::Missing(_) => ExitStatus::DiskMissing,
        DiskImageError::Directory(_) | DiskImageError::NotADisk(_) => ExitStatus::DiskNotAFile,
        DiskImageError::Empty(_) => ExitStatus::DiskEmpty,
        DiskImageError::SizeNotAligned { .. } => ExitStatus::DiskUnaligned,
        DiskImageError::NotWritable { .. } | DiskImageError::NotPermitted(_) => ExitStatus::DiskNotPermitted,
        DiskImageError::Locked(_) | DiskImageError::InUseByHost(_) => ExitStatus::DiskInUse,
        DiskImageError::NoLocks { .. } | DiskImageError::Io { .. } => ExitStatus::HostError,
        DiskImageError::NotShareable { .. } => ExitStatus::Usage,
        DiskImageError::WrongFormat { .. }
        | DiskImageError::Unsupported { .. }
        | DiskImageError::Corrupt { .. }
        | DiskImageError::MarkedCorrupt(_)
        | DiskImageError::BackingFormatMissing { .. }
        | DiskImageError::BackingLoop(_)
        | DiskImageError::ChainTooLong { .. } => ExitStatus::DiskFormat,
        DiskImageError::ParentMissing { .. } => ExitStatus::DiskMissing,
        DiskImageError::Backing { reason, .. } => disk_status(reason),
    }
}

fn iscsi_status(error: &IscsiError) -> ExitStatus {
    match &error.problem {
        IscsiProblem::InvalidName | IscsiProblem::InvalidPortal => ExitStatus::Usage,
        _ => ExitStatus::IscsiFailed,
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let named = match &error {
            ApiError::Refused { status, .. } => status.and_then(ExitStatus::from_code),
            _ => None,
        };
        Failure::new(named.unwrap_or(ExitStatus::HostError), error)
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Failure {
        let status = match &error {
            NetworkError::NoBridge(_) => ExitStatus::BridgeMissing,
            NetworkError::NotABridge { .. } => ExitStatus::NotABridge,
            NetworkError::NotPermitted(_) | NetworkError::Tap(TapError::NotPermitted(_)) => {
                ExitStatus::NetNotPermitted
            }
            NetworkError::Tap(TapError::Passed { .. }) => ExitStatus::TapUnfit,
            NetworkError::NoNft(_) | NetworkError::Filter(_) => ExitStatus::FilterFailed,
            NetworkError::NoScript(_) | NetworkError::Script { .. } => ExitStatus::ScriptFailed,
            NetworkError::NoVlans { .. }
            | NetworkError::NoGateway(_)
            | NetworkError::Tap(_)
            | NetworkError::Mtu { .. }
            | NetworkError::Interface { .. }
            | NetworkError::Host { .. } => ExitStatus::TapFailed,
        };
        Failure::new(status, error)
    }
}

impl From<HostNetError> for Failure {
    fn from(error: HostNetError) -> Failure {
        let status = match &error {
            HostNetError::Name { .. } | HostNetError::Invalid { .. } => ExitStatus::Usage,
            HostNetError::Exists { .. } => ExitStatus::NetworkExists,
            HostNetError::Unknown(_) => ExitStatus::NoSuchNetwork,
            HostNetError::Uplink { .. } => ExitStatus::UplinkUnusable,
            HostNetError::Overlap { .. } => ExitStatus::SubnetTaken,
            HostNetError::PortTaken { .. } => ExitStatus::PortTaken,
            HostNetError::ToolMissing { .. } => ExitStatus::ToolMissing,
            HostNetError::NotPermitted(_) => ExitStatus::NetworkNotPermitted,
            HostNetError::Manager { .. } => ExitStatus::ManagerInTheWay,
            HostNetError::Undone { .. } => ExitStatus::NetworkUndone,
            HostNetError::HalfMade(_) | HostNetError::NotUndone { .. } => ExitStatus::NetworkHalfMade,
            HostNetError::NothingToConfirm(_) => ExitStatus::NothingToConfirm,
            HostNetError::InUse { .. } => ExitStatus::NetworkInUse,
            HostNetError::OtherNamespace(_)
            | HostNetError::File { .. }
            | HostNetError::Damaged { .. }
            | HostNetError::Host { .. } => ExitStatus::HostError,
        };
        Failure::new(status, error)
    }
}

impl From<VncError> for Failure {
    fn from(error: VncError) -> Failure {
        Failure::new(ExitStatus::VncUnusable, error)
    }
}

impl From<ConsoleError> for Failure {
    fn from(error: ConsoleError) -> Failure {
        Failure::new(ExitStatus::HostError, error)
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Failure {
        let status = match &error {
            BootError::KernelUnreadable { .. } => ExitStatus::KernelMissing,
            BootError::Image { error, .. } => match error {
                KernelImageError::Unreadable(_) => ExitStatus::KernelMissing,
                KernelImageError::Truncated { .. } => ExitStatus::KernelTruncated,
                KernelImageError::CorruptPayload { .. }
                | KernelImageError::DamagedHeader(_)
                | KernelImageError::UnknownCompression(_) => ExitStatus::KernelCorrupt,
                KernelImageError::NoPvhEntry => ExitStatus::NoPvhEntry,
                KernelImageError::HostMemory(_) => ExitStatus::HostError,
                KernelImageError::NotAKernel
                | KernelImageError::TooOld(_)
                | KernelImageError::TooLarge { .. }
                | KernelImageError::OtherMachine(_)
                | KernelImageError::BadElf(_) => ExitStatus::NotAKernel,
            },
            BootError::NoPlaceForKernel { .. } => ExitStatus::NotAKernel,
            BootError::MemoryTooSmall { .. } | BootError::NoPlaceForStartInfo => ExitStatus::MemoryTooSmall,
            BootError::InitrdUnreadable { .. } => ExitStatus::InitrdMissing,
            BootError::InitrdTooLarge { .. } => ExitStatus::InitrdTooLarge,
            BootError::CommandLine(_) => ExitStatus::Usage,
            BootError::MemmapTooLong(_) | BootError::GuestMemory { .. } => ExitStatus::Internal,
        };
        Failure::new(status, error)
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Failure {
        let status = match &error {
            MachineError::KvmMissing => ExitStatus::KvmMissing,
            MachineError::KvmNotPermitted => ExitStatus::KvmNotPermitted,
            MachineError::KvmUnable(_) => ExitStatus::KvmUnusable,
            MachineError::NoXen(_) => ExitStatus::KvmNoXen,
            MachineError::NoViridian(_) => ExitStatus::KvmNoViridian,
            MachineError::TooManyVcpus { .. } | MachineError::AcpiTooLong(_) => ExitStatus::TooManyVcpus,
            MachineError::Memory(_) | MachineError::Kvm { .. } => ExitStatus::HostError,
            MachineError::Cpuid(_) => ExitStatus::Internal,
        };
        Failure::new(status, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_own_number() {
        let codes: Vec<u8> = ExitStatus::ALL.iter().map(|status| status.code()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }

    #[test]
    fn no_status_looks_like_a_signal() {
        // The shell shows 126 and 127 for a program that cannot run, and 128 and up for signals.
        assert!(ExitStatus::ALL.iter().all(|status| status.code() < 126));
    }

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new(ExitStatus::Usage, "a\nb\x1b[2Jc");
        assert_eq!(failure.to_string(), "a\\nb\\u{1b}[2Jc");
    }
}
