//! FADT: what kind of machine it is, and how it is switched off and reset (ACPI 6.4, 5.2.9 and 4.8.3.7; ACPI 1.0b,
//! 5.2.5).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::routing::SCI_IRQ;
use crate::{PmPorts, sdt};

/// IA-PC boot architecture flags.
const LEGACY_DEVICES: u16 = 1 << 0;
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Fixed feature flags.
const WBINVD: u32 = 1 << 0;
/// All processors can halt.
const PROC_C1: u32 = 1 << 2;
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

/// What a guest writes to [`SMI_COMMAND_PORT`] to take over power management, and to give it back: the board sets
/// and clears SCI_EN (bit 0 of PM1a control).
///
/// The port is named although SCI_EN could simply be set from the start: that path is the one which ACPI 1.0b
/// describes (5.2.5: the operating system writes ACPI_ENABLE and waits for SCI_EN) and which Windows XP met on the
/// machines of its time, and an SCI cannot come before the guest has a handler for it. Linux takes either.
pub const ACPI_ENABLE: u8 = 0xf1;
/// See [`ACPI_ENABLE`].
pub const ACPI_DISABLE: u8 = 0xf0;
/// PIIX4's advanced power management control port.
pub const SMI_COMMAND_PORT: u16 = 0xb2;

/// PIIX3's reset control register, and the value for a hard reset (Intel 82371SB, "RC": bit 2 starts, bit 1 hard).
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// See [`RESET_CONTROL_PORT`].
pub const RESET_CONTROL_VALUE: u8 = 6;

/// SLP_TYP of \\_S5 in PIIX4's PM1a control: "soft off".
pub const PIIX4_SLEEP_TYPE_S5: u8 = 0;

/// Where the RTC keeps the century, in CMOS.
pub const CMOS_CENTURY: u8 = 0x32;

/// More than the specification allows for C2 (100 µs) and C3 (1000 µs): there are none.
const NO_C2_C3: U16 = U16::new(0xfff);

/// Desktop.
const PM_PROFILE: u8 = 1;

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
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct GenericAddress {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: U64,
}

impl GenericAddress {
    /// Access sizes: 1 byte, 2 word, 3 double word.
    fn io(port: u16, bit_width: u8, access_size: u8) -> Self {
        Self { space: 1, bit_width, bit_offset: 0, access_size, address: U64::new(u64::from(port)) }
    }

    fn io_byte(port: u16) -> Self {
        Self::io(port, 8, 1)
    }

    /// Registers in memory, of whatever width.
    pub(crate) fn memory(address: U64) -> Self {
        Self { space: 0, bit_width: 0, bit_offset: 0, access_size: 0, address }
    }
}

/// SMI_CMD to CENTURY, at 48 of the table since ACPI 1.0.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct FixedHardware {
    smi_cmd: U32,
    acpi_enable: u8,
    acpi_disable: u8,
    s4bios_req: u8,
    pstate_cnt: u8,
    pm1a_evt_blk: U32,
    pm1b_evt_blk: U32,
    pm1a_cnt_blk: U32,
    pm1b_cnt_blk: U32,
    pm2_cnt_blk: U32,
    pm_tmr_blk: U32,
    gpe0_blk: U32,
    gpe1_blk: U32,
    pm1_evt_len: u8,
    pm1_cnt_len: u8,
    pm2_cnt_len: u8,
    pm_tmr_len: u8,
    gpe0_blk_len: u8,
    gpe1_blk_len: u8,
    gpe1_base: u8,
    cst_cnt: u8,
    p_lvl2_lat: U16,
    p_lvl3_lat: U16,
    flush_size: U16,
    flush_stride: U16,
    duty_offset: u8,
    duty_width: u8,
    day_alrm: u8,
    mon_alrm: u8,
    century: u8,
}
const _: () = assert!(size_of::<FixedHardware>() == 109 - 48);
const _: () = assert!(std::mem::offset_of!(FixedHardware, pm1_evt_len) == 88 - 48);
const _: () = assert!(std::mem::offset_of!(FixedHardware, p_lvl2_lat) == 96 - 48);

impl FixedHardware {
    fn piix4(ports: &PmPorts) -> Self {
        let port = |port: u16| U32::new(port.into());
        Self {
            smi_cmd: port(SMI_COMMAND_PORT),
            acpi_enable: ACPI_ENABLE,
            acpi_disable: ACPI_DISABLE,
            pm1a_evt_blk: port(ports.pm1a_event()),
            pm1a_cnt_blk: port(ports.pm1a_control()),
            pm_tmr_blk: port(ports.timer()),
            gpe0_blk: port(ports.gpe0),
            pm1_evt_len: 4,
            pm1_cnt_len: 2,
            pm_tmr_len: 4,
            gpe0_blk_len: 4,
            p_lvl2_lat: NO_C2_C3,
            p_lvl3_lat: NO_C2_C3,
            century: CMOS_CENTURY,
            ..Self::new_zeroed()
        }
    }
}

