//! xen_version (17): what the guest is told of the hypervisor. KVM answers `version` itself.

use super::{Errno, GuestCopy, Hypercalls, Reply};
use crate::machine::XEN_VERSION;

/// XENFEAT_*: writable_page_tables 0, writable_descriptor_tables 1, auto_translated_physmap 2,
/// supervisor_mode_kernel 3, hvm_callback_vector 8, hvm_safe_pvclock 9. Without hvm_pirqs (10) Linux uses its
/// plain interrupt code and no physdev_op.
const FEATURES: u32 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 9;

/// A string as a fixed field, NUL-terminated.
fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let len = text.len().min(N - 1);
    if let (Some(to), Some(from)) = (bytes.get_mut(..len), text.as_bytes().get(..len)) {
        to.copy_from_slice(from);
    }
    bytes
}

impl Hypercalls {
    pub(super) fn xen_version(&self, op: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        match op {
            0 => return Ok(i64::from(XEN_VERSION)),
            1 => copy.write(arg, &field::<16>("-xvmm"))?,
            2 => {
                // xen_compile_info: compiler[64], compile_by[16], compile_domain[32], compile_date[32].
                let mut info = [0; 144];
                let (compiler, rest) = info.split_at_mut(64);
                compiler.copy_from_slice(&field::<64>("rustc"));
                let (by, _) = rest.split_at_mut(16);
                by.copy_from_slice(&field::<16>("xvmm"));
                copy.write(arg, &info)?;
            }
            3 => copy.write(arg, &field::<1024>("hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "))?,
            4 => copy.write(arg, &field::<64>("unavailable"))?,
            // platform_parameters: virt_start, which only a PV guest has.
            5 => copy.put_ulong(arg, 0, 0)?,
            6 => {
                let index: u32 = copy.get(arg)?;
                let map = if index == 0 { FEATURES } else { 0 };
                copy.put(arg.checked_add(4).ok_or(Errno::FAULT)?, &map)?;
            }
            7 => return Ok(devices::memory::PAGE_SIZE as i64),
            8 => copy.write(arg, &self.facts.uuid)?,
            9 => copy.write(arg, &field::<1024>(&self.facts.cmdline))?,
            _ => return Err(self.unknown("xen_version", op)),
        }
        Ok(0)
    }
}
