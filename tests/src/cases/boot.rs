//! Guests boot and see what they were given.

use super::Bench;
use crate::{Result, check};

/// The kernel finds itself in a PVH guest of Xen, with all its processors.
pub fn boot(bench: &Bench) -> Result<()> {
    let mut guest = bench.guest().start()?;
    let messages = guest.sh("dmesg")?;
    check!(messages.contains("Hypervisor detected: Xen PVH"), "no Xen PVH in the kernel's messages");
    let vcpus = guest.sh("nproc")?;
    check!(vcpus == bench.config.vcpus.to_string(), "{vcpus} processors are online");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}
