//! The programs that look after the uplink, replaced by scripts: what they are told.

use std::fs;

use xvmm::exit::ExitStatus;

use crate::world::{Host, index, ip, networkd, state};

#[test]
fn networkd_goes_on_at_the_hosts_end_and_leaves_the_rest() {
    let (host, _outside) = Host::with_uplink();
    networkd(&host, &format!("echo \"$@\" >> {}", host.text("reloads")));
    host.network("create xenbr0 --uplink eth0");
    let read = |name: &str| fs::read_to_string(host.path("root/run/systemd/network").join(name)).unwrap();
    let ports = "[Match]\nName=xenbr0 eth0 xenbr0-port\n\n[Link]\nUnmanaged=yes\n";
    assert_eq!(read("00-xvmm-xenbr0.network"), ports);
    let host_end = "[Match]\nName=xenbr0-host\n\n[Network]\nAddress=192.0.2.10/24\n";
    assert_eq!(read("01-xvmm-xenbr0-host.network"), host_end);
    host.network("delete xenbr0");
    assert_eq!(fs::read_dir(host.path("root/run/systemd/network")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(host.path("reloads")).unwrap(), "reload\nreload\n");
}

#[test]
fn network_manager_lets_go_of_the_uplink_or_is_obeyed() {
    let (host, _outside) = Host::with_uplink();
    let device = format!("run/NetworkManager/devices/{}", index("eth0"));
    host.write(&device, "[device]\nmanaged=true\n");
    let script = format!(
        "echo \"$@\" >> {}; echo managed=false > {}",
        host.text("reloads"),
        host.text(&format!("root/{device}"))
    );
    host.tool("nmcli", &script);
    host.network("create xenbr0 --uplink eth0 --layout classic");
    let file = host.path("root/run/NetworkManager/conf.d/90-xvmm-xenbr0.conf");
    let expected = "[keyfile]\nunmanaged-devices+=interface-name:xenbr0;interface-name:peth0;\
        interface-name:vif0.0;interface-name:eth0\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    host.network("delete xenbr0");
    assert!(!file.exists());
    assert_eq!(
        fs::read_to_string(host.path("reloads")).unwrap(),
        "general reload conf\ngeneral reload conf\n"
    );
    // A lease that only NetworkManager can renew.
    host.write(&device, "[device]\nmanaged=true\n");
    ip("address add 192.0.2.11/24 dev eth0 valid_lft 600 preferred_lft 600");
    let words = "NetworkManager renews the lease of eth0";
    host.refuses("create xenbr0 --uplink eth0", ExitStatus::ManagerInTheWay, words);
    // One that cannot be told.
    ip("address delete 192.0.2.11/24 dev eth0");
    host.tool("nmcli", "echo no bus >&2; exit 1");
    let before = state();
    let output = host.command("create xenbr0 --uplink eth0").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::NetworkUndone.code().into()), "{said}");
    assert!(said.contains("nmcli: no bus; everything is as it was before"), "{said}");
    assert_eq!((state(), host.files()), (before, vec![]));
}

#[test]
fn ifupdown_is_kept_from_its_interface_or_obeyed() {
    let (host, _outside) = Host::with_uplink();
    host.write("run/network/ifstate", "lo=lo\neth0=eth0\n");
    host.write("run/systemd/system/x", "");
    host.tool("systemctl", &format!("echo \"$@\" >> {}", host.text("reloads")));
    host.network("create xenbr0 --uplink eth0");
    let folder = host.path("root/run/systemd/system/networking.service.d");
    let text = fs::read_to_string(folder.join("xvmm-xenbr0.conf")).unwrap();
    assert!(text.contains("RefuseManualStop=yes"), "{text}");
    host.network("delete xenbr0");
    assert!(!folder.exists());
    assert_eq!(fs::read_to_string(host.path("reloads")).unwrap(), "daemon-reload\ndaemon-reload\n");
    ip("address add 192.0.2.11/24 dev eth0 valid_lft 600 preferred_lft 600");
    let words = "use --layout classic, where the host's end is called eth0";
    host.refuses("create xenbr0 --uplink eth0", ExitStatus::ManagerInTheWay, words);
    host.network("create xenbr0 --uplink eth0 --layout classic");
}

#[test]
fn a_dns_server_of_the_uplink_is_carried_over() {
    let (host, _outside) = Host::with_uplink();
    let state = "SERVERS=192.0.2.53 192.0.2.54\nDOMAINS=example.org\n";
    host.write(&format!("run/systemd/resolve/netif/{}", index("eth0")), state);
    host.tool("resolvectl", &format!("echo \"$@\" >> {}", host.text("told")));
    host.network("create xenbr0 --uplink eth0");
    let told = fs::read_to_string(host.path("told")).unwrap();
    assert_eq!(told, "dns xenbr0-host 192.0.2.53 192.0.2.54\ndomain xenbr0-host example.org\n");
}
