//! Taps that the caller has opened and passed in as descriptors.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::AtomicUsize;
use std::{fmt, io};

use super::{Argument, Tap, TapError, VNET_HDR, interface_request, tun_ioctl};

/// Why a descriptor is of no use as a queue of a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassedProblem {
    /// It is not open.
    Closed,
    /// It is something else.
    NotATap,
    /// `/dev/net/tun` without an interface.
    NotAttached,
    /// An interface without Ethernet headers.
    Tun(String),
    /// The offloads have no header.
    NoVnetHeader(String),
    /// Several descriptors of an interface with one queue.
    SingleQueue(String),
    /// One descriptor of an interface that may have several queues.
    MultiQueue(String),
    /// It belongs to the second one, and the first descriptor to the first one.
    OtherInterface(String, String),
    /// Two descriptors of one queue.
    SameQueue(RawFd),
    /// Anything else that the kernel said.
    Host(String),
}

impl fmt::Display for PassedProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PassedProblem::Closed => {
                f.write_str("no open descriptor; let the caller open the tap and leave it open for xvmm")
            }
            PassedProblem::NotATap => {
                f.write_str("not a tap; open /dev/net/tun and attach it with TUNSETIFF")
            }
            PassedProblem::NotAttached => {
                f.write_str("/dev/net/tun without an interface; attach it with TUNSETIFF before it is passed")
            }
            PassedProblem::Tun(name) => {
                write!(f, "{name} is a tun, without Ethernet; attach it with IFF_TAP")
            }
            PassedProblem::NoVnetHeader(name) => {
                write!(f, "{name} has no header for offloads; attach it with IFF_VNET_HDR")
            }
            PassedProblem::SingleQueue(name) => write!(
                f,
                "{name} was attached without IFF_MULTI_QUEUE, and several descriptors are passed; attach it with that flag, or pass one"
            ),
            PassedProblem::MultiQueue(name) => write!(
                f,
                "{name} was attached with IFF_MULTI_QUEUE, and one descriptor is passed; attach it without that flag, or pass all its queues (fd=3:4)"
            ),
            PassedProblem::OtherInterface(first, other) => {
                write!(
                    f,
                    "a queue of {other}, but the first descriptor is one of {first}; pass the queues of one tap"
                )
            }
            PassedProblem::SameQueue(other) => {
                write!(f, "the same queue as descriptor {other}; attach each one by itself")
            }
            PassedProblem::Host(error) => f.write_str(error),
        }
    }
}

impl Tap {
    /// Looks whether the descriptors are the queues of a tap that can be used; its name. Nothing is changed.
    pub fn check_passed(fds: &[RawFd]) -> Result<String, TapError> {
        let mut first: Option<(String, RawFd)> = None;
        for (index, fd) in fds.iter().copied().enumerate() {
            let fail = |problem| TapError::Passed { fd, problem };
            let name = check_queue(fd, fds.len() > 1).map_err(fail)?;
            if let Some(other) = fds.iter().take(index).find(|other| is_same_file(**other, fd)) {
                return Err(fail(PassedProblem::SameQueue(*other)));
            }
            match &first {
                Some((first, _)) if *first != name => {
                    return Err(fail(PassedProblem::OtherInterface(first.clone(), name)));
                }
                Some(_) => {}
                None => first = Some((name, fd)),
            }
        }
        first.map(|(name, _)| name).ok_or(TapError::Passed { fd: -1, problem: PassedProblem::Closed })
    }

    /// The tap whose queues these descriptors are. They stay open, so that the interface outlives the value: after a
    /// reboot of the guest it is taken again. Programs that are started do not get them.
    pub fn passed(fds: &[RawFd]) -> Result<Self, TapError> {
        let name = Self::check_passed(fds)?;
        let mut queues = Vec::new();
        for fd in fds.iter().copied() {
            let host =
                |error: io::Error| TapError::Passed { fd, problem: PassedProblem::Host(error.to_string()) };
            queues.push(duplicate(fd).map_err(host)?);
            let size = libc::c_int::try_from(VNET_HDR).unwrap_or(10);
            tun_ioctl(fd, libc::TUNSETVNETHDRSZ, Argument::Int(size)).map_err(host)?;
        }
        let tap = Self {
            _guard: None,
            name: name.clone(),
            active: AtomicUsize::new(queues.len()),
            queues,
            stand_in: false,
        };
        tap.set_carrier(false).map_err(|error| TapError::Host { name, error })?;
        Ok(tap)
    }
}

/// Name of the interface.
fn check_queue(fd: RawFd, several: bool) -> Result<String, PassedProblem> {
    let mut request = interface_request("", 0);
    let asked = tun_ioctl(fd, libc::TUNGETIFF, Argument::Request(&mut request));
    asked.map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => PassedProblem::Closed,
        Some(libc::EBADFD) => PassedProblem::NotAttached,
        Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTSOCK) => PassedProblem::NotATap,
        _ => PassedProblem::Host(error.to_string()),
    })?;
    let bytes = request.ifr_name.iter().map(|c| c.to_ne_bytes()).map(|[byte]| byte);
    let name = String::from_utf8_lossy(&bytes.take_while(|byte| *byte != 0).collect::<Vec<_>>()).into_owned();
    // SAFETY: the kernel filled in the flags.
    let [low, high] = unsafe { request.ifr_ifru.ifru_flags }.to_le_bytes();
    let flags = libc::c_int::from(u16::from_le_bytes([low, high]));
    let has = |flag| flags & flag != 0;
    if !has(libc::IFF_TAP) {
        return Err(PassedProblem::Tun(name));
    }
    // IFF_NO_PI does not show: IFF_NOFILTER, which the kernel sets in its answer, is the same bit.
    if !has(libc::IFF_VNET_HDR) {
        return Err(PassedProblem::NoVnetHeader(name));
    }
    match (has(libc::IFF_MULTI_QUEUE), several) {
        (true, false) => Err(PassedProblem::MultiQueue(name)),
        (false, true) => Err(PassedProblem::SingleQueue(name)),
        _ => Ok(name),
    }
}

