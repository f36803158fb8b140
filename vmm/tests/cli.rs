//! The program as a whole: what it says and how it ends, without a guest.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use xvmm::api::{ApiHandler, ApiServer, DeviceChange, Reply, Shutdown};
use xvmm::config::{DiskSpec, DomainConfig};
use xvmm::domain::{DomainDir, Registry};
use xvmm::exit::{ExitStatus, Failure};

/// A folder with everything that a start needs but a kernel that boots, and the program with its state there.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        fs::create_dir(host.path("images")).unwrap();
        fs::write(host.path("text"), "no kernel\n".repeat(1000)).unwrap();
        fs::write(host.path("initrd"), "initrd").unwrap();
        fs::write(host.path("disk"), [0; 4096]).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xvmm"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("XVMM_RUN_DIR", self.path("run")).env("XVMM_IMAGES_DIR", self.path("images"));
        command
    }

    fn xvmm(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn registry(&self) -> Registry {
        Registry::open(&self.path("run")).unwrap()
    }

    fn domain(&self, name: &str) -> DomainDir {
        self.registry().create(&DomainConfig { name: Some(name.into()), ..DomainConfig::default() }).unwrap()
    }

    /// The program refuses with this status, in one line that has these words, and changes nothing.
    fn refuses(&self, args: &[&str], status: ExitStatus, words: &[&str]) {
        let before = self.files();
        let output = self.xvmm(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status.code().into()), "{args:?}: {said}");
        assert!(said.starts_with("xvmm: ") && said.ends_with('\n') && said.lines().count() == 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: \"{word}\" is not in: {said}");
        }
        assert!(output.stdout.is_empty());
        assert_eq!(self.files(), before, "{args:?}");
    }

    /// All files and folders but the lock of the registry.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                }
                if entry.file_name() != "lock" {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        files
    }
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A bzImage with a payload of `payload`, whose header promises `promised` bytes of it
/// (Documentation/arch/x86/boot.rst).
fn bzimage(payload: &[u8], promised: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x1f4..0x1f8].copy_from_slice(&(promised.div_ceil(16)).to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&promised.to_le_bytes());
    image.extend_from_slice(payload);
    image
}

#[test]
fn version_and_help_are_told() {
    let host = Host::new();
    assert_eq!(stdout(host.xvmm(&["--version"])), format!("xvmm {}\n", env!("CARGO_PKG_VERSION")));
    let help = stdout(host.xvmm(&["--help"]));
    for word in ["--kernel", "--disk", "--shutdown-timeout", "destroy", "Examples:", "XVMM_RUN_DIR"] {
        assert!(help.contains(word), "{word}");
    }
    for status in ExitStatus::ALL {
        assert!(help.contains(&format!("{:>5}  {}", status.code(), status.description())), "{status:?}");
    }
}

