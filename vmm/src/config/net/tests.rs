#![allow(clippy::unwrap_used)]
use super::*;

const MAC: &str = "00:16:3e:00:00:01";

fn with(change: impl FnOnce(&mut NetConfig)) -> NetConfig {
    let mut net = NetConfig::default();
    change(&mut net);
    net
}

fn ips(list: &[&str]) -> Vec<GuestIp> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// Texts, what they are, and how they are written back.
fn table() -> Vec<(&'static str, NetConfig, &'static str)> {
    let bridge = |name: &str| Some(name.to_owned());
    vec![
        ("", NetConfig::default(), ""),
        ("xenbr0", with(|n| n.named_bridge = bridge("xenbr0")), "bridge=xenbr0"),
        ("bridge=br-lan.5", with(|n| n.named_bridge = bridge("br-lan.5")), "bridge=br-lan.5"),
        ("mac=00:16:3E:00:00:01", with(|n| n.mac = Some(MAC.parse().unwrap())), "mac=00:16:3e:00:00:01"),
        (
            "br0,mac=00:16:3e:00:00:01,vifname=web,mtu=9000",
            with(|n| {
                n.named_bridge = bridge("br0");
                n.mac = Some(MAC.parse().unwrap());
                n.vifname = Some("web".into());
                n.mtu = Some(9000);
            }),
            "bridge=br0,mac=00:16:3e:00:00:01,vifname=web,mtu=9000",
        ),
        // As people write it in the files of xl.
        (
            " mac=00:16:3e:00:00:01, bridge=xenbr0 , model=e1000, type=vif",
            with(|n| {
                n.named_bridge = bridge("xenbr0");
                n.mac = Some(MAC.parse().unwrap());
                n.model = Some("e1000".into());
            }),
            "bridge=xenbr0,mac=00:16:3e:00:00:01,model=e1000",
        ),
        (
            "xenbr0,ip=192.0.2.7 2001:db8::7,mac-filter",
            with(|n| {
                n.named_bridge = bridge("xenbr0");
                n.ips = ips(&["192.0.2.7", "2001:db8::7"]);
                n.mac_filter = true;
            }),
            "bridge=xenbr0,ip=\"192.0.2.7 2001:db8::7\",mac-filter=on",
        ),
        ("ip=192.0.2.16/28", with(|n| n.ips = ips(&["192.0.2.16/28"])), "ip=192.0.2.16/28"),
        (
            "rate=10Mb/s@50ms",
            with(|n| n.rate = Some(Rate { bytes_per_interval: 62_500, interval_us: 50_000 })),
            "rate=1250000B/s@50000us",
        ),
        (
            "script=vif-route,ip=192.0.2.7,netdev=eth0",
            with(|n| {
                n.script = VifScript::Route;
                n.ips = ips(&["192.0.2.7"]);
                n.gatewaydev = Some("eth0".into());
            }),
            "script=vif-route,gatewaydev=eth0,ip=192.0.2.7",
        ),
        (
            "script=vif-nat,ip=10.0.0.1",
            with(|n| {
                n.script = VifScript::Nat;
                n.ips = ips(&["10.0.0.1"]);
            }),
            "script=vif-nat,ip=10.0.0.1",
        ),
        ("script=vif-bridge", NetConfig::default(), ""),
        (
            "script=vif-openvswitch,vlan=5",
            with(|n| {
                n.script = VifScript::Program("/etc/xen/scripts/vif-openvswitch".into());
                n.vlan = Some(5);
            }),
            "script=/etc/xen/scripts/vif-openvswitch,vlan=5",
        ),
        (
            "script=\"/opt/a, b\"",
            with(|n| n.script = VifScript::Program("/opt/a, b".into())),
            "script=\"/opt/a, b\"",
        ),
        (
            "devid=7,vlan=4094,queues=4,untrusted",
            with(|n| (n.devid, n.vlan, n.queues, n.trusted) = (Some(7), Some(4094), Some(4), false)),
            "devid=7,vlan=4094,queues=4,trusted=off",
        ),
        ("trusted,mac-filter=off,backend=0", NetConfig::default(), ""),
        ("untrusted=n", NetConfig::default(), ""),
        (
            "fd=5,rate=1MB/s",
            with(|n| {
                n.fds = vec![5];
                n.rate = Some(Rate { bytes_per_interval: 50_000, interval_us: 50_000 });
            }),
            "fd=5,rate=1000000B/s@50000us",
        ),
        ("fd=5:7", with(|n| n.fds = vec![5, 7]), "fd=5:7"),
    ]
}

