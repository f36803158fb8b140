//! Networks in namespaces, interrupted everywhere.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::commands::{create_with, delete_with, down_with, repair_one};
use super::hands::Consent;
use super::testing::{Accident, Saboteur, World, host_in, ip};
use super::*;

fn shared(layout: Layout) -> Definition {
    let kind = Kind::Shared(Shared { uplink: "eth0".into(), layout });
    Definition { name: "xenbr0".into(), kind }
}

/// Without dnsmasq, which is a process of its own.
fn private() -> Definition {
    let kind = Private { dhcp: None, dns: false, ..Private::standard() };
    Definition { name: "virbr0".into(), kind: Kind::Private(kind) }
}

const NONE: Options = Options { dry_run: false, confirm: None, force: false };
/// The watchdog of these tests is a program that does nothing: see [`host_in`].
const CONFIRM: Options = Options { confirm: Some(60), ..NONE };

/// Does nothing unless another test starts it: it acts, and is killed in the middle.
#[test]
#[ignore = "a part of other tests, which kill it"]
fn acts_and_is_killed() {
    let variable = |name| std::env::var(name).unwrap();
    let host = host_in(&PathBuf::from(variable("XVMM_TEST_DIR")));
    let definition: Definition = serde_json::from_str(&variable("XVMM_TEST_DEFINITION")).unwrap();
    let mut saboteur = Saboteur::new(variable("XVMM_TEST_AT").parse().unwrap(), Accident::Kill);
    match variable("XVMM_TEST_ACT").as_str() {
        "create" => create_with(&host, &definition, &NONE, &mut saboteur).map(|_| ()).unwrap(),
        "down" => down_with(&host, &definition.name, &NONE, &mut saboteur).map(|_| ()).unwrap(),
        "down-confirm" => {
            down_with(&host, &definition.name, &CONFIRM, &mut saboteur).map(|_| ()).unwrap();
        }
        "repair" => repair_one(&host, &definition.name, &NONE, &mut saboteur).map(|_| ()).unwrap(),
        act => panic!("{act}"),
    }
}

/// Starts the test above in this thread's namespace; false when it came to its end.
fn is_killed(world: &World, definition: &Definition, act: &str, at: usize) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "network::host::tests::acts_and_is_killed"])
        .env("XVMM_TEST_DIR", world.dir.path())
        .env("XVMM_TEST_DEFINITION", serde_json::to_string(definition).unwrap())
        .env("XVMM_TEST_AT", at.to_string())
        .env("XVMM_TEST_ACT", act)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(libc::SIGKILL), "{act} {at}: {status}");
    !status.success()
}

fn repair(world: &World, name: &str) {
    repair_one(&world.host, name, &NONE, &mut Consent).unwrap();
}

/// Every change that `create` makes fails once: everything is as before each time. Returns their number.
fn fail_everywhere(world: &World, definition: &Definition) -> usize {
    let before = world.state();
    for at in 0.. {
        let mut saboteur = Saboteur::new(at, Accident::Error);
        match create_with(&world.host, definition, &NONE, &mut saboteur) {
            Ok(_) if saboteur.seen <= at => return at,
            // A route that is refused is tried again when others are there.
            Ok(_) => delete(&world.host, &definition.name, &NONE).map(|_| ()).unwrap(),
            Err(HostNetError::Undone { error, .. }) => assert_eq!(error.raw_os_error(), Some(libc::ENOMEM)),
            Err(error) => panic!("{at}: {error}"),
        }
        world.expect(&before, &format!("error at {at}"));
    }
    unreachable!()
}

/// The same with a process that is killed, and `repair`.
fn die_everywhere(world: &World, definition: &Definition) -> usize {
    let before = world.state();
    for at in 0.. {
        if !is_killed(world, definition, "create", at) {
            return at;
        }
        let refused = up(&world.host, &definition.name, &NONE);
        assert!(matches!(refused, Err(HostNetError::HalfMade(_) | HostNetError::Unknown(_))), "{refused:?}");
        repair(world, &definition.name);
        world.expect(&before, &format!("killed at {at}"));
    }
    unreachable!()
}

