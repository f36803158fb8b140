//! The listening socket.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use super::super::{Listener, Setup, VncError, VncServer};
use crate::config::VncListen;
use crate::display::Display;
use crate::display::keys::Keymap;

fn setup() -> Setup {
    let keymap = Arc::new(Keymap::named("us").unwrap());
    Setup { display: Display::new(), password: None, keymap, name: "web".into() }
}

fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("vnc-") && name.trim_end() != "vnc-refresh").count()
}

/// A free display, found by the server itself. The port may be another test's in a moment: for refusals of one's own.
fn somewhere() -> VncListen {
    "127.0.0.1:4000,unused".parse().unwrap()
}

#[test]
fn viewers_connect_by_tcp_until_the_server_ends() {
    let server = VncServer::start(Listener::bind(&somewhere()).unwrap(), setup()).unwrap();
    let VncListen::Tcp { address, display, unused: false } = *server.at() else { panic!("{}", server.at()) };
    let mut viewer = TcpStream::connect((address, display + 5900)).unwrap();
    let mut version = [0; 12];
    viewer.read_exact(&mut version).unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    assert!(threads() > 0);
    drop(server);
    assert_eq!(viewer.read(&mut version).unwrap_or(0), 0);
    assert!(TcpStream::connect((address, display + 5900)).is_err());
}

#[test]
fn a_display_that_is_taken_is_refused_or_passed_over() {
    let first = Listener::bind(&somewhere()).unwrap();
    let error = Listener::bind(first.at()).unwrap_err();
    assert!(matches!(error, VncError::Taken(..)), "{error}");
    let VncListen::Tcp { address, display, .. } = *first.at() else { panic!() };
    let port = display + 5900;
    assert_eq!(
        error.to_string(),
        format!(
            "--vnc {0}: the port {port} is taken; choose another display, or write `{0},unused` for the next free one",
            first.at()
        )
    );
    let second = Listener::bind(&VncListen::Tcp { address, display, unused: true }).unwrap();
    assert_ne!(first.at(), second.at());
}

#[test]
fn a_unix_socket_is_for_its_owner_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vnc");
    let listen = VncListen::Unix(path.clone());
    // What a killed process left.
    drop(UnixListener::bind(&path).unwrap());
    let server = VncServer::start(Listener::bind(&listen).unwrap(), setup()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut version = [0; 12];
    UnixStream::connect(&path).unwrap().read_exact(&mut version).unwrap();
    assert!(matches!(Listener::bind(&listen), Err(VncError::PathTaken(..))));
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&listen).unwrap_err().to_string();
    assert!(error.contains("it is no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
