//! Who uses a session, and who ends it.
//!
//! `RUN_DIR/iscsi/IQN/ADDRESS,PORT/` belongs to a session that xvmm opened:
//!
//! - `lock`: an exclusive flock for the time of a decision: log in, join, log out;
//! - `users`: a shared flock for each user, which the kernel drops with its process. Who gets the exclusive
//!   one is alone;
//! - `session.json`: what was made, written before it is made. It outlives a killed process, and tells the
//!   next one what to clean up. A session that is not in it is not ours.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::admin::status;
use super::chap::Chap;
use super::sysfs::Session;
use super::{Host, IscsiProblem, record};
use crate::config::portal::is_target_name;

/// The folder in the folder of running domains.
const FOLDER: &str = "iscsi";
const LOCK: &str = "lock";
const USERS: &str = "users";
const STATE: &str = "session.json";

/// What we made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The run of the host: ids of sessions mean nothing in another one.
    boot: String,
    iqn: String,
    portal: SocketAddr,
    /// The node record is ours.
    record: bool,
    /// The sessions of the login; empty before it is complete.
    sessions: Vec<u32>,
}

/// A use of a session.
#[derive(Debug)]
pub(super) struct Lease {
    host: Arc<Host>,
    /// `None` when the session is not ours.
    folder: Option<PathBuf>,
    users: Option<Flock>,
    /// The session.
    pub session: Session,
    /// Whether this use has logged in.
    pub is_new: bool,
}

impl Lease {
    /// Finds a session with the target, or logs in.
    pub(super) fn take(
        host: &Arc<Host>,
        run_dir: &Path,
        iqn: &str,
        portals: &[SocketAddr],
        chap: Option<&Chap>,
    ) -> Result<Lease, IscsiProblem> {
        let used = portals.iter().find(|portal| !host.sysfs.sessions(iqn, **portal).is_empty());
        let portal = *used.or(portals.first()).ok_or(IscsiProblem::InvalidPortal)?;
        let folder = run_dir.join(FOLDER).join(iqn).join(format!("{},{}", portal.ip(), portal.port()));
        let failed = |source| IscsiProblem::State { path: folder.clone(), source };
        let locked = Locked::wait(&folder).map_err(failed)?;
        // Asked again: somebody may have logged in or out while we waited.
        let found = host.sysfs.sessions(iqn, portal);
        let state = locked.state();
        if let Some(session) = connected(&found) {
            let Some(mut state) = state.filter(|state| state.has_made(&found, host)) else {
                tracing::info!(
                    "iSCSI target {iqn}: using session {}, which is not ours to close",
                    session.id
                );
                // What is left of a session that somebody else has closed.
                locked.forget();
                if locked.is_unused().map_err(failed)? {
                    locked.remove();
                }
                let host = Arc::clone(host);
                return Ok(Lease { host, folder: None, users: None, session, is_new: false });
            };
            let users = locked.join().map_err(failed)?;
            if state.sessions.is_empty() {
                state.sessions = ids(&found);
                locked.write(&state).map_err(failed)?;
            }
            let (host, folder) = (Arc::clone(host), Some(folder.clone()));
            return Ok(Lease { host, folder, users: Some(users), session, is_new: false });
        }
        let users = locked.join().map_err(failed)?;
        let session = match login(host, &locked, iqn, portal, chap) {
            Ok(session) => session,
            Err(problem) => {
                drop(users);
                // iscsid may still succeed: then the state tells the next start whose session it is.
                if !matches!(problem, IscsiProblem::TimedOut { .. }) {
                    end(host, locked);
                }
                return Err(problem);
            }
        };
        let LoggedIn { session, is_ours } = session;
        let host = Arc::clone(host);
        if is_ours {
            return Ok(Lease { host, folder: Some(folder), users: Some(users), session, is_new: true });
        }
        drop(users);
        end(&host, locked);
        Ok(Lease { host, folder: None, users: None, session, is_new: true })
    }

    /// Has the kernel ask the target for its logical units again, if that is possible.
    pub(super) fn rescan(&self) {
        if let Err(problem) = self.host.iscsiadm().and_then(|iscsiadm| iscsiadm.rescan(self.session.id)) {
            tracing::debug!("iSCSI session {}: {problem}", self.session.id);
        }
    }
}

