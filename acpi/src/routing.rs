//! How interrupts are wired: one place for MADT, DSDT, MP table and $PIR.
//!
//! The PIIX3 routes its four PIRQ inputs to ISA interrupts (registers 0x60 to 0x63 of its PCI function 0), in APIC
//! mode as well: the pins of the I/O APIC are the ISA interrupts, but for the timer's. Source: Intel 82371SB data
//! sheet, "PIRQx route control"; Intel 82371AB, "SCI".

use crate::AcpiError;

/// The device that holds the PIIX3 and the PIIX4's power management function.
pub const ISA_BRIDGE_DEVICE: u8 = 1;
/// Device and function of the PIIX3's ISA bridge, as in configuration addresses.
pub(crate) const ISA_BRIDGE_DEVFN: u8 = ISA_BRIDGE_DEVICE << 3;

/// The ISA interrupts that PIRQA to PIRQD begin with: SeaBIOS programs these.
pub const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];
/// Those that they may be set to.
pub(crate) const LINK_IRQS: [u32; 3] = [5, 10, 11];

/// Interrupt of the power management function.
pub const SCI_IRQ: u8 = 9;
/// PIT.
const TIMER_IRQ: u8 = 0;
/// The second PIC.
const CASCADE_IRQ: u8 = 2;
/// Pin of the I/O APIC that the PIT is wired to.
const TIMER_PIN: u8 = 2;

/// Interrupts whose line is active high and level triggered: PCI's and the SCI.
pub(crate) const LEVEL_IRQS: [u8; 4] = [5, 9, 10, 11];
/// Flags of such a line in MADT and MP table: polarity 1 (active high), trigger mode 3 (level).
pub(crate) const ACTIVE_HIGH_LEVEL: u16 = 1 | 3 << 2;

/// Where every local APIC and the I/O APIC are mapped after reset.
pub(crate) const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
pub(crate) const IO_APIC_ADDRESS: u32 = 0xfec0_0000;

/// Devices of bus 0, and pins of each.
pub(crate) const PCI_DEVICES: u8 = 32;
pub(crate) const PCI_PINS: u8 = 4;

/// An interrupt pin of a PCI function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciPin {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
    /// 0 to 3: INTA# to INTD#.
    pub pin: u8,
}

/// What a pin is wired to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// PIRQA to PIRQD (0 to 3).
    Pirq(u8),
    /// [`SCI_IRQ`], which no register changes.
    Sci,
}

impl PciPin {
    /// Neighbouring devices have their pins on different PIRQs: pin INTA# of device 1 would be PIRQA, of device 2
    /// PIRQB. INTA# of [`ISA_BRIDGE_DEVICE`] is the power management function's.
    pub fn route(&self) -> Route {
        if self.device == ISA_BRIDGE_DEVICE && self.pin == 0 {
            Route::Sci
        } else {
            Route::Pirq(self.device.wrapping_add(self.pin).wrapping_sub(1) % 4)
        }
    }

    pub(crate) fn check(&self) -> Result<(), AcpiError> {
        let Self { device, function, pin } = *self;
        if device < PCI_DEVICES && function < 8 && pin < PCI_PINS {
            Ok(())
        } else {
            Err(AcpiError::PciPin { device, function, pin })
        }
    }
}

impl Route {
    /// The ISA interrupt after SeaBIOS has run.
    pub fn irq(self) -> u8 {
        match self {
            Self::Pirq(pirq) => PIRQ_IRQS.into_iter().nth(pirq.into()).unwrap_or(SCI_IRQ),
            Self::Sci => SCI_IRQ,
        }
    }
}

/// The I/O APIC's pin of an ISA interrupt; none for the cascade.
pub(crate) fn io_apic_pin(irq: u8) -> Option<u8> {
    match irq {
        TIMER_IRQ => Some(TIMER_PIN),
        CASCADE_IRQ => None,
        irq => Some(irq),
    }
}
