//! PCI: functions with a configuration space, and the bus that they are on.
//!
//! Source: PCI Local Bus Specification 2.1, sections 3.2.2.3.2 (configuration mechanism 1) and 6.

mod bus;
mod config;

pub use bus::{BarMapper, PciBus, PciFunction};
pub use config::{Bar, BarKind, Config, INTERRUPT_LINE, INTERRUPT_PIN};
