//! The folder of state folders: who runs, under which id and name.
//!
//! Everything that reads or changes the set of domains holds an exclusive flock on the file `lock`. The file
//! `next-id` has the id of the next domain. A state folder belongs to a living process for as long as that
//! process holds a flock on the `pid` file in it: the kernel drops the lock with the process, whatever
//! kills it, and a recycled process id does not bring it back.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::xen::types::DomId;

use super::state_dir::{API_SOCKET, CONFIG, CONSOLE_SOCKET, DomainDir, PID, XENSTORED_SOCKET, remove};
use super::{DomainError, LAST_DOMID};
use crate::config::values::AUTOMATIC_NAME;
use crate::config::{DiskConfig, DiskSource, DomainConfig, NetConfig};
use crate::network;

/// Bytes of a socket's path, `sizeof(sun_path)` less the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

/// The folder of state folders of one host.
#[derive(Clone, Debug)]
pub struct Registry {
    run_dir: PathBuf,
}

/// A running domain.
#[derive(Debug)]
pub struct DomainEntry {
    /// Its id.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// What it is made of.
    pub config: DomainConfig,
    /// Its state folder, until it reboots.
    pub path: PathBuf,
    pid_file: File,
}

impl DomainEntry {
    /// Waits until the process of the domain has ended, through any number of reboots.
    pub fn wait(&self) -> io::Result<()> {
        self.pid_file.lock_shared()?;
        self.pid_file.unlock()
    }

    /// True while the process of the domain lives.
    pub fn is_alive(&self) -> bool {
        match self.pid_file.try_lock_shared() {
            Ok(()) => {
                let _ = self.pid_file.unlock();
                false
            }
            Err(_) => true,
        }
    }

    /// The socket of its API.
    pub fn api_socket(&self) -> PathBuf {
        self.path.join(API_SOCKET)
    }

    /// The socket of its console.
    pub fn console_socket(&self) -> PathBuf {
        self.path.join(CONSOLE_SOCKET)
    }
}

/// Which image a path leads to, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageId {
    /// A file: device and inode.
    File(u64, u64),
    /// A block device: its number.
    Block(u64),
}

impl ImageId {
    /// The image behind `path`.
    pub fn of(path: &Path) -> io::Result<ImageId> {
        let meta = fs::metadata(path)?;
        if meta.file_type().is_block_device() {
            return Ok(ImageId::Block(meta.rdev()));
        }
        Ok(ImageId::File(meta.dev(), meta.ino()))
    }
}

impl Registry {
    /// Opens the folder, and makes it when it is missing.
    pub fn open(run_dir: &Path) -> Result<Registry, DomainError> {
        let failed = |source| DomainError::RunDir { path: run_dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(failed)?;
        let path = run_dir.canonicalize().map_err(failed)?;
        let meta = fs::metadata(&path).map_err(failed)?;
        // SAFETY: geteuid has no preconditions and cannot fail.
        let us = unsafe { libc::geteuid() };
        if (meta.uid() != us && meta.uid() != 0) || meta.mode() & 0o002 != 0 {
            return Err(DomainError::RunDirUnsafe { path });
        }
        let max = SOCKET_PATH_MAX - "/32751/".len() - XENSTORED_SOCKET.len();
        if path.as_os_str().as_bytes().len() > max {
            return Err(DomainError::RunDirTooLong { path, max });
        }
        Ok(Registry { run_dir: path })
    }

    /// Opens the folder, or nothing when no domain was ever made in it.
    pub fn open_existing(run_dir: &Path) -> Result<Option<Registry>, DomainError> {
        match fs::metadata(run_dir) {
            Ok(_) => Registry::open(run_dir).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DomainError::RunDir { path: run_dir.to_owned(), source }),
        }
    }

    /// The folder.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The running domains in the order of their ids. State folders of dead processes are removed.
    pub fn list(&self) -> Result<Vec<DomainEntry>, DomainError> {
        self.lock()?.domains()
    }

