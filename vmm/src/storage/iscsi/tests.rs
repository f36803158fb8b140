//! Against an `iscsiadm` of our own, which keeps sessions in a tree that looks like sysfs.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::*;

const IQN: &str = "iqn.2026-01.org.example:disk";

/// Does what iscsiadm does with records and sessions, and notes its arguments. The file `behaviour` may set
/// `status` (of a login), `message`, and a function `before_login`.
const ISCSIADM: &str = r##"#!/bin/sh
root=ROOT
echo "$*" >> $root/log
mode= op= iqn= portal= sid= status=0 message= before_login=:
while [ $# -gt 0 ]; do
    case $1 in
        -m) mode=$2; shift;; -T) iqn=$2; shift;; -p) portal=$2; shift;; -o) op=$2; shift;; -r) sid=$2; shift;;
        --login) op=login;; --logout) op=logout;; --rescan) op=rescan;; *) exit 7;;
    esac
    shift
done
address=${portal%:*}; address=${address#[}; address=${address%]}; port=${portal##*:}
record=$root/nodes/$iqn/$address,$port
session=$root/sys/class/iscsi_session/session
connection=$root/sys/class/iscsi_connection/connection
. $root/behaviour
case $mode.$op in
node.)
    test -e $record || { echo 'iscsiadm: No records found' >&2; exit 21; };;
node.new)
    mkdir -p $root/nodes/$iqn
    printf '# BEGIN RECORD 2.1.8\nnode.name = %s\nnode.session.auth.authmethod = None\n# END RECORD\n' $iqn > $record;;
node.login)
    test -e $record || exit 21
    $before_login
    if [ $status != 0 ]; then echo "$message" >&2; exit $status; fi
    cp $record $root/used-record
    sid=$(cat $root/next-session); echo $((sid + 1)) > $root/next-session
    mkdir -p $session$sid/device/target2:0:0 $connection$sid:0
    echo $iqn > $session$sid/targetname; echo LOGGED_IN > $session$sid/state
    echo $address > $connection$sid:0/persistent_address; echo $port > $connection$sid:0/persistent_port
    cp -r $root/luns/. $session$sid/device/target2:0:0;;
session.logout)
    test -e $session$sid || exit 21
    rm -r $session$sid $connection$sid:0;;
session.rescan)
    cp -r $root/luns/. $session$sid/device/target2:0:0;;
*)
    exit 7;;
esac
"##;

struct Fake {
    dir: PathBuf,
    host: Arc<Host>,
    target: IscsiTarget,
    portal: SocketAddr,
    /// What is only there for its `Drop`.
    _owned: Option<(tempfile::TempDir, TcpListener)>,
}

