//! Network namespaces for tests.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use netback::{Tap, VifConfig};

use super::{NetworkError, disable_ipv6, plug};
use crate::config::NetConfig;

/// Moves this thread into a network namespace of its own.
pub(crate) fn enter_namespace() {
    // SAFETY: only changes the namespace of this thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "these tests need a network namespace of their own: run them as root ({error})");
}

/// Moves this thread into a network namespace of its own, with a bridge in it that forwards at once.
pub(crate) fn namespace_with_bridge(bridge: &str) {
    enter_namespace();
    ip(&format!("link add {bridge} type bridge forward_delay 0"));
    disable_ipv6(bridge);
    ip(&format!("link set {bridge} up"));
}

/// Waits until it is so. A tap lives a little longer than its owner where another test starts a program meanwhile: until
/// that is another program, it has a copy of all descriptors.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `ip` of iproute2, whose words the test splits at spaces; what it prints.
pub(crate) fn ip(words: &str) -> String {
    program("ip", words, true)
}

/// A program in this thread's namespace that must succeed, if `good`; what it prints.
pub(crate) fn program(name: &str, words: &str, good: bool) -> String {
    let output = Command::new(name).args(words.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || !good, "{name} {words}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The interface of a specification, plugged in.
pub(crate) fn plug_spec(spec: &str, domid: u16) -> Result<(VifConfig, Tap), NetworkError> {
    let net: NetConfig = spec.parse().unwrap();
    let devid = net.devid.or(Some(0));
    plug(&NetConfig { devid, ..net }, domid, Path::new("/nonexistent"))
}

/// The guest's end of a tap: raw frames.
pub(crate) struct Wire(Tap);

impl Wire {
    pub(crate) fn new(tap: Tap) -> Wire {
        tap.set_carrier(true).unwrap();
        Wire(tap)
    }

    fn fd(&self) -> i32 {
        self.0.fd(0).unwrap()
    }

    /// The guest sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        let bytes = [&[0; netback::VNET_HDR][..], frame].concat();
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::write(self.fd(), bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(usize::try_from(sent), Ok(bytes.len()), "{}", io::Error::last_os_error());
    }

    /// The frames that have come, or come within the time.
    pub(crate) fn received(&self, limit: std::time::Duration) -> Vec<Vec<u8>> {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, i32::try_from(limit.as_millis()).unwrap()) };
        let mut frames = Vec::new();
        loop {
            let mut bytes = vec![0; 4096];
            // SAFETY: the buffer is valid for its length.
            let got = unsafe { libc::read(self.fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
            let Ok(got) = usize::try_from(got) else { return frames };
            frames.push(bytes[netback::VNET_HDR..got].to_vec());
        }
    }
}
