#![allow(clippy::unwrap_used)]

use super::super::testing::{enter_namespace, ip, plug_spec, program, until};

/// A host with an address on its network card.
fn host() {
    enter_namespace();
    ip("link set lo up");
    ip("link add eth0 type veth peer name cable");
    ip("address add 203.0.113.1/24 dev eth0");
    ip("link set cable up");
    ip("link set eth0 up");
}

fn setting(path: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned()
}

#[test]
fn a_route_is_as_the_vif_route_script_leaves_it() {
    host();
    let (config, tap) = plug_spec("script=vif-route,ip=192.0.2.7 192.0.2.16/28", 3).unwrap();
    let shown = ip("-details address show vif3.0");
    for part in ["UP", "link/ether fe:ff:ff:ff:ff:ff", "inet 203.0.113.1/32"] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    assert!(!shown.contains("master") && !shown.contains("inet6"), "{shown}");
    let routes = ip("route show dev vif3.0");
    for route in
        ["192.0.2.7 scope link src 203.0.113.1 metric 2", "192.0.2.16/28 scope link src 203.0.113.1 metric 2"]
    {
        assert!(routes.contains(route), "{route}: {routes}");
    }
    for path in ["ipv4/conf/vif3.0/proxy_arp", "ipv4/conf/vif3.0/forwarding", "ipv4/conf/eth0/forwarding"] {
        assert_eq!(setting(path), "1", "{path}");
    }
    let keys = config.toolstack.backend;
    for (key, value) in
        [("script", "/etc/xen/scripts/vif-route"), ("ip", "192.0.2.7 192.0.2.16/28"), ("type", "vif")]
    {
        assert!(keys.contains(&(key.into(), value.into())), "{key}: {keys:?}");
    }
    assert!(keys.iter().all(|(key, _)| key != "bridge"), "{keys:?}");
    drop(tap);
    until("the routes are gone", || ip("route show").lines().count() == 1);
}

#[test]
fn another_interface_may_have_the_address_of_the_route() {
    host();
    ip("link add lan type veth peer name cable2");
    ip("address add 198.51.100.1/24 dev lan");
    let _vif = plug_spec("script=vif-route,ip=192.0.2.7,gatewaydev=lan", 3).unwrap();
    assert!(ip("route show dev vif3.0").contains("192.0.2.7 scope link src 198.51.100.1"));
}

#[test]
fn a_guest_with_ipv6_has_a_route_and_a_neighbour() {
    enter_namespace();
    let _vif = plug_spec("script=vif-route,ip=2001:db8::7", 3).unwrap();
    assert!(ip("-6 route show dev vif3.0").contains("2001:db8::7"));
    assert_eq!(setting("ipv6/conf/vif3.0/forwarding"), "1");
}

#[test]
fn nat_is_as_the_vif_nat_script_leaves_it_and_translates() {
    host();
    let (_, tap) = plug_spec("script=vif-nat,ip=10.0.1.1", 3).unwrap();
    assert!(ip("address show vif3.0").contains("inet 10.0.1.128/32"));
    assert!(ip("route show dev vif3.0").starts_with("10.0.1.1 scope link src 10.0.1.128"));
    assert_eq!(setting("ipv4/conf/vif3.0/proxy_arp"), "1");
    assert_eq!(setting("ipv4/ip_forward"), "1");
    let rules = program("nft", "list table ip xvmm_vif", true);
    assert!(rules.contains("ip saddr 10.0.1.1 oifname != \"vif3.0\" masquerade"), "{rules}");
    drop(tap);
    let rules = program("nft", "list table ip xvmm_vif", true);
    assert!(!rules.contains("chain"), "{rules}");
}

#[test]
fn a_route_that_is_there_already_is_told_and_nothing_is_left() {
    host();
    let _first = plug_spec("script=vif-nat,ip=10.0.1.1", 3).unwrap();
    let error = plug_spec("script=vif-nat,ip=10.0.1.1,devid=1", 3).unwrap_err().to_string();
    assert!(error.starts_with("--net: cannot route through the interface vif3.1: File exists"), "{error}");
    until("the tap is gone", || !ip("link show").contains("vif3.1"));
    let rules = program("nft", "list ruleset", true);
    assert!(rules.contains("vif3.0") && !rules.contains("vif3.1"), "{rules}");
}
