//! What the network tests take along: the programs and modules of a host with networks, for the nested host.

use std::fs;
use std::path::PathBuf;

use crate::cpio::Archive;
use crate::packages::Cache;
use crate::{Result, images};

/// Loaded when the host starts.
const MODULES: [&str; 16] = [
    "veth",
    "dummy",
    "8021q",
    "bonding",
    "br_netfilter",
    "nf_tables",
    "nf_conntrack_bridge",
    "nft_meta_bridge",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_ct",
    "nft_reject",
    "nft_reject_inet",
    "nft_fib_inet",
    "sch_netem",
];

/// Package, file in it, path in the host. busybox has its own ip in /bin; this one is called by its path.
const PROGRAMS: [(&str, &str, &str); 6] = [
    ("iproute2", "sbin/ip", "/sbin/ip"),
    ("iproute2", "sbin/bridge", "/sbin/bridge"),
    ("ethtool", "sbin/ethtool", "/sbin/ethtool"),
    ("iperf3", "usr/bin/iperf3", "/usr/bin/iperf3"),
    ("nftables", "usr/sbin/nft", "/usr/sbin/nft"),
    ("dnsmasq-base", "usr/sbin/dnsmasq", "/usr/sbin/dnsmasq"),
];

/// Packages with libraries of these programs that Debian's base system may lack.
const LIBRARIES: [&str; 20] = [
    "libbpf1",
    "libbsd0",
    "libdbus-1-3",
    "libedit2",
    "libelf1",
    "libgmp10",
    "libhogweed6",
    "libidn2-0",
    "libiperf0",
    "libjansson4",
    "libmd0",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnettle8",
    "libnfnetlink0",
    "libnftables1",
    "libnftnl11",
    "libsctp1",
    "libunistring2",
    "libxtables12",
];

const L1_NETWORK: &str = include_str!("../assets/l1-network");

/// Makes the archive with them, for the nested host with the kernel `label`.
pub fn build(cache: &Cache, label: &str) -> Result<PathBuf> {
    let folder = cache.path("network");
    let path = folder.join("archive");
    let kernel = images::kernel(cache, label)?;
    let recipe = format!("{} {MODULES:?} {PROGRAMS:?} {LIBRARIES:?}\n{L1_NETWORK}", kernel.release);
    images::build_once(&folder, &recipe, || {
        eprintln!("building the nested host's network programs");
        let mut archive = Archive::default();
        images::modules(&mut archive, "/lib/modules/network", &kernel, &MODULES, &[])?;
        let mut libraries = Vec::new();
        for package in LIBRARIES {
            libraries.extend(cache.libraries(package)?);
        }
        for (package, from, to) in PROGRAMS {
            let from = cache.package(package)?.join(from);
            images::linked_program(&mut archive, to, &from, &libraries)?;
        }
        archive.file("/tests/network", 0o644, L1_NETWORK.as_bytes());
        fs::write(&path, archive.finish())?;
        Ok(())
    })?;
    Ok(path)
}