/// The same as generic addresses, at 148 of the table since ACPI 2.0.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct FixedHardwareX {
    pm1a_evt_blk: GenericAddress,
    pm1b_evt_blk: GenericAddress,
    pm1a_cnt_blk: GenericAddress,
    pm1b_cnt_blk: GenericAddress,
    pm2_cnt_blk: GenericAddress,
    pm_tmr_blk: GenericAddress,
    gpe0_blk: GenericAddress,
    gpe1_blk: GenericAddress,
}
const _: () = assert!(size_of::<FixedHardwareX>() == 244 - 148);

/// ACPI 1.0's FADT behind its header.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct FadtV1 {
    firmware_ctrl: U32,
    dsdt: U32,
    int_model: u8,
    reserved_45: u8,
    sci_int: U16,
    fixed_hardware: FixedHardware,
    reserved_109: [u8; 3],
    flags: U32,
}
const _: () = assert!(size_of::<FadtV1>() == 116 - 36);

/// Offsets of the pointers in the whole table.
pub(crate) const FIRMWARE_CTRL: usize = sdt::BODY + std::mem::offset_of!(Fadt, firmware_ctrl);
pub(crate) const DSDT: usize = sdt::BODY + std::mem::offset_of!(Fadt, dsdt);
pub(crate) const X_DSDT: usize = sdt::BODY + std::mem::offset_of!(Fadt, x_dsdt);
const _: () = assert!(FIRMWARE_CTRL == 36 && DSDT == 40 && X_DSDT == 140);

/// The FADT behind its header. A hardware-reduced platform leaves the blocks of fixed hardware zero.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Fadt {
    firmware_ctrl: U32,
    dsdt: U32,
    reserved_44: u8,
    preferred_pm_profile: u8,
    sci_int: U16,
    fixed_hardware: FixedHardware,
    iapc_boot_arch: U16,
    reserved_111: u8,
    flags: U32,
    reset_reg: GenericAddress,
    reset_value: u8,
    arm_boot_arch: U16,
    minor_version: u8,
    x_firmware_ctrl: U64,
    x_dsdt: U64,
    x_fixed_hardware: FixedHardwareX,
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
    sdt::table(*b"FACP", 6, sdt::PVH, fadt.as_bytes())
}

/// An HVM guest's FADT, revision 1, for tables at `facs` and `dsdt`: what is not in PIIX4 or not made use of (sleep
/// button, C2, C3, wake from S4) is denied.
pub(crate) fn xp(ports: &PmPorts, apic: bool, facs: u32, dsdt: u32) -> Vec<u8> {
    let fadt = FadtV1 {
        firmware_ctrl: U32::new(facs),
        dsdt: U32::new(dsdt),
        // 0: two PICs only, 1: APICs as well.
        int_model: apic.into(),
        sci_int: U16::new(SCI_IRQ.into()),
        fixed_hardware: FixedHardware::piix4(ports),
        flags: U32::new(WBINVD | PROC_C1 | SLP_BUTTON),
        ..FadtV1::new_zeroed()
    };
    sdt::table(*b"FACP", 1, sdt::HVM, fadt.as_bytes())
}

/// An HVM guest's FADT, revision 6.4: the same hardware, and the reset register.
pub(crate) fn modern(ports: &PmPorts, facs: u32, dsdt: u32) -> Vec<u8> {
    let fadt = Fadt {
        firmware_ctrl: U32::new(facs),
        dsdt: U32::new(dsdt),
        preferred_pm_profile: PM_PROFILE,
        sci_int: U16::new(SCI_IRQ.into()),
        fixed_hardware: FixedHardware::piix4(ports),
        iapc_boot_arch: U16::new(LEGACY_DEVICES | KEYBOARD_CONTROLLER),
        flags: U32::new(WBINVD | PROC_C1 | SLP_BUTTON | RESET_REG_SUP),
        reset_reg: GenericAddress::io_byte(RESET_CONTROL_PORT),
        reset_value: RESET_CONTROL_VALUE,
        minor_version: 4,
        x_dsdt: U64::new(dsdt.into()),
        x_fixed_hardware: FixedHardwareX {
            pm1a_evt_blk: GenericAddress::io(ports.pm1a_event(), 32, 2),
            pm1a_cnt_blk: GenericAddress::io(ports.pm1a_control(), 16, 2),
            pm_tmr_blk: GenericAddress::io(ports.timer(), 32, 3),
            gpe0_blk: GenericAddress::io(ports.gpe0, 32, 1),
            ..FixedHardwareX::new_zeroed()
        },
        ..Fadt::new_zeroed()
    };
    sdt::table(*b"FACP", 6, sdt::HVM, fadt.as_bytes())
}
