//! A program of the guest that sees frames before its stack does (XDP), loaded and unloaded under traffic.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use super::{Namespace, addresses, bridge, iperf};
use crate::cases::Bench;
use crate::{Result, check, fail};

const DROP: i32 = 1;
const PASS: i32 = 2;

/// A passing program is loaded and unloaded while TCP goes both ways; a dropping one shows that programs are run.
pub fn xdp(bench: &Bench) -> Result<()> {
    bridge("xenbr0", 1500, &["10.0.0.1/24"])?;
    let outside = Namespace::new("outside")?;
    outside.plug_into("xenbr0", "cable", 1500)?;
    outside.ip("address add 10.0.0.3/24 dev eth0")?;
    let _server = outside.daemon("/usr/bin/iperf3 -s")?;
    let mut guest = bench.guest().with_network_tools()?.net("xenbr0").start()?;
    addresses(&mut guest, "eth0", "10.0.0.2/24", "fd00::2/64")?;
    guest.sh("ping -c 3 -W 10 10.0.0.3")?;
    for words in ["", "-R"] {
        // Three times while the transfer runs.
        guest.sh(&format!(
            "(for i in 1 2 3; do sleep 1; xvmm-tests xdp eth0 {PASS} 1 || echo failed; done) > /tmp/xdp 2>&1 &"
        ))?;
        let line = iperf(&mut guest, "10.0.0.3", &format!("{words} -t 10"))?;
        guest.sh("while pidof xvmm-tests; do sleep 1; done")?;
        let said = guest.sh("cat /tmp/xdp")?;
        check!(
            said.matches("unloaded").count() == 3,
            "the program came and went less than three times: {said}"
        );
        println!("{words}: {line}");
    }
    guest.sh(&format!(
        "xvmm-tests xdp eth0 {DROP} 8 > /tmp/xdp 2>&1 & i=0; until grep -q loaded /tmp/xdp || [ $i = 60 ]; do i=$((i+1)); sleep 1; done"
    ))?;
    let (status, said) = guest.status("ping -c 2 -W 2 10.0.0.3")?;
    check!(status != 0, "frames come through a program that drops all: {said}");
    guest.sh("while pidof xvmm-tests; do sleep 1; done; ping -c 3 -W 10 10.0.0.3")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// `xdp INTERFACE VERDICT SECONDS`, in the guest: a program with that verdict on every frame, in the driver
/// (bpf(2): BPF_PROG_LOAD, BPF_LINK_CREATE).
pub fn load(words: &[String]) -> Result<ExitCode> {
    let [interface, verdict, seconds] = words else {
        return fail!("{}", crate::USAGE);
    };
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    const DRIVER_MODE: u32 = 1 << 2;
    let verdict: u32 = verdict.parse()?;
    // r0 = verdict; exit
    let program: [u64; 2] = [0xb7 | u64::from(verdict) << 32, 0x95];
    let license = c"Dual MIT/GPL";
    let name = std::ffi::CString::new(interface.as_str())?;
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    check!(index != 0, "there is no interface {interface}");

    let mut attributes = [0_u64; 16];
    attributes[0] = u64::from(PROG_TYPE_XDP) | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    let program_fd = bpf(PROG_LOAD, &attributes)?;
    let mut attributes = [0_u64; 16];
    attributes[0] = u64::from(program_fd) | u64::from(index) << 32;
    attributes[1] = u64::from(ATTACH_XDP) | u64::from(DRIVER_MODE) << 32;
    let link = bpf(LINK_CREATE, &attributes)?;
    println!("loaded");
    std::thread::sleep(Duration::from_secs(seconds.parse()?));
    // SAFETY: our own descriptor, not used after this.
    unsafe { libc::close(i32::try_from(link)?) };
    println!("unloaded");
    Ok(ExitCode::SUCCESS)
}

/// bpf(2) with `union bpf_attr` of 64-bit words; a new descriptor.
fn bpf(command: libc::c_long, attributes: &[u64; 16]) -> Result<u32> {
    // SAFETY: the attributes live here, and what they point to in the caller.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match u32::try_from(fd) {
        Ok(fd) => Ok(fd),
        Err(_) => fail!("bpf command {command}: {}", io::Error::last_os_error()),
    }
}