/// Whether two descriptors are one open file. A kernel that does not tell (without CONFIG_KCMP) gets the benefit of
/// the doubt.
fn is_same_file(a: RawFd, b: RawFd) -> bool {
    /// linux/kcmp.h
    const KCMP_FILE: libc::c_int = 0;
    let pid = std::process::id();
    // SAFETY: the call takes numbers, and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a, b) == 0 }
}

/// Another descriptor of the same open file, ready for a thread that polls it.
fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: `check_queue` has just asked the kernel about the descriptor. It belongs to the caller of the program,
    // and nothing here closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let file = File::from(borrowed.try_clone_to_owned()?);
    // SAFETY: both commands take numbers; the descriptors are open.
    let done = unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK | libc::O_RDWR) == 0
    };
    if done { Ok(file) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::OpenOptions;

    use super::super::exists;
    use super::*;
    use crate::testing::{enter_network_namespace, wait};

    const GOOD: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

    /// A queue as a caller opens one.
    fn queue(name: &str, flags: libc::c_int) -> File {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = interface_request(name, flags);
        tun_ioctl(file.as_raw_fd(), libc::TUNSETIFF, Argument::Request(&mut request)).unwrap();
        file
    }

    fn problem(fds: &[RawFd]) -> PassedProblem {
        match Tap::passed(fds).unwrap_err() {
            TapError::Passed { problem, .. } => problem,
            other => unreachable!("{other}"),
        }
    }

    #[test]
    fn a_tap_of_the_caller_is_used_again_and_again() {
        enter_network_namespace();
        let file = queue("mine", GOOD);
        for _ in 0..3 {
            let tap = Tap::passed(&[file.as_raw_fd()]).unwrap();
            assert_eq!((tap.name(), tap.queues()), ("mine", 1));
            tap.set_carrier(true).unwrap();
            drop(tap);
            assert!(exists("mine"));
        }
        drop(file);
        wait("the tap's end", || !exists("mine"));
    }

    #[test]
    fn programs_do_not_get_the_caller_s_descriptor() {
        enter_network_namespace();
        let file = queue("mine", GOOD);
        let _tap = Tap::passed(&[file.as_raw_fd()]).unwrap();
        // SAFETY: the command takes no argument.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    }

    #[test]
    fn a_tap_with_several_queues_is_taken_with_all_of_them() {
        enter_network_namespace();
        let files = [(); 3].map(|()| queue("mine", GOOD | libc::IFF_MULTI_QUEUE));
        let tap = Tap::passed(&files.each_ref().map(AsRawFd::as_raw_fd)).unwrap();
        assert_eq!(tap.queues(), 3);
        tap.set_active_queues(1).unwrap();
        tap.set_active_queues(3).unwrap();
    }

    #[test]
    fn what_is_no_tap_is_told() {
        enter_network_namespace();
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        assert_eq!(problem(&[tun.as_raw_fd()]), PassedProblem::NotAttached);
        let null = File::open("/dev/null").unwrap();
        assert_eq!(problem(&[null.as_raw_fd()]), PassedProblem::NotATap);
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(problem(&[socket.as_raw_fd()]), PassedProblem::NotATap);
        assert_eq!(problem(&[1_000_000]), PassedProblem::Closed);
    }

    #[test]
    fn wrong_flags_are_told() {
        enter_network_namespace();
        let name = || "mine".to_owned();
        let table = [
            (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR, PassedProblem::Tun(name())),
            (libc::IFF_TAP | libc::IFF_NO_PI, PassedProblem::NoVnetHeader(name())),
            (GOOD | libc::IFF_MULTI_QUEUE, PassedProblem::MultiQueue(name())),
        ];
        for (flags, expected) in table {
            let file = queue("mine", flags);
            assert_eq!(problem(&[file.as_raw_fd()]), expected);
        }
        let file = queue("mine", GOOD);
        let twice = file.try_clone().unwrap();
        let fds = [file.as_raw_fd(), twice.as_raw_fd()];
        assert_eq!(problem(&fds), PassedProblem::SingleQueue(name()));
    }

    #[test]
    fn queues_that_do_not_belong_together_are_told() {
        enter_network_namespace();
        let multi = GOOD | libc::IFF_MULTI_QUEUE;
        let (a, b) = (queue("a", multi), queue("b", multi));
        let expected = PassedProblem::OtherInterface("a".into(), "b".into());
        assert_eq!(problem(&[a.as_raw_fd(), b.as_raw_fd()]), expected);
        let again = a.try_clone().unwrap();
        let expected = PassedProblem::SameQueue(a.as_raw_fd());
        assert_eq!(problem(&[a.as_raw_fd(), again.as_raw_fd()]), expected);
    }
}