    /// The running domain of this name or id.
    pub fn lookup(&self, wanted: &str) -> Result<DomainEntry, DomainError> {
        let id = wanted.parse::<u16>().ok().map(DomId);
        let found = self.list()?.into_iter().find(|domain| Some(domain.domid) == id || domain.name == wanted);
        found.ok_or_else(|| DomainError::NoSuchDomain { wanted: wanted.to_owned() })
    }

    /// The running domain that has the image of this disk, if a second user with these rights would be in
    /// its way. Any number of domains may read one image, or share it.
    pub fn find_holder(&self, disk: &DiskConfig) -> Result<Option<DomainEntry>, DomainError> {
        let domains = self.list()?;
        let domid = holder(&domains, disk).map(|domain| domain.domid);
        Ok(domains.into_iter().find(|domain| Some(domain.domid) == domid))
    }

    /// Refuses a name that a running domain has.
    pub fn check_name_free(&self, name: &str) -> Result<(), DomainError> {
        name_free(&self.list()?, name)
    }

    /// Makes the state folder of a new domain: the next id, its name and its disks belong to this process
    /// until the returned value is dropped.
    pub fn create(&self, config: &DomainConfig) -> Result<DomainDir, DomainError> {
        let locked = self.lock()?;
        let domains = locked.domains()?;
        if let Some(name) = &config.name {
            name_free(&domains, name)?;
        }
        for disk in &config.disks {
            if let Some(domain) = holder(&domains, disk) {
                return Err(DomainError::disk_in_use(Path::new(&disk.source.to_string()), domain));
            }
        }
        // A rebooted domain keeps the name of its first id, which is its own no more; when the ids have
        // wrapped around, that name may still be in use.
        let (domid, name) = loop {
            let domid = locked.take_id()?;
            let name = config.name.clone().unwrap_or_else(|| format!("{AUTOMATIC_NAME}{domid}"));
            if name_free(&domains, &name).is_ok() {
                break (domid, name);
            }
        };
        DomainDir::create(self.clone(), domid, DomainConfig { name: Some(name), ..config.clone() })
    }

    pub(super) fn lock(&self) -> Result<Locked<'_>, DomainError> {
        let path = self.run_dir.join("lock");
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        let file = open().map_err(|source| DomainError::RunDir { path: self.run_dir.clone(), source })?;
        Ok(Locked { registry: self, _file: file })
    }

    /// The state folder of `domid`.
    pub(super) fn folder(&self, domid: DomId) -> PathBuf {
        self.run_dir.join(domid.to_string())
    }
}

fn name_free(domains: &[DomainEntry], name: &str) -> Result<(), DomainError> {
    match domains.iter().find(|domain| domain.name == name) {
        Some(domain) => Err(DomainError::NameTaken { name: name.to_owned(), domid: domain.domid }),
        None => Ok(()),
    }
}

fn holder<'a>(domains: &'a [DomainEntry], disk: &DiskConfig) -> Option<&'a DomainEntry> {
    let image = |disk: &DiskConfig| disk.path().and_then(|path| ImageId::of(path).ok());
    let id = image(disk);
    let is_same = |other: &DiskConfig| match (&disk.source, &other.source) {
        (DiskSource::Iscsi(target), DiskSource::Iscsi(other)) => target.is_same_disk(other),
        _ => id.is_some() && image(other) == id,
    };
    domains.iter().find(|domain| {
        let mut disks = domain.config.disks.iter();
        disks.any(|other| !disk.access().goes_with(other.access()) && is_same(other))
    })
}

/// The registry with its lock held.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    registry: &'a Registry,
    _file: File,
}

