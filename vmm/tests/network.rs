//! `xvmm network` as a whole: in namespaces of its own, with a world outside and guests, and the host's programs.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xvmm::exit::ExitStatus;
use xvmm::network::MacAddr;

/// A host: this thread's namespace, a folder for its files, and programs that tests put in place of others.
struct Host {
    dir: tempfile::TempDir,
    variables: RefCell<Vec<(String, String)>>,
}

impl Host {
    /// With nothing but a loopback interface.
    fn new() -> Host {
        unshare();
        ip("link set lo up");
        let host = Host { dir: tempfile::tempdir().unwrap(), variables: RefCell::default() };
        for dir in ["bin", "root"] {
            fs::create_dir(host.path(dir)).unwrap();
        }
        let path = std::env::var("PATH").unwrap();
        host.set("PATH", &format!("{}:{path}:/usr/sbin:/sbin", host.text("bin")));
        host.set("XVMM_RUN_DIR", &host.text("run"));
        host.set("XVMM_NETWORKS_DIR", &host.text("networks"));
        host.set("XVMM_HOST_ROOT", &host.text("root"));
        host
    }

    /// With an uplink `eth0`, 192.0.2.10/24, to a world outside, 192.0.2.1.
    fn with_uplink() -> (Host, Namespace) {
        let host = Host::new();
        let outside = Namespace::new();
        ip("link add eth0 address 00:13:72:81:3a:3d type veth peer name out0");
        outside.take("out0");
        outside.run("ip address add 192.0.2.1/24 dev out0");
        outside.run("ip link set out0 up");
        ip("address add 192.0.2.10/24 dev eth0");
        ip("link set eth0 up");
        ip("route add default via 192.0.2.1");
        (host, outside)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn set(&self, name: &str, value: &str) {
        self.variables.borrow_mut().push((name.into(), value.into()));
    }

    /// A file of another program.
    fn write(&self, path: &str, text: &str) {
        let path = self.path("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A shell script in place of a program.
    fn tool(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xvmm"));
        command.arg("network").args(line.split(' ')).stdin(Stdio::null());
        command.envs(self.variables.borrow().iter().cloned());
        command
    }

    fn network(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Refused in one line with these words; links, rules and files are as before.
    fn refuses(&self, line: &str, status: ExitStatus, words: &str) {
        let state = || (ip("-o address"), nft("list ruleset"), self.files());
        let before = state();
        let output = self.command(line).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status.code().into()), "{line}: {said}");
        assert!(said.starts_with("xvmm: ") && said.lines().count() == 1, "{line}: {said}");
        assert!(said.contains(words), "{line}: \"{words}\" is not in: {said}");
        assert_eq!(state(), before, "{line}");
    }

    fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.network(&format!("show {name}"))).unwrap()
    }

    /// What is left of networks, but the lock.
    fn files(&self) -> Vec<String> {
        let entries = ["networks", "run/networks"].map(|dir| fs::read_dir(self.path(dir)));
        let names = entries.into_iter().flatten().flatten().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != "lock");
        names.sort();
        names
    }

    /// Process ids of all programs that have this word among their arguments, and run in this host's folder.
    fn processes(&self, word: &str) -> Vec<u32> {
        let here = self.dir.path().display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let matches = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(&here) && line.split('\0').any(|argument| argument.ends_with(word))
        };
        pids.filter(matches).collect()
    }
}

impl Drop for Host {
    /// Nothing of a test that failed goes on.
    fn drop(&mut self) {
        for pid in ["supervise", "watch", "dnsmasq"].iter().flat_map(|word| self.processes(word)) {
            // SAFETY: kill takes numbers.
            unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) };
        }
    }
}

/// Another network namespace, as long as it lives.
struct Namespace {
    holder: Child,
    others: RefCell<Vec<Child>>,
}

impl Namespace {
    fn new() -> Namespace {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        // SAFETY: the function makes one system call.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        let namespace = Namespace { holder: command.spawn().unwrap(), others: RefCell::default() };
        namespace.run("ip link set lo up");
        namespace
    }