#[test]
fn specifications_and_their_interfaces() {
    for (text, expected, written) in table() {
        assert_eq!(text.parse().as_ref(), Ok(&expected), "{text}");
        assert_eq!(expected.to_string(), written, "{text}");
        assert_eq!(written.parse().as_ref(), Ok(&expected), "{written}");
        let json = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<NetConfig>(&json).unwrap(), expected, "{json}");
    }
}

#[test]
fn json_of_an_older_release_is_read() {
    let old = r#"{"bridge":"br0","mac":"00:16:3e:00:00:01","vifname":null,"mtu":1500}"#;
    let expected: NetConfig = "br0,mac=00:16:3e:00:00:01,mtu=1500".parse().unwrap();
    assert_eq!(serde_json::from_str::<NetConfig>(old).unwrap(), expected);
}

#[test]
fn json_with_a_value_that_the_grammar_refuses_is_refused() {
    for json in [r#"{"ip":["127.0.0.1"]}"#, r#"{"script":"../x"}"#, r#"{"mac":"1"}"#, r#"{"type":"x"}"#] {
        assert!(serde_json::from_str::<NetConfig>(json).is_err(), "{json}");
    }
}

#[test]
fn what_an_interface_is_plugged_into() {
    for (text, bridge, queues) in [
        ("", Some("xenbr0"), 1),
        ("br1,queues=4", Some("br1"), 4),
        ("script=/bin/x", Some("xenbr0"), 1),
        ("script=vif-nat,ip=10.0.0.1", None, 1),
        ("fd=5:6", None, 2),
    ] {
        let net: NetConfig = text.parse().unwrap();
        assert_eq!((net.bridge(), net.queue_count()), (bridge, queues), "{text}");
    }
}

