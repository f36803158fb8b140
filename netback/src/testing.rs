//! Real taps in a network namespace of their own, for tests and benchmarks.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    missing_docs
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Moves this thread (each test has its own) into a fresh network namespace.
pub fn enter_network_namespace() {
    // SAFETY: only changes the namespace of this thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        result,
        0,
        "these tests need a network namespace of their own: run them as root ({})",
        io::Error::last_os_error()
    );
}

/// An interface seen from the host's stack: raw frames, each behind a virtio-net header.
#[derive(Debug)]
pub struct HostSide {
    socket: OwnedFd,
    name: String,
    index: libc::c_int,
}

impl HostSide {
    /// Brings `name` up with `mtu` and listens.
    pub fn up(name: &str, mtu: i32) -> Self {
        let c_name = CString::new(name).unwrap();
        // SAFETY: a valid C string.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        assert_ne!(index, 0, "no interface {name}");
        // IPv6 would send frames of its own.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        // SAFETY: plain numbers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let side = Self { socket, name: name.to_owned(), index: index as i32 };
        side.change(libc::SIOCSIFMTU, &mut |request| request.ifr_ifru.ifru_mtu = mtu);
        side.set_up(true);
        let on = 1i32;
        // SAFETY: the option is an int.
        let set = unsafe {
            libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), 4)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        // SAFETY: all zeroes is a sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = side.index;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address is valid for its length.
        assert_eq!(unsafe { libc::bind(fd, (&raw const address).cast(), len) }, 0);
        let wait = libc::timeval { tv_sec: 20, tv_usec: 0 };
        let len = size_of::<libc::timeval>() as u32;
        // SAFETY: the option is a timeval.
        let set = unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), len)
        };
        assert_eq!(set, 0);
        side
    }

    fn change(&self, request: libc::Ioctl, set: &mut dyn FnMut(&mut libc::ifreq)) {
        // SAFETY: all zeroes is an ifreq.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in ifreq.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        set(&mut ifreq);
        // SAFETY: these requests read an ifreq.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw mut ifreq) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// `ip link set NAME up` or `down`.
    pub fn set_up(&self, up: bool) {
        let flags = if up { libc::IFF_UP as i16 } else { 0 };
        self.change(libc::SIOCSIFFLAGS, &mut |request| request.ifr_ifru.ifru_flags = flags);
        // The socket remembers that the interface was down; asking makes it forget.
        let (mut error, mut len) = (0i32, 4u32);
        // SAFETY: the option is an int.
        let got = unsafe {
            let option = (&raw mut error).cast();
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, option, &raw mut len)
        };
        assert_eq!(got, 0);
    }

    /// `ip link set NAME txqueuelen N`: frames that wait in each queue of the tap.
    pub fn set_queue_len(&self, frames: i32) {
        self.change(libc::SIOCSIFTXQLEN, &mut |request| request.ifr_ifru.ifru_metric = frames);
    }

    /// Has the stack notice now that the cable was plugged in, and not in up to a second.
    pub fn notice_carrier(&self) {
        self.set_up(false);
        self.set_up(true);
    }

    /// Whether the cable is plugged in (ETHTOOL_GLINK: cmd u32, data u32).
    pub fn has_carrier(&self) -> bool {
        const ETHTOOL_GLINK: u32 = 10;
        let mut link = [ETHTOOL_GLINK, 0];
        self.change(0x8946, &mut |request| request.ifr_ifru.ifru_data = link.as_mut_ptr().cast());
        link[1] != 0
    }

    /// `ip link delete NAME`.
    pub fn delete(&self) {
        // SAFETY: plain numbers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // nlmsghdr (32 bytes in all, RTM_DELLINK, request and acknowledge) and ifinfomsg.
        let words = [32u32, 17 | 5 << 16, 1, 0, 0, self.index as u32, 0, 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::write(socket.as_raw_fd(), message.as_ptr().cast(), message.len()) };
        assert_eq!(sent, 32);
        let mut answer = [0u8; 64];
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::read(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len()) };
        assert!(got >= 20);
        assert_eq!(answer[16..20], [0; 4], "the interface cannot be deleted");
    }

    /// Sends a frame into the interface: to the guest.
    pub fn send(&self, header: [u8; 10], frame: &[u8]) -> io::Result<()> {
        let bytes = [&header[..], frame].concat();
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::write(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends as many frames, each behind its header, as the kernel takes with one system call: how many.
    pub fn send_many(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut vectors: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all zeroes is a message without an address, data and control data.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (vector, 1);
                message
            })
            .collect();
        let count = messages.len() as libc::c_uint;
        // SAFETY: each message names one vector, and that a frame.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The next frame that came from the guest.
    pub fn receive(&self) -> ([u8; 10], Vec<u8>) {
        let mut bytes = vec![0; 70000];
        loop {
            // SAFETY: all zeroes is a sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the buffers are valid for their lengths.
            let got = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                )
            };
            let error = io::Error::last_os_error();
            // The kernel interrupts the thread that made a ring when the ring is taken down.
            if got < 0 && error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            assert!(got > 0, "no frame from the guest: {error}");
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                let header = *bytes.first_chunk().unwrap();
                return (header, bytes[10..got as usize].to_vec());
            }
        }
    }
}

/// Waits for something another thread does.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !done() {
        assert!(std::time::Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A TCP segment in an Ethernet frame: its transport checksum holds the sum of the pseudo-header, as a sender
/// leaves it that has the checksum filled in by somebody else.
pub fn tcp_frame(v6: bool, payload: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    let tcp_len = (20 + payload) as u16;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(tcp_len.to_be_bytes());
        frame.extend([6, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfc; 16]);
    } else {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend((tcp_len + 20).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let sum = internet_sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    }
    let l4 = frame.len();
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|i| (i * 7) as u8));
    let pseudo = pseudo_header(&frame, l4);
    frame[l4 + 16..l4 + 18].copy_from_slice(&internet_sum(&pseudo).to_be_bytes());
    frame
}

fn pseudo_header(frame: &[u8], l4: usize) -> Vec<u8> {
    let addresses = if l4 == 34 { &frame[26..34] } else { &frame[22..54] };
    let len = ((frame.len() - l4) as u16).to_be_bytes();
    [addresses, &[0, frame[if l4 == 34 { 23 } else { 20 }]], &len].concat()
}

/// Asserts that a TCP frame's checksum is filled in, and right.
pub fn assert_checksum(frame: &[u8]) {
    let l4 = if frame[12] == 8 { 34 } else { 54 };
    let all = [pseudo_header(frame, l4), frame[l4..].to_vec()].concat();
    assert_eq!(internet_sum(&all), 0xffff, "the checksum is wrong");
}

/// A second, plain implementation of the internet checksum, to check the first by.
pub fn internet_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for (i, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << (8 * (1 - i % 2));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
