//! The host's end of an interface: a tap device, and the header before each of its frames.

mod passed;

use std::any::Any;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use thiserror::Error;

use crate::protocol::{Gso, GsoKind};
pub use passed::PassedProblem;

/// Queues of one tap (MAX_TAP_QUEUES of Linux's tun.c).
const MAX_QUEUES: usize = 256;

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is empty, too long or has a character that interfaces cannot have.
    #[error("{0:?} is no name of an interface: 1 to 15 characters, no slash, colon or space")]
    Name(String),
    /// An interface has that name.
    #[error("interface {0} exists already; remove it with `ip link delete {0}` or choose another vifname")]
    Taken(String),
    /// No /dev/net/tun.
    #[error("cannot make interface {0}: there is no /dev/net/tun; load the driver with `modprobe tun`")]
    NoTun(String),
    /// Not allowed.
    #[error("cannot make interface {0}: not permitted; run as root or with CAP_NET_ADMIN")]
    NotPermitted(String),
    /// A descriptor of the caller cannot be used.
    #[error("fd={fd}: {problem}")]
    Passed {
        /// The descriptor.
        fd: RawFd,
        /// The reason and the way out.
        problem: PassedProblem,
    },
    /// Anything else.
    #[error("cannot make interface {name}: {error}")]
    Host {
        /// Of the interface.
        name: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What the reader of a tap can do itself; the kernel does the rest before it hands out a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Frames with a blank checksum.
    pub csum: bool,
    /// Large TCP segments over IPv4; needs `csum`.
    pub tso4: bool,
    /// Large TCP segments over IPv6; needs `csum`.
    pub tso6: bool,
}

/// A tap device. It vanishes with the last file, however the process ends.
#[derive(Debug)]
pub struct Tap {
    /// Dropped before the files.
    _guard: Option<Box<dyn Any + Send + Sync>>,
    name: String,
    queues: Vec<File>,
    /// Queues that the kernel hands frames to: the first ones.
    active: AtomicUsize,
    /// It is a socket.
    stand_in: bool,
}

impl Tap {
    /// Makes the tap `name` with `queues` queues. It has no carrier until [`Tap::set_carrier`].
    pub fn create(name: &str, queues: usize) -> Result<Self, TapError> {
        if !is_interface_name(name) {
            return Err(TapError::Name(name.to_owned()));
        }
        let queues = queues.clamp(1, MAX_QUEUES);
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut tap = Self {
            _guard: None,
            name: name.to_owned(),
            queues: Vec::new(),
            active: AtomicUsize::new(queues),
            stand_in: false,
        };
        for index in 0..queues {
            // The first one must make the interface, and not share one that is there.
            let exclusive = if index == 0 { libc::IFF_TUN_EXCL } else { 0 };
            tap.queues.push(open_queue(name, flags | exclusive)?);
        }
        tap.set_carrier(false).map_err(|error| TapError::Host { name: name.to_owned(), error })?;
        Ok(tap)
    }

