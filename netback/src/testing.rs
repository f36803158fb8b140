//! Real taps in a network namespace of their own, for tests.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Moves this thread (each test has its own) into a fresh network namespace.
pub(crate) fn enter_network_namespace() {
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
pub(crate) struct HostSide {
    socket: OwnedFd,
    name: String,
    index: libc::c_int,
}

impl HostSide {
    /// Brings `name` up with `mtu` and listens.
    pub(crate) fn up(name: &str, mtu: i32) -> Self {
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
        side.change(libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = mtu);
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

    fn change(&self, request: libc::Ioctl, set: impl Fn(&mut libc::ifreq)) {
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
    pub(crate) fn set_up(&self, up: bool) {
        let flags = if up { libc::IFF_UP as i16 } else { 0 };
        self.change(libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = flags);
    }

    /// Sends a frame into the interface: to the guest.
    pub(crate) fn send(&self, header: [u8; 10], frame: &[u8]) -> io::Result<()> {
        let bytes = [&header[..], frame].concat();
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::write(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that came from the guest.
    pub(crate) fn receive(&self) -> ([u8; 10], Vec<u8>) {
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
            assert!(got > 0, "no frame from the guest: {}", io::Error::last_os_error());
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                let header = *bytes.first_chunk().unwrap();
                return (header, bytes[10..got as usize].to_vec());
            }
        }
    }
}