#[test]
fn an_error_at_every_change_of_the_plain_layout_is_undone() {
    let world = World::furnished();
    let changes = fail_everywhere(&world, &shared(Layout::Plain));
    assert!(changes > 50, "{changes}");
}

#[test]
fn an_error_at_every_change_of_the_classic_layout_is_undone() {
    let world = World::furnished();
    let changes = fail_everywhere(&world, &shared(Layout::Classic));
    assert!(changes > 50, "{changes}");
}

#[test]
fn a_kill_at_every_change_of_the_plain_layout_is_repaired() {
    let world = World::furnished();
    let changes = die_everywhere(&world, &shared(Layout::Plain));
    assert!(changes > 50, "{changes}");
}

#[test]
fn a_kill_at_every_change_of_the_classic_layout_is_repaired() {
    let world = World::furnished();
    let changes = die_everywhere(&world, &shared(Layout::Classic));
    assert!(changes > 50, "{changes}");
}

#[test]
fn a_private_network_is_made_whole_or_not_at_all() {
    let world = World::new();
    let forward = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let before = forward();
    assert!(fail_everywhere(&world, &private()) >= 6);
    assert_eq!(forward(), "1\n");
    delete(&world.host, "virbr0", &NONE).unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", &before).unwrap();
    assert!(die_everywhere(&world, &private()) >= 6);
}

#[test]
fn a_repair_that_is_killed_is_repaired() {
    let world = World::furnished();
    let before = world.state();
    let definition = shared(Layout::Classic);
    // Late in the change, when almost everything is done.
    let mut count = Saboteur::new(usize::MAX, Accident::Error);
    create_with(&world.host, &definition, &NONE, &mut count).unwrap();
    delete(&world.host, "xenbr0", &NONE).unwrap();
    let mut at = 0;
    loop {
        assert!(is_killed(&world, &definition, "create", count.seen - 1));
        let killed = is_killed(&world, &definition, "repair", at);
        if killed {
            repair(&world, "xenbr0");
        }
        world.expect(&before, &format!("repair killed at {at}"));
        if !killed {
            break;
        }
        at += 1;
    }
    assert!(at > 30, "{at}");
}

#[test]
fn what_is_being_taken_down_is_taken_down_by_repair() {
    let world = World::furnished();
    let before = world.state();
    let definition = shared(Layout::Plain);
    let mut at = 0;
    loop {
        create(&world.host, &definition, &NONE).unwrap();
        let killed = is_killed(&world, &definition, "down", at);
        if killed {
            repair(&world, "xenbr0");
        }
        std::fs::remove_file(world.host.definitions.join("xenbr0.json")).unwrap();
        world.expect(&before, &format!("down killed at {at}"));
        if !killed {
            break;
        }
        at += 1;
    }
    assert!(at > 30, "{at}");
    // The same with an error: it is told, and repaired.
    create(&world.host, &definition, &NONE).unwrap();
    let failed = down_with(&world.host, "xenbr0", &NONE, &mut Saboteur::new(3, Accident::Error));
    assert!(matches!(failed, Err(HostNetError::NotUndone { .. })), "{failed:?}");
    repair(&world, "xenbr0");
    std::fs::remove_file(world.host.definitions.join("xenbr0.json")).unwrap();
    world.expect(&before, "an error in down");
}

/// The network is up and as it was, and nothing waits.
fn expect_up(world: &World, expected: &str, after: &str) {
    world.settle(expected, after);
    assert_eq!(show(&world.host, "xenbr0").unwrap().state, "up", "{after}");
    assert!(!world.files().contains(&"xenbr0.journal".to_owned()), "{after}");
}

#[test]
fn an_error_in_a_down_that_is_to_be_confirmed_brings_the_network_up_again() {
    let world = World::furnished();
    create(&world.host, &shared(Layout::Classic), &NONE).unwrap();
    let before = world.state();
    let mut at = 0;
    loop {
        let mut saboteur = Saboteur::new(at, Accident::Error);
        match down_with(&world.host, "xenbr0", &CONFIRM, &mut saboteur) {
            Ok(_) if saboteur.seen <= at => break,
            Ok(_) => repair(&world, "xenbr0"),
            Err(HostNetError::Undone { error, .. }) => assert_eq!(error.raw_os_error(), Some(libc::ENOMEM)),
            Err(error) => panic!("{at}: {error}"),
        }
        expect_up(&world, &before, &format!("error at {at}"));
        at += 1;
    }
    assert!(at > 30, "{at}");
}

