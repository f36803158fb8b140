//! The kernel's ioctls on network interfaces (netdevice(7)), by name.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use netback::MacAddr;

/// `struct ethtool_drvinfo` (linux/ethtool.h): cmd u32 @0, driver 32 bytes @4, 160 bytes of no interest.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

const ETHTOOL_GDRVINFO: u32 = 3;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// Asks and changes the interfaces of the network namespace it was made in.
#[derive(Debug)]
pub(super) struct Interfaces {
    socket: UnixDatagram,
}

impl Interfaces {
    pub(super) fn new() -> io::Result<Self> {
        // A socket of any family does.
        Ok(Self { socket: UnixDatagram::unbound()? })
    }

    /// Name of the driver: "bridge", "tun", ...
    pub(super) fn driver(&self, name: &str) -> io::Result<String> {
        let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        let mut request = request(name)?;
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        // SAFETY: the kernel reads the command and writes the rest of info, which outlives the call.
        unsafe { self.ioctl(SIOCETHTOOL, &mut request) }?;
        let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn mtu(&self, name: &str) -> io::Result<i32> {
        let mut request = request(name)?;
        // SAFETY: the kernel writes an int into the ifreq.
        unsafe { self.ioctl(libc::SIOCGIFMTU, &mut request) }?;
        // SAFETY: the kernel filled in this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    pub(super) fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        // SAFETY: the kernel reads an int from the ifreq.
        unsafe { self.ioctl(libc::SIOCSIFMTU, &mut request) }
    }

    pub(super) fn set_mac(&self, name: &str, mac: MacAddr) -> io::Result<()> {
        let mut request = request(name)?;
        // SAFETY: all zeroes is a sockaddr.
        let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
        address.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in address.sa_data.iter_mut().zip(mac.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_hwaddr = address;
        // SAFETY: the kernel reads a sockaddr from the ifreq.
        unsafe { self.ioctl(libc::SIOCSIFHWADDR, &mut request) }
    }

    /// The first IPv4 address.
    pub(super) fn address(&self, name: &str) -> io::Result<Ipv4Addr> {
        let mut request = request(name)?;
        // This one is for sockets of IPv4 alone.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // SAFETY: the kernel writes a sockaddr into the ifreq.
        unsafe { ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR, &mut request) }?;
        // SAFETY: the kernel filled in this member. struct sockaddr_in: family u16 @0, port u16 @2, address @4.
        let data = unsafe { request.ifr_ifru.ifru_addr }.sa_data;
        let [_, _, a, b, c, d, ..] = data.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
        Ok(Ipv4Addr::new(a, b, c, d))
    }

    /// As `ip link set NAME up`; other flags stay.
    pub(super) fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        // SAFETY: the kernel writes the flags into the ifreq.
        unsafe { self.ioctl(libc::SIOCGIFFLAGS, &mut request) }?;
        const IFF_UP: i16 = 1;
        // SAFETY: the kernel filled in this member.
        request.ifr_ifru.ifru_flags = unsafe { request.ifr_ifru.ifru_flags } | IFF_UP;
        // SAFETY: the kernel reads the flags from the ifreq.
        unsafe { self.ioctl(libc::SIOCSIFFLAGS, &mut request) }
    }

    /// As `ip link set NAME master BRIDGE`.
    pub(super) fn add_to_bridge(&self, name: &str, bridge: &str) -> io::Result<()> {
        let c_name = CString::new(name)?;
        // SAFETY: a valid C string.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        let mut request = request(bridge)?;
        request.ifr_ifru.ifru_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
        // SAFETY: the kernel reads an int from the ifreq.
        unsafe { self.ioctl(SIOCBRADDIF, &mut request) }
    }

    /// # Safety
    /// The member of the request that `code` uses is filled in; a pointer in it is valid for what the kernel
    /// does with it.
    unsafe fn ioctl(&self, code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: as the caller promises.
        unsafe { ioctl(self.socket.as_raw_fd(), code, request) }
    }
}

/// # Safety
/// As for [`Interfaces::ioctl`].
unsafe fn ioctl(socket: RawFd, code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: as the caller promises.
    let result = unsafe { libc::ioctl(socket, code, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request about `name`.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if !netback::is_interface_name(name) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: all zeroes is an ifreq: integers, arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name is shorter than the field: a zero stays behind it.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}