impl Drop for Lease {
    /// Logs out if the session is ours and nobody else uses it.
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        match Locked::wait(folder) {
            Ok(locked) => {
                self.users = None;
                end(&self.host, locked);
            }
            Err(error) => tracing::warn!("{}: {error}; the iSCSI session stays open", folder.display()),
        }
    }
}

/// Ends the sessions that killed processes have left, and no others.
pub(super) fn clean_up(host: &Arc<Host>, run_dir: &Path) {
    for target in folders(&run_dir.join(FOLDER)) {
        for session in folders(&target) {
            // Somebody decides about it at this moment: then it is not abandoned.
            if let Ok(Some(locked)) = Locked::at_once(&session) {
                end(host, locked);
            }
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn ids(sessions: &[Session]) -> Vec<u32> {
    sessions.iter().map(|session| session.id).collect()
}

/// The session to use: the first with a connection, or else the first.
fn connected(sessions: &[Session]) -> Option<Session> {
    sessions.iter().find(|session| session.is_logged_in()).or(sessions.first()).cloned()
}

struct LoggedIn {
    session: Session,
    is_ours: bool,
}

/// Logs in. What it has made before it fails is in the state.
fn login(
    host: &Host,
    locked: &Locked,
    iqn: &str,
    portal: SocketAddr,
    chap: Option<&Chap>,
) -> Result<LoggedIn, IscsiProblem> {
    let iscsiadm = host.iscsiadm()?;
    let failed = |source| IscsiProblem::State { path: locked.folder.clone(), source };
    // A record from before the host's last start, with our mark and maybe an old password.
    let left = record::find(&host.nodes, iqn, portal).filter(|path| record::is_ours(path));
    if let Some(path) = left {
        record::delete(&path).map_err(|source| IscsiProblem::Record { path: path.clone(), source })?;
    }
    let exists = iscsiadm.has_record(iqn, portal, &locked.lock.0)?;
    if exists && chap.is_some() {
        return Err(IscsiProblem::RecordExists);
    }
    // iscsid would try for minutes. It is in our network namespace, or else iscsiadm could not talk to it; a
    // record of somebody else may name another way.
    if !exists && let Err(error) = TcpStream::connect_timeout(&portal, host.connect) {
        return Err(IscsiProblem::Unreachable(error.to_string()));
    }
    let mut state =
        State { boot: host.boot.clone(), iqn: iqn.into(), portal, record: !exists, sessions: Vec::new() };
    locked.write(&state).map_err(failed)?;
    if !exists {
        iscsiadm.new_record(iqn, portal, &locked.lock.0)?;
        match record::find(&host.nodes, iqn, portal) {
            Some(path) => record::adopt(&path, chap)?,
            None if chap.is_some() => return Err(IscsiProblem::NoRecordFile),
            None => {}
        }
    }
    let outcome = iscsiadm.login(iqn, portal, &locked.lock.0)?;
    let is_ours = match outcome.status {
        status::SUCCESS => true,
        // Somebody else was faster.
        status::SESSION_EXISTS => false,
        status::NOT_CONNECTED => return Err(IscsiProblem::NoIscsid),
        _ if !host.sysfs.has_tcp() => return Err(IscsiProblem::NoModule),
        _ => return Err(outcome.problem("log in")),
    };
    let found = host.sysfs.sessions(iqn, portal);
    let Some(session) = connected(&found) else {
        let message = "it says that it has logged in, but there is no session in /sys".into();
        return Err(IscsiProblem::Failed { what: "log in", status: outcome.status, message });
    };
    if is_ours {
        state.sessions = ids(&found);
        locked.write(&state).map_err(failed)?;
        tracing::info!("iSCSI target {iqn}: logged in, session {}", session.id);
    } else {
        delete_record(host, locked, &state)?;
        locked.forget();
        tracing::info!("iSCSI target {iqn}: using session {}, which is not ours to close", session.id);
    }
    Ok(LoggedIn { session, is_ours })
}

/// Ends what the state tells of, unless somebody uses it. What cannot be ended stays in the state, for the
/// next one who looks.
fn end(host: &Host, locked: Locked) {
    match locked.is_unused() {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => return tracing::warn!("{}: {error}", locked.folder.display()),
    }
    if let Some(state) = locked.state()
        && let Err(reason) = undo(host, &locked, &state)
    {
        tracing::warn!("iSCSI target {}: the session stays open: {reason}", state.iqn);
        return;
    }
    locked.forget();
    locked.remove();
}

fn undo(host: &Host, locked: &Locked, state: &State) -> Result<(), String> {
    let found = host.sysfs.sessions(&state.iqn, state.portal);
    if state.has_made(&found, host) {
        let ours = |session: &&Session| state.sessions.is_empty() || state.sessions.contains(&session.id);
        for session in found.iter().filter(ours) {
            if let Some(device) = host.sysfs.user_of(session.id) {
                return Err(format!("{} is in use", device.display()));
            }
            let iscsiadm = host.iscsiadm().map_err(|problem| problem.to_string())?;
            iscsiadm.logout(session.id, &locked.lock.0).map_err(|problem| problem.to_string())?;
            tracing::info!("iSCSI target {}: logged out, session {}", state.iqn, session.id);
        }
    }
    delete_record(host, locked, state).map_err(|problem| problem.to_string())
}

fn delete_record(host: &Host, locked: &Locked, state: &State) -> Result<(), IscsiProblem> {
    if !state.record {
        return Ok(());
    }
    match record::find(&host.nodes, &state.iqn, state.portal) {
        // Since then the host was started, and somebody may have made it again.
        Some(path) if state.boot != host.boot && !record::is_ours(&path) => Ok(()),
        // The very file: the portal may have other records by now, which are not ours.
        Some(path) => {
            record::delete(&path).map_err(|source| IscsiProblem::Record { path: path.clone(), source })
        }
        None if host.nodes.iter().any(|folder| folder.exists()) => Ok(()),
        None => host.iscsiadm()?.delete_record(&state.iqn, state.portal, &locked.lock.0),
    }
}

impl State {
    /// Whether these sessions, or some of them, came from the login that the state tells of. A login that was
    /// not told complete began when there was no session.
    fn has_made(&self, found: &[Session], host: &Host) -> bool {
        self.boot == host.boot
            && !found.is_empty()
            && (self.sessions.is_empty() || found.iter().any(|session| self.sessions.contains(&session.id)))
    }
}

/// A file with a flock. It is given back by name, not only by closing the file: another thread may be about to
/// start a program, and then that one has a copy of our descriptor for a moment.
#[derive(Debug)]
struct Flock(File);

impl Drop for Flock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// The folder of a session with its lock held.
#[derive(Debug)]
struct Locked {
    folder: PathBuf,
    lock: Flock,
}

impl Locked {
    /// Makes the folder if need be, and waits for its lock.
    fn wait(folder: &Path) -> io::Result<Locked> {
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let file = match open(&folder.join(LOCK)) {
                // Removed under our hands.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            file.lock()?;
            if let Some(locked) = Self::check(folder, file)? {
                return Ok(locked);
            }
        }
    }

    /// The lock of a folder that exists, unless somebody holds it.
    fn at_once(folder: &Path) -> io::Result<Option<Locked>> {
        let file = open(&folder.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Self::check(folder, file),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The one who held the lock may have removed the file.
    fn check(folder: &Path, file: File) -> io::Result<Option<Locked>> {
        let now = match fs::metadata(folder.join(LOCK)) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_same = now.ino() == file.metadata()?.ino();
        Ok(is_same.then(|| Locked { folder: folder.to_owned(), lock: Flock(file) }))
    }

    /// Becomes a user, until the file is closed.
    fn join(&self) -> io::Result<Flock> {
        let users = open(&self.folder.join(USERS))?;
        users.lock_shared()?;
        Ok(Flock(users))
    }

    /// Whether there is no user. None can come while we have the lock.
    fn is_unused(&self) -> io::Result<bool> {
        let users = Flock(open(&self.folder.join(USERS))?);
        match users.0.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What was made. It is checked like any other input, because it goes into paths and arguments.
    fn state(&self) -> Option<State> {
        let text = fs::read(self.folder.join(STATE)).ok()?;
        serde_json::from_slice::<State>(&text).ok().filter(|state| is_target_name(&state.iqn))
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let new = self.folder.join("session.new");
        fs::write(&new, serde_json::to_vec(state)?)?;
        fs::rename(new, self.folder.join(STATE))
    }

    /// Nothing is ours any more.
    fn forget(&self) {
        let _ = fs::remove_file(self.folder.join(STATE));
    }

    /// Removes the folder; the lock file last, so that nobody gets half of it.
    fn remove(self) {
        for name in ["session.new", USERS, LOCK] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        let _ = fs::remove_dir(&self.folder);
        if let Some(target) = self.folder.parent() {
            let _ = fs::remove_dir(target);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