#[test]
fn a_killed_down_that_is_to_be_confirmed_is_taken_back_by_repair() {
    let world = World::furnished();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let (before, definition) = (world.state(), shared(Layout::Plain));
    let mut at = 0;
    while is_killed(&world, &definition, "down-confirm", at) {
        let refused = down(&world.host, "xenbr0", &NONE);
        assert!(matches!(refused, Err(HostNetError::HalfMade(_))), "{refused:?}");
        repair(&world, "xenbr0");
        expect_up(&world, &before, &format!("killed at {at}"));
        at += 1;
    }
    assert!(at > 30, "{at}");
    // Now it is down, and waits: the repair is killed everywhere, and comes to its end the next time.
    let mut at = 0;
    while is_killed(&world, &definition, "repair", at) {
        at += 10;
    }
    assert!(at > 50, "{at}");
    expect_up(&world, &before, "a repair that was killed");
}

#[test]
fn a_delete_that_is_not_confirmed_yet_keeps_the_definition() {
    let world = World::furnished();
    let down_before = world.state();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let (before, files) = (world.state(), world.files());
    let report = delete(&world.host, "xenbr0", &CONFIRM).unwrap();
    assert_eq!(report.confirm_within, Some(60));
    assert_eq!(show(&world.host, "xenbr0").unwrap().state, "unconfirmed");
    assert!(show(&world.host, "xenbr0").unwrap().interfaces.is_none());
    world.settle(&down_before, "delete");
    repair(&world, "xenbr0");
    expect_up(&world, &before, "repair");
    assert_eq!(world.files().len(), files.len() + 1, "{:?}: the watchdog's log", world.files());
    delete(&world.host, "xenbr0", &CONFIRM).unwrap();
    confirm(&world.host, "xenbr0").unwrap();
    world.expect(&down_before, "confirm");
    assert!(matches!(confirm(&world.host, "xenbr0"), Err(HostNetError::NothingToConfirm(_))));
    // A network that is down has nothing that could be missed.
    create(&world.host, &private(), &NONE).unwrap();
    assert_eq!(down(&world.host, "virbr0", &CONFIRM).unwrap().confirm_within, Some(60));
    confirm(&world.host, "virbr0").unwrap();
    assert_eq!(show(&world.host, "virbr0").unwrap().state, "down");
    assert_eq!(delete(&world.host, "virbr0", &CONFIRM).unwrap().confirm_within, None);
    assert_eq!(world.files(), [] as [String; 0]);
}

#[test]
fn a_removal_that_waited_when_the_host_was_restarted_is_forgotten() {
    let world = World::new();
    let before = world.state();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    delete(&world.host, "xenbr0", &CONFIRM).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for suffix in ["journal", "state"] {
        let path = world.host.state_file("xenbr0", suffix);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
    }
    // As at every start of the host.
    assert!(up(&world.host, "xenbr0", &NONE).unwrap().changed);
    assert_eq!(show(&world.host, "xenbr0").unwrap().state, "up");
    delete(&world.host, "xenbr0", &NONE).unwrap();
    world.expect(&before, "delete");
}

#[test]
fn a_watchdog_that_cannot_start_leaves_the_network_up() {
    let mut world = World::furnished();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let before = world.state();
    world.host.program = "/nonexistent".into();
    let mut witness = Saboteur::new(0, Accident::Kill);
    let error = delete_with(&world.host, "xenbr0", &CONFIRM, &mut witness).unwrap_err();
    assert!(error.to_string().starts_with("network xenbr0: cannot start the watchdog: "), "{error}");
    expect_up(&world, &before, "no watchdog");
}

/// Name, address, bridge and whether it is up of every interface, as `ip` sees them.
fn links() -> Vec<(String, String, String, bool)> {
    let links: Vec<serde_json::Value> = serde_json::from_str(&ip("-j link")).unwrap();
    let text = |link: &serde_json::Value, key: &str| link[key].as_str().unwrap_or("").to_owned();
    let up = |link: &serde_json::Value| link["flags"].to_string().contains("\"UP\"");
    links
        .iter()
        .map(|link| (text(link, "ifname"), text(link, "address"), text(link, "master"), up(link)))
        .collect()
}

