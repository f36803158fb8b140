//! The state folder of one domain: `RUN_DIR/DOMID/`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use devices::xen::types::DomId;

use super::{DomainError, Registry};
use crate::config::DomainConfig;

/// The file with the process id; its flock is the proof of life.
pub(super) const PID: &str = "pid";
/// The file with the description of the guest.
pub(super) const CONFIG: &str = "config.json";
pub(super) const API_SOCKET: &str = "api.sock";
pub(super) const CONSOLE_SOCKET: &str = "console.sock";
/// The longest of the names: the limit on the folder's path counts on it.
pub(super) const XENSTORED_SOCKET: &str = "xenstored.sock";

/// The state folder of the domain that this process runs. Its id, its name and its disks belong to this
/// process until the value is dropped, and the folder is removed then. When the process is killed, the next
/// start or list removes it.
///
/// `pid` (with the lock), `config.json`, `api.sock`, `console.sock`, `xenstored.sock`; mode 0700.
#[derive(Debug)]
pub struct DomainDir {
    registry: Registry,
    domid: DomId,
    config: DomainConfig,
    _pid: File,
}

impl DomainDir {
    /// Makes the folder; the caller holds the registry's lock. `config` has its name.
    pub(super) fn create(
        registry: Registry,
        domid: DomId,
        config: DomainConfig,
    ) -> Result<DomainDir, DomainError> {
        let path = registry.folder(domid);
        match fill(&path, &config) {
            Ok(pid) => Ok(DomainDir { registry, domid, config, _pid: pid }),
            Err(source) => {
                let _ = fs::remove_dir_all(&path);
                Err(DomainError::State { path, source })
            }
        }
    }

    /// The id of the domain.
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// The name of the domain, given or made.
    pub fn name(&self) -> &str {
        self.config.name.as_deref().unwrap_or_default()
    }

    /// The description of the guest, with its name.
    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    /// Changes the description, here and in `config.json`: all or nothing.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut DomainConfig)) -> Result<(), DomainError> {
        let mut config = self.config.clone();
        change(&mut config);
        let path = self.path().join(CONFIG);
        let new = path.with_extension("new");
        let written = write_config(&new, &config).and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&new);
            DomainError::State { path, source }
        })?;
        self.config = config;
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.registry.folder(self.domid)
    }

    /// Where the API listens.
    pub fn api_socket(&self) -> PathBuf {
        self.path().join(API_SOCKET)
    }

    /// Where the console listens.
    pub fn console_socket(&self) -> PathBuf {
        self.path().join(CONSOLE_SOCKET)
    }

    /// Where xenstore listens.
    pub fn xenstored_socket(&self) -> PathBuf {
        self.path().join(XENSTORED_SOCKET)
    }

    /// Takes the next id for a guest that reboots. The folder gets a new name in one step, so that the name
    /// and the disks are never free in between. The sockets of the run before are removed: the next one
    /// listens anew.
    pub fn renew(&mut self) -> Result<DomId, DomainError> {
        let locked = self.registry.lock()?;
        let domid = locked.take_id()?;
        for socket in [self.api_socket(), self.console_socket(), self.xenstored_socket()] {
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DomainError::state(socket)(error));
                }
                _ => {}
            }
        }
        let to = self.registry.folder(domid);
        fs::rename(self.path(), &to).map_err(DomainError::state(to))?;
        self.domid = domid;
        Ok(domid)
    }
}

impl Drop for DomainDir {
    fn drop(&mut self) {
        let path = self.path();
        if let Err(error) = remove(&path) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

fn fill(path: &Path, config: &DomainConfig) -> io::Result<File> {
    DirBuilder::new().mode(0o700).create(path)?;
    // The umask may have taken rights from us; nobody else has any.
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    let mut pid = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(PID))?;
    pid.try_lock()?;
    writeln!(pid, "{}", std::process::id())?;
    write_config(&path.join(CONFIG), config)?;
    Ok(pid)
}

fn write_config(path: &Path, config: &DomainConfig) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(config)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&json)
}

/// Removes a state folder. It loses its name first, in one step, so that nobody sees half a domain; no lock
/// is needed, and a process that ends never waits for a stopped `xvmm list`.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".gone");
    let gone = path.with_file_name(name);
    match fs::rename(path, &gone).and_then(|()| fs::remove_dir_all(&gone)) {
        // The owner and the next list may do this at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
