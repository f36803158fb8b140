//! Interfaces with filters, and interfaces that come and go while the guest runs.

use std::fs;
use std::process::Command;

use crate::cases::net::address;
use crate::cases::{Bench, interfaces};
use crate::guest::{Guest, xvmm};
use crate::packages::run;
use crate::{Result, check};

/// Exit statuses of xvmm.
const SAME_DEVID: i32 = 26;
const NO_SUCH_BRIDGE: i32 = 30;
const NO_SUCH_DEVICE: i32 = 54;

/// A command of the guest that succeeds, or fails, as is said.
fn expect(guest: &mut Guest, what: &str, command: &str, good: bool) -> Result<()> {
    let (status, output) = guest.status(command)?;
    check!((status == 0) == good, "{what}: {command} ended with {status}: {output}");
    Ok(())
}

/// A single packet and its answer, or none; the first ones may be lost while addresses are looked for.
fn ping(guest: &mut Guest, what: &str, from: &str, to: &str, good: bool) -> Result<()> {
    let command = format!("ping -c {} -W 5 -I {from} {to}", if good { 4 } else { 2 });
    expect(guest, what, &command, good)
}

/// Whether the host reaches the address.
fn host_reaches(address: &str) -> Result<bool> {
    Ok(Command::new("ping").args(["-c", "2", "-W", "5", address]).output()?.status.success())
}

