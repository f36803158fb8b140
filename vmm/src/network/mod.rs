//! The host's side of a guest's interfaces: taps, and the bridges that they are plugged into.
//!
//! Everything is done by ioctl; no program is run, so nothing but the kernel is needed on the host. A tap is
//! made as Xen's vif-bridge script leaves one: address fe:ff:ff:ff:ff:ff, no IP, up, in its bridge. It
//! belongs to the process and vanishes with it.

pub mod host;
mod interface;

use std::io;

use netback::TapError;
pub use netback::{MacAddr, MacError, Tap};
use thiserror::Error;

use interface::Interfaces;

/// Why an interface of the guest cannot be plugged in. Each text names the bridge or the interface, the
/// reason and the way out.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is no interface of the bridge's name.
    #[error(
        "--net {0}: no bridge of that name; make it with `ip link add {0} type bridge` and `ip link set {0} up`"
    )]
    NoBridge(String),
    /// The interface is not a bridge.
    #[error(
        "--net {bridge}: an interface of the kind {driver:?}, not a bridge; `ip link show type bridge` lists them"
    )]
    NotABridge {
        /// Name of the interface.
        bridge: String,
        /// Its driver; empty where it has none to tell.
        driver: String,
    },
    /// The tap cannot be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel refuses the MTU.
    #[error("interface {vifname} cannot have an mtu of {mtu}: {error}; give mtu= a value from 68 to 65521")]
    Mtu {
        /// Name of the tap.
        vifname: String,
        /// Bytes.
        mtu: u16,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not allowed.
    #[error("--net {0}: not permitted to change interfaces; run as root or with CAP_NET_ADMIN")]
    NotPermitted(String),
    /// Anything else.
    #[error("--net {bridge}: cannot {what}: {error}")]
    Host {
        /// Name of the bridge.
        bridge: String,
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Name of the tap of interface `index` of a domain, unless the user gives one. At most 15 characters for
/// every domain id and each of the first 1,000,000 interfaces.
pub fn vif_name(domid: u16, index: u32) -> String {
    format!("vif{domid}.{index}")
}

/// Checks that `bridge` is a bridge of the host. Changes nothing.
pub fn check_bridge(bridge: &str) -> Result<(), NetworkError> {
    let fail = |error| failed(bridge, || "ask the host about the bridge".to_owned(), error);
    match Interfaces::new().map_err(fail)?.driver(bridge) {
        Ok(driver) if driver == "bridge" => Ok(()),
        Ok(driver) => Err(NetworkError::NotABridge { bridge: bridge.to_owned(), driver }),
        // The loopback interface and some tunnels have no driver to tell.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(NetworkError::NotABridge { bridge: bridge.to_owned(), driver: String::new() })
        }
        Err(error) => Err(fail(error)),
    }
}

/// The bridge's MTU: what an interface gets that names none.
pub fn bridge_mtu(bridge: &str) -> Result<u16, NetworkError> {
    /// The largest that a tap takes: 65,535 less an Ethernet header.
    const LARGEST: u16 = 65_521;
    let fail = |error| failed(bridge, || "ask the host about the bridge".to_owned(), error);
    let mtu = Interfaces::new().and_then(|interfaces| interfaces.mtu(bridge)).map_err(fail)?;
    Ok(u16::try_from(mtu).map_or(LARGEST, |mtu| mtu.min(LARGEST)))
}

/// Makes the tap `vifname` with `queues` queues, and plugs it into `bridge`. The bridge is looked at first:
/// without one, nothing is made.
pub fn create_tap(vifname: &str, bridge: &str, mtu: u16, queues: usize) -> Result<Tap, NetworkError> {
    check_bridge(bridge)?;
    let tap = Tap::create(vifname, queues)?;
    let step = |what: &'static str| move |error| failed(bridge, || format!("{what} {vifname}"), error);
    let interfaces = Interfaces::new().map_err(step("configure"))?;
    interfaces.set_mac(vifname, MacAddr::TAP).map_err(step("set the address of"))?;
    interfaces.set_mtu(vifname, mtu).map_err(|error| NetworkError::Mtu {
        vifname: vifname.to_owned(),
        mtu,
        error,
    })?;
    disable_ipv6(vifname);
    interfaces.add_to_bridge(vifname, bridge).map_err(step("add to the bridge the interface"))?;
    interfaces.set_up(vifname).map_err(step("bring up"))?;
    Ok(tap)
}

/// The host must not speak on the guest's cable: no link-local address, no router solicitations.
fn disable_ipv6(vifname: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{vifname}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Ok(()) => {}
        // The host has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // /proc/sys may be read-only, as in a container. The guest is served all the same.
        Err(error) => tracing::warn!("{path}: {error}: the host keeps an IPv6 address on {vifname}"),
    }
}