impl Fake {
    /// A target with one disk, LUN 1, behind a controller, LUN 0; nobody has logged in.
    fn new() -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["sys/class/iscsi_transport/tcp", "sys/class/block", "dev", "nodes", "run", "luns"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("next-session"), "1").unwrap();
        fs::write(at("behaviour"), "").unwrap();
        fs::write(at("log"), "").unwrap();
        let script = ISCSIADM.replace("ROOT", &dir.path().display().to_string());
        fs::write(at("script"), script).unwrap();
        // By another process: if a thread of ours forked while we wrote it, it could not be run (ETXTBSY).
        let copy = Command::new("install").args(["-m", "755"]).args([at("script"), at("iscsiadm")]).status();
        assert!(copy.unwrap().success());
        let mut fake = Fake::at(dir.path(), listener.local_addr().unwrap());
        fake._owned = Some((dir, listener));
        fake.add_lun(0, 12, None);
        fake.add_lun(1, 0, Some("sda"));
        fake
    }

    fn at(dir: &Path, portal: SocketAddr) -> Fake {
        let host = Host {
            sysfs: Sysfs { sys: dir.join("sys"), dev: dir.join("dev") },
            nodes: vec![dir.join("nodes"), dir.join("other-nodes")],
            iscsiadm: Some(dir.join("iscsiadm")),
            boot: "this boot".into(),
            settle: Duration::from_millis(200),
            connect: Duration::from_secs(10),
        };
        let target = IscsiTarget {
            iqn: IQN.into(),
            portal: portal.to_string(),
            lun: None,
            multipath: false,
            chap: None,
        };
        Fake { dir: dir.to_owned(), host: Arc::new(host), target, portal, _owned: None }
    }

    fn change_host(&mut self, change: impl FnOnce(&mut Host)) {
        let mut host = Host::clone(&self.host);
        change(&mut host);
        self.host = Arc::new(host);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A LUN of the target; it shows in sessions that begin after this.
    fn add_lun(&self, number: u64, kind: u32, name: Option<&str>) {
        let lun = self.path(&format!("luns/2:0:0:{number}"));
        fs::create_dir_all(&lun).unwrap();
        fs::write(lun.join("type"), kind.to_string()).unwrap();
        if let Some(name) = name {
            fs::create_dir_all(lun.join("block").join(name).join("holders")).unwrap();
            // The number of no device: that of a file.
            fs::write(lun.join("block").join(name).join("dev"), "0:0\n").unwrap();
            fs::write(self.path("dev").join(name), [0; 4096]).unwrap();
        }
    }

    fn remove_luns(&self) {
        fs::remove_dir_all(self.path("luns")).unwrap();
        fs::create_dir(self.path("luns")).unwrap();
    }

    fn behave(&self, text: &str) {
        fs::write(self.path("behaviour"), text).unwrap();
    }

    fn attach(&self) -> Result<IscsiDisk, IscsiError> {
        attach_on(&self.host, &self.target, &self.path("run"))
    }

    fn problem(&self) -> IscsiProblem {
        self.attach().unwrap_err().problem
    }

    fn clean_up(&self) {
        lease::clean_up(&self.host, &self.path("run"));
    }

    /// What iscsiadm was asked to do, without the names of target and portal.
    fn log(&self) -> Vec<String> {
        let names = format!("-T {IQN} -p {}", self.portal);
        let text = fs::read_to_string(self.path("log")).unwrap();
        fs::write(self.path("log"), "").unwrap();
        text.lines().map(|line| line.replace(&names, "TARGET")).collect()
    }

    fn sessions(&self) -> usize {
        fs::read_dir(self.path("sys/class/iscsi_session")).map_or(0, Iterator::count)
    }

    fn record(&self) -> PathBuf {
        self.path("nodes").join(IQN).join(format!("{},{}", self.portal.ip(), self.portal.port()))
    }

    fn make_record(&self, text: &str) {
        fs::create_dir_all(self.record().parent().unwrap()).unwrap();
        fs::write(self.record(), text).unwrap();
    }

    /// Somebody else logs in, as `iscsiadm` on the host's own command line.
    fn log_in_by_hand(&self) {
        if !self.record().exists() {
            self.make_record("by hand");
        }
        let args = ["-m", "node", "-T", IQN, "-p", &self.portal.to_string(), "--login"];
        assert!(Command::new(self.path("iscsiadm")).args(args).status().unwrap().success());
        self.log();
    }

    /// Nothing of ours is left.
    fn assert_clean(&self) {
        assert_eq!(self.sessions(), 0);
        assert!(!self.record().exists());
        let left: Vec<_> =
            fs::read_dir(self.path("run/iscsi")).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    /// A process that attaches the target and keeps it until it is killed.
    fn in_another_process(&self) -> Killed {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "storage::iscsi::tests::child", "--ignored"])
            .env("XVMM_TEST_ISCSI", &self.dir)
            .env("XVMM_TEST_PORTAL", self.portal.to_string())
            .stdout(std::process::Stdio::null())
            .spawn();
        Killed(child.unwrap())
    }

    fn wait_for(&self, name: &str) {
        while !self.path(name).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What the process of [`Fake::in_another_process`] does.
#[test]
#[ignore = "runs as the child of other tests"]
fn child() {
    let Some(dir) = std::env::var_os("XVMM_TEST_ISCSI") else { return };
    let portal = std::env::var("XVMM_TEST_PORTAL").unwrap().parse().unwrap();
    let fake = Fake::at(Path::new(&dir), portal);
    let _disk = fake.attach().unwrap();
    fs::write(fake.path("attached"), "").unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_disk_is_found_and_its_session_ends_with_it() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    assert_eq!((disk.path(), disk.lun()), (fake.path("dev/sda").as_path(), 1));
    assert_eq!(fake.log(), ["-m node TARGET", "-m node TARGET -o new", "-m node TARGET --login"]);
    drop(disk);
    assert_eq!(fake.log(), ["-m session -r 1 --logout"]);
    fake.assert_clean();
}

#[test]
fn a_session_lasts_as_long_as_what_is_opened_on_its_disk() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    let image = blkback::DiskImage::open(disk.path(), false).unwrap();
    let backing = disk.under(image.into());
    assert_eq!((backing.storage.size().unwrap(), fake.sessions()), (4096, 1));
    drop(backing);
    fake.assert_clean();
}

