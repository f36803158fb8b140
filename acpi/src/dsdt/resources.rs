//! Resource descriptors that acpi_tables lacks (ACPI 1.0b, 6.4; the same in 6.4).

use acpi_tables::{Aml, AmlSink};

/// Small descriptor: an ISA interrupt (0 to 15), edge triggered, active high, not shared.
pub(super) struct Irq(pub(super) u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(4 << 3 | 2);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

/// Small descriptor: the DMA controller's cascade, channel 4, which is a bus master with words.
pub(super) struct DmaCascade;

impl Aml for DmaCascade {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const BUS_MASTER: u8 = 1 << 2;
        const WORDS: u8 = 2;
        sink.vec(&[5 << 3 | 2, 1 << 4, BUS_MASTER | WORDS]);
    }
}

/// Extended interrupt descriptor: one of these, consumed, level triggered, active high, shared. The short one of
/// ACPI 1.0b could not tell active high and level triggered.
pub(super) struct Interrupts<'a>(pub(super) &'a [u32]);

/// Offset of the first interrupt in a resource template that begins with [`Interrupts`].
pub(super) const FIRST_INTERRUPT: u8 = 5;

impl Aml for Interrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const CONSUMER: u8 = 1 << 0;
        const SHARED: u8 = 1 << 3;
        let count = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        sink.byte(0x89);
        sink.word(2 + 4 * u16::from(count));
        sink.vec(&[CONSUMER | SHARED, count]);
        for irq in self.0.iter().take(count.into()) {
            sink.dword(*irq);
        }
    }
}