fn failed(bridge: &str, what: impl Fn() -> String, error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => NetworkError::NoBridge(bridge.to_owned()),
        Some(libc::EPERM | libc::EACCES) => NetworkError::NotPermitted(bridge.to_owned()),
        _ => NetworkError::Host { bridge: bridge.to_owned(), what: what(), error },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::indexing_slicing)]

    use std::os::fd::AsRawFd;

    use devices::testing::{FakeGuest, FrontRing};
    use devices::xen::xenbus::BackendDevice;
    use netback::protocol::{RX_ENTRY, RxRequest, RxResponse, TX_ENTRY, TXF_CSUM_BLANK, TxRequest};
    use netback::{NetDevice, VifConfig};

    use super::*;

    /// Moves this thread into a network namespace of its own, with a bridge in it.
    fn namespace_with_bridge(bridge: &str) {
        // SAFETY: only changes the namespace of this thread.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert_eq!(
            result, 0,
            "these tests need a network namespace of their own: run them as root ({error})"
        );
        const SIOCBRADDBR: libc::Ioctl = 0x89a0;
        let name = std::ffi::CString::new(bridge).unwrap();
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        // SAFETY: the request reads a C string.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR, name.as_ptr()) };
        assert_eq!(result, 0, "no bridge: {}", io::Error::last_os_error());
        disable_ipv6(bridge);
        Interfaces::new().unwrap().set_up(bridge).unwrap();
    }

    fn exists(name: &str) -> bool {
        Interfaces::new().unwrap().mtu(name).is_ok()
    }

    #[test]
    fn a_tap_is_made_as_the_vif_bridge_script_leaves_one() {
        namespace_with_bridge("xenbr0");
        let tap = create_tap(&vif_name(7, 0), "xenbr0", 1500, 1).unwrap();
        assert_eq!(tap.name(), "vif7.0");
        // `ip` sees what the kernel really has; the test asks it, xvmm does not.
        let shown = std::process::Command::new("ip").args(["-details", "address", "show", "vif7.0"]).output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        for part in
            ["UP", "mtu 1500", "master xenbr0", "link/ether fe:ff:ff:ff:ff:ff", "type tap", "persist off"]
        {
            assert!(shown.contains(part), "{part} is missing: {shown}");
        }
        assert!(!shown.contains("inet"), "an IP address: {shown}");
        drop(tap);
        assert!(!exists("vif7.0"));
    }

    #[test]
    fn a_large_mtu_reaches_the_tap() {
        namespace_with_bridge("xenbr0");
        let _tap = create_tap("vif7.0", "xenbr0", 9000, 4).unwrap();
        assert_eq!(Interfaces::new().unwrap().mtu("vif7.0").unwrap(), 9000);
        assert_eq!(bridge_mtu("xenbr0").unwrap(), 9000);
    }

    #[test]
    fn errors_name_the_thing_the_reason_and_the_way_out() {
        namespace_with_bridge("xenbr0");
        let _taken = create_tap("vif1.0", "xenbr0", 1500, 1).unwrap();
        let cases = [
            (
                "vif1.1",
                "xenbr1",
                1500,
                "--net xenbr1: no bridge of that name; make it with `ip link add xenbr1 ",
            ),
            ("vif1.1", "not/a/name", 1500, "--net not/a/name: no bridge of that name"),
            ("vif1.1", "lo", 1500, "--net lo: an interface of the kind \"\", not a bridge"),
            ("vif1.1", "vif1.0", 1500, "--net vif1.0: an interface of the kind \"tun\", not a bridge"),
            (
                "vif1.0",
                "xenbr0",
                1500,
                "interface vif1.0 exists already; remove it with `ip link delete vif1.0`",
            ),
            ("xenbr0", "xenbr0", 1500, "interface xenbr0 exists already"),
            ("a-name-too-long1", "xenbr0", 1500, "\"a-name-too-long1\" is no name of an interface"),
            ("vif1.1", "xenbr0", 10, "interface vif1.1 cannot have an mtu of 10"),
        ];
        for (vifname, bridge, mtu, message) in cases {
            let error = create_tap(vifname, bridge, mtu, 1).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
            assert!(!exists("vif1.1"), "{message}: a tap is left over");
        }
    }

    #[test]
    fn the_errors_without_permission_say_so() {
        namespace_with_bridge("xenbr0");
        let errors = std::thread::spawn(|| {
            let interfaces = Interfaces::new().unwrap();
            // SAFETY: the raw system call changes this thread only, and takes plain numbers.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            let bridge = interfaces.set_up("xenbr0").map_err(|e| failed("xenbr0", String::new, e));
            (create_tap("vif1.0", "xenbr0", 1500, 1).unwrap_err(), bridge.unwrap_err())
        });
        let (tap, bridge) = errors.join().unwrap();
        assert!(matches!(tap, NetworkError::Tap(TapError::NotPermitted(_))), "{tap}");
        assert!(matches!(bridge, NetworkError::NotPermitted(_)), "{bridge}");
    }

    #[test]
    fn the_names_of_all_domains_fit() {
        assert!(netback::is_interface_name(&vif_name(0x7fef, 999_999)));
        assert_eq!(vif_name(3, 1), "vif3.1");
    }

    /// A guest with one interface at the bridge.
    struct Guest {
        guest: FakeGuest,
        device: NetDevice,
        tx: FrontRing,
        rx: FrontRing,
        port: devices::xen::types::Port,
        pages: Vec<u64>,
    }

    impl Guest {
        fn new(domid: u16, features: &[&str]) -> Self {
            let vifname = vif_name(domid, 0);
            let tap = create_tap(&vifname, "xenbr0", 1500, 1).unwrap();
            let mac = MacAddr::new([0, 0x16, 0x3e, 0, 0, domid as u8]).unwrap();
            let config = VifConfig { index: 0, mac, vifname, bridge: "xenbr0".into(), mtu: 1500 };
            let mut guest = FakeGuest::new(256);
            let (tx, mut rx) =
                (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
            let port = guest.alloc_port();
            guest.set_key("tx-ring-ref", tx.refs[0].0);
            guest.set_key("rx-ring-ref", rx.refs[0].0);
            guest.set_key("event-channel", port.0);
            ["request-rx-copy", "feature-rx-notify"].iter().chain(features).for_each(|k| guest.set_key(k, 1));
            let mut pages = Vec::new();
            for id in 0..40 {
                let (frame, gref) = guest.granted_page();
                rx.put(&guest, &RxRequest { id, gref }.emit());
                pages.push(frame);
            }
            rx.publish(&guest);
            let mut device = NetDevice::new(config, tap);
            device.connect(&guest, &guest.domain).unwrap();
            Self { guest, device, tx, rx, port, pages }
        }

        fn transmit(&mut self, frame: &[u8], flags: u16) {
            let (page, gref) = self.guest.granted_page();
            self.guest.write(page, 0, frame);
            let size = frame.len() as u16;
            self.tx.put(&self.guest, &TxRequest { gref, offset: 0, flags, id: 0, size }.emit());
            self.tx.publish(&self.guest);
            self.guest.send(self.port);
        }

        fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
            let bytes = self.rx.take(&self.guest, RX_ENTRY)?;
            let response = RxResponse::parse(bytes.first_chunk().unwrap());
            let page = self.pages[usize::from(response.id)];
            Some((response.flags, self.guest.read(page, 0, response.status as usize)))
        }
    }

    fn udp_frame() -> Vec<u8> {
        let mut frame = vec![0, 0x16, 0x3e, 0, 0, 2, 0, 0x16, 0x3e, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0xb6, 0xc8, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0, 7, 0, 7, 0, 12, 0, 0, 0xde, 0xad, 0xbe, 0xef]);
        frame
    }

    /// Guest 1 sends frames to guest 2 until one arrives: a bridge port opens a little after its carrier. The
    /// bridge's own frames (IPv6 makes itself known) are passed over.
    fn send_across(features: &[&str]) -> (u16, Vec<u8>) {
        namespace_with_bridge("xenbr0");
        let (mut sender, mut receiver) = (Guest::new(1, &[]), Guest::new(2, features));
        for _ in 0..200 {
            sender.transmit(&udp_frame(), TXF_CSUM_BLANK);
            std::thread::sleep(std::time::Duration::from_millis(50));
            while let Some(received) = receiver.receive() {
                if received.1.starts_with(&udp_frame()[..14]) {
                    sender.device.disconnect();
                    return received;
                }
            }
        }
        panic!("no frame crossed the bridge");
    }

    #[test]
    fn a_blank_checksum_crosses_the_bridge_between_guests_that_offload() {
        let (flags, frame) = send_across(&[]);
        assert_eq!(flags, 3, "blank and validated");
        // The sum of the pseudo-header: c000+0201+c000+0202 + 0011 + 000c.
        assert_eq!(frame[40..42], [0x84, 0x21]);
    }

    #[test]
    fn a_blank_checksum_is_filled_in_for_a_guest_that_does_not() {
        let (flags, frame) = send_across(&["feature-no-csum-offload"]);
        assert_eq!(flags & 2, 0);
        // 8421 + 0007+0007+000c + dead+beef = 221d7 -> 21d9 -> ~ = de26
        assert_eq!(frame[40..42], [0xde, 0x26]);
    }
}
