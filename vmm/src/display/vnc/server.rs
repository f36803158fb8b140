//! The socket that viewers connect to, and the thread behind it.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::{self, Socket};
use super::peers::{Peers, Stop};
use super::session::Session;
use super::{Password, Setup};
use crate::config::{DEFAULT_KEYMAP, FIRST_PORT, VncConfig, VncListen};
use crate::display::Display;
use crate::display::keys::Keymap;

/// Displays that are tried when the first free one is wanted.
const DISPLAYS_TRIED: u16 = 100;
/// How long no connection is taken after one could not be: for want of descriptors, mostly.
const PAUSE: Duration = Duration::from_millis(500);

/// Why viewers cannot connect. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum VncError {
    /// Something else is there.
    #[error("--vnc {0}: the port {port} is taken; choose another display, or write `{0},unused` for the next free one", port = .1.port())]
    Taken(VncListen, SocketAddr),
    /// All displays that were tried are taken.
    #[error("--vnc {0}: {DISPLAYS_TRIED} displays from there on are taken; choose another one")]
    AllTaken(VncListen),
    /// A file of this name is no socket, or somebody listens on it.
    #[error("--vnc {0}: there is such a file already{1}; choose another path")]
    PathTaken(VncListen, &'static str),
    /// The system refuses.
    #[error("--vnc {0}: {1}; check the address")]
    Listen(VncListen, io::Error),
    /// The password file is of no use.
    #[error("--vnc-password-file {}: it {reason}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// The rest of the sentence.
        reason: String,
    },
    /// A thread or a descriptor is not to be had.
    #[error("the VNC server cannot be started: {0}")]
    Host(io::Error),
}

#[derive(Debug)]
enum Sockets {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A place where viewers will be able to connect: it is taken, and nobody is served yet.
#[derive(Debug)]
pub struct Listener {
    sockets: Sockets,
    at: VncListen,
}

impl Listener {
    /// Takes the place.
    pub fn bind(listen: &VncListen) -> Result<Listener, VncError> {
        match listen {
            VncListen::Tcp { address, display, unused } => {
                let last = if *unused { display.saturating_add(DISPLAYS_TRIED - 1) } else { *display };
                for display in *display..=last {
                    let Some(port) = FIRST_PORT.checked_add(display) else { break };
                    let socket = SocketAddr::new(*address, port);
                    match TcpListener::bind(socket) {
                        Ok(listener) => {
                            let at = VncListen::Tcp { address: *address, display, unused: false };
                            return Ok(Listener { sockets: Sockets::Tcp(listener), at });
                        }
                        Err(error) if error.kind() == ErrorKind::AddrInUse && *unused => {}
                        Err(error) if error.kind() == ErrorKind::AddrInUse => {
                            return Err(VncError::Taken(listen.clone(), socket));
                        }
                        Err(error) => return Err(VncError::Listen(listen.clone(), error)),
                    }
                }
                Err(VncError::AllTaken(listen.clone()))
            }
            VncListen::Unix(path) => {
                let socket = bind_unix(listen, path)?;
                Ok(Listener { sockets: Sockets::Unix(socket, path.clone()), at: listen.clone() })
            }
        }
    }

    /// The place, with the display that was free.
    pub fn at(&self) -> &VncListen {
        &self.at
    }

    fn fd(&self) -> RawFd {
        match &self.sockets {
            Sockets::Tcp(listener) => listener.as_raw_fd(),
            Sockets::Unix(listener, _) => listener.as_raw_fd(),
        }
    }