    /// A socket of datagrams in place of a tap.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn stand_in(socket: std::os::fd::OwnedFd) -> Self {
        let queues = vec![socket.into()];
        Self {
            _guard: None,
            name: "stand-in".to_owned(),
            queues,
            active: AtomicUsize::new(1),
            stand_in: true,
        }
    }

    /// Keeps `guard` and drops it while the interface is still there: what was made for it on the host goes first.
    pub fn with_guard(self, guard: impl Any + Send + Sync) -> Self {
        Self { _guard: Some(Box::new(guard)), ..self }
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Descriptor of a queue, for polling.
    pub fn fd(&self, queue: usize) -> Option<RawFd> {
        self.queues.get(queue).map(AsRawFd::as_raw_fd)
    }

    /// Says what the reader can do itself.
    pub fn set_offload(&self, offload: Offload) -> io::Result<()> {
        let mut flags = 0;
        if offload.csum {
            flags |= libc::TUN_F_CSUM;
            // Not TUN_F_TSO_ECN: the rings cannot say that only the first segment has CWR.
            flags |= if offload.tso4 { libc::TUN_F_TSO4 } else { 0 };
            flags |= if offload.tso6 { libc::TUN_F_TSO6 } else { 0 };
        }
        self.ioctl(0, libc::TUNSETOFFLOAD, Argument::Value(flags.into()))
    }

    /// Plugs the cable in or out. Without it the bridge sends nothing, so nothing grows old in the tap while
    /// no frontend is connected.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        self.ioctl(0, libc::TUNSETCARRIER, Argument::Int(on.into()))
    }

    /// Has the kernel spread the frames over the first `wanted` queues.
    pub fn set_active_queues(&self, wanted: usize) -> io::Result<()> {
        let wanted = wanted.clamp(1, self.queues.len().max(1));
        let mut active = self.active.load(SeqCst);
        while active != wanted {
            let (queue, flag) = if active < wanted {
                (active, libc::IFF_ATTACH_QUEUE)
            } else {
                (active - 1, libc::IFF_DETACH_QUEUE)
            };
            let mut request = interface_request(&self.name, flag);
            self.ioctl(queue, libc::TUNSETQUEUE, Argument::Request(&mut request))?;
            active = if active < wanted { active + 1 } else { active - 1 };
            self.active.store(active, SeqCst);
        }
        Ok(())
    }

    /// Throws away what waits in a queue: frames that are too old, or of a time when another frontend, with other
    /// abilities, was connected. At most `limit` frames, for the bridge may send on while we read. How many.
    pub fn drain(&self, queue: usize, limit: usize) -> u64 {
        let Some(fd) = self.fd(queue) else { return 0 };
        let mut bytes = [0u8; 64];
        let mut count = 0;
        for _ in 0..limit {
            // SAFETY: the buffer is as long as said. A frame that does not fit is cut.
            if unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) } < 0 {
                break;
            }
            count += 1;
        }
        count
    }

    /// Whether reads and writes that are told to fail rather than wait (RWF_NOWAIT) work: io_uring needs them to.
    pub fn knows_nowait(&self) -> bool {
        let byte = 0u8;
        let vector = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
        let Some(fd) = self.fd(0).filter(|_| !self.stand_in) else { return false };
        // SAFETY: the vector names one byte. It is shorter than a header, so no frame is sent by it.
        let result = unsafe { libc::pwritev2(fd, &raw const vector, 1, 0, libc::RWF_NOWAIT) };
        result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP)
    }

    fn ioctl(&self, queue: usize, request: libc::Ioctl, argument: Argument<'_>) -> io::Result<()> {
        let fd = self.fd(queue).ok_or(io::ErrorKind::NotFound)?;
        tun_ioctl(fd, request, argument)
    }
}

/// What the tun driver's ioctls take: a value, a pointer to an int, or a pointer to an ifreq.
enum Argument<'a> {
    Value(libc::c_ulong),
    Int(libc::c_int),
    Request(&'a mut libc::ifreq),
}

fn tun_ioctl(fd: RawFd, request: libc::Ioctl, argument: Argument<'_>) -> io::Result<()> {
    let result = match argument {
        // SAFETY: the request takes its argument by value.
        Argument::Value(value) => unsafe { libc::ioctl(fd, request, value) },
        // SAFETY: the request reads an int.
        Argument::Int(value) => unsafe { libc::ioctl(fd, request, &raw const value) },
        // SAFETY: the request reads and writes an ifreq.
        Argument::Request(value) => unsafe { libc::ioctl(fd, request, std::ptr::from_mut(value)) },
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether Linux takes `name` for an interface (dev_valid_name).
pub fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%')
}

fn interface_request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all zeroes is an ifreq: integers, arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags_of(flags);
    request
}

