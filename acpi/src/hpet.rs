//! HPET: where the event timer is (IA-PC HPET specification 1.0a, 3.2.4).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::fadt::GenericAddress;
use crate::sdt;

/// Where the registers are, and how many bytes.
pub const HPET_ADDRESS: u32 = 0xfed0_0000;
pub(crate) const HPET_LEN: u32 = 0x400;

/// The shortest period, in ticks, that loses no interrupts.
const MIN_TICKS: U16 = U16::new(128);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Hpet {
    event_timer_block_id: U32,
    base_address: GenericAddress,
    number: u8,
    min_clock_tick: U16,
    page_protection: u8,
}
const _: () = assert!(size_of::<Hpet>() == 56 - 36);

/// `block_id`: the low 32 bits of the capabilities register.
pub(crate) fn hpet(block_id: u32) -> Vec<u8> {
    let hpet = Hpet {
        event_timer_block_id: U32::new(block_id),
        base_address: GenericAddress::memory(U64::new(HPET_ADDRESS.into())),
        number: 0,
        min_clock_tick: MIN_TICKS,
        page_protection: 0,
    };
    sdt::table(*b"HPET", 1, sdt::HVM, hpet.as_bytes())
}
