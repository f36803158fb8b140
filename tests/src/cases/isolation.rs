//! A guest reaches nothing but itself and its backends, whatever it asks for.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use super::Bench;
use crate::{Result, check, fail};

/// Event channels and grants of other domains are refused.
pub fn foreign_domains(bench: &Bench) -> Result<()> {
    let mut guest = bench.guest().with_test_program("/bin/probe")?.start()?;
    let mut other = bench.guest().start()?;
    let ids = bench.domains()?;
    let [_, foreign] = ids.as_slice() else {
        return fail!("two domains run, but the run folder holds {ids:?}");
    };
    for module in ["xen_evtchn", "xen_gntdev"] {
        guest.sh(&format!("insmod /lib/modules/{module}.ko"))?;
    }
    let said = guest.sh(&format!("probe reach {foreign} 0 77 32753 32754"))?;
    println!("{said}");
    check!(guest.sh("echo alive")? == "alive", "the guest was harmed");
    check!(other.sh("echo alive")? == "alive", "the other guest was harmed");
    Ok(())
}

/// In the guest: `probe reach DOMID...` tries to bind event channels and to map grants of other domains.
/// Only what the guest itself offers to another domain is granted.
pub fn reach(words: &[String]) -> Result<ExitCode> {
    let channels = open("/dev/xen/evtchn")?;
    let grants = open("/dev/xen/gntdev")?;
    for word in words {
        let domain: u32 = word.parse()?;
        for port in [0, 1, 2, 3, 5, 17, 4095, 4096, u32::MAX] {
            // struct ioctl_evtchn_bind_interdomain { remote_domain, remote_port }
            let mut request = [domain, port];
            if ioctl(&channels, 0x0008_4501, request.as_mut_ptr().cast()) >= 0 {
                return fail!("port {port} of domain {domain} was bound");
            }
        }
        for reference in [0, 1, 2, 8, 9, 100, u32::MAX] {
            // struct ioctl_gntdev_map_grant_ref { count, pad, u64 index, { domid, ref } }
            let mut request = [1, 0, 0, 0, domain, reference];
            if ioctl(&grants, 0x0018_4700, request.as_mut_ptr().cast()) < 0 {
                continue;
            }
            let offset = i64::from(request[2]) | (i64::from(request[3]) << 32);
            // SAFETY: a new mapping of one page at an address of the kernel's choice.
            let page = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    grants.as_raw_fd(),
                    offset,
                )
            };
            if page != libc::MAP_FAILED {
                return fail!("grant {reference} of domain {domain} was mapped");
            }
        }
    }
    println!("no event channel and no grant of domain {} could be reached", words.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn open(path: &str) -> Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(file),
        Err(error) => fail!("{path}: {error}"),
    }
}

fn ioctl(file: &File, request: libc::c_ulong, argument: *mut libc::c_void) -> i32 {
    // SAFETY: the two requests above read and write structures of 8 and 24 bytes; the callers pass arrays
    // of that size, which outlive the call.
    unsafe { libc::ioctl(file.as_raw_fd(), request, argument) }
}
