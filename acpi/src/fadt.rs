//! FADT: what kind of machine it is, and how it is switched off and reset (ACPI 6.4, 5.2.9 and 4.8.3.7).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::sdt;

/// IA-PC boot architecture flags.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Fixed feature flags.
const WBINVD: u32 = 1 << 0;
/// No power or sleep button in fixed hardware.
const PWR_BUTTON: u32 = 1 << 4;
const SLP_BUTTON: u32 = 1 << 5;
/// No RTC wake status in fixed hardware.
const FIX_RTC: u32 = 1 << 6;
const RESET_REG_SUP: u32 = 1 << 10;
const HW_REDUCED_ACPI: u32 = 1 << 20;

/// SLP_TYP of \_S5: three bits of our choice.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 7;
const SLP_EN: u8 = 1 << 5;

/// What a guest writes to [`PowerPorts::reset`] to be reset.
pub const RESET_VALUE: u8 = 1;

/// Whether this byte, written to [`PowerPorts::sleep_control`], switches the guest off: sleep enable, with the
/// sleep type of \_S5.
pub fn is_power_off(value: u8) -> bool {
    value & SLP_EN != 0 && value >> SLP_TYP_SHIFT & SLP_TYP_MASK == SLEEP_TYPE_S5
}

/// I/O ports of one byte each that the caller serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerPorts {
    /// SLEEP_CONTROL_REG: see [`is_power_off`].
    pub sleep_control: u16,
    /// SLEEP_STATUS_REG: reads as 0; a guest writes a wake status bit to it before it sleeps.
    pub sleep_status: u16,
    /// RESET_REG: see [`RESET_VALUE`].
    pub reset: u16,
}

impl Default for PowerPorts {
    /// Ports that no PC device, no Xen protocol and no hypercall stub uses.
    fn default() -> Self {
        Self { sleep_control: 0x604, sleep_status: 0x605, reset: 0x606 }
    }
}

/// Generic Address Structure. All zero: not there.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct GenericAddress {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: U64,
}

impl GenericAddress {
    fn io_byte(port: u16) -> Self {
        Self { space: 1, bit_width: 8, bit_offset: 0, access_size: 1, address: U64::new(u64::from(port)) }
    }
}

/// The FADT behind its header. A hardware-reduced platform leaves the blocks of fixed hardware zero.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Fadt {
    firmware_ctrl: U32,
    dsdt: U32,
    reserved_44: u8,
    preferred_pm_profile: u8,
    sci_int: U16,
    /// SMI_CMD to MON_ALRM and CENTURY.
    fixed_hardware_48: [u8; 61],
    iapc_boot_arch: U16,
    reserved_111: u8,
    flags: U32,
    reset_reg: GenericAddress,
    reset_value: u8,
    arm_boot_arch: U16,
    minor_version: u8,
    x_firmware_ctrl: U64,
    x_dsdt: U64,
    /// X_PM1a_EVT_BLK to X_GPE1_BLK.
    x_fixed_hardware_148: [u8; 96],
    sleep_control_reg: GenericAddress,
    sleep_status_reg: GenericAddress,
    hypervisor_vendor: U64,
}
const _: () = assert!(size_of::<Fadt>() == 276 - 36);
const _: () = assert!(std::mem::offset_of!(Fadt, iapc_boot_arch) == 109 - 36);
const _: () = assert!(std::mem::offset_of!(Fadt, reset_reg) == 116 - 36);
const _: () = assert!(std::mem::offset_of!(Fadt, x_dsdt) == 140 - 36);
const _: () = assert!(std::mem::offset_of!(Fadt, sleep_control_reg) == 244 - 36);

/// A PVH guest's FADT, revision 6.4. Linux takes a Xen guest for PVH when its FADT denies VGA and RTC, and an
/// absent 8042 bit keeps it from probing a keyboard controller.
pub(crate) fn pvh(ports: &PowerPorts, dsdt: u64) -> Vec<u8> {
    let fadt = Fadt {
        iapc_boot_arch: U16::new(VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT),
        flags: U32::new(WBINVD | PWR_BUTTON | SLP_BUTTON | FIX_RTC | RESET_REG_SUP | HW_REDUCED_ACPI),
        reset_reg: GenericAddress::io_byte(ports.reset),
        reset_value: RESET_VALUE,
        minor_version: 4,
        x_dsdt: U64::new(dsdt),
        sleep_control_reg: GenericAddress::io_byte(ports.sleep_control),
        sleep_status_reg: GenericAddress::io_byte(ports.sleep_status),
        ..Fadt::new_zeroed()
    };
    sdt::table(*b"FACP", 6, fadt.as_bytes())
}
