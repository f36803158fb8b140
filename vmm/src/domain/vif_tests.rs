#![allow(clippy::unwrap_used)]
use super::*;
use crate::api::DeviceChange;
use crate::domain::Registry;
use crate::domain::change::change;
use crate::domain::disks::LimitGroups;
use crate::domain::testing::{Side, TestDomain};
use crate::network::testing::{ip, namespace_with_bridge, program, until};

/// A domain with a bridge. Devices are opened by threads made here, which are in the namespace of this one.
fn domain() -> TestDomain {
    namespace_with_bridge("xenbr0");
    TestDomain::new()
}

fn ask(domain: &mut TestDomain, request: DeviceChange) -> (u16, String) {
    let reply = domain.outbox.reply();
    change(&mut domain.hotplug, &LimitGroups::default(), request, reply);
    domain.answer()
}

fn attach(domain: &mut TestDomain, spec: &str) -> (u16, String) {
    ask(domain, DeviceChange::NetworkAttach(NetworkAttach { spec: spec.into() }))
}

fn detach(domain: &mut TestDomain, vif: &str) -> (u16, String) {
    let request = NetworkDetach { vif: vif.into(), force: true, timeout: Some(Duration::ZERO) };
    ask(domain, DeviceChange::NetworkDetach(request))
}

fn devids(domain: &TestDomain) -> Vec<u32> {
    domain.described().nets.iter().map(|net| net.devid.unwrap()).collect()
}

/// Names of the interfaces of guests on the host.
fn vifs() -> Vec<String> {
    let list = ip("-brief link show");
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("vif") || name.starts_with("web")).map(str::to_owned).collect()
}

