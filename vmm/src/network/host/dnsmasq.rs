//! DHCP, router advertisements and DNS of a private network: the configuration of its dnsmasq.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Host;
use super::definition::Private;
use super::error::HostNetError;

/// How long an address is given away.
const LEASE: &str = "12h";

/// The files of the dnsmasq of a network, by suffix in the folder of what runs.
pub(super) const CONFIG: &str = "dnsmasq.conf";
pub(super) const HOSTS: &str = "dhcp-hosts";
pub(super) const LEASES: &str = "leases";
/// Written by dnsmasq when it answers.
pub(super) const PID: &str = "dnsmasq.pid";
/// What it complains of.
pub(super) const LOG: &str = "dnsmasq.log";

/// Whether the network needs it.
pub(super) fn is_wanted(private: &Private) -> bool {
    private.dns || private.dhcp.is_some() || private.ipv6.is_some()
}

/// The configuration file.
pub(super) fn config(host: &Host, bridge: &str, private: &Private) -> String {
    let path = |suffix| host.state_file(bridge, suffix).display().to_string();
    let mut lines = vec![
        format!("# The dnsmasq of {bridge}: written by xvmm, and anew whenever the network is brought up."),
        "bind-dynamic".into(),
        format!("interface={bridge}"),
        "except-interface=lo".into(),
        format!("pid-file={}", path(PID)),
        // A guest must not fill the log.
        "quiet-dhcp".into(),
        "quiet-dhcp6".into(),
        "quiet-ra".into(),
    ];
    if !private.dns {
        lines.push("port=0".into());
    }
    if let Some((first, last)) = private.dhcp {
        let count = last.to_bits().saturating_sub(first.to_bits()).saturating_add(1);
        lines.push(format!("dhcp-range={first},{last},{},{LEASE}", private.subnet.netmask()));
        lines.push("dhcp-authoritative".into());
        lines.push("dhcp-no-override".into());
        lines.push(format!("dhcp-lease-max={count}"));
        lines.push(format!("dhcp-leasefile={}", path(LEASES)));
        lines.push(format!("dhcp-hostsfile={}", path(HOSTS)));
        if !private.dns {
            // Without a server here clients would take the gateway for one.
            lines.push("dhcp-option=option:dns-server".into());
        }
    }
    if let Some(prefix) = private.ipv6 {
        lines.push("enable-ra".into());
        lines.push(format!(
            "dhcp-range={},ra-stateless,ra-names,{},{LEASE}",
            prefix.network(),
            prefix.bits()
        ));
    }
    lines.join("\n") + "\n"
}

/// The file of reservations, which dnsmasq reads again at SIGHUP.
pub(super) fn hosts(private: &Private) -> String {
    let line = |host: &super::definition::Reservation| {
        let label = host.label().map(|label| format!(",{label}")).unwrap_or_default();
        format!("{},{}{label}\n", host.mac(), host.address)
    };
    private.hosts.iter().map(line).collect()
}

/// Whether the ports are free. The addresses need not be there yet.
pub(super) fn check_ports(name: &str, private: &Private) -> Result<(), HostNetError> {
    let taken = |protocol, port, address: IpAddr, flag| HostNetError::PortTaken {
        name: name.to_owned(),
        protocol,
        port,
        address: address.to_string(),
        flag,
    };
    if private.dns {
        let address = private.subnet.address();
        let socket = (address, 53).into();
        for (protocol, result) in [("UDP", bind_udp(socket)), ("TCP", bind_tcp(socket))] {
            if result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
                return Err(taken(protocol, 53, address, "--no-dns"));
            }
        }
    }
    if private.dhcp.is_some() {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        if bind_shared(67).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            return Err(taken("UDP", 67, any, "--no-dhcp"));
        }
    }
    Ok(())
}

/// A socket of IPv4 that may be bound to an address that is not there yet.
fn socket(kind: libc::c_int, options: &[(libc::c_int, libc::c_int)]) -> io::Result<OwnedFd> {
    // SAFETY: socket takes numbers.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    for (level, option) in options {
        let one: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads an int, which outlives the call.
        let result =
            unsafe { libc::setsockopt(fd.as_raw_fd(), *level, *option, (&raw const one).cast(), size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(fd)
}

fn bind(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let IpAddr::V4(ip) = address.ip() else { return Ok(()) };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET.try_into().unwrap_or_default(),
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads the address, which outlives the call.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind_udp(address: SocketAddr) -> io::Result<()> {
    let fd = socket(libc::SOCK_DGRAM, &[(libc::IPPROTO_IP, libc::IP_FREEBIND)])?;
    bind(&fd, address)?;
    drop(UdpSocket::from(fd));
    Ok(())
}

fn bind_tcp(address: SocketAddr) -> io::Result<()> {
    // As dnsmasq does it; a listener conflicts all the same, a connection that was closed does not.
    let options = [(libc::IPPROTO_IP, libc::IP_FREEBIND), (libc::SOL_SOCKET, libc::SO_REUSEADDR)];
    let fd = socket(libc::SOCK_STREAM, &options)?;
    bind(&fd, address)?;
    // SAFETY: listen takes a descriptor, which is open, and a number.
    if unsafe { libc::listen(fd.as_raw_fd(), 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(TcpListener::from(fd));
    Ok(())
}

/// As dnsmasq binds the port of DHCP: beside others that do the same.
fn bind_shared(port: u16) -> io::Result<()> {
    let options = [(libc::SOL_SOCKET, libc::SO_REUSEADDR), (libc::SOL_SOCKET, libc::SO_REUSEPORT)];
    bind(&socket(libc::SOCK_DGRAM, &options)?, (Ipv4Addr::UNSPECIFIED, port).into())
}