#[test]
fn wrong_specifications_and_their_sentences() {
    const NAME: &str = "is not the name of an interface; use 1 to 15 letters, digits, `-`, `_` and dots";
    let unknown = |key: &str| format!("there is no key `{key}`; the keys are {KEYS}");
    let name = |key: &str, value: &str| format!("{key} `{value}` {NAME}");
    let fd = |value: &str| {
        format!(
            "fd `{value}` is not the number of a descriptor from 3; write fd=3, or fd=3:4 for a tap with two queues"
        )
    };
    let nat = "vif-nat needs the guest's one IPv4 address, whose last number is 1 to 127; give it with ip=";
    let script = |value: &str| {
        format!(
            "script `{value}` is neither vif-bridge, vif-nat, vif-route, nor a name in /etc/xen/scripts, nor a path from /"
        )
    };
    let table: Vec<(&str, String)> = vec![
        ("xenbr0,colour=x", unknown("colour")),
        ("xenbr0,br1", unknown("br1")),
        ("a,bridge=b", "`bridge` is given twice; once is enough".into()),
        ("trusted,untrusted", "`trusted` is given twice; once is enough".into()),
        ("netdev=a,gatewaydev=b", "`gatewaydev` is given twice; once is enough".into()),
        ("xenbr0,,mtu=68", "an item is empty; write items with one comma between them".into()),
        ("mac=1", "MAC address \"1\" is not six pairs of hexadecimal digits like 00:16:3e:12:34:56".into()),
        (
            "mac=01:00:5e:00:00:01",
            "MAC address 01:00:5e:00:00:01 is a multicast address; take one whose first byte is even, like \
             00:16:3e:12:34:56"
                .into(),
        ),
        (
            "mac=fe:ff:ff:ff:ff:ff",
            "mac fe:ff:ff:ff:ff:ff is the address of the host's side of every interface; choose another one"
                .into(),
        ),
        ("bridge=", name("bridge", "")),
        ("../../etc", name("bridge", "../../etc")),
        ("vifname=a234567890123456", name("vifname", "a234567890123456")),
        ("vifname=a@b", name("vifname", "a@b")),
        ("vifname=\"\"\"\"\"\"", name("vifname", "\"\"")),
        ("gatewaydev=a b", name("gatewaydev", "a b")),
        ("mtu=67", "mtu `67` is not a number of bytes from 68 to 65521".into()),
        ("mtu=+1500", "mtu `+1500` is not a number of bytes from 68 to 65521".into()),
        ("mtu=99999999", "mtu `99999999` is not a number of bytes from 68 to 65521".into()),
        ("vlan=0", "vlan `0` is not a number of a VLAN from 1 to 4094".into()),
        ("vlan=4095", "vlan `4095` is not a number of a VLAN from 1 to 4094".into()),
        ("queues=17", "queues `17` is not a number of queues from 1 to 16".into()),
        ("devid=65536", "devid `65536` is not a number of an interface from 0 to 65535".into()),
        ("devid=", "devid `` is not a number of an interface from 0 to 65535".into()),
        ("mac-filter=maybe", "mac-filter=maybe is neither on nor off; write one of these".into()),
        ("type=pv", "type `pv` is not one; write type=vif".into()),
        ("type=ioemu", "type=ioemu needs a guest with emulated devices; write type=vif".into()),
        ("model=", "model `` is not the name of a network card, like e1000; leave it out".into()),
        ("backend=net", "backend `net` is another domain; leave it out, the host serves all".into()),
        ("rate=fast", "rate `fast` is not a rate; write one like 10Mb/s, 1MB/s or 250KB/s@20ms".into()),
        ("ip=", "ip is empty; give an address, or leave it out".into()),
        (
            "ip=1.2.3",
            "ip `1.2.3` is not an address; write addresses like 192.0.2.7, 192.0.2.16/28 or 2001:db8::7"
                .into(),
        ),
        ("script=", script("")),
        ("script=a/b", script("a/b")),
        ("script=..", script("..")),
        ("script=vif-nat", nat.into()),
        ("script=vif-nat,ip=10.0.0.128", nat.into()),
        ("script=vif-nat,ip=10.0.0.1 10.0.0.2", nat.into()),
        ("script=vif-nat,ip=fd00::1", nat.into()),
        ("script=vif-route", "vif-route needs the guest's addresses; give them with ip=".into()),
        (
            "script=vif-route,ip=10.0.0.1,vlan=5",
            "vlan= is for an interface in a bridge; leave it out, or leave out script=".into(),
        ),
        ("fd=2", fd("2")),
        ("fd=3:", fd("3:")),
        ("fd=-1", fd("-1")),
        ("fd=3:3", "fd `3:3` names one descriptor twice; pass one for each queue".into()),
        ("xenbr0,fd=3", "fd= takes a tap as its caller has set it up; leave out bridge=".into()),
        ("fd=3,ip=10.0.0.1", "fd= takes a tap as its caller has set it up; leave out ip=".into()),
        ("fd=3,queues=2", "fd= takes a tap as its caller has set it up; leave out queues=".into()),
        ("mac-filter,fd=3", "fd= takes a tap as its caller has set it up; leave out mac-filter".into()),
    ];
    for (text, sentence) in table {
        let error = text.parse::<NetConfig>().unwrap_err().to_string();
        assert_eq!(error, format!("--net {text}: {sentence}"), "{text}");
    }
}

#[test]
fn numbers_and_addresses_are_those_that_are_free() {
    let nets = ["devid=1", "", "", "devid=0,mac=00:16:3e:00:00:01", ""];
    let mut config = crate::config::DomainConfig {
        name: Some("web".into()),
        nets: nets.map(|net| net.parse().unwrap()).into(),
        ..Default::default()
    };
    config.assign_nets();
    let devids: Vec<_> = config.nets.iter().map(|net| net.devid.unwrap()).collect();
    assert_eq!(devids, [1, 2, 3, 0, 4]);
    // An address belongs to the number, so it stays when others come and go.
    for net in config.nets.iter().filter(|net| net.devid != Some(0)) {
        assert_eq!(net.mac, Some(MacAddr::for_domain(Some("web"), net.devid.unwrap())));
    }
    let before = config.nets.clone();
    config.assign_nets();
    assert_eq!(config.nets, before);
}