#[test]
fn a_session_of_somebody_else_is_used_and_left() {
    let fake = Fake::new();
    fake.log_in_by_hand();
    let disk = fake.attach().unwrap();
    assert_eq!(disk.path(), fake.path("dev/sda"));
    drop(disk);
    fake.clean_up();
    assert_eq!(fake.log(), Vec::<String>::new());
    assert_eq!(fake.sessions(), 1);
    assert_eq!(fs::read_to_string(fake.record()).unwrap(), "by hand");
}

#[test]
fn the_last_user_logs_out() {
    let fake = Fake::new();
    let first = fake.attach().unwrap();
    let second = fake.attach().unwrap();
    fake.log();
    drop(first);
    assert_eq!((fake.log(), fake.sessions()), (Vec::<String>::new(), 1));
    drop(second);
    assert_eq!(fake.log(), ["-m session -r 1 --logout"]);
    fake.assert_clean();
}

#[test]
fn the_session_of_a_killed_process_is_closed_by_the_next_start() {
    let fake = Fake::new();
    let child = fake.in_another_process();
    fake.wait_for("attached");
    fake.clean_up();
    assert_eq!(fake.sessions(), 1, "its user lives");
    drop(child);
    fake.log();
    fake.clean_up();
    assert_eq!(fake.log(), ["-m session -r 1 --logout"]);
    fake.assert_clean();
}

#[test]
fn a_living_user_keeps_the_session_of_a_killed_one() {
    let fake = Fake::new();
    let child = fake.in_another_process();
    fake.wait_for("attached");
    let disk = fake.attach().unwrap();
    drop(child);
    fake.clean_up();
    assert_eq!(fake.sessions(), 1);
    drop(disk);
    fake.assert_clean();
}

#[test]
fn a_process_killed_in_its_login_leaves_no_session() {
    let fake = Fake::new();
    fake.behave(
        "hang() { : > $root/hangs; while [ ! -e $root/go ]; do sleep 0.01; done; }\nbefore_login=hang",
    );
    let child = fake.in_another_process();
    fake.wait_for("hangs");
    drop(child);
    fake.log();
    fake.clean_up();
    assert!(fake.record().exists(), "iscsiadm is still at work");
    fs::write(fake.path("go"), "").unwrap();
    while !fake.log().contains(&"-m session -r 1 --logout".to_owned()) {
        fake.clean_up();
        std::thread::sleep(Duration::from_millis(5));
    }
    fake.assert_clean();
}

#[test]
fn nothing_is_closed_for_what_was_made_before_the_host_started_anew() {
    let mut fake = Fake::new();
    let child = fake.in_another_process();
    fake.wait_for("attached");
    drop(child);
    fake.change_host(|host| host.boot = "another boot".into());
    fake.clean_up();
    assert_eq!(fake.sessions(), 1);
    assert!(!fake.record().exists());
    assert!(!fake.path("run/iscsi").join(IQN).exists());
}

