//! Which exit status an error of the rooms below means.

use blkback::ImageError;

use super::DomainEntry;
use crate::boot::{BootError, ImageError as KernelError};
use crate::console::ConsoleError;
use crate::exit::{ExitStatus, Failure};
use crate::machine::MachineError;

impl From<BootError> for Failure {
    fn from(error: BootError) -> Failure {
        let status = match &error {
            BootError::KernelUnreadable { .. } => ExitStatus::KernelMissing,
            BootError::Image { error, .. } => match error {
                KernelError::Truncated { .. } => ExitStatus::KernelTruncated,
                KernelError::CorruptPayload { .. } => ExitStatus::KernelCorrupt,
                KernelError::NoPvhEntry => ExitStatus::NoPvhEntry,
                KernelError::HostMemory(_) => ExitStatus::HostError,
                _ => ExitStatus::NotAKernel,
            },
            BootError::MemoryTooSmall { .. } | BootError::NoPlaceForKernel { .. } => ExitStatus::MemoryTooSmall,
            BootError::InitrdUnreadable { .. } => ExitStatus::InitrdMissing,
            BootError::InitrdTooLarge { .. } => ExitStatus::InitrdTooLarge,
            _ => ExitStatus::Usage,
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
            MachineError::TooManyVcpus { .. } => ExitStatus::TooManyVcpus,
            MachineError::Memory(_) | MachineError::Cpuid(_) | MachineError::Kvm { .. } => ExitStatus::HostError,
        };
        Failure::new(status, error)
    }
}

impl From<ConsoleError> for Failure {
    fn from(error: ConsoleError) -> Failure {
        Failure::new(ExitStatus::HostError, error)
    }
}

/// A disk image that cannot be opened; `holder` is the domain that uses it, where one does.
pub(super) fn image_failure(error: &ImageError, holder: Option<&DomainEntry>) -> Failure {
    let status = match error {
        ImageError::Missing(_) => ExitStatus::DiskMissing,
        ImageError::Directory(_) | ImageError::NotADisk(_) => ExitStatus::DiskNotAFile,
        ImageError::Empty(_) => ExitStatus::DiskEmpty,
        ImageError::SizeNotAligned { .. } => ExitStatus::DiskUnaligned,
        ImageError::NotWritable { .. } | ImageError::NotPermitted(_) => ExitStatus::DiskNotPermitted,
        ImageError::Locked(path) => {
            let path = path.display();
            let message = match holder {
                Some(d) => format!(
                    "disk image {path} is in use by domain {} (id {}); stop that one, or attach the image read-only in both",
                    d.name, d.domid
                ),
                None => error.to_string(),
            };
            return Failure::new(ExitStatus::DiskInUse, message);
        }
        ImageError::InUseByHost(_) => ExitStatus::DiskInUse,
        ImageError::NoLocks { .. } | ImageError::Io { .. } => ExitStatus::HostError,
    };
    Failure::new(status, error)
}