impl Locked<'_> {
    /// The running domains in the order of their ids, after removing what dead processes left.
    fn domains(&self) -> Result<Vec<DomainEntry>, DomainError> {
        let mut domains = Vec::new();
        let mut left_rules = false;
        for domid in self.folders()? {
            let path = self.registry.folder(domid);
            match alive(&path) {
                Ok(Some(pid_file)) => domains.push(self.entry(domid, pid_file, path)),
                Ok(None) => {
                    tracing::debug!(%domid, "removing the state folder of a dead process");
                    left_rules |=
                        config_of(&path).is_ok_and(|config| config.nets.iter().any(NetConfig::has_rules));
                    remove(&path).map_err(DomainError::state(path))?;
                }
                Err(source) => return Err(DomainError::State { path, source }),
            }
        }
        if left_rules && let Err(error) = network::clean_up() {
            tracing::warn!("{error}");
        }
        Ok(domains)
    }

    fn entry(&self, domid: DomId, pid_file: File, path: PathBuf) -> DomainEntry {
        let config = config_of(&path).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", path.join(CONFIG).display());
            DomainConfig::default()
        });
        let name = config.name.clone().unwrap_or_else(|| format!("{AUTOMATIC_NAME}{domid}"));
        let pid = io::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        DomainEntry { domid, name, pid: pid.unwrap_or(0), config, path, pid_file }
    }

    /// The ids that have a folder, those of the dead too.
    fn folders(&self) -> Result<BTreeSet<DomId>, DomainError> {
        let run_dir = &self.registry.run_dir;
        let failed = |source| DomainError::RunDir { path: run_dir.clone(), source };
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(run_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            match name.parse::<u16>() {
                // Only the spelling that we write: not "007" or "+7".
                Ok(id) if id > 0 && id <= LAST_DOMID && id.to_string() == name => {
                    ids.insert(DomId(id));
                }
                // A process died while it removed its folder.
                _ if is_gone(name) => {
                    let _ = fs::remove_dir_all(entry.path());
                }
                _ => {}
            }
        }
        Ok(ids)
    }

    /// Takes the next id that no folder has.
    pub(super) fn take_id(&self) -> Result<DomId, DomainError> {
        let path = self.registry.run_dir.join("next-id");
        let used = self.folders()?;
        let saved = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u16>().ok());
        // Without the file (it was deleted, or the disk was full) the highest id in use is what is known.
        let mut id = saved.unwrap_or_else(|| used.last().map_or(1, |last| last.0 + 1));
        for _ in 0..LAST_DOMID {
            if id == 0 || id > LAST_DOMID {
                id = 1;
            }
            let domid = DomId(id);
            id += 1;
            if !used.contains(&domid) {
                let new = path.with_extension("new");
                let written = fs::write(&new, format!("{id}\n")).and_then(|()| fs::rename(&new, &path));
                written.map_err(DomainError::state(path))?;
                return Ok(domid);
            }
        }
        Err(DomainError::NoFreeId)
    }
}