#[test]
fn a_record_made_by_hand_after_the_host_started_anew_is_left() {
    let mut fake = Fake::new();
    let child = fake.in_another_process();
    fake.wait_for("attached");
    drop(child);
    fake.change_host(|host| host.boot = "another boot".into());
    fake.make_record("by hand");
    fake.clean_up();
    assert_eq!(fs::read_to_string(fake.record()).unwrap(), "by hand");
}

#[test]
fn who_logs_in_a_moment_before_us_keeps_the_session() {
    let fake = Fake::new();
    let other = format!(
        "if [ $mode.$op = node.login ] && [ ! -e $root/other ]; then : > $root/other; \
         $root/iscsiadm -m node -T {IQN} -p {} --login; status=15; fi",
        fake.portal
    );
    fake.behave(&other);
    drop(fake.attach().unwrap());
    assert_eq!(fake.sessions(), 1);
    assert!(!fake.record().exists());
    assert!(!fake.path("run/iscsi").join(IQN).exists());
}

#[test]
fn a_session_that_somebody_opened_after_ours_was_closed_is_left() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    let logout = ["-m", "session", "-r", "1", "--logout"];
    assert!(Command::new(fake.path("iscsiadm")).args(logout).status().unwrap().success());
    fake.log_in_by_hand();
    drop(disk);
    assert_eq!((fake.log(), fake.sessions()), (Vec::<String>::new(), 1));
}

#[test]
fn a_second_session_that_somebody_opened_beside_ours_is_left() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    fake.log_in_by_hand();
    drop(disk);
    assert_eq!(fake.log(), ["-m session -r 1 --logout"]);
    assert!(fake.path("sys/class/iscsi_session/session2").exists());
}

#[test]
fn a_session_in_use_is_closed_later() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    // As a virtual machine in another folder of running domains has it.
    let user = blkback::DiskImage::open(disk.path(), true).unwrap();
    drop(disk);
    assert_eq!(fake.sessions(), 1);
    assert!(fake.record().exists());
    drop(user);
    // A process that another test starts has our files, and so their locks, until it runs its program.
    while fake.sessions() > 0 {
        std::thread::sleep(Duration::from_millis(2));
        fake.clean_up();
    }
    fake.assert_clean();
}

#[test]
fn a_session_that_cannot_be_closed_is_tried_again() {
    let fake = Fake::new();
    let disk = fake.attach().unwrap();
    fake.behave("test $op = logout && exit 10");
    drop(disk);
    assert!(fake.record().exists());
    fake.behave("");
    fake.clean_up();
    fake.assert_clean();
}

#[test]
fn a_node_record_that_exists_is_used_and_left() {
    let fake = Fake::new();
    fake.make_record("by hand");
    drop(fake.attach().unwrap());
    assert_eq!(fake.log(), ["-m node TARGET", "-m node TARGET --login", "-m session -r 1 --logout"]);
    assert_eq!(fs::read_to_string(fake.record()).unwrap(), "by hand");
}

#[test]
fn a_password_is_in_the_record_for_the_time_of_the_session_and_in_no_argument() {
    let mut fake = Fake::new();
    let chap = fake.path("chap");
    fs::write(&chap, "joe\nverysecret\n").unwrap();
    fs::set_permissions(&chap, fs::Permissions::from_mode(0o600)).unwrap();
    fake.target.chap = Some(chap);
    let disk = fake.attach().unwrap();
    let used = fs::read_to_string(fake.path("used-record")).unwrap();
    for line in ["authmethod = CHAP", "username = joe", "password = verysecret"] {
        assert!(used.contains(&format!("\nnode.session.auth.{line}\n")), "{used}");
    }
    assert_eq!(fs::metadata(fake.record()).unwrap().permissions().mode() & 0o777, 0o600);
    drop(disk);
    assert!(!fake.log().join("\n").contains("secret"));
    fake.assert_clean();
}

