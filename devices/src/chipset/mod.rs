//! The chip set of the PC: i440FX host bridge, PIIX3 ISA bridge, PIIX4 power management, and what firmware asks of the
//! machine (fw_cfg, debug ports).
//!
//! | device | place |
//! |---|---|
//! | [`HostBridge`] | PCI 0.0 |
//! | [`IsaBridge`] | PCI 1.0; port 0xcf9 |
//! | [`Power`] | PCI 1.3; ports 0xb2, 0xb3, 0xafe0 to 0xafe3, and those that software gives it |
//! | [`FwCfg`] | ports 0x510 to 0x51b |
//! | [`DebugPort`] | ports 0x402 and 0xe9 |

mod debug_port;
mod fw_cfg;
mod host_bridge;
mod interrupts;
mod isa_bridge;
mod power;

pub use debug_port::{DEBUG_PORTS, DebugPort, LineSink, XEN_DEBUG_PORT};
pub use fw_cfg::{FW_CFG_PORTS, FwCfg, FwCfgError};
pub use host_bridge::{HostBridge, SEGMENTS, Shadow, ShadowMode, segment};
pub use interrupts::InterruptRouter;
pub use isa_bridge::{IsaBridge, RESET_PORTS};
pub use power::{POWER_PORTS, Power, PowerBlock, PowerConfig, PowerPlaces, PowerSwitch, SCI_IRQ};

/// The device of bus 0 that the PIIX is.
pub const PIIX_DEVICE: u8 = 1;
/// Its function that manages power.
pub const POWER_FUNCTION: u8 = 3;