    fn accept(&self) -> io::Result<(Box<dyn Socket>, String)> {
        match &self.sockets {
            Sockets::Tcp(listener) => {
                let (socket, from) = listener.accept()?;
                Ok((Box::new(socket), from.to_string()))
            }
            Sockets::Unix(listener, _) => {
                let (socket, _) = listener.accept()?;
                Ok((Box::new(socket), "the unix socket".into()))
            }
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match &self.sockets {
            Sockets::Tcp(listener) => listener.set_nonblocking(true),
            Sockets::Unix(listener, _) => listener.set_nonblocking(true),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Sockets::Unix(_, path) = &self.sockets {
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens on a socket for its owner alone. One that a killed process left is replaced.
fn bind_unix(listen: &VncListen, path: &Path) -> Result<UnixListener, VncError> {
    let failed = |error| VncError::Listen(listen.clone(), error);
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(VncError::PathTaken(listen.clone(), ", and it is no socket"));
        }
        if !UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            return Err(VncError::PathTaken(listen.clone(), ", and it is in use"));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// A server, until dropped: all connections end then.
#[derive(Debug)]
pub struct VncServer {
    at: VncListen,
    peers: Arc<Peers>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl VncServer {
    /// Shows a display as a description says. Nobody can connect if the password file is of no use.
    pub fn open(config: &VncConfig, display: Arc<Display>, name: &str) -> Result<VncServer, VncError> {
        let password = config.password_file.as_deref().map(|path| {
            Password::read(path).map_err(|reason| VncError::Password { path: path.to_owned(), reason })
        });
        let password = password.transpose()?;
        let listener = Listener::bind(&config.listen)?;
        // Looked at when the description was made.
        let keymap = Keymap::named(&config.keymap).or_else(|| Keymap::named(DEFAULT_KEYMAP));
        let keymap = Arc::new(keymap.ok_or_else(|| VncError::Host(ErrorKind::NotFound.into()))?);
        VncServer::start(listener, Setup { display, password, keymap, name: name.to_owned() })
    }

    /// Lets viewers in.
    pub fn start(listener: Listener, setup: Setup) -> Result<VncServer, VncError> {
        listener.set_nonblocking().map_err(VncError::Host)?;
        let wake = new_event().map_err(VncError::Host)?;
        let stop = Stop::new(Arc::clone(&wake));
        let peers = Arc::new(Peers::default());
        let at = listener.at.clone();
        let doorman =
            Doorman { listener, setup: Arc::new(setup), peers: Arc::clone(&peers), stop: stop.clone(), wake };
        let thread =
            Builder::new().name("vnc".into()).spawn(move || doorman.run()).map_err(VncError::Host)?;
        Ok(VncServer { at, peers, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn at(&self) -> &VncListen {
        &self.at
    }

    /// How many viewers there are.
    pub fn viewers(&self) -> usize {
        self.peers.viewers()
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn new_event() -> io::Result<Arc<EventFd>> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new)
}

/// Waits for connections, and gives each one a thread.
struct Doorman {
    listener: Listener,
    setup: Arc<Setup>,
    peers: Arc<Peers>,
    stop: Stop,
    wake: Arc<EventFd>,
}

impl Doorman {
    fn run(self) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        while !self.stop.is_stopped() {
            connection::wait(self.listener.fd(), libc::POLLIN, &self.wake, None);
            let accepted = self.listener.accept();
            threads.retain(|thread| !thread.is_finished());
            let result = match accepted {
                // Closed at once; those that are ending need a moment.
                Ok(_) if self.peers.is_full() => Ok(()),
                Ok((socket, from)) => self.serve(socket, from).map(|thread| threads.push(thread)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::debug!("a viewer cannot be let in: {error}");
                connection::wait(-1, 0, &self.wake, Some(PAUSE));
            }
        }
        self.peers.stop_all();
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn serve(&self, socket: Box<dyn Socket>, from: String) -> io::Result<JoinHandle<()>> {
        socket.prepare()?;
        let wake = new_event()?;
        let mut challenge = [0; 16];
        getrandom::fill(&mut challenge).map_err(io::Error::other)?;
        let stop = Stop::new(Arc::clone(&wake));
        let id = self.peers.add(stop.clone());
        let (setup, peers) = (Arc::clone(&self.setup), Arc::clone(&self.peers));
        let thread = Builder::new().name(format!("vnc-{id}")).spawn(move || {
            let name = setup.name.clone();
            let session = Session::new(setup, Arc::clone(&peers), id, challenge, Arc::clone(&wake));
            let known = std::cell::Cell::new(false);
            let end = connection::serve(socket, session, &stop, &wake, |session| {
                known.set(true);
                tracing::info!("{name}: a viewer from {from} ({:?})", session.version());
            });
            peers.remove(id);
            if known.get() {
                tracing::debug!("{name}: the viewer from {from} is gone: {end}");
            } else {
                tracing::info!("{name}: somebody from {from} became no viewer: {end}");
            }
        });
        thread.inspect_err(|_| self.peers.remove(id))
    }
}
