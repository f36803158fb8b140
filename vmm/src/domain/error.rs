//! Why a domain cannot be made or found.

use std::io;
use std::path::{Path, PathBuf};

use devices::xen::types::DomId;

use super::DomainEntry;

/// Why a domain cannot be made or found. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The folder of state folders cannot be made or read.
    #[error("{}: cannot keep domains in this folder: {source}; name another one with --run-dir", path.display())]
    RunDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A socket in the folder would have a longer path than the system can take.
    #[error("{}: the path is longer than {max} bytes, too long for the sockets in it; name another one with --run-dir", path.display())]
    RunDirTooLong {
        /// The folder.
        path: PathBuf,
        /// Bytes that its path may have.
        max: usize,
    },
    /// Somebody else could replace what is in the folder.
    #[error("{}: other users can write to this folder or own it; name another one with --run-dir", path.display())]
    RunDirUnsafe {
        /// The folder.
        path: PathBuf,
    },
    /// A running domain has the name.
    #[error(
        "--name {name}: domain {domid} has this name; choose another one, or stop it with `xvmm destroy {domid}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The domain that has it.
        domid: DomId,
    },
    /// A running domain has the image, and one of the two may write to it.
    #[error("--disk {}: in use by domain {domid} ({name}); stop that one, or let both have it read-only (ro) or shared (w!)", path.display())]
    DiskInUse {
        /// The image.
        path: PathBuf,
        /// The domain that has it.
        domid: DomId,
        /// Its name.
        name: String,
    },
    /// There is no such domain.
    #[error("{wanted}: no running domain has this name or id; `xvmm list` shows those that run")]
    NoSuchDomain {
        /// The name or id asked for.
        wanted: String,
    },
    /// Every id belongs to a running domain.
    #[error("all {} domain ids are in use; stop a domain first", super::LAST_DOMID)]
    NoFreeId,
    /// A state folder cannot be written or read.
    #[error("{}: {source}; see that the folder is yours and has space left", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DomainError {
    /// The image at `path` belongs to `holder`.
    pub(crate) fn disk_in_use(path: &Path, holder: &DomainEntry) -> DomainError {
        DomainError::DiskInUse { path: path.to_owned(), domid: holder.domid, name: holder.name.clone() }
    }

    pub(super) fn state(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DomainError {
        move |source| DomainError::State { path: path.into(), source }
    }
}