#[test]
fn a_password_does_not_change_a_record_that_exists() {
    let mut fake = Fake::new();
    let chap = fake.path("chap");
    fs::write(&chap, "joe:secret").unwrap();
    fs::set_permissions(&chap, fs::Permissions::from_mode(0o600)).unwrap();
    fake.target.chap = Some(chap);
    fake.make_record("by hand");
    assert!(matches!(fake.problem(), IscsiProblem::RecordExists));
    assert_eq!(fs::read_to_string(fake.record()).unwrap(), "by hand");
    assert_eq!(fake.sessions(), 0);
}

#[test]
fn a_password_that_others_can_read_changes_nothing() {
    let mut fake = Fake::new();
    let chap = fake.path("chap");
    fs::write(&chap, "joe:secret").unwrap();
    fs::set_permissions(&chap, fs::Permissions::from_mode(0o644)).unwrap();
    fake.target.chap = Some(chap);
    assert!(matches!(fake.problem(), IscsiProblem::Chap { .. }));
    assert_eq!(fake.log(), Vec::<String>::new());
}

#[test]
fn a_record_left_by_a_host_that_died_is_replaced() {
    let fake = Fake::new();
    fake.make_record("old\n");
    record::adopt(&fake.record(), Some(&Chap { user: "joe".into(), password: "old".into() })).unwrap();
    let disk = fake.attach().unwrap();
    assert!(!fs::read_to_string(fake.record()).unwrap().contains("password"));
    drop(disk);
    fake.assert_clean();
}

#[test]
fn a_portal_may_be_ipv6() {
    let mut fake = Fake::new();
    fake.portal = "[fd00::1]:860".parse().unwrap();
    fake.target.portal = "[FD00:0::1]:860".into();
    fake.make_record("by hand");
    drop(fake.attach().unwrap());
    assert_eq!(fake.log()[1], "-m node TARGET --login");
}

#[test]
fn a_failed_login_is_told_and_leaves_nothing() {
    // One with a sentence of its own, one that quotes what iscsiadm says.
    for (status, sentence) in [
        (24, "the target refuses the login: user or password (CHAP) are wrong or missing; "),
        (3, "iscsiadm cannot log in (status 3: initiator reported error (3 - x)); "),
    ] {
        let fake = Fake::new();
        let message = format!(
            "iscsiadm: initiator reported error ({status} - x)\niscsiadm: Could not log into all portals"
        );
        fake.behave(&format!("status={status}; message='{message}'"));
        let error = fake.attach().unwrap_err().to_string();
        let start = format!("iSCSI target {IQN} at {}: {sentence}", fake.portal);
        assert!(error.starts_with(&start), "{status}: {error}");
        fake.assert_clean();
    }
}

#[test]
fn a_user_who_is_not_root_is_told() {
    let fake = Fake::new();
    // What iscsiadm 2.1.8 says of its lock file.
    fake.behave("echo 'iscsiadm: Maybe you are not root?' >&2; echo 'iscsiadm: Could not lock' >&2; exit 6");
    assert!(matches!(fake.problem(), IscsiProblem::NotPermitted));
}

#[test]
fn a_kernel_without_the_module_is_told_from_a_bad_portal() {
    let fake = Fake::new();
    fs::remove_dir_all(fake.path("sys/class/iscsi_transport")).unwrap();
    fake.behave("status=8");
    assert!(matches!(fake.problem(), IscsiProblem::NoModule));
}

#[test]
fn a_portal_where_nobody_listens_changes_nothing() {
    let mut fake = Fake::new();
    // Nobody else gets this port, and nobody listens: a listener that was closed may live on for a moment, in a
    // process that another test starts.
    let (_socket, bound) = bound_socket();
    (fake.portal, fake.target.portal) = (bound, bound.to_string());
    let problem = fake.problem();
    assert!(matches!(problem, IscsiProblem::Unreachable(_)), "{problem}");
    assert_eq!(fake.log(), ["-m node TARGET"]);
    fake.assert_clean();
}

