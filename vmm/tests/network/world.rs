//! A host with its files and programs, the world outside, and machines plugged into its bridges.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xvmm::exit::ExitStatus;

/// A host: this thread's namespace, a folder for its files, and programs that tests put in place of others.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    variables: RefCell<Vec<(String, String)>>,
}

impl Host {
    /// With nothing but a loopback interface.
    pub(crate) fn new() -> Host {
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
    pub(crate) fn with_uplink() -> (Host, Namespace) {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.variables.borrow_mut().push((name.into(), value.into()));
    }

    /// A file of another program.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A shell script in place of a program.
    pub(crate) fn tool(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xvmm"));
        command.arg("network").args(line.split(' ')).stdin(Stdio::null());
        command.envs(self.variables.borrow().iter().cloned());
        // SAFETY: the function makes one system call and takes no lock.
        unsafe {
            // Ignored under nohup, and inherited.
            command.pre_exec(|| match libc::signal(libc::SIGHUP, libc::SIG_DFL) {
                libc::SIG_ERR => Err(io::Error::last_os_error()),
                _ => Ok(()),
            })
        };
        command
    }

    pub(crate) fn network(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Refused in one line with these words; links, rules and files are as before.
    pub(crate) fn refuses(&self, line: &str, status: ExitStatus, words: &str) {
        let state = || (ip("-o address"), nft("list ruleset"), self.files());
        let before = state();
        let output = self.command(line).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status.code().into()), "{line}: {said}");
        assert!(said.starts_with("xvmm: ") && said.lines().count() == 1, "{line}: {said}");
        assert!(said.contains(words), "{line}: \"{words}\" is not in: {said}");
        assert_eq!(state(), before, "{line}");
    }

    pub(crate) fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.network(&format!("show {name}"))).unwrap()
    }

    /// What is left of networks, but the lock.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = ["networks", "run/networks"].map(|dir| fs::read_dir(self.path(dir)));
        let names = entries.into_iter().flatten().flatten().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != "lock");
        names.sort();
        names
    }

    /// Process ids of all programs that have this word among their arguments, and run in this host's folder.
    pub(crate) fn processes(&self, word: &str) -> Vec<u32> {
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
pub(crate) struct Namespace {
    holder: Child,
    others: RefCell<Vec<Child>>,
}

impl Namespace {
    pub(crate) fn new() -> Namespace {
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
    pub(crate) fn plugged_into(bridge: &str, vif: &str, mac: &str) -> Namespace {
        let namespace = Namespace::new();
        ip(&format!("link add {vif} type veth peer name eth0g address {mac}"));
        namespace.take("eth0g");
        namespace.run("ip link set eth0g name eth0");
        namespace.run("ip link set eth0 up");
        ip(&format!("link set {vif} master {bridge} up"));
        namespace
    }

    /// Moves an interface there.
    pub(crate) fn take(&self, name: &str) {
        ip(&format!("link set {name} netns {}", self.holder.id()));
    }

    pub(crate) fn command(&self, line: &str) -> Command {
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

    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn start(&self, line: &str) {
        let child = self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.others.borrow_mut().push(child);
    }

    pub(crate) fn pings(&self, address: &str) -> bool {
        self.try_run(&format!("busybox ping -c 1 -W 2 {address}")).status.success()
    }

    /// Asks for an address by DHCP and uses it.
    pub(crate) fn dhcp(&self, dir: &Path) -> String {
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

pub(crate) fn unshare() {
    // SAFETY: only changes the namespace of this thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = io::Error::last_os_error();
    assert_eq!(result, 0, "these tests need network namespaces of their own: run them as root ({error})");
}

pub(crate) fn tool(name: &str, line: &str) -> String {
    let mut command = Command::new(name);
    command.args(line.split(' ')).stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output().unwrap();
    assert!(output.status.success(), "{name} {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(line: &str) -> String {
    tool("ip", line)
}

pub(crate) fn nft(line: &str) -> String {
    tool("nft", line)
}

pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Carriers and addresses of the kernel's own come back after a moment.
pub(crate) fn until_same(before: &[String], mut now: impl FnMut() -> Vec<String>) {
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
pub(crate) fn state() -> Vec<String> {
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
pub(crate) fn settled_state() -> Vec<String> {
    wait("addresses", || !ip("-6 address show tentative").contains("tentative"));
    state()
}

pub(crate) fn index(name: &str) -> String {
    ip(&format!("-o link show {name}")).split(':').next().unwrap().to_owned()
}

/// systemd-networkd looks after eth0, and is told to leave it: by a program that the test replaces.
pub(crate) fn networkd(host: &Host, script: &str) {
    let state = "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/eth0.network\n";
    host.write(&format!("run/systemd/netif/links/{}", index("eth0")), state);
    host.write("etc/systemd/network/eth0.network", "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.10/24\n");
    host.tool("networkctl", script);
}
