//! sched_op (29): yield, block, shutdown, poll. KVM serves poll and yield itself where it can.

use std::time::Duration;

use devices::xen::Port;

use super::{Errno, GuestCopy, Hypercalls, Reply, StopReason, VcpuSetting};

/// Ports of one poll; Xen takes 128.
const MAX_POLL_PORTS: u32 = 128;
/// Longest sleep of one poll here. An early return is allowed (guests look again), a missed wake-up is not: the
/// waits that matter, of locks, are KVM's.
const POLL_SLICE: Duration = Duration::from_millis(1);

impl Hypercalls {
    pub(super) fn sched_op(&self, vcpu: u32, op: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        match op {
            0 => std::thread::yield_now(),
            1 => self.platform.set_vcpu(vcpu, VcpuSetting::Block)?,
            2 => {
                let reason = match copy.get::<u32>(arg)? {
                    0 => StopReason::PowerOff,
                    1 => StopReason::Reboot,
                    2 => StopReason::Suspend,
                    3 => StopReason::Crash,
                    4 => StopReason::Watchdog,
                    5 => StopReason::SoftReset,
                    _ => return Err(Errno::INVAL),
                };
                self.platform.stop(reason);
            }
            3 => self.poll(arg, copy)?,
            // 4 remote_shutdown, 5 shutdown_code, 6 watchdog, 7 pin_override.
            _ => return Err(self.unknown("sched_op", op)),
        }
        Ok(0)
    }

    /// sched_poll: ports (pointer) @0, nr_ports @8 (4), timeout in ns @16 (8).
    fn poll(&self, arg: u64, copy: &GuestCopy<'_>) -> Result<(), Errno> {
        let ports = copy.get_ulong(arg, 0)?;
        let word = if copy.long_mode { 8 } else { 4 };
        let nr_ports: u32 = copy.get(arg.checked_add(word).ok_or(Errno::FAULT)?)?;
        if nr_ports > MAX_POLL_PORTS {
            return Err(Errno::INVAL);
        }
        for index in 0..u64::from(nr_ports) {
            let at = index.checked_mul(4).and_then(|o| ports.checked_add(o)).ok_or(Errno::FAULT)?;
            if self.events.is_pending(Port(copy.get(at)?)) {
                return Ok(());
            }
        }
        std::thread::sleep(POLL_SLICE);
        Ok(())
    }
}
