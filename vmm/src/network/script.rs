//! Programs that plug an interface in (`script=PATH`), run as Xen's toolstack runs its hotplug scripts.
//!
//! Arguments: `online` or `offline`, and `type_if=vif`. Environment: `script`, `vif` (the interface), `XENBUS_TYPE`,
//! `XENBUS_PATH` (`backend/vif/DOMID/DEVID`), `XENBUS_BASE_PATH`, `netdev` (gatewaydev=), and the settings that the
//! scripts take from there too: `bridge`, `ip`, `mac`. Xen's scripts read the rest from xenstore. That of the guest is not
//! served while the guest is made, so the script has one of its own for the time it runs, with the backend's
//! directory in it, at `XENSTORED_PATH`.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use devices::xen::DomId;
use devices::xen::xenbus::Keys;
use devices::xen::xenstore::{SocketServer, XenStore};

use super::NetworkError;
use crate::host_tool;

/// How long a script may take; Xen's toolstack has the same patience.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the thread of the store looks whether the script has ended, in milliseconds.
const POLL: libc::c_int = 20;

/// A script, and the interface that it is for.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) program: PathBuf,
    /// Name of the interface.
    pub(super) name: String,
    pub(super) domid: u16,
    pub(super) devid: u32,
    /// The state folder of the domain; the socket of the script's xenstore is in it.
    pub(super) folder: PathBuf,
    /// The backend's directory in xenstore.
    pub(super) keys: Keys,
}

/// An interface that a script has plugged in. It is run again to unplug it when the value is dropped.
#[derive(Debug)]
pub(super) struct Online(Script);

impl Script {
    /// Looks whether the program can be run. Changes nothing.
    pub(super) fn check(program: &Path) -> Result<(), NetworkError> {
        match host_tool::is_program(program) {
            true => Ok(()),
            false => Err(NetworkError::NoScript(program.to_owned())),
        }
    }

    /// Plugs the interface in.
    pub(super) fn online(self) -> Result<Online, NetworkError> {
        // What a script that failed has done already is undone.
        let online = Online(self);
        online.0.run("online")?;
        Ok(online)
    }

    fn run(&self, what: &'static str) -> Result<(), NetworkError> {
        let failed = |why: String| NetworkError::Script { program: self.program.clone(), what, why };
        let (backend, base) = (format!("backend/vif/{}/{}", self.domid, self.devid), "backend");
        let mut command = Command::new(&self.program);
        command.args([what, "type_if=vif"]).env("script", &self.program).env("vif", &self.name);
        command.env("XENBUS_TYPE", "vif").env("XENBUS_PATH", &backend).env("XENBUS_BASE_PATH", base);
        for (key, variable) in [("gatewaydev", "netdev"), ("bridge", "bridge"), ("ip", "ip"), ("mac", "mac")]
        {
            match self.keys.iter().find(|(name, _)| name == key) {
                Some((_, value)) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let socket = self.folder.join(format!("vif{}.sock", self.devid));
        let store = StoreThread::start(&socket, &backend, &self.keys)
            .map_err(|error| failed(format!("its xenstore cannot be served: {error}")))?;
        command.env("XENSTORED_PATH", &socket);
        let output = host_tool::run(&mut command, "", LIMIT);
        let store = store.stop();
        let _ = std::fs::remove_file(&socket);
        let output = output.map_err(|error| failed(format!("it cannot be run: {error}")))?;
        if output.success() {
            return Ok(());
        }
        // Xen's scripts leave their reason there.
        let left =
            store.and_then(|store| store.read_str(&format!("/local/domain/0/{backend}/hotplug-error")));
        Err(failed(left.filter(|reason| !reason.is_empty()).unwrap_or_else(|| output.complaint())))
    }
}

impl Drop for Online {
    fn drop(&mut self) {
        if let Err(error) = self.0.run("offline") {
            tracing::warn!("{error}");
        }
    }
}

/// A xenstore with one backend's directory, served by a thread.
struct StoreThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<XenStore>,
}

impl StoreThread {
    fn start(socket: &Path, backend: &str, keys: &Keys) -> io::Result<StoreThread> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let mut store = XenStore::new();
        for (key, value) in keys {
            let path = format!("/local/domain/0/{backend}/{key}");
            store.write(&path, value).map_err(|error| io::Error::other(format!("{path}: {error:?}")))?;
        }
        let mut server = SocketServer::new(listener, DomId::DOM0)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let serve = move || {
            while !stopped.load(Ordering::Acquire) {
                let mut poll = libc::pollfd { fd: server.fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one valid pollfd.
                unsafe { libc::poll(&mut poll, 1, POLL) };
                if let Err(error) = server.process(&mut store).and_then(|()| server.flush(&mut store)) {
                    tracing::warn!("the xenstore of a script: {error}");
                    break;
                }
            }
            store
        };
        let thread = Builder::new().name("script-store".to_owned()).spawn(serve)?;
        Ok(StoreThread { stop, thread })
    }

    /// What the script has left in it.
    fn stop(self) -> Option<XenStore> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().ok()
    }
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