const TAP: &str = "fe:ff:ff:ff:ff:ff";

#[test]
fn the_classic_layout_is_that_of_a_xen_host() {
    let world = World::furnished();
    create(&world.host, &shared(Layout::Classic), &NONE).unwrap();
    let _guest = crate::network::testing::plug_spec("xenbr0", 3).unwrap();
    let found = links();
    let own = "00:13:72:81:3a:3d";
    for (name, mac, bridge) in [
        ("eth0", own, ""),
        ("peth0", TAP, "xenbr0"),
        ("vif0.0", TAP, "xenbr0"),
        ("vif3.0", TAP, "xenbr0"),
        ("xenbr0", TAP, ""),
    ] {
        let expected = (name.to_owned(), mac.to_owned(), bridge.to_owned(), true);
        assert!(found.contains(&expected), "{expected:?} is not in {found:#?}");
    }
    // The host has what it had, on eth0 as ever; nothing else has an address.
    let addresses = ip("-br address show dev eth0");
    for address in ["192.0.2.10/24", "10.9.0.1/16", "2001:db8::10/64", "fe80::213:72ff:fe81:3a3d/64"] {
        assert!(addresses.contains(address), "{address} is not in {addresses}");
    }
    for name in ["xenbr0", "peth0", "vif0.0", "vif3.0"] {
        assert_eq!(ip(&format!("-o address show dev {name}")), "", "{name}");
    }
    assert!(ip("route").starts_with("default via 192.0.2.1 dev eth0"));
    assert!(ip("rule").contains("from all iif eth0 lookup 100"));
    assert!(ip("-d link show xenbr0").contains("forward_delay 0 "));
    assert!(ip("-d link show xenbr0").contains("stp_state 0 "));
    assert!(ip("-d link show xenbr0").contains("mtu 1400 "));
}

#[test]
fn the_plain_layout_leaves_the_uplink_its_name() {
    let world = World::furnished();
    let before = world.state();
    let report = create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    assert!(report.changed);
    assert!(!create(&world.host, &shared(Layout::Plain), &NONE).unwrap().changed);
    let found = links();
    for (name, mac, bridge) in [
        ("eth0", TAP, "xenbr0"),
        ("xenbr0-host", "00:13:72:81:3a:3d", ""),
        ("xenbr0-port", TAP, "xenbr0"),
        ("xenbr0", TAP, ""),
    ] {
        let expected = (name.to_owned(), mac.to_owned(), bridge.to_owned(), true);
        assert!(found.contains(&expected), "{expected:?} is not in {found:#?}");
    }
    let addresses = ip("-o address show dev xenbr0-host");
    assert!(
        addresses.contains("scope global xenbr0-host:1") && addresses.contains("fe80::213:72ff:fe81:3a3d/64"),
        "{addresses}"
    );
    assert_eq!(ip("-o address show dev eth0"), "");
    assert!(ip("rule").contains("from all iif xenbr0-host lookup 100"));
    assert!(!ip("rule").contains("iif eth0"));
    assert!(ip("route show table 100").contains("default via 192.0.2.2 dev xenbr0-host"));
    assert!(ip("route").contains("10.2.0.0/16 dev other scope link src 192.0.2.10"));
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/conf/xenbr0-host/rp_filter").unwrap(), "2\n");
    delete(&world.host, "xenbr0", &NONE).unwrap();
    world.expect(&before, "delete");
}

#[test]
fn what_changed_meanwhile_goes_back_with_the_host() {
    let world = World::new();
    ip("address add 192.0.2.10/24 dev eth0");
    ip("route add default via 192.0.2.1");
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    ip("address del 192.0.2.10/24 dev xenbr0-host");
    ip("address add 192.0.2.20/24 dev xenbr0-host");
    ip("route add default via 192.0.2.254");
    down(&world.host, "xenbr0", &NONE).unwrap();
    assert!(!down(&world.host, "xenbr0", &NONE).unwrap().changed);
    assert!(ip("-br -4 address show dev eth0").contains("192.0.2.20/24"));
    assert!(!ip("-br -4 address show dev eth0").contains("192.0.2.10"));
    assert!(ip("route").contains("default via 192.0.2.254 dev eth0"));
    assert_eq!(world.files(), ["xenbr0.json"]);
}

