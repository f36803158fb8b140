//! vcpu_op (24): vcpu_info, runstate and time areas, timers.

use std::sync::atomic::Ordering::SeqCst;

use devices::memory::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Errno, GuestCopy, Hypercalls, Reply, VcpuSetting};

const VCPU_INFO_SIZE: u64 = 64;
const TIME_INFO_SIZE: usize = 32;
const VCPU_SSHOTTMR_FUTURE: u32 = 1;

/// vcpu_register_vcpu_info: mfn @0, offset @8.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RegisterInfo {
    mfn: u64,
    offset: u32,
    reserved: u32,
}

/// vcpu_set_singleshot_timer: timeout_abs_ns @0, flags @8 (32-bit: the same).
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, packed(4))]
struct SingleshotTimer {
    timeout_abs_ns: u64,
    flags: u32,
}

impl Hypercalls {
    pub(super) fn vcpu_op(&self, op: u64, vcpu: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        let vcpu = u32::try_from(vcpu).ok().filter(|v| *v < self.facts.vcpus).ok_or(Errno::NOENT)?;
        match op {
            // is_up: brought up by INIT and SIPI only, which KVM keeps; the caller itself is.
            3 => return Ok(1),
            5 => {
                let area = copy.get_ulong(arg, 0)?;
                self.platform.set_vcpu(vcpu, VcpuSetting::Runstate(copy.physical(area, 1)?))?;
            }
            // stop_periodic_timer: there is none.
            7 => {}
            8 => {
                let a: SingleshotTimer = copy.get(arg)?;
                if a.flags & VCPU_SSHOTTMR_FUTURE != 0 && a.timeout_abs_ns < self.platform.now_ns() {
                    return Err(Errno(libc::ETIME));
                }
                // 0 means "off" to KVM, but a time long past to the guest.
                self.platform.set_vcpu(vcpu, VcpuSetting::Timer(a.timeout_abs_ns.max(1)))?;
            }
            9 => self.platform.set_vcpu(vcpu, VcpuSetting::Timer(0))?,
            10 => self.register_info(vcpu, &copy.get(arg)?)?,
            13 => {
                let area = copy.get_ulong(arg, 0)?;
                let gpa = if area == 0 { None } else { Some(copy.physical(area, TIME_INFO_SIZE)?) };
                self.platform.set_vcpu(vcpu, VcpuSetting::TimeArea(gpa))?;
            }
            _ => return Err(self.unknown("vcpu_op", op)),
        }
        Ok(0)
    }

    /// The place can be registered once, as on Xen: a second call would leave events in the old one.
    fn register_info(&self, vcpu: u32, a: &RegisterInfo) -> Result<(), Errno> {
        let end = u64::from(a.offset) + VCPU_INFO_SIZE;
        if end > PAGE_SIZE as u64 || !a.offset.is_multiple_of(8) || !self.is_ram(a.mfn) {
            return Err(Errno::INVAL);
        }
        let registered = self.registered_info.get(vcpu as usize).ok_or(Errno::NOENT)?;
        if registered.swap(true, SeqCst) {
            return Err(Errno::INVAL);
        }
        let gpa = a.mfn * PAGE_SIZE as u64 + u64::from(a.offset);
        self.platform.set_vcpu(vcpu, VcpuSetting::Info(gpa))
    }
}
