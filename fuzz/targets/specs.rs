//! Text from outside: the values of the command line, `config.json`, requests to the API.
//!
//! Input: the first byte chooses the parser, the rest is its text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use xvmm::api::http;
use xvmm::config::{
    ConsoleTarget, DiskSpec, DomainConfig, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY, MacAddr, NetConfig, OnReboot,
    Vdev, check_name, parse_memory, parse_vcpus,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    if *choice == b'h' {
        return requests(bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match choice {
        b'd' => disks(text),
        b'n' => {
            if let Ok(net) = text.parse::<NetConfig>() {
                for name in [net.bridge(), net.vifname.as_deref(), net.gatewaydev.as_deref()] {
                    assert!(name.is_none_or(netback::is_interface_name), "{net:?}");
                }
                assert!(
                    net.rate.is_none_or(|rate| rate.bytes_per_interval > 0 && rate.interval_us > 0),
                    "{net:?}"
                );
                assert!((1..=16).contains(&net.queue_count()), "{net:?}");
                let written = net.to_string();
                assert_eq!(written.parse().as_ref(), Ok(&net), "{written:?}");
                let json = serde_json::to_string(&net).expect("a network is JSON");
                assert_eq!(serde_json::from_str::<NetConfig>(&json).expect("our own JSON"), net);
            }
        }
        b'm' => {
            if let Ok(bytes) = parse_memory(text) {
                assert!((MIN_MEMORY..=MAX_MEMORY).contains(&bytes) && bytes % (1 << 20) == 0, "{bytes}");
            }
        }
        b'v' => {
            if let Ok(vcpus) = parse_vcpus(text) {
                assert!((1..=MAX_VCPUS).contains(&vcpus));
            }
        }
        b'c' => {
            if let Ok(console) = text.parse::<ConsoleTarget>() {
                let json = serde_json::to_string(&console).expect("a console is JSON");
                assert_eq!(serde_json::from_str::<ConsoleTarget>(&json).expect("our own JSON"), console);
            }
        }
        b'r' => drop(text.parse::<OnReboot>()),
        b'N' => {
            if check_name(text).is_ok() {
                assert!(!text.contains(['/', '\0', '\n']) && text != "." && text != "..", "{text:?}");
            }
        }
        b'M' => {
            if let Ok(mac) = text.parse::<MacAddr>() {
                assert_eq!(mac.to_string().parse(), Ok(mac));
                assert_eq!(MacAddr::new(mac.bytes()), Ok(mac));
            }
        }
        b'V' => {
            if let Ok(vdev) = text.parse::<Vdev>() {
                assert_eq!(vdev.to_string().parse(), Ok(vdev));
                assert!(vdev.virtual_device() < 1 << 29, "{vdev}");
                assert_eq!(Vdev::from_number(vdev.virtual_device()), Some(vdev));
            }
        }
        b'j' => config(text),
        _ => {}
    }
});

/// One `--disk` a line. Lines that are refused, alone or beside those before them, count for nothing.
fn disks(text: &str) {
    let mut disks = Vec::new();
    for spec in text.lines().take(100).filter_map(|line| DiskSpec::parse(line).ok()) {
        let written = spec.to_string();
        assert_eq!(DiskSpec::parse(&written).as_ref(), Ok(&spec), "{written:?}");
        disks.extend(spec.beside(&disks));
    }
    for (index, disk) in disks.iter().enumerate() {
        assert!(disks.iter().take(index).all(|other| !other.vdev.overlaps(disk.vdev)), "{disks:?}");
        assert!(!disk.source.to_string().is_empty() && !(disk.readonly && disk.shared), "{disk:?}");
    }
    let config = DomainConfig { disks: disks.clone(), ..DomainConfig::default() };
    assert_eq!(config.validate(), Ok(()));
    let json = serde_json::to_string(&disks).expect("disks are JSON");
    assert_eq!(serde_json::from_str::<Vec<xvmm::config::DiskConfig>>(&json).expect("our own JSON"), disks);
}

/// `config.json`.
fn config(text: &str) {
    let Ok(mut config) = serde_json::from_str::<DomainConfig>(text) else { return };
    if config.validate().is_err() {
        return;
    }
    config.assign_nets();
    assert!(config.nets.iter().all(|net| net.mac.is_some() && net.devid.is_some()));
    assert_eq!(config.validate(), Ok(()));
    let json = serde_json::to_string(&config).expect("a description is JSON");
    let again: DomainConfig = serde_json::from_str(&json).expect("our own JSON");
    assert_eq!((again.disks, again.nets), (config.disks, config.nets));
}

/// Requests to the API, as they come one behind the other.
fn requests(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((request, used))) = http::parse(rest) {
        assert!(used > 0 && used <= rest.len());
        assert!(request.body.len() <= http::BODY_MAX && used <= http::HEAD_MAX + http::BODY_MAX);
        // No shorter piece is taken for the same request: where it is cut does not matter.
        assert_eq!(http::parse(&rest[..used - 1]), Ok(None));
        rest = &rest[used..];
    }
}