/// The flags' bits in the field of an ifreq, which is signed.
fn flags_of(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

fn open_queue(name: &str, flags: libc::c_int) -> Result<File, TapError> {
    let fail = |error: io::Error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.to_owned()),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun(name.to_owned()),
        Some(libc::EBUSY | libc::EEXIST) => TapError::Taken(name.to_owned()),
        _ => TapError::Host { name: name.to_owned(), error },
    };
    // The driver would answer EINVAL for an interface that is no tap, and EPERM for another user's.
    if flags & libc::IFF_TUN_EXCL != 0 && exists(name) {
        return Err(TapError::Taken(name.to_owned()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(fail)?;
    let fd = file.as_raw_fd();
    let mut request = interface_request(name, flags);
    tun_ioctl(fd, libc::TUNSETIFF, Argument::Request(&mut request)).map_err(fail)?;
    let size = libc::c_int::try_from(VNET_HDR).unwrap_or(10);
    tun_ioctl(fd, libc::TUNSETVNETHDRSZ, Argument::Int(size)).map_err(fail)?;
    Ok(file)
}

fn exists(name: &str) -> bool {
    // SAFETY: the name is a valid C string.
    CString::new(name).is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

/// Bytes of the header before each frame: `struct virtio_net_hdr` without num_buffers.
pub const VNET_HDR: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Where a blank checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialCsum {
    /// First byte that it covers; it covers all up to the frame's end.
    pub start: u16,
    /// From there to the checksum itself, which holds the sum of the pseudo-header.
    pub offset: u16,
}

/// The header before each frame (virtio 1.2, 5.1.6): flags u8 @0, gso_type u8 @1, hdr_len u16 @2, gso_size u16
/// @4, csum_start u16 @6, csum_offset u16 @8, in the host's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum is to be filled in.
    pub csum: Option<PartialCsum>,
    /// The checksum was checked.
    pub data_valid: bool,
    /// The frame is to be cut up.
    pub gso: Option<Gso>,
    /// Bytes of the headers before the payload that is cut up; 0 without `gso`.
    pub hdr_len: u16,
}

impl VnetHeader {
    /// Reads a header; `None` if it asks for a segmentation that the rings do not know.
    pub fn parse(bytes: &[u8; VNET_HDR]) -> Option<Self> {
        let [flags, gso_type, rest @ ..] = *bytes;
        let word = |at: usize| {
            rest.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b: &[u8; 2]| u16::from_ne_bytes(*b))
        };
        let size = word(2);
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Gso { size, kind: GsoKind::TcpV4 }),
            GSO_TCPV6 => Some(Gso { size, kind: GsoKind::TcpV6 }),
            _ => return None,
        };
        let csum = PartialCsum { start: word(4), offset: word(6) };
        Some(Self {
            csum: (flags & F_NEEDS_CSUM != 0).then_some(csum),
            data_valid: flags & F_DATA_VALID != 0,
            gso,
            hdr_len: word(0),
        })
    }

    /// Writes a header.
    pub fn emit(&self) -> [u8; VNET_HDR] {
        let csum = self.csum.unwrap_or(PartialCsum { start: 0, offset: 0 });
        let flags = match (self.csum, self.data_valid) {
            (Some(_), _) => F_NEEDS_CSUM,
            (None, true) => F_DATA_VALID,
            (None, false) => 0,
        };
        let gso_type = match self.gso.map(|gso| gso.kind) {
            None => GSO_NONE,
            Some(GsoKind::TcpV4) => GSO_TCPV4,
            Some(GsoKind::TcpV6) => GSO_TCPV6,
        };
        let size = self.gso.map_or(0, |gso| gso.size);
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = size.to_ne_bytes();
        let [e, f] = csum.start.to_ne_bytes();
        let [g, h] = csum.offset.to_ne_bytes();
        [flags, gso_type, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{enter_network_namespace, wait};

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let gso = Gso { size: 1448, kind: GsoKind::TcpV6 };
        let csum = PartialCsum { start: 54, offset: 16 };
        let header = VnetHeader { csum: Some(csum), data_valid: false, gso: Some(gso), hdr_len: 74 };
        assert_eq!(header.emit(), [1, 4, 74, 0, 0xa8, 5, 54, 0, 16, 0]);
        assert_eq!(VnetHeader::parse(&header.emit()), Some(header));
        let valid = VnetHeader { data_valid: true, ..VnetHeader::default() };
        assert_eq!(VnetHeader::parse(&valid.emit()), Some(valid));
    }

    #[test]
    fn an_unknown_segmentation_is_refused() {
        assert_eq!(VnetHeader::parse(&[1, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert!(VnetHeader::parse(&[1, 0x81, 0, 0, 1, 0, 0, 0, 0, 0]).unwrap().gso.is_some());
    }

    #[test]
    fn names_that_linux_refuses_are_refused_before() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteencharacter", "vif%d", "ünder"] {
            assert!(matches!(Tap::create(name, 1), Err(TapError::Name(_))), "{name}");
        }
        assert!(is_interface_name("vif32751.1234567".get(..15).unwrap()));
    }

    #[test]
    fn a_taken_name_is_an_error_of_its_own() {
        enter_network_namespace();
        let _tap = Tap::create("vif1.0", 1).unwrap();
        for name in ["vif1.0", "lo"] {
            let error = Tap::create(name, 1).unwrap_err();
            assert!(matches!(&error, TapError::Taken(taken) if taken == name), "{error}");
        }
    }

    #[test]
    fn a_tap_vanishes_with_its_file() {
        enter_network_namespace();
        drop(Tap::create("vif1.0", 2).unwrap());
        wait("the tap's end", || !exists("vif1.0"));
    }

    #[test]
    fn queues_are_attached_and_detached_again_and_again() {
        enter_network_namespace();
        let tap = Tap::create("vif1.0", 4).unwrap();
        for wanted in [1, 4, 2, 2, 3, 9, 1] {
            tap.set_active_queues(wanted).unwrap();
            assert_eq!(tap.active.load(SeqCst), wanted.min(4));
        }
    }

    #[test]
    fn without_permission_the_error_names_it() {
        enter_network_namespace();
        let error = std::thread::spawn(|| {
            // SAFETY: the raw system call changes this thread only, and takes plain numbers.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            Tap::create("vif1.0", 1).unwrap_err()
        })
        .join()
        .unwrap();
        assert!(matches!(error, TapError::NotPermitted(_)), "{error}");
    }
}