/// A TCP socket with a port of its own that does not listen.
fn bound_socket() -> (OwnedFd, SocketAddr) {
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: address and length are valid, and live until the calls return; the descriptor is new.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert_eq!(libc::bind(socket, (&raw const address).cast(), len), 0);
        assert_eq!(libc::getsockname(socket, (&raw mut address).cast(), &raw mut len), 0);
        OwnedFd::from_raw_fd(socket)
    };
    (socket, (Ipv4Addr::LOCALHOST, u16::from_be(address.sin_port)).into())
}

#[test]
fn a_host_without_iscsiadm_is_told() {
    let mut fake = Fake::new();
    fake.change_host(|host| host.iscsiadm = Some("/nonexistent/iscsiadm".into()));
    assert!(matches!(fake.problem(), IscsiProblem::NoIscsiadm));
    fs::write(fake.path("text"), "").unwrap();
    let text = fake.path("text");
    fake.change_host(|host| host.iscsiadm = Some(text));
    assert!(matches!(fake.problem(), IscsiProblem::NotRunnable { .. }));
    fake.assert_clean();
}

#[test]
fn iscsiadm_is_found_in_path() {
    let fake = Fake::new();
    let path = format!("/nonexistent:{}", fake.dir.display());
    assert!(Iscsiadm::find(None, Some(path.as_ref())).is_ok());
}

#[test]
fn names_that_are_options_or_paths_reach_nobody() {
    let mut fake = Fake::new();
    fake.target.iqn = "--login".into();
    assert!(matches!(fake.problem(), IscsiProblem::InvalidName));
    fake.target.iqn = "iqn.x/../../etc".into();
    assert!(matches!(fake.problem(), IscsiProblem::InvalidName));
    fake.target.iqn = IQN.into();
    fake.target.portal = "-o".into();
    assert!(matches!(fake.problem(), IscsiProblem::InvalidPortal));
    assert_eq!(fake.log(), Vec::<String>::new());
}

#[test]
fn lun_chooses_the_disk() {
    let mut fake = Fake::new();
    fake.add_lun(2, 0, Some("sdb"));
    let problem = fake.problem();
    assert_eq!(problem.to_string(), "the target has several disks, LUN 1, 2; choose one with lun=");
    fake.target.lun = Some(2);
    assert_eq!(fake.attach().unwrap().path(), fake.path("dev/sdb"));
    fake.target.lun = Some(7);
    assert_eq!(fake.problem().to_string(), "the target has no disk as LUN 7; its disks are LUN 1, 2");
    fake.target.lun = Some(0);
    assert_eq!(fake.problem().to_string(), "the target has no disk as LUN 0; its disks are LUN 1, 2");
    fake.assert_clean();
}

#[test]
fn the_only_disk_is_used_whatever_its_number() {
    let fake = Fake::new();
    fake.remove_luns();
    fake.add_lun(16383, 0, Some("sdz"));
    let disk = fake.attach().unwrap();
    assert_eq!((disk.path(), disk.lun()), (fake.path("dev/sdz").as_path(), 16383));
}

#[test]
fn a_target_without_a_disk_is_logged_out_of() {
    let fake = Fake::new();
    fake.remove_luns();
    fake.add_lun(0, 12, None);
    let problem = fake.problem();
    assert_eq!(problem.to_string(), "the target has no disk; give it one, or admit this host to it");
    fake.assert_clean();
}

#[test]
fn a_lun_that_the_target_got_later_is_found_in_an_old_session() {
    let mut fake = Fake::new();
    fake.log_in_by_hand();
    fake.add_lun(5, 0, Some("sdf"));
    fake.target.lun = Some(5);
    assert_eq!(fake.attach().unwrap().path(), fake.path("dev/sdf"));
    assert_eq!(fake.log(), ["-m session -r 1 --rescan"]);
}

#[test]
fn a_lun_without_a_driver_is_told() {
    let fake = Fake::new();
    fake.remove_luns();
    fake.add_lun(1, 0, None);
    let problem = fake.problem();
    assert!(matches!(problem, IscsiProblem::NoDriver(1)), "{problem}");
}

