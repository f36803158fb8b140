#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::indexing_slicing)]

use devices::testing::{FakeGuest, FrontRing};
use devices::xen::xenbus::BackendDevice;
use netback::NetDevice;
use netback::protocol::{RX_ENTRY, RxRequest, RxResponse, TX_ENTRY, TXF_CSUM_BLANK, TxRequest};

use super::testing::{namespace_with_bridge, plug_spec, until};
use super::*;

fn tap(spec: &str, domid: u16) -> Tap {
    plug_spec(spec, domid).unwrap().1
}

fn exists(name: &str) -> bool {
    Interfaces::new().unwrap().mtu(name).is_ok()
}

#[test]
fn a_tap_is_made_as_the_vif_bridge_script_leaves_one() {
    namespace_with_bridge("xenbr0");
    let tap = tap("", 7);
    assert_eq!(tap.name(), "vif7.0");
    // `ip` sees what the kernel really has; the test asks it, xvmm does not.
    let shown = std::process::Command::new("ip").args(["-details", "address", "show", "vif7.0"]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    for part in ["UP", "mtu 1500", "master xenbr0", "link/ether fe:ff:ff:ff:ff:ff", "type tap", "persist off"]
    {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    assert!(!shown.contains("inet"), "an IP address: {shown}");
    drop(tap);
    until("the tap is gone", || !exists("vif7.0"));
}

#[test]
fn a_large_mtu_reaches_the_tap() {
    namespace_with_bridge("xenbr0");
    let tap = tap("mtu=9000,queues=4", 7);
    assert_eq!(tap.queues(), 4);
    assert_eq!(Interfaces::new().unwrap().mtu("vif7.0").unwrap(), 9000);
    assert_eq!(bridge_mtu("xenbr0").unwrap(), 9000);
}

#[test]
fn errors_name_the_thing_the_reason_and_the_way_out() {
    namespace_with_bridge("xenbr0");
    let _taken = tap("", 1);
    let cases = [
        ("xenbr1", "--net xenbr1: no bridge of that name; make it with `xvmm network create xenbr1`"),
        ("lo", "--net lo: an interface of the kind \"\", not a bridge"),
        ("vif1.0", "--net vif1.0: an interface of the kind \"tun\", not a bridge"),
        ("vifname=vif1.0", "--net: interface vif1.0 exists already; remove it with `ip link delete vif1.0`"),
        ("vifname=xenbr0", "--net: interface xenbr0 exists already"),
        (
            "vlan=5",
            "--net xenbr0: vlan=5 needs a bridge that filters VLANs; switch that on with `ip link set xenbr0",
        ),
        ("fd=1000000", "--net: fd=1000000: no open descriptor; let the caller open the tap"),
        (
            "script=/no/script",
            "--net: script /no/script: no such program; without a path there are vif-bridge",
        ),
        (
            "script=vif-route,ip=192.0.2.2",
            "--net: eth0 has no IPv4 address for vif-route to use; name the interface",
        ),
        (
            "script=vif-route,ip=192.0.2.2,gatewaydev=lo",
            "--net: lo has no IPv4 address for vif-route to use; name the interface",
        ),
    ];
    for (spec, message) in cases {
        let error = plug_spec(&format!("{spec},devid=1"), 1).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
        until(message, || !exists("vif1.1"));
    }
    // What the grammar lets pass and the kernel refuses.
    let net = NetConfig { devid: Some(1), mtu: Some(10), ..NetConfig::default() };
    let error = plug(&net, 1, Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.starts_with("--net: interface vif1.1 cannot have an mtu of 10"), "{error}");
    until("no tap is left over", || !exists("vif1.1"));
}

#[test]
fn the_errors_without_permission_say_so() {
    namespace_with_bridge("xenbr0");
    let errors = std::thread::spawn(|| {
        let interfaces = Interfaces::new().unwrap();
        // SAFETY: the raw system call changes this thread only, and takes plain numbers.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        let bridge = interfaces.set_up("xenbr0").map_err(|e| failed("xenbr0", String::new, e));
        (plug_spec("xenbr0", 1).unwrap_err(), bridge.unwrap_err())
    });
    let (tap, bridge) = errors.join().unwrap();
    assert!(matches!(&tap, NetworkError::NotPermitted(what) if what == "bridge=xenbr0,devid=0"), "{tap}");
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
        let mac = MacAddr::new([0, 0x16, 0x3e, 0, 0, domid as u8]).unwrap();
        let (config, tap) = plug_spec(&format!("mac={mac}"), domid).unwrap();
        let mut guest = FakeGuest::new(256);
        let (tx, mut rx) = (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
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
