//! Networks, in the nested host: a network namespace behind a bridge plays the outside world.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;
use crate::guest::Guest;
use crate::packages::run;

pub mod host;
pub mod offloads;
pub mod traffic;
pub mod vifs;
pub mod xdp;

/// Time of one measurement; generous, since the processor is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// Debian's `ip`; busybox's knows no namespaces.
fn ip(words: &str) -> Result<String> {
    run(Command::new("/sbin/ip").args(words.split_whitespace()))
}

/// A network namespace beside the test's own.
struct Namespace(&'static str);

impl Namespace {
    /// Makes it, with its loopback interface up.
    fn new(name: &'static str) -> Result<Namespace> {
        // Names of namespaces are files: the test's own mounts keep them apart from other tests'.
        if !run(&mut Command::new("mount"))?.contains(" /run/netns ") {
            run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/netns"]))?;
        }
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace(name);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Connects it to a bridge by a cable, `eth0` on its side and `cable` in the bridge.
    fn plug_into(&self, bridge: &str, cable: &str, mtu: u32) -> Result<()> {
        ip(&format!("link add {cable} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", self.0))?;
        ip(&format!("link set {cable} master {bridge} up"))?;
        self.ip("link set eth0 up")?;
        Ok(())
    }

    fn ip(&self, words: &str) -> Result<String> {
        ip(&format!("-n {} {words}", self.0))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("/sbin/ip");
        command.args(["netns", "exec", self.0, program]);
        command
    }

    /// Runs a program for as long as the value lives.
    fn daemon(&self, words: &str) -> Result<Daemon> {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        Ok(Daemon(command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }
}

/// A program that ends with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bridge with this MTU and addresses of the host.
fn bridge(name: &str, mtu: u32, addresses: &[&str]) -> Result<()> {
    ip(&format!("link add {name} mtu {mtu} type bridge"))?;
    for address in addresses {
        // Without the pause in which IPv6 looks for the same address elsewhere.
        ip(&format!(
            "address add {address} dev {name} {}",
            if address.contains(':') { "nodad" } else { "" }
        ))?;
    }
    ip(&format!("link set {name} up"))?;
    Ok(())
}

/// Brings an interface of the guest up with addresses of both families.
fn addresses(guest: &mut Guest, interface: &str, v4: &str, v6: &str) -> Result<()> {
    guest.sh(&format!(
        "echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad; ip link set {interface} up && \
         ip addr add {v4} dev {interface} && ip -6 addr add {v6} dev {interface}"
    ))?;
    Ok(())
}

/// Runs iperf3 in the guest and returns the receiver's line, which counts more than nothing.
fn iperf(guest: &mut Guest, server: &str, words: &str) -> Result<String> {
    let said = guest.sh_within(&format!("iperf3 -c {server} {words} -f m"), LIMIT)?;
    let line = said.lines().rfind(|line| line.ends_with("receiver") && !line.contains(" 0.00 Bytes"));
    match line {
        Some(line) => Ok(line.split_whitespace().collect::<Vec<_>>().join(" ")),
        None => crate::fail!("iperf3 {words}: nothing was received: {said}"),
    }
}

/// The guest's stack has seen no wrong checksum.
fn no_csum_errors(guest: &mut Guest) -> Result<()> {
    let counters = guest.sh("cat /proc/net/snmp /proc/net/snmp6")?;
    crate::check!(csum_errors(&counters) == 0, "the guest counts wrong checksums: {counters}");
    Ok(())
}

/// Sum of the InCsumErrors of /proc/net/snmp (names and values on lines of their own) and snmp6 (one by one).
fn csum_errors(text: &str) -> u64 {
    let mut sum = 0;
    let mut lines = text.lines().peekable();
    while let Some(names) = lines.next() {
        let names: Vec<&str> = names.split_whitespace().collect();
        if let [name, value] = names[..]
            && name.ends_with("InCsumErrors")
        {
            sum += value.parse::<u64>().unwrap_or(1);
        } else if let Some(at) = names.iter().position(|name| *name == "InCsumErrors")
            && let Some(values) = lines.next()
        {
            sum += values.split_whitespace().nth(at).and_then(|v| v.parse::<u64>().ok()).unwrap_or(1);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_both_forms_are_counted() {
        let text = "Tcp: InErrs InCsumErrors\nTcp: 0 2\nIp6InReceives 7\nUdp6InCsumErrors 3\n";
        assert_eq!(csum_errors(text), 5);
    }
}