/// The description in a state folder.
fn config_of(folder: &Path) -> Result<DomainConfig, String> {
    let json = fs::read(folder.join(CONFIG)).map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

/// The name of a folder that is being removed; see [`remove`].
fn is_gone(name: &str) -> bool {
    let id = name.strip_prefix('.').and_then(|n| n.strip_suffix(".gone"));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
}

/// The `pid` file of a state folder, if its owner lives.
fn alive(folder: &Path) -> io::Result<Option<File>> {
    let pid = match File::open(folder.join(PID)) {
        Ok(pid) => pid,
        // The process died while it made the folder, or it is removing it now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match pid.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(pid)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::config::DiskSpec;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("run")).unwrap();
        (dir, registry)
    }

    fn named(name: &str) -> DomainConfig {
        DomainConfig { name: Some(name.into()), ..DomainConfig::default() }
    }

    fn with_disk(path: &Path, readonly: bool) -> DomainConfig {
        let spec = DiskSpec { readonly, ..DiskSpec::new(DiskSource::Path(path.to_owned())) };
        let disks = DiskSpec::assign(vec![spec]).unwrap();
        DomainConfig { disks, ..DomainConfig::default() }
    }

    fn ids(registry: &Registry) -> Vec<u16> {
        registry.list().unwrap().iter().map(|domain| domain.domid.0).collect()
    }

    /// What the process of [`in_another_process`] does: it makes domains and tells their ids.
    #[test]
    #[ignore = "runs as the child of other tests"]
    fn child() {
        let Some(run_dir) = std::env::var_os("XVMM_TEST_RUN_DIR") else { return };
        let count: usize = std::env::var("XVMM_TEST_COUNT").unwrap().parse().unwrap();
        let registry = Registry::open(Path::new(&run_dir)).unwrap();
        let domains: Vec<DomainDir> =
            (0..count).map(|_| registry.create(&DomainConfig::default()).unwrap()).collect();
        let ids: Vec<String> = domains.iter().map(|domain| domain.domid().to_string()).collect();
        fs::write(registry.run_dir().join(format!("child-{}", std::process::id())), ids.join(" ")).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(600));
    }

    /// Another process that makes `count` domains and keeps them until it is killed.
    fn in_another_process(registry: &Registry, count: usize) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "domain::registry::tests::child", "--ignored"])
            .env("XVMM_TEST_RUN_DIR", registry.run_dir())
            .env("XVMM_TEST_COUNT", count.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn ids_of(child: &Child, registry: &Registry) -> Vec<u16> {
        let path = registry.run_dir().join(format!("child-{}", child.id()));
        loop {
            match fs::read_to_string(&path) {
                Ok(text) if !text.is_empty() => {
                    return text.split(' ').map(|id| id.parse().unwrap()).collect();
                }
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    }

    #[test]
    fn ids_count_up_and_are_not_used_again() {
        let (_dir, registry) = registry();
        let first = registry.create(&DomainConfig::default()).unwrap();
        assert_eq!(first.domid(), DomId(1));
        drop(first);
        assert_eq!(registry.create(&DomainConfig::default()).unwrap().domid(), DomId(2));
        assert_eq!(registry.create(&DomainConfig::default()).unwrap().domid(), DomId(3));
    }

    #[test]
    fn ids_wrap_around_past_the_living() {
        let (_dir, registry) = registry();
        let first = registry.create(&DomainConfig::default()).unwrap();
        fs::write(registry.run_dir().join("next-id"), LAST_DOMID.to_string()).unwrap();
        let last = registry.create(&DomainConfig::default()).unwrap();
        let next = registry.create(&DomainConfig::default()).unwrap();
        assert_eq!([first.domid().0, last.domid().0, next.domid().0], [1, 0x7fef, 2]);
    }

    #[test]
    fn a_damaged_counter_gives_no_living_id() {
        let (_dir, registry) = registry();
        let first = registry.create(&DomainConfig::default()).unwrap();
        for damage in ["", "x", "0", "1", "-1", "32752", "99999999"] {
            fs::write(registry.run_dir().join("next-id"), damage).unwrap();
            let next = registry.create(&DomainConfig::default()).unwrap();
            assert_ne!(first.domid(), next.domid(), "{damage}");
            assert!((1..=LAST_DOMID).contains(&next.domid().0), "{damage}");
        }
    }

    #[test]
    fn threads_and_processes_never_share_an_id() {
        let (_dir, registry) = registry();
        let mut children = [in_another_process(&registry, 20), in_another_process(&registry, 20)];
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let registry = registry.clone();
                std::thread::spawn(move || {
                    (0..10).map(|_| registry.create(&DomainConfig::default()).unwrap()).collect::<Vec<_>>()
                })
            })
            .collect();
        let ours: Vec<DomainDir> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let mut all: Vec<u16> = ours.iter().map(|domain| domain.domid().0).collect();
        all.extend(children.iter().flat_map(|child| ids_of(child, &registry)));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        all.sort_unstable();
        assert_eq!(all, (1..=80).collect::<Vec<u16>>());
    }

    #[test]
    fn what_a_killed_process_leaves_is_removed() {
        let (_dir, registry) = registry();
        let mut child = in_another_process(&registry, 2);
        let theirs = ids_of(&child, &registry);
        assert_eq!(ids(&registry), theirs);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(registry.folder(DomId(theirs[0])).exists());
        assert!(ids(&registry).is_empty());
        assert!(!registry.folder(DomId(theirs[0])).exists());
        assert_eq!(registry.create(&DomainConfig::default()).unwrap().domid(), DomId(3));
    }

    #[test]
    fn a_recycled_process_id_does_not_revive_a_folder() {
        let (_dir, registry) = registry();
        let folder = registry.folder(DomId(7));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(PID), std::process::id().to_string()).unwrap();
        assert!(ids(&registry).is_empty());
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_half_made_or_half_removed_is_removed() {
        let (_dir, registry) = registry();
        let half = registry.folder(DomId(7));
        let gone = registry.run_dir().join(".8.gone");
        for path in [&half, &gone] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(CONFIG), "{}").unwrap();
        }
        assert!(ids(&registry).is_empty());
        assert!(!half.exists() && !gone.exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let (_dir, registry) = registry();
        for name in ["007", "+7", "0", "32752", "notes", ".7", ".gone", ".x.gone"] {
            fs::create_dir(registry.run_dir().join(name)).unwrap();
        }
        assert!(ids(&registry).is_empty());
        assert_eq!(fs::read_dir(registry.run_dir()).unwrap().count(), 9);
    }

    #[test]
    fn a_state_folder_is_for_its_owner_alone() {
        let (_dir, registry) = registry();
        let domain = registry.create(&DomainConfig::default()).unwrap();
        assert_eq!(fs::metadata(domain.path()).unwrap().permissions().mode() & 0o777, 0o700);
        for file in fs::read_dir(domain.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }

    #[test]
    fn a_domain_is_found_by_name_and_by_id() {
        let (_dir, registry) = registry();
        let domain = registry.create(&named("web")).unwrap();
        for wanted in ["web", "1"] {
            let entry = registry.lookup(wanted).unwrap();
            assert_eq!((entry.domid, entry.name.as_str()), (domain.domid(), "web"));
            assert_eq!(entry.pid, std::process::id());
            assert_eq!(entry.config, named("web"));
        }
        let error = registry.lookup("db").unwrap_err();
        assert_eq!(
            error.to_string(),
            "db: no running domain has this name or id; `xvmm list` shows those that run"
        );
    }

    #[test]
    fn a_name_is_taken_until_its_domain_ends() {
        let (_dir, registry) = registry();
        let domain = registry.create(&named("web")).unwrap();
        let error = registry.create(&named("web")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--name web: domain 1 has this name; choose another one, or stop it with `xvmm destroy 1`"
        );
        drop(domain);
        assert_eq!(registry.create(&named("web")).unwrap().domid(), DomId(2));
    }

    #[test]
    fn a_domain_without_a_name_gets_one_that_is_free() {
        let (_dir, registry) = registry();
        let mut first = registry.create(&DomainConfig::default()).unwrap();
        assert_eq!(first.name(), "domain-1");
        first.renew().unwrap();
        assert_eq!((first.domid(), first.name()), (DomId(2), "domain-1"));
        fs::write(registry.run_dir().join("next-id"), "1").unwrap();
        assert_eq!(registry.create(&DomainConfig::default()).unwrap().name(), "domain-3");
    }

    #[test]
    fn a_reboot_takes_the_next_id_and_keeps_the_name() {
        let (_dir, registry) = registry();
        let mut domain = registry.create(&named("web")).unwrap();
        let before = registry.lookup("web").unwrap();
        assert_eq!(domain.renew().unwrap(), DomId(2));
        let after = registry.lookup("web").unwrap();
        assert_eq!((before.domid.0, after.domid.0), (1, 2));
        assert!(before.is_alive());
        assert_eq!(ids(&registry), [2]);
    }

    #[test]
    fn a_rebooted_domain_can_listen_again() {
        let (_dir, registry) = registry();
        let mut domain = registry.create(&named("web")).unwrap();
        for boot in 0..3 {
            let sockets = [domain.api_socket(), domain.console_socket(), domain.xenstored_socket()];
            let _listeners = sockets.map(|path| UnixListener::bind(path).unwrap());
            UnixStream::connect(registry.lookup("web").unwrap().api_socket()).unwrap();
            assert_eq!(domain.renew().unwrap(), DomId(boot + 2));
        }
    }

    #[test]
    fn an_image_in_use_is_refused_to_a_second_domain() {
        let (dir, registry) = registry();
        let (image, link) = (dir.path().join("img"), dir.path().join("link"));
        fs::write(&image, [0; 512]).unwrap();
        fs::hard_link(&image, &link).unwrap();
        let domain = registry.create(&with_disk(&image, false)).unwrap();
        let error = registry.create(&with_disk(&link, true)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "--disk {}: in use by domain 1 (domain-1); stop that one, or let both have it read-only (ro) or shared (w!)",
                link.display()
            )
        );
        let reader = with_disk(&link, true).disks.remove(0);
        assert_eq!(registry.find_holder(&reader).unwrap().unwrap().domid, DomId(1));
        drop(domain);
        assert!(registry.find_holder(&reader).unwrap().is_none());
    }

    #[test]
    fn an_image_that_nobody_writes_may_be_shared() {
        let (dir, registry) = registry();
        let image = dir.path().join("img");
        fs::write(&image, [0; 512]).unwrap();
        let _reader = registry.create(&with_disk(&image, true)).unwrap();
        assert!(registry.create(&with_disk(&image, true)).is_ok());
        assert!(matches!(registry.create(&with_disk(&image, false)), Err(DomainError::DiskInUse { .. })));
    }

    #[test]
    fn an_image_that_all_share_may_be_written_by_several() {
        let (dir, registry) = registry();
        let image = dir.path().join("img");
        fs::write(&image, [0; 512]).unwrap();
        let mut shared = with_disk(&image, false);
        shared.disks[0].shared = true;
        let _first = registry.create(&shared).unwrap();
        assert!(registry.create(&shared).is_ok());
        assert!(registry.create(&with_disk(&image, false)).is_err());
        assert!(registry.create(&with_disk(&image, true)).is_err());
    }

    #[test]
    fn an_iscsi_disk_in_use_is_refused_to_a_second_domain() {
        let (_dir, registry) = registry();
        let with = |target: &str| {
            let text = format!("script=block-iscsi,target=iqn=iqn.2001-05.com.example:a,portal={target}");
            let disks = DiskSpec::assign(vec![DiskSpec::parse(&text).unwrap()]).unwrap();
            DomainConfig { disks, ..DomainConfig::default() }
        };
        let _first = registry.create(&with("192.0.2.1")).unwrap();
        let error = registry.create(&with("192.0.2.2")).unwrap_err().to_string();
        assert!(
            error.contains("iqn.2001-05.com.example:a") && error.contains("in use by domain 1"),
            "{error}"
        );
        assert!(registry.create(&with("192.0.2.1,lun=1")).is_ok());
    }

    #[test]
    fn waiting_ends_with_the_process() {
        let (_dir, registry) = registry();
        let mut child = in_another_process(&registry, 1);
        let id = ids_of(&child, &registry)[0];
        let entry = registry.lookup(&id.to_string()).unwrap();
        assert!(entry.is_alive());
        let waiter = std::thread::spawn(move || {
            entry.wait().unwrap();
            entry.is_alive()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!waiter.join().unwrap());
    }

    #[test]
    fn listing_makes_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        assert!(Registry::open_existing(&run_dir).unwrap().is_none());
        assert!(!run_dir.exists());
    }

    #[test]
    fn a_folder_whose_sockets_would_have_too_long_paths_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().as_os_str().len() + 1;
        let most = SOCKET_PATH_MAX - "/32751/xenstored.sock".len();
        assert!(Registry::open(&dir.path().join("x".repeat(most - base))).is_ok());
        let error = Registry::open(&dir.path().join("x".repeat(most - base + 1))).unwrap_err();
        assert!(matches!(error, DomainError::RunDirTooLong { max: 86, .. }), "{error}");
    }

    #[test]
    fn a_folder_that_anybody_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Registry::open(dir.path()), Err(DomainError::RunDirUnsafe { .. })));
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Registry::open(&file), Err(DomainError::RunDir { .. })));
    }
}