#[test]
fn a_disk_that_is_not_in_dev_is_told() {
    let fake = Fake::new();
    fs::remove_file(fake.path("dev/sda")).unwrap();
    let expected = format!(
        "the kernel's disk sda does not appear as {}; mount devtmpfs at /dev",
        fake.path("dev/sda").display()
    );
    assert_eq!(fake.problem().to_string(), expected);
    fake.assert_clean();
}

#[test]
fn another_device_of_the_same_name_is_not_taken() {
    let fake = Fake::new();
    fs::write(fake.path("luns/2:0:0:1/block/sda/dev"), "8:0\n").unwrap();
    let problem = fake.problem();
    assert!(matches!(problem, IscsiProblem::NoDevice { .. }), "{problem}");
}

#[test]
fn a_disk_that_cannot_be_read_is_told() {
    let fake = Fake::new();
    fs::write(fake.path("dev/sda"), "").unwrap();
    let problem = fake.problem();
    assert!(matches!(problem, IscsiProblem::NotReadable { .. }), "{problem}");
    fake.assert_clean();
}

#[test]
fn a_session_without_a_connection_is_told() {
    let fake = Fake::new();
    fake.log_in_by_hand();
    fs::write(fake.path("sys/class/iscsi_session/session1/state"), "FAILED\n").unwrap();
    let problem = fake.problem();
    assert!(matches!(&problem, IscsiProblem::NotConnected(state) if state == "FAILED"), "{problem}");
}

#[test]
fn a_multipath_device_is_used_when_asked_for() {
    let mut fake = Fake::new();
    fs::create_dir(fake.path("luns/2:0:0:1/block/sda/holders/dm-3")).unwrap();
    let device = fake.path("sys/class/block/dm-3");
    fs::create_dir_all(device.join("dm")).unwrap();
    fs::write(device.join("dm/name"), "mpatha\n").unwrap();
    fs::write(device.join("dm/uuid"), "mpath-36001405\n").unwrap();
    fs::write(device.join("dev"), "0:0\n").unwrap();
    fs::write(fake.path("dev/dm-3"), [0; 4096]).unwrap();
    let problem = fake.problem();
    assert_eq!(problem.to_string(), "its disk sda is a path of the multipath device mpatha; add multipath=y");
    fake.target.multipath = true;
    assert_eq!(fake.attach().unwrap().path(), fake.path("dev/dm-3"));
    fake.assert_clean();
}

#[test]
fn a_multipath_device_that_does_not_come_is_told() {
    let mut fake = Fake::new();
    fake.target.multipath = true;
    fs::create_dir(fake.path("luns/2:0:0:1/block/sda/holders/dm-3")).unwrap();
    let device = fake.path("sys/class/block/dm-3");
    fs::create_dir_all(device.join("dm")).unwrap();
    // A logical volume, not a multipath device.
    fs::write(device.join("dm/name"), "vg-lv\n").unwrap();
    fs::write(device.join("dm/uuid"), "LVM-abc\n").unwrap();
    let problem = fake.problem();
    assert!(matches!(&problem, IscsiProblem::NoMultipath(disk) if disk == "sda"), "{problem}");
    fake.assert_clean();
}

#[test]
fn what_is_not_a_state_of_ours_closes_nothing() {
    let fake = Fake::new();
    fake.log_in_by_hand();
    let folder = fake.path("run/iscsi").join(IQN).join("127.0.0.1,3260");
    let state = |iqn: &str| {
        format!(
            r#"{{"boot":"this boot","iqn":"{iqn}","portal":"127.0.0.1:3260","record":true,"sessions":[9]}}"#
        )
    };
    for text in ["", "{}", &state("../../etc"), &state("--login"), &state(IQN)] {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("session.json"), text).unwrap();
        fake.clean_up();
        assert_eq!(fake.sessions(), 1, "{text}");
        assert!(!folder.exists(), "{text}");
    }
    assert_eq!(fs::read_to_string(fake.record()).unwrap(), "by hand");
}
