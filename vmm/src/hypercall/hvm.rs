//! hvm_op (34): HVM parameters and the upcall vector.

use std::sync::{Mutex, PoisonError};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Callback, CallbackPin, Errno, GuestCopy, Hypercalls, Reply, VcpuSetting};

/// Parameters that exist (HVM_NR_PARAMS).
const NR_PARAMS: usize = 39;
const CALLBACK_IRQ: usize = 0;
/// Guest frame of the xenstore page.
const STORE_PFN: usize = 1;
/// Port of the xenstore ring.
const STORE_EVTCHN: usize = 2;
/// Guest frame of the console page.
const CONSOLE_PFN: usize = 17;
/// Port of the console ring.
const CONSOLE_EVTCHN: usize = 18;
/// Parameters that a guest may set besides CALLBACK_IRQ: stored and read back, without further effect here.
/// 3 PAE_ENABLED, 4 (unused), 10 TIMER_MODE, 12 DM_DOMAIN (ignored), 14 VM86_TSS, 16 VPT_ALIGN, 19 ACPI_IOPORTS.
const SETTABLE: [usize; 2] = [10, 19];
/// Vectors below are exceptions.
const FIRST_VECTOR: u8 = 0x10;

/// HVM parameters of a domain.
#[derive(Debug)]
pub struct HvmParams(Mutex<[u64; NR_PARAMS]>);

impl HvmParams {
    /// The places of the xenstore and console rings.
    pub fn new(store: (u64, u32), console: (u64, u32)) -> Self {
        let mut params = [0; NR_PARAMS];
        params[STORE_PFN] = store.0;
        params[STORE_EVTCHN] = store.1.into();
        params[CONSOLE_PFN] = console.0;
        params[CONSOLE_EVTCHN] = console.1.into();
        Self(Mutex::new(params))
    }

    fn get(&self, index: usize) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(index).copied()
    }

    fn set(&self, index: usize, value: u64) {
        if let Some(param) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            *param = value;
        }
    }
}

/// xen_hvm_param: domid @0, index @4, value @8.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Param {
    domid: u16,
    pad: u16,
    index: u32,
    value: u64,
}

/// xen_hvm_evtchn_upcall_vector: vcpu @0, vector @4.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct UpcallVector {
    vcpu: u32,
    vector: u8,
    pad: [u8; 3],
}

/// xen_hvm_get_mem_type: domid @0, mem_type (out) @2, pfn @8.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MemType {
    domid: u16,
    mem_type: u16,
    pad: [u16; 2],
    pfn: u64,
}

const HVMMEM_RAM_RW: u16 = 0;
const HVMMEM_MMIO_DM: u16 = 2;

/// Pins of the interrupt controllers.
const GSIS: u8 = 24;

/// What a value of HVM_PARAM_CALLBACK_IRQ means (xen/include/public/hvm/params.h): its type is in bits 63:56. Linux sets
/// "GSI 1" after it chose vectors for each vCPU, only to show that it listens; such a vector counts more than a pin.
fn callback(value: u64) -> Result<Callback, Errno> {
    let low = (value & 0xff) as u8;
    match value >> 56 {
        0 if low == 0 => Ok(Callback::None),
        0 if low < GSIS => Ok(Callback::Pin(CallbackPin::Gsi(low))),
        // Device and function in bits 15:8, of which the interrupt's wiring knows the device; the pin in bits 1:0.
        1 => Ok(Callback::Pin(CallbackPin::Pci { device: (value >> 11 & 31) as u8, pin: low & 3 })),
        2 if low == 0 => Ok(Callback::None),
        2 if low >= FIRST_VECTOR => Ok(Callback::Vector(low)),
        0 | 2 => Err(Errno::INVAL),
        _ => Ok(Callback::None),
    }
}

impl Hypercalls {
    pub(super) fn hvm_op(&self, op: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        match op {
            0 => self.set_param(&copy.get(arg)?, copy.long_mode),
            1 => {
                let mut a: Param = copy.get(arg)?;
                self.require_self(a.domid)?;
                a.value = self.params.get(a.index as usize).ok_or(Errno::INVAL)?;
                copy.put(arg, &a)?;
                Ok(0)
            }
            10 => Ok(self.platform.now_ns().cast_signed()),
            15 => {
                let mut a: MemType = copy.get(arg)?;
                self.require_self(a.domid)?;
                let ram = self.is_ram(a.pfn);
                a.mem_type = if ram { HVMMEM_RAM_RW } else { HVMMEM_MMIO_DM };
                copy.put(arg, &a)?;
                Ok(0)
            }
            23 => {
                let a: UpcallVector = copy.get(arg)?;
                if a.vector < FIRST_VECTOR {
                    return Err(Errno::INVAL);
                }
                if a.vcpu >= self.facts.vcpus {
                    return Err(Errno::NOENT);
                }
                self.platform.set_vcpu(a.vcpu, VcpuSetting::UpcallVector(a.vector)).map(|()| 0)
            }
            // pagetable_dying: nobody keeps copies of page tables here, so there is nothing to be told.
            9 => Err(Errno::NOSYS),
            _ => Err(self.unknown("hvm_op", op)),
        }
    }

    fn set_param(&self, a: &Param, long_mode: bool) -> Reply {
        self.require_self(a.domid)?;
        match a.index as usize {
            CALLBACK_IRQ => {
                self.set_long_mode(long_mode);
                self.platform.set_callback(callback(a.value)?)?;
                self.params.set(CALLBACK_IRQ, a.value);
                Ok(0)
            }
            index if SETTABLE.contains(&index) => {
                self.params.set(index, a.value);
                Ok(0)
            }
            index if index < NR_PARAMS => Err(Errno::PERM),
            _ => Err(Errno::INVAL),
        }
    }

    /// Whether a frame is RAM by the memory map.
    pub(super) fn is_ram(&self, gfn: u64) -> bool {
        let Some(gpa) = gfn.checked_mul(devices::memory::PAGE_SIZE as u64) else { return false };
        let kind = crate::boot::MemmapKind::Ram;
        self.facts.memmap.iter().any(|e| e.kind == kind && gpa >= e.addr && gpa - e.addr < e.size)
    }
}