#[test]
fn an_attached_interface_has_the_nodes_of_one_from_the_start() {
    let mut domain = domain();
    let mac = MacAddr::for_domain(Some("web"), 0);
    let (status, answer) = attach(&mut domain, "rate=10Mb/s,ip=192.0.2.7,untrusted");
    assert_eq!((status, answer), (200, format!(r#"{{"devid":0,"mac":"{mac}","vifname":"vif1.0"}}"#)));
    let id = device_id(0);
    for (side, key, value) in [
        (Side::Front, "state", "1"),
        (Side::Front, "handle", "0"),
        (Side::Front, "mac", mac.to_string().as_str()),
        (Side::Front, "mtu", "1500"),
        (Side::Front, "trusted", "0"),
        (Side::Front, "backend", "/local/domain/0/backend/vif/1/0"),
        (Side::Back, "state", "2"),
        (Side::Back, "online", "1"),
        (Side::Back, "handle", "0"),
        (Side::Back, "mac", mac.to_string().as_str()),
        (Side::Back, "bridge", "xenbr0"),
        (Side::Back, "script", "/etc/xen/scripts/vif-bridge"),
        (Side::Back, "ip", "192.0.2.7"),
        (Side::Back, "rate", "62500,50000"),
        (Side::Back, "type", "vif"),
        (Side::Back, "vifname", "vif1.0"),
        (Side::Back, "hotplug-status", "connected"),
    ] {
        assert_eq!(domain.node(side, id, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(devids(&domain), [0]);
    assert_eq!(vifs(), ["vif1.0"]);
}

#[test]
fn interfaces_without_a_number_get_the_free_ones() {
    let mut domain = domain();
    for (spec, devid) in [("", 0), ("devid=2", 2), ("xenbr0", 1), ("mac-filter", 3)] {
        let (status, answer) = attach(&mut domain, spec);
        assert!(status == 200 && answer.starts_with(&format!(r#"{{"devid":{devid},"#)), "{answer}");
    }
    assert_eq!(detach(&mut domain, "1").0, 204);
    until("the tap is gone", || !vifs().contains(&"vif1.1".to_owned()));
    assert!(attach(&mut domain, "").1.starts_with(r#"{"devid":1,"#));
    let mut macs: Vec<_> = domain.described().nets.iter().map(|net| net.mac.unwrap().bytes()).collect();
    macs.sort_unstable();
    macs.dedup();
    assert_eq!(macs.len(), 4);
}

#[test]
fn what_cannot_be_attached_is_told_as_at_the_start_and_leaves_nothing() {
    let mut domain = domain();
    assert_eq!(attach(&mut domain, "mac=00:16:3e:00:00:01,vifname=web0").0, 200);
    let table = [
        ("mac=00:16:3e:00:00:01", ExitStatus::InvalidMac, "two interfaces have the address"),
        ("mac=01:16:3e:00:00:01", ExitStatus::InvalidMac, "is a multicast address"),
        ("devid=0", ExitStatus::SameVdev, "two interfaces have the number 0"),
        ("vifname=web0", ExitStatus::Usage, "two interfaces are called web0"),
        ("colour=blue", ExitStatus::UnknownKey, "there is no key `colour`"),
        ("ip=1.2.3", ExitStatus::Usage, "ip `1.2.3` is not an address"),
        ("rate=fast", ExitStatus::Usage, "rate `fast` is not a rate"),
        ("fd=5", ExitStatus::Usage, "a running domain cannot be given a descriptor"),
        ("nobr0", ExitStatus::BridgeMissing, "no bridge of that name"),
        ("lo", ExitStatus::NotABridge, "not a bridge"),
        ("vifname=xenbr0", ExitStatus::TapFailed, "exists already"),
        ("vlan=5", ExitStatus::TapFailed, "needs a bridge that filters VLANs"),
        ("script=/no/script", ExitStatus::ScriptFailed, "no such program"),
    ];
    for (spec, status, words) in table {
        let reply = domain.outbox.reply();
        let request = NetworkAttach { spec: spec.into() };
        change(&mut domain.hotplug, &LimitGroups::default(), DeviceChange::NetworkAttach(request), reply);
        let (_, body) = domain.answers(1).remove(0);
        assert_eq!(body["status"], status.code(), "{spec}: {body}");
        assert!(body["error"].as_str().unwrap().contains(words), "{spec}: {body}");
        until(spec, || vifs() == ["web0"]);
    }
    assert_eq!(devids(&domain), [0]);
}

#[test]
fn a_detached_interface_is_gone_from_the_host() {
    let mut domain = domain();
    for vif in ["0", "00:16:3e:00:00:01", "00:16:3E:00:00:01", "vif1.0"] {
        assert_eq!(attach(&mut domain, "mac=00:16:3e:00:00:01,ip=192.0.2.7").0, 200);
        assert_eq!(detach(&mut domain, vif).0, 204, "{vif}");
        until(vif, || vifs().is_empty());
        assert!(devids(&domain).is_empty(), "{vif}");
        assert!(!program("nft", "list ruleset", true).contains("vif1.0"), "{vif}");
        assert!(domain.node(Side::Front, device_id(0), "state").is_none());
    }
    for (vif, status) in
        [("0", 404), ("7", 404), ("00:16:3e:00:00:01", 404), ("vif1.0", 404), ("", 400), ("a b", 400)]
    {
        assert_eq!(detach(&mut domain, vif).0, status, "{vif}");
    }
}

/// Everything of this process and its namespace that interfaces could leave behind.
fn counts() -> (usize, usize, Vec<String>, String) {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let rules = program("nft", "list ruleset", true);
    (entries("/proc/self/fd"), entries("/proc/self/task"), vifs(), rules)
}

/// Interfaces that come and go leave nothing. XVMM_TEST_VIFS and XVMM_TEST_ROUNDS say how many and how often. It is in a
/// process of its own, whose threads and descriptors nobody else counts.
#[test]
fn interfaces_that_come_and_go_leave_nothing() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "domain::vif::tests::come_and_go", "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "runs in a process of its own, as the child of another test"]
fn come_and_go() {
    let number =
        |name: &str, usual: u32| std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap());
    let (vifs, rounds) = (number("XVMM_TEST_VIFS", 10), number("XVMM_TEST_ROUNDS", 3));
    namespace_with_bridge("xenbr0");
    let round = || {
        let dir = tempfile::tempdir().unwrap();
        let nics: Vec<NetDevice> = (0..vifs)
            .map(|index| {
                let (a, b) = (index / 250, index % 250 + 1);
                let spec = match index % 4 {
                    0 => format!("ip=10.0.{a}.{b}"),
                    1 => "mac-filter,queues=2".to_owned(),
                    2 if b < 128 => format!("script=vif-nat,ip=10.1.{a}.{b}"),
                    _ => String::new(),
                };
                let net: NetConfig = spec.parse().unwrap();
                let net = NetConfig { devid: Some(0), ..net };
                make(&net, DomId(u16::try_from(index + 1).unwrap()), dir.path()).unwrap()
            })
            .collect();
        assert_eq!(super::tests::vifs().len(), nics.len());
    };
    // What is made once for good: tables of nftables without chains.
    round();
    let before = counts();
    for _ in 0..rounds {
        round();
    }
    assert_eq!(counts(), before);
    assert_eq!(before.2, Vec::<String>::new());
    assert!(!before.3.contains("chain"), "{}", before.3);
}

#[test]
fn the_rules_of_a_killed_domain_go_when_domains_are_listed() {
    namespace_with_bridge("xenbr0");
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(&dir.path().join("run")).unwrap();
    let config = DomainConfig {
        nets: vec!["ip=192.0.2.7,devid=0".parse().unwrap()],
        run_dir: dir.path().join("run"),
        ..DomainConfig::default()
    };
    let domain = registry.create(&config).unwrap();
    let nics = make_all(domain.config(), domain.domid(), &domain.path()).unwrap();
    // As SIGKILL leaves it: nobody holds the lock, and the tap is gone, but nothing was undone.
    let copy = dir.path().join("copy");
    assert!(
        std::process::Command::new("cp").arg("-r").arg(domain.path()).arg(&copy).status().unwrap().success()
    );
    let path = domain.path();
    std::mem::forget(nics);
    ip("link delete vif1.0");
    drop(domain);
    std::fs::rename(&copy, &path).unwrap();
    assert_eq!(registry.list().unwrap().len(), 0);
    assert!(!program("nft", "list ruleset", true).contains("vif1.0"));
}