#[test]
fn several_cards_have_several_bridges() {
    let world = World::new();
    ip("link add eth1 type veth peer name outside1");
    ip("link set eth1 up");
    for (bridge, uplink) in [("xenbr0", "eth0"), ("xenbr1", "eth1")] {
        let kind = Kind::Shared(Shared { uplink: uplink.into(), layout: Layout::Classic });
        create(&world.host, &Definition { name: bridge.into(), kind }, &NONE).unwrap();
    }
    let found = links();
    for (name, bridge) in
        [("peth0", "xenbr0"), ("vif0.0", "xenbr0"), ("peth1", "xenbr1"), ("vif0.1", "xenbr1")]
    {
        assert!(found.contains(&(name.into(), TAP.into(), bridge.into(), true)), "{name}: {found:#?}");
    }
    let states: Vec<_> = list(&world.host).unwrap().iter().map(|status| status.state).collect();
    assert_eq!(states, ["up", "up"]);
}

#[test]
fn the_last_shared_network_sets_the_bridge_filter_back() {
    let world = World::new();
    let key = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let Ok(before) = std::fs::read_to_string(key) else { return };
    ip("link add eth1 type veth peer name outside1");
    for (bridge, uplink) in [("xenbr0", "eth0"), ("xenbr1", "eth1")] {
        let kind = Kind::Shared(Shared { uplink: uplink.into(), layout: Layout::Plain });
        create(&world.host, &Definition { name: bridge.into(), kind }, &NONE).unwrap();
    }
    for (gone, value) in [("xenbr0", "0\n"), ("xenbr1", before.as_str())] {
        delete(&world.host, gone, &NONE).unwrap();
        assert_eq!(std::fs::read_to_string(key).unwrap(), value, "{gone}");
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = World::furnished();
    let before = world.state();
    let options = Options { dry_run: true, ..NONE };
    for definition in [shared(Layout::Plain), shared(Layout::Classic), private()] {
        let report = create(&world.host, &definition, &options).unwrap();
        assert!(report.changed && report.steps.len() >= 5, "{report:?}");
        assert!(report.steps.iter().all(|step| !step.is_empty()), "{report:?}");
        world.expect(&before, "a dry run");
    }
}

#[test]
fn uplinks_that_cannot_be_one_are_told_apart() {
    let world = World::new();
    ip("link add br9 type bridge");
    ip("link add eth2 type veth peer name outside2");
    ip("link set eth2 master br9");
    ip("link add peth1 type veth peer name eth1");
    let before = world.state();
    let classic = |uplink: &str| Kind::Shared(Shared { uplink: uplink.into(), layout: Layout::Classic });
    for (kind, words) in [
        (classic("eth7"), "network xenbr0: uplink eth7 does not exist; `ip -br link` lists"),
        (classic("eth2"), "network xenbr0: uplink eth2 is in the bridge br9 already; use that one"),
        (classic("br9"), "network xenbr0: uplink br9 is a bridge; take the network card"),
        (classic("lo"), "network xenbr0: uplink lo is no Ethernet interface"),
        (
            classic("eth1"),
            "network xenbr0: there is an interface peth1 already, a veth, which xvmm did not make",
        ),
    ] {
        let error = create(&world.host, &Definition { name: "xenbr0".into(), kind }, &NONE).unwrap_err();
        assert!(error.to_string().starts_with(words), "{error}");
        world.expect(&before, words);
    }
    let kind = classic("eth0");
    let error = create(&world.host, &Definition { name: "br9".into(), kind }, &NONE).unwrap_err();
    assert!(
        error.to_string().starts_with("network br9: there is an interface br9 already, a bridge"),
        "{error}"
    );
}

#[test]
fn a_network_in_use_is_left_alone() {
    let world = World::new();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let guest = crate::network::testing::plug_spec("xenbr0", 3).unwrap();
    let error = delete(&world.host, "xenbr0", &NONE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "network xenbr0: in use by vif3.0; stop these guests first, or use --force"
    );
    assert_eq!(show(&world.host, "xenbr0").unwrap().guests, ["vif3.0"]);
    delete(&world.host, "xenbr0", &Options { force: true, ..NONE }).unwrap();
    drop(guest);
    assert_eq!(world.files(), [] as [String; 0]);
}

#[test]
fn another_definition_of_the_same_name_is_refused() {
    let world = World::new();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let error = create(&world.host, &shared(Layout::Classic), &NONE).unwrap_err();
    assert!(error.to_string().starts_with("network xenbr0: it is defined with other settings"), "{error}");
}

#[test]
fn a_bridge_that_somebody_deleted_is_cleaned_up() {
    let world = World::furnished();
    let before = world.state();
    create(&world.host, &shared(Layout::Classic), &NONE).unwrap();
    ip("link delete xenbr0");
    assert!(matches!(up(&world.host, "xenbr0", &NONE), Err(HostNetError::HalfMade(_))));
    super::repair(&world.host, None, &NONE).unwrap();
    std::fs::remove_file(world.host.definitions.join("xenbr0.json")).unwrap();
    world.expect(&before, "repair");
}

#[test]
fn a_journal_of_another_start_of_the_host_is_forgotten() {
    let world = World::furnished();
    let before = world.state();
    assert!(is_killed(&world, &shared(Layout::Plain), "create", 30));
    let path = world.host.state_file("xenbr0", "journal");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    repair(&world, "xenbr0");
    world.expect(&before, "repair");
    // As after a restart: the files are there, what they tell of is not.
    std::fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
    std::fs::write(world.host.definitions.join("xenbr0.json"), shared(Layout::Plain).text()).unwrap();
    repair(&world, "xenbr0");
    world.expect(&before, "the repair after a restart");
}

#[test]
fn a_journal_of_another_namespace_is_left_alone() {
    let world = World::new();
    create(&world.host, &shared(Layout::Plain), &NONE).unwrap();
    let other = std::thread::scope(|scope| {
        let elsewhere = || {
            // SAFETY: only changes the namespace of this thread.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            delete(&world.host, "xenbr0", &NONE).unwrap_err()
        };
        scope.spawn(elsewhere).join().unwrap()
    });
    assert!(matches!(other, HostNetError::OtherNamespace(_)), "{other}");
    assert_eq!(show(&world.host, "xenbr0").unwrap().state, "up");
}

#[test]
fn a_subnet_that_is_in_use_is_refused() {
    let world = World::new();
    ip("address add 192.168.0.7/16 dev eth0");
    let error = create(&world.host, &private(), &NONE).unwrap_err().to_string();
    let expected =
        "network virbr0: subnet 192.168.122.0/24 overlaps with 192.168.0.0/16 on eth0; take another one";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn the_bridge_of_libvirt_is_used_and_left_alone() {
    let world = World::new();
    ip("link add virbr0 type bridge");
    ip("address add 192.168.122.1/24 dev virbr0");
    let error = create(&world.host, &private(), &NONE).unwrap_err().to_string();
    assert!(
        error.contains("there is an interface virbr0 already (bridge), which xvmm did not make"),
        "{error}"
    );
    let sign = world.host.file("run/libvirt/network");
    std::fs::create_dir_all(&sign).unwrap();
    std::fs::write(sign.join("default.xml"), "<network><bridge name='virbr0' stp='on'/></network>").unwrap();
    let before = world.state();
    let report = create(&world.host, &private(), &NONE).unwrap();
    assert!(report.warnings[0].contains("virbr0 is libvirt's, and used as it is"), "{report:?}");
    assert_eq!(show(&world.host, "virbr0").unwrap().owner.as_deref(), Some("libvirt"));
    delete(&world.host, "virbr0", &NONE).unwrap();
    world.expect(&before, "delete");
}

#[test]
fn without_permission_nothing_begins() {
    let world = World::new();
    // SAFETY: the raw system call changes this thread only, and takes plain numbers.
    let error = std::thread::scope(|scope| {
        let nobody = || {
            // SAFETY: as above.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            create(&world.host, &shared(Layout::Plain), &NONE).unwrap_err()
        };
        scope.spawn(nobody).join().unwrap()
    });
    assert!(matches!(error, HostNetError::NotPermitted(_)), "{error}");
}