/// A command of xvmm that is refused with this status.
fn refused(bench: &Bench, words: &[&str], status: i32) -> Result<()> {
    let output = xvmm(&bench.folder).args(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check!(output.status.code() == Some(status), "{words:?} ended with {:?}: {said}", output.status);
    Ok(())
}

/// A guest that forges its IP or MAC address is stopped, and one that does not is not.
pub fn filters(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    run(Command::new("ip").args(["addr", "add", "fd00::1/64", "dev", "xenbr0"]))?;
    let spec = "xenbr0,mac=00:16:3e:00:00:01,ip=10.0.0.2 fd00::2,mac-filter";
    let mut guest = bench.guest().name("honest").net(spec).start()?;

    // DHCP, before it has an address.
    let (configuration, leases) = (bench.folder.join("udhcpd.conf"), bench.folder.join("leases"));
    fs::write(&leases, "")?;
    let settings = format!(
        "interface xenbr0\nstart 10.0.0.2\nend 10.0.0.2\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n",
        leases.display(),
        bench.folder.join("udhcpd.pid").display()
    );
    fs::write(&configuration, settings)?;
    let mut server = Command::new("busybox").args(["udhcpd", "-f"]).arg(&configuration).spawn()?;
    guest.sh("ip link set eth0 up")?;
    let lease = guest.sh("udhcpc -i eth0 -n -q -f -t 10 -T 3 -s /bin/true 2>&1");
    let _ = server.kill();
    let _ = server.wait();
    let lease = lease?;
    check!(lease.contains("10.0.0.2"), "DHCP gave another address: {lease}");

    // Its addresses are usable at once.
    guest.sh("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")?;
    guest.sh("ip addr add 10.0.0.2/24 dev eth0 && ip -6 addr add fd00::2/64 dev eth0")?;
    ping(&mut guest, "its IPv4 address", "10.0.0.2", "10.0.0.1", true)?;
    ping(&mut guest, "its IPv6 address", "fd00::2", "fd00::1", true)?;
    check!(host_reaches("10.0.0.2")?, "the host does not reach the guest");

    guest.sh("ip addr add 10.0.0.3/24 dev eth0 && ip -6 addr add fd00::3/64 dev eth0")?;
    ping(&mut guest, "a forged IPv4 address", "10.0.0.3", "10.0.0.1", false)?;
    ping(&mut guest, "a forged IPv6 address", "fd00::3", "fd00::1", false)?;
    // Its answers to ARP for that address are stopped.
    check!(!host_reaches("10.0.0.3")?, "the host reaches a forged address");

    guest.sh("ip link set eth0 down && ip link set eth0 address 00:16:3e:00:00:09 && ip link set eth0 up")?;
    ping(&mut guest, "a forged MAC address", "10.0.0.2", "10.0.0.1", false)?;
    guest.sh("ip link set eth0 down && ip link set eth0 address 00:16:3e:00:00:01 && ip link set eth0 up")?;
    ping(&mut guest, "its MAC address", "10.0.0.2", "10.0.0.1", true)?;

    // Without a filter the same is not stopped: the test would see it.
    let mut other = bench.guest().name("free").net("xenbr0,ip=10.0.0.4").net("xenbr0").start()?;
    address(&mut other, "eth1", "10.0.0.5/24")?;
    other.sh("ip link set eth1 down && ip link set eth1 address 00:16:3e:00:00:0a && ip link set eth1 up")?;
    ping(&mut other, "an interface without a filter", "10.0.0.5", "10.0.0.1", true)?;

    let rules = || run(Command::new("nft").args(["list", "ruleset"]));
    check!(rules()?.contains("vif/vif"), "there are no rules: {}", rules()?);
    // A killed process leaves its rules at most until domains are listed.
    other.signal(libc::SIGKILL)?;
    other.wait(std::time::Duration::from_secs(300))?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.xvmm(&["list"])?;
    check!(!rules()?.contains("chain"), "rules are left: {}", rules()?);
    bench.nothing_is_left()
}

/// Waits for a condition in the guest.
fn wait_for(guest: &mut Guest, condition: &str) -> Result<()> {
    guest.sh(&format!(
        "i=0; until {condition}; do [ $i -lt 150 ] || exit 1; i=$((i+1)); usleep 100000; done"
    ))?;
    Ok(())
}

/// Interfaces come and go: in good order, under load, by force; and through a reboot.
pub fn hotplug(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    bench.bridge("xenbr1", "10.0.1.1/24")?;
    let mut guest = bench.guest().name("hot").net("xenbr0").start()?;
    address(&mut guest, "eth0", "10.0.0.2/24")?;
    let mac = "00:16:3e:11:22:33";
    let spec = format!("xenbr1,mac={mac},ip=10.0.1.2");
    refused(bench, &["network-attach", "hot", "nobr0"], NO_SUCH_BRIDGE)?;
    refused(bench, &["network-attach", "hot", "devid=0"], SAME_DEVID)?;
    refused(bench, &["network-detach", "hot", "7"], NO_SUCH_DEVICE)?;
    for (what, load, detach) in [
        ("idle", false, &["network-detach", "hot", "1"][..]),
        ("under load", true, &["network-detach", "hot", mac]),
        ("at once", true, &["network-detach", "hot", "1", "--force", "--timeout", "0"]),
    ] {
        let devid = bench.xvmm(&["network-attach", "hot", &spec])?;
        check!(devid.trim() == "1", "{what}: the interface has the number {devid}");
        wait_for(&mut guest, "[ -e /sys/class/net/eth1 ]").map_err(|e| format!("{what}: {e}"))?;
        check!(guest.sh("cat /sys/class/net/eth1/address")? == mac, "{what}: eth1 has another address");
        address(&mut guest, "eth1", "10.0.1.2/24")?;
        ping(&mut guest, what, "10.0.1.2", "10.0.1.1", true)?;
        let list = bench.xvmm(&["network-list", "hot"])?;
        check!(
            list.lines().any(|l| l.contains(mac) && l.contains("Connected")),
            "{what}: the list is {list}"
        );
        if load {
            guest.sh("ping -s 1400 -i 0.01 10.0.1.1 > /dev/null 2>&1 & sleep 1")?;
        }
        bench.xvmm(detach).map_err(|e| format!("{what}: {e}"))?;
        wait_for(&mut guest, "[ ! -e /sys/class/net/eth1 ]").map_err(|e| format!("{what}: {e}"))?;
        guest.sh("killall ping || true")?;
        check!(interfaces()?.len() == 1, "{what}: interfaces are left: {:?}", interfaces()?);
        ping(&mut guest, what, "10.0.0.2", "10.0.0.1", true)?;
    }
    // What came stays through a reboot, what went does not come back.
    bench.xvmm(&["network-attach", "hot", &spec])?;
    bench.xvmm(&["network-detach", "hot", "0"])?;
    guest.send("reboot -f")?;
    guest.wait_boot(2)?;
    let addresses = guest.sh("cat /sys/class/net/eth*/address")?;
    check!(addresses == mac, "after the reboot there are {addresses}");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// Guests of one VLAN of a bridge reach each other, and neither the host nor guests of another one.
pub fn vlans(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    fs::write("/sys/class/net/xenbr0/bridge/vlan_filtering", "1")?;
    let mut first = bench.guest().name("first").net("xenbr0,vlan=5").net("xenbr0").start()?;
    let mut second = bench.guest().name("second").net("xenbr0,vlan=5").net("xenbr0,vlan=6").start()?;
    address(&mut first, "eth0", "10.0.0.2/24")?;
    address(&mut second, "eth0", "10.0.0.3/24")?;
    ping(&mut first, "the VLAN of both", "eth0", "10.0.0.3", true)?;
    ping(&mut first, "the host, which is in none", "eth0", "10.0.0.1", false)?;
    for guest in [&mut first, &mut second] {
        guest.sh("ip link set eth0 down")?;
    }
    address(&mut second, "eth1", "10.0.0.3/24")?;
    address(&mut first, "eth1", "10.0.0.2/24")?;
    ping(&mut second, "the host from another VLAN", "eth1", "10.0.0.1", false)?;
    ping(&mut first, "the host from no VLAN", "eth1", "10.0.0.1", true)?;
    ping(&mut first, "a guest of another VLAN", "eth1", "10.0.0.3", false)?;
    for mut guest in [first, second] {
        guest.send("poweroff -f")?;
        guest.ends_with(0)?;
    }
    bench.nothing_is_left()
}
