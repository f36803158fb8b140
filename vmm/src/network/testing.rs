//! Network namespaces for tests.

#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::process::Command;

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