#[test]
fn help_into_a_closed_pipe_is_no_failure() {
    let mut child = Host::new().command(&["--help"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_usage_is_refused_in_one_line() {
    let host = Host::new();
    for (args, word) in [
        (["--colour", "blue"].as_slice(), "--colour"),
        (&[], "--kernel"),
        (&["run"], "--kernel"),
        (&["frobnicate"], "frobnicate"),
        (&["list", "--kernel", "x"], "--kernel"),
        (&["console"], "DOMAIN"),
        (&["--kernel", "text", "--kernel", "text"], "--kernel"),
        (&["--kernel", "text", "--memory", "lots"], "--memory lots"),
        (&["--kernel", "text", "--memory", "-1"], "--memory -1"),
        (&["--kernel", "text", "--vcpus", "two"], "--vcpus two"),
        (&["--kernel", "text", "--console", "vga"], "--console vga"),
        (&["--kernel", "text", "--on-reboot", "dance"], "--on-reboot dance"),
        (&["--kernel", "text", "--shutdown-timeout", "soon"], "--shutdown-timeout soon"),
        (&["--kernel", "text", "--disk", "a,raw,xvda,w,b"], "--disk a,raw,xvda,w,b"),
        (&["--kernel", "text", "--disk", "format=raw"], "--disk format=raw"),
        (&["--kernel", "text", "--disk", "disk,script=block-x"], "script=block-x is not run"),
        (&["--kernel", "text", "--net", "a/b"], "--net a/b"),
    ] {
        host.refuses(args, ExitStatus::Usage, &[word]);
    }
}

#[test]
fn unsuitable_kernels_are_refused() {
    let host = Host::new();
    let mut gzip = vec![0x1f, 0x8b, 8, 0];
    gzip.resize(1004, 0x55);
    // The last word is the size of the unpacked kernel.
    gzip.extend_from_slice(&4096_u32.to_le_bytes());
    fs::write(host.path("short"), bzimage(&gzip, 1_000_000)).unwrap();
    fs::write(host.path("corrupt"), bzimage(&gzip, 1008)).unwrap();
    fs::write(host.path("nothing"), "").unwrap();
    fs::copy(std::env::current_exe().unwrap(), host.path("program")).unwrap();
    for (kernel, status, words) in [
        ("none", ExitStatus::KernelMissing, ["--kernel", "no such file"]),
        ("images", ExitStatus::KernelMissing, ["--kernel", "not a regular file"]),
        ("nothing", ExitStatus::NotAKernel, ["--kernel", "empty"]),
        ("text", ExitStatus::NotAKernel, ["text", "not a kernel"]),
        ("short", ExitStatus::KernelTruncated, ["short", "truncated"]),
        ("corrupt", ExitStatus::KernelCorrupt, ["corrupt", "payload"]),
        ("program", ExitStatus::NoPvhEntry, ["program", "PVH"]),
    ] {
        host.refuses(&["--kernel", &host.text(kernel)], status, &words);
    }
}

#[test]
fn what_does_not_fit_into_memory_is_refused() {
    let host = Host::new();
    fs::File::create(host.path("large")).unwrap().set_len(300 << 20).unwrap();
    let start = ["--kernel", "text", "--memory", "256M", "--initrd"];
    let with = |initrd| [start.as_slice(), &[initrd]].concat();
    host.refuses(&with("large"), ExitStatus::InitrdTooLarge, &["--initrd", "large", "--memory"]);
    host.refuses(&with("none"), ExitStatus::InitrdMissing, &["--initrd none"]);
    host.refuses(
        &["--kernel", "text", "--memory", "1M"],
        ExitStatus::MemoryTooSmall,
        &["--memory 1M", "64 MiB"],
    );
}

#[test]
fn impossible_numbers_and_names_are_refused() {
    let host = Host::new();
    for (flag, value, status) in [
        ("--vcpus", "0", ExitStatus::TooManyVcpus),
        ("--vcpus", "5000", ExitStatus::TooManyVcpus),
        ("--name", "7", ExitStatus::InvalidName),
        ("--name", "a/b", ExitStatus::InvalidName),
        ("--name", "", ExitStatus::InvalidName),
        ("--net", "xenbr0,colour=blue", ExitStatus::UnknownKey),
        ("--net", "mac=1", ExitStatus::InvalidMac),
        ("--net", "mac=01:16:3e:00:00:01", ExitStatus::InvalidMac),
        ("--net", "mac=00:00:00:00:00:00", ExitStatus::InvalidMac),
        ("--disk", "disk,colour=blue", ExitStatus::UnknownKey),
        ("--disk", "disk,vdev=vda", ExitStatus::InvalidVdev),
        ("--disk", "disk,,sdq,w", ExitStatus::InvalidVdev),
        ("--disk", "disk,qed,xvda", ExitStatus::DiskFormat),
    ] {
        host.refuses(&["--kernel", "text", flag, value], status, &[flag, value]);
    }
}

#[test]
fn unsuitable_disks_are_refused() {
    let host = Host::new();
    fs::write(host.path("empty"), "").unwrap();
    fs::write(host.path("odd"), [0; 1000]).unwrap();
    let missing = host.text("missing");
    for (disk, status, words) in [
        ("nowhere", ExitStatus::DiskMissing, ["nowhere", "images"]),
        (missing.as_str(), ExitStatus::DiskMissing, ["missing", "truncate"]),
        (".", ExitStatus::DiskNotAFile, ["directory", "--disk"]),
        ("/dev/null", ExitStatus::DiskNotAFile, ["/dev/null", "--disk"]),
        ("empty", ExitStatus::DiskEmpty, ["empty", "truncate"]),
        ("odd", ExitStatus::DiskUnaligned, ["odd", "512"]),
    ] {
        host.refuses(&["--kernel", "text", "--disk", disk], status, &words);
    }
    fs::write(host.path("other"), [0; 512]).unwrap();
    let two = ["--kernel", "text", "--disk", "disk", "--disk"];
    let with = |second| [two.as_slice(), &[second]].concat();
    host.refuses(&with("other,vdev=xvda"), ExitStatus::SameVdev, &["xvda"]);
    host.refuses(&with("other,,51712"), ExitStatus::SameVdev, &["two disks", "xvda"]);
    host.refuses(&with("other,,d0p3"), ExitStatus::SameVdev, &["xvda3", "part of xvda"]);
    host.refuses(&with("disk"), ExitStatus::DiskInUse, &["given twice"]);
    host.refuses(&with("./disk"), ExitStatus::DiskInUse, &["same image"]);
}

#[test]
fn a_name_that_is_taken_is_refused_with_its_owner() {
    let host = Host::new();
    let _first = host.domain("first");
    host.refuses(
        &["--kernel", "text", "--name", "first"],
        ExitStatus::NameTaken,
        &["--name first", "domain 1"],
    );
}

#[test]
fn a_disk_in_use_is_refused_with_its_owner() {
    let host = Host::new();
    let disks = DiskSpec::assign(vec![DiskSpec::parse(&host.text("disk")).unwrap()]).unwrap();
    let config = DomainConfig { name: Some("first".into()), disks, ..DomainConfig::default() };
    let _first = host.registry().create(&config).unwrap();
    let _image = blkback::DiskImage::open(&host.path("disk"), false).unwrap();
    let args = ["--kernel", "text", "--disk", "disk"];
    host.refuses(&args, ExitStatus::DiskInUse, &["--disk", "disk", "domain 1", "first"]);
}

#[test]
fn unsuitable_bridges_are_refused() {
    let host = Host::new();
    host.refuses(
        &["--kernel", "text", "--net", "xvmm-none"],
        ExitStatus::BridgeMissing,
        &["--net xvmm-none"],
    );
    host.refuses(&["--kernel", "text", "--net", "lo"], ExitStatus::NotABridge, &["--net lo", "bridge"]);
}

#[test]
fn interfaces_that_cannot_be_made_are_refused() {
    let host = Host::new();
    let table = [
        ("fd=1000", ExitStatus::TapUnfit, "fd=1000: no open descriptor; let the caller"),
        ("script=/no/script", ExitStatus::ScriptFailed, "script /no/script: no such program; without a path"),
        ("script=vif-x", ExitStatus::ScriptFailed, "script /etc/xen/scripts/vif-x: no such program"),
        ("rate=fast", ExitStatus::Usage, "rate `fast` is not a rate; write one like"),
        ("ip=1.2.3", ExitStatus::Usage, "ip `1.2.3` is not an address; write addresses like"),
        ("ip=127.0.0.1", ExitStatus::Usage, "ip 127.0.0.1 is no address that a guest sends from"),
        ("devid=1,fd=3,bridge=a", ExitStatus::Usage, "fd= takes a tap as its caller has set it up"),
    ];
    for (spec, status, words) in table {
        host.refuses(&["--kernel", "text", "--net", spec], status, &["--net", words]);
    }
    let twice = ["--kernel", "text", "--net", "devid=1", "--net", "devid=1"];
    host.refuses(&twice, ExitStatus::SameVdev, &["two interfaces have the number 1"]);
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    use std::os::fd::AsRawFd;
    let host = Host::new();
    let file = fs::File::open(host.path("text")).unwrap();
    let fd = file.as_raw_fd();
    let mut command = host.command(&["--kernel", "text", "--net", "fd=7"]);
    // SAFETY: between fork and exec nothing but a system call with numbers is made.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            if libc::dup2(fd, 7) == 7 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::TapUnfit.code().into()), "{said}");
    assert!(said.contains("--net: fd=7: not a tap; open /dev/net/tun"), "{said}");
}

#[test]
fn a_missing_nft_is_refused_with_its_package() {
    let host = Host::new();
    for (spec, words) in [
        ("ip=192.0.2.7", "ip= needs the program nft; install the package nftables"),
        ("mac-filter", "mac-filter needs the program nft"),
    ] {
        let mut command = host.command(&["--kernel", "text", "--net", spec]);
        let output = command.env("XVMM_NFT", host.path("no-nft")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(ExitStatus::FilterFailed.code().into()), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_missing_capability_is_refused() {
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    let host = Host::new();
    let mut command = host.command(&["--kernel", "text", "--net", "xenbr0"]);
    // SAFETY: between fork and exec nothing but a system call with numbers is made.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            // Root gets what is in this set, and others have nothing to lose.
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::NetNotPermitted.code().into()), "{said}");
    assert!(
        said.contains(
            "--net bridge=xenbr0: not permitted to change interfaces; run as root or with CAP_NET_ADMIN"
        ),
        "{said}"
    );
}

#[test]
fn an_unsuitable_run_folder_is_refused() {
    let host = Host::new();
    let long = host.text(&"x".repeat(100));
    fs::create_dir(&long).unwrap();
    host.refuses(&["--run-dir", "text", "list"], ExitStatus::RunDirUnusable, &["text", "--run-dir"]);
    host.refuses(&["--run-dir", &long, "list"], ExitStatus::RunDirUnusable, &["too long", "--run-dir"]);
}

#[test]
fn commands_for_a_domain_that_does_not_run_are_refused() {
    let host = Host::new();
    for command in ["console", "info", "shutdown", "reboot", "destroy"] {
        host.refuses(&[command, "web"], ExitStatus::NoSuchDomain, &["web", "xvmm list"]);
    }
}

#[test]
fn a_sentence_is_one_line_whatever_is_in_it() {
    Host::new().refuses(&["--kernel", "a\nb\x1b[2J"], ExitStatus::KernelMissing, &["a\\nb\\u{1b}[2J"]);
}

#[test]
fn running_domains_are_listed() {
    let host = Host::new();
    assert_eq!(stdout(host.xvmm(&["list"])).lines().count(), 1);
    let _domains = [host.domain("web"), host.domain("db")];
    let list = stdout(host.xvmm(&["list"]));
    let rows: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().take(4).collect::<Vec<_>>()).collect();
    assert_eq!(rows, [["Name", "ID", "Mem", "VCPUs"], ["web", "1", "512", "1"], ["db", "2", "512", "1"]]);
}

#[test]
fn the_flag_comes_before_the_variable() {
    let host = Host::new();
    let _web = host.domain("web");
    assert!(stdout(host.xvmm(&["list"])).contains("web"));
    assert!(!stdout(host.xvmm(&["list", "--run-dir", &host.text("other")])).contains("web"));
}

/// The API of a domain that does what it is told.
#[derive(Clone, Default)]
struct Obedient(Rc<RefCell<Option<String>>>, Rc<Cell<bool>>);

impl ApiHandler for Obedient {
    fn info(&self) -> serde_json::Value {
        serde_json::json!({ "name": "web" })
    }
    fn shutdown(&mut self, what: Shutdown) -> Result<(), String> {
        *self.0.borrow_mut() = Some(format!("{} {:?}", what.word(), what.timeout));
        Ok(())
    }
    fn destroy(&mut self) -> Result<(), String> {
        self.1.set(true);
        Ok(())
    }
    fn change_devices(&mut self, change: DeviceChange, reply: Reply) {
        let asked = format!("{change:?}");
        reply.send(match change {
            DeviceChange::BlockAttach(_) => Ok(serde_json::json!({ "vdev": "xvdb" })),
            DeviceChange::BlockDetach(_) => Err(Failure::new(ExitStatus::DeviceKept, "it is kept")),
            DeviceChange::CdInsert(_) | DeviceChange::CdEject(_) => Ok(serde_json::Value::Null),
            DeviceChange::NetworkAttach(_) => Ok(serde_json::json!({ "devid": 7 })),
            DeviceChange::NetworkDetach(_) => Err(Failure::new(ExitStatus::DeviceKept, "it is kept")),
        });
        *self.0.borrow_mut() = Some(asked);
    }
}

/// What [`Other`] does: it has a domain until it is told to end.
#[test]
#[ignore = "runs as the child of other tests"]
fn child() {
    let Some(run_dir) = std::env::var_os("XVMM_TEST_RUN_DIR") else { return };
    let registry = Registry::open(Path::new(&run_dir)).unwrap();
    let domain =
        registry.create(&DomainConfig { name: Some("web".into()), ..DomainConfig::default() }).unwrap();
    if std::env::var_os("XVMM_TEST_DEAF").is_some() {
        // Connections wait for ever to be accepted.
        let _listener = UnixListener::bind(domain.api_socket()).unwrap();
        fs::write(Path::new(&run_dir).join("ready"), "").unwrap();
        std::thread::sleep(Duration::from_secs(600));
    }
    let handler = Obedient::default();
    let api = ApiServer::bind(&domain.api_socket(), handler.clone()).unwrap();
    let console = UnixListener::bind(domain.console_socket()).unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = console.accept().unwrap();
        let mut typed = [0; 6];
        client.read_exact(&mut typed).unwrap();
        client.write_all(b"you said ").unwrap();
        client.write_all(&typed).unwrap();
    });
    let mut events: EventManager<Rc<RefCell<dyn MutEventSubscriber>>> = EventManager::new().unwrap();
    events.add_subscriber(Rc::new(RefCell::new(api)));
    fs::write(Path::new(&run_dir).join("ready"), "").unwrap();
    loop {
        events.run().unwrap();
        if let Some(asked) = handler.0.borrow().as_ref() {
            fs::write(Path::new(&run_dir).join("asked"), asked).unwrap();
            if asked.starts_with("poweroff") {
                return;
            }
        }
        if handler.1.get() {
            return;
        }
    }
}

/// Another process with the domain `web`.
struct Other(Child);

impl Other {
    fn start(host: &Host, deaf: bool) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored"]).env("XVMM_TEST_RUN_DIR", host.path("run"));
        if deaf {
            command.env("XVMM_TEST_DEAF", "1");
        }
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !host.path("run/ready").exists() {
            assert!(Instant::now() < end, "the other process did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Other(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn info_is_json() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    let info: serde_json::Value = serde_json::from_str(&stdout(host.xvmm(&["info", "web"]))).unwrap();
    assert_eq!(info, serde_json::json!({ "name": "web" }));
}

impl Host {
    /// What the other process was asked for; it may write it after its answer.
    fn asked(&self, start: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = fs::read_to_string(self.path("run/asked")).unwrap_or_default();
            if asked.starts_with(start) {
                return asked;
            }
            assert!(Instant::now() < end, "{asked}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn an_attached_disk_is_told_by_its_name() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    assert_eq!(stdout(host.xvmm(&["block-attach", "web", "a b.img", "ro"])), "xvdb\n");
    let asked = host.asked("BlockAttach");
    let directory = host.0.path().canonicalize().unwrap();
    assert!(
        asked.contains(r#"spec: "a b.img,ro""#) && asked.contains(directory.to_str().unwrap()),
        "{asked}"
    );
}

#[test]
fn interfaces_come_and_go() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    assert_eq!(stdout(host.xvmm(&["network-attach", "web", "bridge=br1", "rate=1MB/s"])), "7\n");
    let asked = host.asked("NetworkAttach");
    assert!(asked.contains(r#"spec: "bridge=br1,rate=1MB/s""#), "{asked}");
    let output = host.xvmm(&["network-detach", "--force", "--timeout", "3", "web", "00:16:3e:00:00:01"]);
    assert_eq!(output.status.code(), Some(ExitStatus::DeviceKept.code().into()));
    let asked = host.asked("NetworkDetach");
    assert!(asked.contains(r#"vif: "00:16:3e:00:00:01", force: true, timeout: Some(3s)"#), "{asked}");
}

#[test]
fn a_specification_that_is_none_asks_nobody() {
    let host = Host::new();
    host.refuses(&["network-attach", "nobody", "mtu=1"], ExitStatus::Usage, &["--net mtu=1: mtu `1`"]);
    host.refuses(&["network-attach", "nobody"], ExitStatus::NoSuchDomain, &["nobody"]);
    host.refuses(
        &["block-attach", "nobody", "img,vdev=vda"],
        ExitStatus::InvalidVdev,
        &["--disk img,vdev=vda"],
    );
    host.refuses(&["block-attach", "nobody", "img"], ExitStatus::NoSuchDomain, &["nobody"]);
    host.refuses(&["block-attach", "nobody"], ExitStatus::Usage, &["SPEC"]);
}

#[test]
fn a_disk_that_is_kept_has_a_status_of_its_own() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    let output = host.xvmm(&["block-detach", "--force", "--timeout", "3", "web", "xvdb"]);
    assert_eq!(output.status.code(), Some(ExitStatus::DeviceKept.code().into()));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "xvmm: it is kept\n");
    assert_eq!(
        host.asked("BlockDetach"),
        r#"BlockDetach(BlockDetach { vdev: "xvdb", force: true, timeout: Some(3s) })"#
    );
    host.refuses(&["block-detach", "web", "xvdb", "--timeout", "-1"], ExitStatus::Usage, &["--timeout -1"]);
}

#[test]
fn media_are_inserted_and_ejected() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    assert_eq!(stdout(host.xvmm(&["cd-insert", "web", "xvdc", "a.iso"])), "");
    let asked = host.asked("CdInsert");
    assert!(asked.contains(r#"vdev: "xvdc", file: "a.iso""#), "{asked}");
    assert_eq!(stdout(host.xvmm(&["cd-eject", "web", "xvdc"])), "");
    assert_eq!(
        host.asked("CdEject"),
        r#"CdEject(BlockDetach { vdev: "xvdc", force: false, timeout: None })"#
    );
}

#[test]
fn the_disks_of_a_domain_are_listed() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    // The other process describes no disks.
    let list = stdout(host.xvmm(&["block-list", "web"]));
    assert_eq!(list.split_whitespace().collect::<Vec<_>>(), ["Vdev", "Number", "State", "Mode", "Image"]);
    assert_eq!(stdout(host.xvmm(&["block-list", "--json", "web"])), "[]\n");
}

#[test]
fn shutdown_waits_for_the_end() {
    let host = Host::new();
    let mut web = Other::start(&host, false);
    stdout(host.xvmm(&["shutdown", "--wait", "--timeout", "5", "1"]));
    assert_eq!(fs::read_to_string(host.path("run/asked")).unwrap(), "poweroff Some(5s)");
    assert!(!host.path("run/1").exists());
    assert!(web.0.wait().unwrap().success());
}

#[test]
fn reboot_is_asked_for() {
    let host = Host::new();
    let _web = Other::start(&host, false);
    stdout(host.xvmm(&["reboot", "web"]));
    // The answer may come before the other process has written this.
    let end = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(host.path("run/asked")).unwrap_or_default() != "reboot None" {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn destroy_ends_a_domain_in_good_order() {
    let host = Host::new();
    let mut web = Other::start(&host, false);
    stdout(host.xvmm(&["destroy", "web"]));
    assert!(web.0.wait().unwrap().success());
    assert!(!host.path("run/1").exists());
}

#[test]
fn destroy_ends_a_domain_that_does_not_answer() {
    let host = Host::new();
    let mut web = Other::start(&host, true);
    stdout(host.xvmm(&["destroy", "web"]));
    assert_eq!(web.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(!host.path("run/1").exists());
}

#[test]
fn the_console_takes_pipes() {
    let host = Host::new();
    let mut web = Other::start(&host, false);
    let mut console = host.command(&["console", "web"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut shown = [0; 15];
    console.stdout.as_mut().unwrap().read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"you said hello\n");
    // The domain has closed the console and goes on; when it ends, so does the client.
    web.0.kill().unwrap();
    web.0.wait().unwrap();
    assert_eq!(console.wait().unwrap().code(), Some(0));
}