    /// A machine with `eth0`, whose cable ends on the bridge.
    fn plugged_into(bridge: &str, vif: &str, mac: &str) -> Namespace {
        let namespace = Namespace::new();
        ip(&format!("link add {vif} type veth peer name eth0g address {mac}"));
        namespace.take("eth0g");
        namespace.run("ip link set eth0g name eth0");
        namespace.run("ip link set eth0 up");
        ip(&format!("link set {vif} master {bridge} up"));
        namespace
    }

    /// Moves an interface there.
    fn take(&self, name: &str) {
        ip(&format!("link set {name} netns {}", self.holder.id()));
    }

    fn command(&self, line: &str) -> Command {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::null());
        let file = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        // SAFETY: the function makes one system call, with a descriptor that it owns.
        unsafe {
            command.pre_exec(move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        command
    }

    fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn start(&self, line: &str) {
        let child = self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.others.borrow_mut().push(child);
    }

    fn pings(&self, address: &str) -> bool {
        self.try_run(&format!("busybox ping -c 1 -W 2 {address}")).status.success()
    }

    /// Asks for an address by DHCP and uses it.
    fn dhcp(&self, dir: &Path) -> String {
        let script = dir.join("udhcpc");
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip address add $ip/$mask dev $interface\n\
            ip route add default via $router\necho \"$dns\" > $0.dns\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let line = format!("busybox udhcpc -i eth0 -n -q -f -t 10 -T 1 -s {}", script.display());
        self.run(&line);
        let addresses = self.run("ip -o -4 address show dev eth0");
        addresses.split_whitespace().nth(3).unwrap().to_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for child in self.others.get_mut().iter_mut().chain([&mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn unshare() {
    // SAFETY: only changes the namespace of this thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "these tests need network namespaces of their own: run them as root ({error})");
}

fn tool(name: &str, line: &str) -> String {
    let mut command = Command::new(name);
    command.args(line.split(' ')).stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output().unwrap();
    assert!(output.status.success(), "{name} {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(line: &str) -> String {
    tool("ip", line)
}

fn nft(line: &str) -> String {
    tool("nft", line)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Carriers and addresses of the kernel's own come back after a moment.
fn until_same(before: &[String], mut now: impl FnMut() -> Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let lines = now();
        if lines == before {
            return;
        }
        let new: Vec<_> = lines.iter().filter(|line| !before.contains(line)).collect();
        let gone: Vec<_> = before.iter().filter(|line| !lines.contains(line)).collect();
        assert!(Instant::now() < deadline, "new: {new:#?} gone: {gone:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Links, addresses, routes and rules, sorted, without what changes by itself.
fn state() -> Vec<String> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for key in ["ifindex", "link_index", "valid_life_time", "preferred_life_time", "expires"] {
                    fields.remove(key);
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut lines = Vec::new();
    for command in
        ["link", "address", "-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"]
    {
        let mut objects: Vec<Value> = serde_json::from_str(&ip(&format!("-j {command}"))).unwrap();
        objects.iter_mut().for_each(strip);
        lines.extend(objects.iter().map(|object| format!("{command}: {object}")));
    }
    lines.sort();
    lines
}

/// The kernel has tested its own addresses.
fn settled_state() -> Vec<String> {
    wait("addresses", || !ip("-6 address show tentative").contains("tentative"));
    state()
}

fn index(name: &str) -> String {
    ip(&format!("-o link show {name}")).split(':').next().unwrap().to_owned()
}

#[test]
fn guests_of_a_private_network_have_dhcp_dns_and_the_world() {
    let (host, outside) = Host::with_uplink();
    let before = [settled_state(), vec![nft("list ruleset")]].concat();
    host.network("create virbr0 --ipv6 fd00:122::/64 --host web=192.168.122.50");
    let mac = MacAddr::for_domain(Some("web"), 0).to_string();
    let guest = Namespace::plugged_into("virbr0", "vif7.0", &mac);
    assert_eq!(guest.dhcp(host.dir.path()), "192.168.122.50/24");
    assert_eq!(fs::read_to_string(host.path("udhcpc.dns")).unwrap().trim(), "192.168.122.1");
    let answer = guest.run("busybox nslookup web 192.168.122.1");
    assert!(answer.contains("192.168.122.50"), "{answer}");
    // Another one gets another address, and has a name, too.
    let other = Namespace::plugged_into("virbr0", "vif8.0", "00:16:3e:00:00:08");
    assert_ne!(other.dhcp(host.dir.path()), "192.168.122.50/24");
    assert!(other.pings("192.168.122.50"));
    // The outside knows no way to 192.168.122.0/24: only translated packets are answered.
    assert_eq!(outside.run("ip route"), "192.0.2.0/24 dev out0 proto kernel scope link src 192.0.2.1 \n");
    assert!(guest.pings("192.0.2.1"));
    // And it may not begin, even if it knew.
    outside.run("ip route add 192.168.122.0/24 via 192.0.2.10");
    assert!(!outside.pings("192.168.122.50"));
    wait("an address by router advertisement", || {
        guest.run("ip -6 address show dev eth0").contains("fd00:122::")
    });
    wait("the host by IPv6", || guest.pings("fd00:122::1"));
    ip("link set eth0 down");
    assert!(guest.pings("192.168.122.1"), "the host is gone with its uplink");
    ip("link set eth0 up");
    ip("route add default via 192.0.2.1");

    let status = host.show("virbr0");
    assert_eq!((&status["state"], &status["dnsmasq"]), (&"up".into(), &true.into()));
    let leases = status["leases"].to_string();
    assert!(
        leases.contains(&mac) && leases.contains("192.168.122.50") && leases.contains("\"web\""),
        "{leases}"
    );
    host.refuses("delete virbr0", ExitStatus::NetworkInUse, "in use by vif7.0, vif8.0");
    host.network("delete virbr0 --force");
    drop((guest, other));
    wait("the guests' cables", || !ip("link").contains("vif"));
    // It goes on routing: others may rely on it by now.
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    until_same(&before, || [settled_state(), vec![nft("list ruleset")]].concat());
    assert_eq!(host.files(), [] as [String; 0]);
    assert_eq!((host.processes("supervise"), host.processes("dnsmasq.conf")), (vec![], vec![]));
}

#[test]
fn addresses_are_reserved_while_the_network_is_up() {
    let host = Host::new();
    host.network("create virbr0");
    host.network("reserve virbr0 db 192.168.122.60");
    assert_eq!(host.network("reserve virbr0 db 192.168.122.60"), "virbr0: nothing to do\n");
    let mac = MacAddr::for_domain(Some("db"), 0).to_string();
    let guest = Namespace::plugged_into("virbr0", "vif7.0", &mac);
    assert_eq!(guest.dhcp(host.dir.path()), "192.168.122.60/24");
    host.refuses("reserve virbr0 web 192.168.122.60", ExitStatus::Usage, "db and web have the same address");
    host.network("reserve virbr0 db --remove");
    assert!(!host.show("virbr0").to_string().contains("\"db\",\"interface\""));
}

#[test]
fn a_dnsmasq_that_dies_is_started_again() {
    let host = Host::new();
    host.network("create virbr0");
    let pid = || fs::read_to_string(host.path("run/networks/virbr0.dnsmasq.pid")).unwrap_or_default();
    let first = pid();
    // SAFETY: kill takes numbers.
    unsafe { libc::kill(first.trim().parse().unwrap(), libc::SIGKILL) };
    wait("another dnsmasq", || pid() != first && !pid().is_empty());
    // When its supervisor is gone as well, `up` starts both.
    for process in host.processes("supervise") {
        // SAFETY: as above.
        unsafe { libc::kill(process.try_into().unwrap(), libc::SIGKILL) };
    }
    wait("the supervisor's end", || host.show("virbr0")["dnsmasq"] == false);
    nft("flush ruleset");
    let report: Value = serde_json::from_str(&host.network("up virbr0 --json")).unwrap();
    assert_eq!(report[0]["steps"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(host.show("virbr0")["dnsmasq"], true);
    assert_eq!(host.processes("dnsmasq.conf").len(), 1);
    assert!(nft("list ruleset").contains("xvmm_virbr0"));
    host.network("delete virbr0");
    assert_eq!(host.processes("dnsmasq.conf"), [] as [u32; 0]);
}

#[test]
fn a_guest_on_the_shared_network_gets_its_address_from_outside() {
    let (host, outside) = Host::with_uplink();
    outside.start(&format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=out0 --bind-interfaces \
         --dhcp-range=192.0.2.100,192.0.2.110 --dhcp-leasefile={} --pid-file= --user=root",
        host.text("outside.leases")
    ));
    host.network("create xenbr0 --uplink eth0 --layout classic");
    let guest = Namespace::plugged_into("xenbr0", "vif7.0", "00:16:3e:00:00:07");
    let address = guest.dhcp(host.dir.path());
    assert!(address.starts_with("192.0.2.10") || address.starts_with("192.0.2.110"), "{address}");
    assert!(guest.pings("192.0.2.1"), "the world outside");
    assert!(guest.pings("192.0.2.10"), "the host");
    assert!(outside.pings("192.0.2.10"), "the host from outside");
    // The host is itself as ever.
    let reached = Command::new("busybox").args(["ping", "-c", "1", "-W", "2", "192.0.2.1"]).output().unwrap();
    assert!(reached.status.success());
    let neighbour = outside.run("ip neighbour show 192.0.2.10");
    assert!(neighbour.contains("00:13:72:81:3a:3d"), "{neighbour}");
}

/// systemd-networkd looks after eth0, and is told to leave it: by a program that the test replaces.
fn networkd(host: &Host, script: &str) {
    let state = "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/eth0.network\n";
    host.write(&format!("run/systemd/netif/links/{}", index("eth0")), state);
    host.write("etc/systemd/network/eth0.network", "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.10/24\n");
    host.tool("networkctl", script);
}

#[test]
fn what_nobody_confirms_is_taken_back_when_the_caller_was_hung_up() {
    let (host, outside) = Host::with_uplink();
    let before = settled_state();
    // The terminal goes away in the middle of the change.
    let flag = host.text("hung-up");
    networkd(&host, &format!("[ -e {flag} ] || kill -HUP $PPID; touch {flag}"));
    let status = host.command("create xenbr0 --uplink eth0 --layout classic --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGHUP), "{status}");
    assert!(host.path("hung-up").exists());
    // It was completed all the same: the host would be without a network otherwise.
    assert_eq!(host.show("xenbr0")["state"], "unconfirmed");
    assert!(ip("-o address show dev eth0").contains("192.0.2.10"));
    assert!(ip("-o link show peth0").contains("master xenbr0"));
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert_eq!(host.files(), ["xenbr0.watchdog.log"]);
    let log = fs::read_to_string(host.path("run/networks/xenbr0.watchdog.log")).unwrap();
    assert!(log.contains("not confirmed within 2 s, and taken back"), "{log}");
    assert!(outside.pings("192.0.2.10"));
    host.refuses("confirm xenbr0", ExitStatus::NothingToConfirm, "nothing waits to be confirmed");
}

#[test]
fn what_was_killed_in_the_middle_is_taken_back_by_the_watchdog() {
    let (host, outside) = Host::with_uplink();
    let before = settled_state();
    // systemd-resolved is told at the very end.
    host.write(&format!("run/systemd/resolve/netif/{}", index("eth0")), "SERVERS=192.0.2.53\n");
    host.tool("resolvectl", "kill -KILL $PPID");
    let status = host.command("create xenbr0 --uplink eth0 --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    assert_eq!(host.show("xenbr0")["state"], "interrupted");
    host.refuses("up xenbr0", ExitStatus::NetworkHalfMade, "`xvmm network repair xenbr0` takes it back");
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn what_is_confirmed_stays() {
    let (host, outside) = Host::with_uplink();
    let said = host.network("create xenbr0 --uplink eth0 --confirm=3");
    assert_eq!(said, "xenbr0: taken back in 3 s unless you run: xvmm network confirm xenbr0\n");
    host.network("confirm xenbr0");
    host.refuses("confirm xenbr0", ExitStatus::NothingToConfirm, "nothing waits to be confirmed");
    wait("the watchdog's end", || host.processes("watch").is_empty());
    assert_eq!(host.show("xenbr0")["state"], "up");
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn networkd_goes_on_at_the_hosts_end_and_leaves_the_rest() {
    let (host, _outside) = Host::with_uplink();
    networkd(&host, &format!("echo \"$@\" >> {}", host.text("reloads")));
    host.network("create xenbr0 --uplink eth0");
    let read = |name: &str| fs::read_to_string(host.path("root/run/systemd/network").join(name)).unwrap();
    let ports = "[Match]\nName=xenbr0 eth0 xenbr0-port\n\n[Link]\nUnmanaged=yes\n";
    assert_eq!(read("00-xvmm-xenbr0.network"), ports);
    let host_end = "[Match]\nName=xenbr0-host\n\n[Network]\nAddress=192.0.2.10/24\n";
    assert_eq!(read("01-xvmm-xenbr0-host.network"), host_end);
    host.network("delete xenbr0");
    assert_eq!(fs::read_dir(host.path("root/run/systemd/network")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(host.path("reloads")).unwrap(), "reload\nreload\n");
}

#[test]
fn network_manager_lets_go_of_the_uplink_or_is_obeyed() {
    let (host, _outside) = Host::with_uplink();
    let device = format!("run/NetworkManager/devices/{}", index("eth0"));
    host.write(&device, "[device]\nmanaged=true\n");
    let script = format!(
        "echo \"$@\" >> {}; echo managed=false > {}",
        host.text("reloads"),
        host.text(&format!("root/{device}"))
    );
    host.tool("nmcli", &script);
    host.network("create xenbr0 --uplink eth0 --layout classic");
    let file = host.path("root/run/NetworkManager/conf.d/90-xvmm-xenbr0.conf");
    let expected = "[keyfile]\nunmanaged-devices+=interface-name:xenbr0;interface-name:peth0;\
        interface-name:vif0.0;interface-name:eth0\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    host.network("delete xenbr0");
    assert!(!file.exists());
    assert_eq!(
        fs::read_to_string(host.path("reloads")).unwrap(),
        "general reload conf\ngeneral reload conf\n"
    );
    // A lease that only NetworkManager can renew.
    host.write(&device, "[device]\nmanaged=true\n");
    ip("address add 192.0.2.11/24 dev eth0 valid_lft 600 preferred_lft 600");
    let words = "NetworkManager renews the lease of eth0";
    host.refuses("create xenbr0 --uplink eth0", ExitStatus::ManagerInTheWay, words);
    // One that cannot be told.
    ip("address delete 192.0.2.11/24 dev eth0");
    host.tool("nmcli", "echo no bus >&2; exit 1");
    let before = state();
    let output = host.command("create xenbr0 --uplink eth0").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::NetworkUndone.code().into()), "{said}");
    assert!(said.contains("nmcli: no bus; everything is as it was before"), "{said}");
    assert_eq!((state(), host.files()), (before, vec![]));
}

#[test]
fn ifupdown_is_kept_from_its_interface_or_obeyed() {
    let (host, _outside) = Host::with_uplink();
    host.write("run/network/ifstate", "lo=lo\neth0=eth0\n");
    host.write("run/systemd/system/x", "");
    host.tool("systemctl", &format!("echo \"$@\" >> {}", host.text("reloads")));
    host.network("create xenbr0 --uplink eth0");
    let folder = host.path("root/run/systemd/system/networking.service.d");
    let text = fs::read_to_string(folder.join("xvmm-xenbr0.conf")).unwrap();
    assert!(text.contains("RefuseManualStop=yes"), "{text}");
    host.network("delete xenbr0");
    assert!(!folder.exists());
    assert_eq!(fs::read_to_string(host.path("reloads")).unwrap(), "daemon-reload\ndaemon-reload\n");
    ip("address add 192.0.2.11/24 dev eth0 valid_lft 600 preferred_lft 600");
    let words = "use --layout classic, where the host's end is called eth0";
    host.refuses("create xenbr0 --uplink eth0", ExitStatus::ManagerInTheWay, words);
    host.network("create xenbr0 --uplink eth0 --layout classic");
}

#[test]
fn a_dns_server_of_the_uplink_is_carried_over() {
    let (host, _outside) = Host::with_uplink();
    let state = "SERVERS=192.0.2.53 192.0.2.54\nDOMAINS=example.org\n";
    host.write(&format!("run/systemd/resolve/netif/{}", index("eth0")), state);
    host.tool("resolvectl", &format!("echo \"$@\" >> {}", host.text("told")));
    host.network("create xenbr0 --uplink eth0");
    let told = fs::read_to_string(host.path("told")).unwrap();
    assert_eq!(told, "dns xenbr0-host 192.0.2.53 192.0.2.54\ndomain xenbr0-host example.org\n");
}

#[test]
fn bad_input_is_one_sentence_with_a_status_of_its_own() {
    use ExitStatus as E;
    let (host, _outside) = Host::with_uplink();
    for (line, status, words) in [
        ("create xenbr0", E::Usage, "give --uplink INTERFACE for a shared network, or --private"),
        ("create xenbr0 --uplink eth0 --layout odd", E::Usage, "--layout odd: plain or classic"),
        ("create a-name-too-long1 --uplink eth0", E::Usage, "not a name for a bridge"),
        ("create virbr0 --subnet 192.168.122.0/24", E::Usage, "not an address of the host"),
        ("create virbr0 --dhcp-range x", E::Usage, "--dhcp-range x: two addresses"),
        ("create virbr0 --host web=10.0.0.1", E::Usage, "10.0.0.1 for web does not lie in 192.168.122.0/24"),
        ("create xenbr0 --uplink eth0 --confirm=0", E::Usage, "a number of seconds"),
        ("create xenbr0 --uplink eth9", E::UplinkUnusable, "uplink eth9 does not exist"),
        ("create virbr0 --subnet 192.0.2.129/25", E::SubnetTaken, "overlaps with 192.0.2.0/24 on eth0"),
        ("create lo --private", E::NetworkExists, "there is an interface lo already"),
        ("show virbr0", E::NoSuchNetwork, "network virbr0: no network of that name"),
        ("delete virbr0", E::NoSuchNetwork, "no network of that name"),
        ("repair virbr0", E::NoSuchNetwork, "no network of that name"),
    ] {
        host.refuses(line, status, words);
    }
    for (variable, tool, package) in
        [("XVMM_DNSMASQ", "dnsmasq", "dnsmasq-base"), ("XVMM_NFT", "nft", "nftables")]
    {
        host.set(variable, "/nonexistent");
        let words = format!("there is no {tool} on this host; on Debian: apt-get install {package}");
        host.refuses("create virbr0", E::ToolMissing, &words);
    }
}

#[test]
fn a_taken_port_is_told_before_anything_is_made() {
    let host = Host::new();
    let udp = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
    host.refuses("create virbr0", ExitStatus::PortTaken, "UDP port 67 of 0.0.0.0 is taken");
    drop(udp);
    let tcp = std::net::TcpListener::bind("0.0.0.0:53").unwrap();
    host.refuses("create virbr0", ExitStatus::PortTaken, "TCP port 53 of 192.168.122.1 is taken");
    host.network("create virbr0 --no-dns");
    drop(tcp);
    // Two of ours do not disturb each other.
    host.network("create virbr1 --subnet 192.168.123.1/24");
    let guest = Namespace::plugged_into("virbr1", "vif7.0", "00:16:3e:00:00:07");
    assert!(guest.dhcp(host.dir.path()).starts_with("192.168.123."));
}

#[test]
fn a_dnsmasq_that_does_not_start_leaves_nothing_behind() {
    let host = Host::new();
    host.tool("dnsmasq", "echo 'dnsmasq: it has a bad day' >&2; exit 2");
    host.set("XVMM_DNSMASQ", &host.text("bin/dnsmasq"));
    let output = host.command("create virbr0").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::NetworkUndone.code().into()), "{said}");
    assert!(said.contains("everything is as it was before"), "{said}");
    assert!(!ip("link").contains("virbr0"));
    assert_eq!(nft("list ruleset"), "");
    assert_eq!(host.files(), [] as [String; 0]);
    assert_eq!(fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count(), 3);
}

#[test]
fn a_firewall_in_the_way_is_named() {
    let host = Host::new();
    let rules = host.path("rules");
    fs::write(
        &rules,
        "table inet filter {\nchain forward {\ntype filter hook forward priority 0; policy drop\n}\n}\n",
    )
    .unwrap();
    nft(&format!("-f {}", rules.display()));
    let before = nft("list ruleset");
    let report: Value = serde_json::from_str(&host.network("create virbr0 --json")).unwrap();
    let warning = report[0]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("chain forward (table inet filter) drops what guests send"), "{warning}");
    host.network("delete virbr0");
    assert_eq!(nft("list ruleset"), before);
}

#[test]
fn all_networks_come_up_together_after_a_restart() {
    let (host, _outside) = Host::with_uplink();
    host.network("create xenbr0 --uplink eth0 --layout classic");
    host.network("create virbr0");
    host.network("down --all");
    assert!(!ip("link").contains("br0"));
    assert_eq!(host.files(), ["virbr0.json", "virbr0.leases", "xenbr0.json"]);
    host.network("up --all");
    let listed = host.network("list");
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[1..],
        [["virbr0", "private", "up", "0", "192.168.122.1/24"], ["xenbr0", "shared", "up", "0", "eth0"]]
    );
    // One that cannot be is told, and does not keep the others from it.
    host.network("down --all");
    fs::write(host.path("networks/bad.json"), "{}").unwrap();
    let output = host.command("up --all").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    fs::remove_file(host.path("networks/bad.json")).unwrap();
    assert_eq!(host.network("list").matches(" up ").count(), 2);
}

#[test]
fn a_hundred_vifs_come_and_go_twenty_times_without_a_trace() {
    let (host, _outside) = Host::with_uplink();
    host.network("create xenbr0 --uplink eth0");
    host.network("create virbr0");
    let trace = || {
        let mut lines = settled_state();
        lines.extend([nft("list ruleset"), host.files().join(" ")]);
        for pid in host.processes("supervise").into_iter().chain(host.processes("dnsmasq.conf")) {
            let count = |kind| fs::read_dir(format!("/proc/{pid}/{kind}")).unwrap().count();
            lines.push(format!("{pid}: {} threads, {} descriptors", count("task"), count("fd")));
        }
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let taps =
            descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|to| to.ends_with("net/tun"));
        lines.push(format!("{} taps", taps.count()));
        lines
    };
    let round = || {
        let vif = |number: u16| {
            let bridge = if number % 2 == 0 { "xenbr0" } else { "virbr0" };
            xvmm::network::create_tap(&xvmm::network::vif_name(number, 0), bridge, 1500, 1).unwrap()
        };
        let vifs: Vec<_> = (1..=100).map(vif).collect();
        assert_eq!(ip("-o link").matches(": vif").count(), 100);
        drop(vifs);
        // A process that another test starts has a copy of all descriptors, until it is another program.
        wait("the end of the taps", || !ip("-o link").contains(": vif"));
    };
    // Only now the kernel knows that the bridge without a port has no carrier.
    round();
    wait("the carrier's end", || ip("link show virbr0").contains("state DOWN"));
    let before = trace();
    (0..20).for_each(|_| round());
    until_same(&before, trace);
}
