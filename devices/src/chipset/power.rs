//! PIIX4's power management: the registers of ACPI's fixed hardware, the SMI command port, and an SMBus without a device.
//!
//! Source: Intel 82371AB (PIIX4) data sheet, chapter 7 and section 11.2; ACPI 1.0b, section 4.7. The general-purpose
//! events are at a place of their own, with two bytes of status and two of enable.

use std::sync::Arc;

use crate::bus::{IrqLine, Region, Registers, Timer, read_le};
use crate::pci::{Config, PciFunction};

/// Interrupt of the power management.
pub const SCI_IRQ: u8 = 9;

const PMBASE: usize = 0x40;
const PMREGMISC: usize = 0x80;
const PM_ENABLE: u8 = 1;
const SMBHSTBASE: usize = 0x90;
const SMBHSTCFG: usize = 0xd2;
const SMBUS_ENABLE: u8 = 1;

const PM_REGION: Region = 0;
const SMBUS_REGION: Region = 1;
const SMI_REGION: Region = 2;
const GPE_REGION: Region = 3;

/// Fixed ports: SMI command and status, general-purpose events: base, length, region.
pub const POWER_PORTS: [(u64, u64, Region); 2] = [(0xb2, 2, SMI_REGION), (0xafe0, 4, GPE_REGION)];

/// The timer's frequency in Hz, and its width.
const PM_TIMER_HZ: u128 = 3_579_545;
const PM_TIMER_MASK: u128 = 0xff_ffff;
const SECOND: u128 = 1_000_000_000;

// PM1 status and enable.
const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const RTC: u16 = 1 << 10;
const RESUME: u16 = 1 << 15;
const STATUS: u16 = TIMER | 1 << 4 | GLOBAL | POWER_BUTTON | RTC | RESUME;
const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;

// PM1 control.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;
const CONTROL: u16 = SCI_ENABLE | 1 << 1 | SLEEP_TYPE;
/// SLP_TYP of S5: soft off (data sheet, PMCNTRL).
const SOFT_OFF: u16 = 0;

/// Values of the SMI command port.
const ACPI_ENABLE: u8 = 0xf1;
const ACPI_DISABLE: u8 = 0xf0;

/// What switches the machine. It is called from within a device: it takes note, and does not call back.
pub trait PowerSwitch: Send + Sync {
    /// The processors' reset.
    fn reset(&self);
    /// Off.
    fn power_off(&self);
}

/// A block of registers whose place software decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerBlock {
    /// Power management, 64 ports.
    PowerManagement,
    /// SMBus, 16 ports.
    SmBus,
}

impl PowerBlock {
    /// Its ports, and the region that they are.
    pub fn ports(self) -> (u64, Region) {
        match self {
            Self::PowerManagement => (64, PM_REGION),
            Self::SmBus => (16, SMBUS_REGION),
        }
    }
}

/// What maps the blocks.
pub trait PowerPlaces: Send + Sync {
    /// `block` was at `old` and is at `new`.
    fn moved(&self, block: PowerBlock, old: Option<u16>, new: Option<u16>);
}

/// What the machine gives the function.
pub struct PowerConfig {
    /// The line of [`SCI_IRQ`].
    pub sci: Arc<dyn IrqLine>,
    /// Time, and the alarm for the PM timer's carry.
    pub timer: Arc<dyn Timer>,
    /// Switches the machine.
    pub switch: Arc<dyn PowerSwitch>,
    /// Maps the registers.
    pub places: Arc<dyn PowerPlaces>,
}

#[derive(Clone, Copy, Default)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    smi: [u8; 2],
    /// The half of the timer's period (its bit 23) that has been taken note of.
    half: u64,
}

/// The power management function.
pub struct Power {
    config: Config,
    board: PowerConfig,
    pm: Option<u16>,
    smbus: Option<u16>,
    state: State,
}

impl Power {
    /// After power on.
    pub fn new(board: PowerConfig) -> Self {
        let mut config =
            Config::new(0x8086, 0x7113, 0x06_80_00, 3).interrupt_pin(1).subsystem(0x1af4, 0x1100);
        config.set(6, &[0x80, 0x02]);
        config.set(PMBASE, &[1]);
        config.allow(PMBASE, &[0xc0, 0xff]);
        config.allow(PMREGMISC, &[PM_ENABLE]);
        config.set(SMBHSTBASE, &[1]);
        config.allow(SMBHSTBASE, &[0xf0, 0xff]);
        config.allow(SMBHSTCFG, &[0x0f]);
        // Device activity and resources: firmware tells by them which devices are there. Kept, without an effect.
        for at in (0x44..0x80).chain(0xd3..0xd6) {
            config.allow(at, &[0xff]);
        }
        // DEVACTB, APMC_EN: SMIs are set up already. There is no SMM here, and firmware would wait for it for ever.
        config.set(0x5b, &[2]);
        Self { config, board, pm: None, smbus: None, state: State::default() }
    }

    /// Somebody presses the power button.
    pub fn press_button(&mut self) {
        self.raise(POWER_BUTTON);
    }

    /// Sets bits of PM1's status, as other devices do (bit 10: the clock's alarm).
    fn raise(&mut self, status: u16) {
        self.state.status |= status;
        self.update();
    }

    /// Ticks of the timer, and how often its bit 23 has changed.
    fn ticks(&self) -> (u32, u64) {
        let ticks = u128::from(self.board.timer.now()) * PM_TIMER_HZ / SECOND;
        let low = u32::try_from(ticks & PM_TIMER_MASK).unwrap_or_default();
        (low, u64::try_from(ticks >> 23).unwrap_or(u64::MAX))
    }

    /// Takes note of changes of the timer's bit 23.
    fn advance(&mut self) {
        let half = self.ticks().1;
        if half != self.state.half {
            self.state.half = half;
            self.state.status |= TIMER;
        }
    }

    /// Sets the interrupt's level and the alarm.
    fn update(&mut self) {
        let State { status, enable, control, gpe_status, gpe_enable, .. } = self.state;
        let pending = status & enable & ENABLE != 0 || gpe_status & gpe_enable != 0;
        self.board.sci.set(pending && control & SCI_ENABLE != 0);
        // Only somebody who waits for the carry has us wake up for it.
        let wanted = enable & TIMER != 0 && status & TIMER == 0 && control & SCI_ENABLE != 0;
        let next = (u128::from(self.state.half) + 1) << 23;
        let at = (next * SECOND).div_ceil(PM_TIMER_HZ);
        self.board.timer.arm(u64::try_from(at).ok().filter(|_| wanted));
    }

    fn place(&mut self) {
        let enabled = |on: bool, at: u16| (on && at != 0).then_some(at);
        let pm = enabled(self.config.get(PMREGMISC) & PM_ENABLE != 0, self.config.u16(PMBASE) & 0xffc0);
        let smbus =
            enabled(self.config.get(SMBHSTCFG) & SMBUS_ENABLE != 0, self.config.u16(SMBHSTBASE) & 0xfff0);
        let (pm_before, smbus_before) = (self.pm, self.smbus);
        (self.pm, self.smbus) = (pm, smbus);
        if pm != pm_before {
            self.board.places.moved(PowerBlock::PowerManagement, pm_before, pm);
        }
        if smbus != smbus_before {
            self.board.places.moved(PowerBlock::SmBus, smbus_before, smbus);
        }
    }

    fn read_pm(&mut self, offset: u64, data: &mut [u8]) {
        self.advance();
        let State { status, enable, control, .. } = self.state;
        // The first twelve bytes: PM1 status, enable, control, timer. The others read as zeros.
        let registers = u128::from(status)
            | u128::from(enable) << 16
            | u128::from(control) << 32
            | u128::from(self.ticks().0) << 64;
        for (at, byte) in (offset..).zip(data) {
            let shift = u32::try_from(at * 8).unwrap_or(u32::MAX);
            *byte = (registers.checked_shr(shift).unwrap_or(0) & 0xff) as u8;
        }
    }

    fn write_pm(&mut self, offset: u64, data: &[u8]) {
        self.advance();
        for (at, byte) in (offset..).zip(data) {
            let (byte, high) = (u16::from(*byte), at & 1 != 0);
            let shift = if high { 8 } else { 0 };
            let state = &mut self.state;
            match at & !1 {
                // Ones clear.
                0 => state.status &= !(byte << shift & STATUS),
                2 => state.enable = state.enable & !(0xff << shift) | byte << shift & ENABLE,
                4 => {
                    state.control = state.control & !(0xff << shift) | byte << shift & CONTROL;
                    if high && byte << 8 & SLEEP_ENABLE != 0 {
                        self.sleep();
                    }
                }
                _ => {}
            }
        }
        self.update();
    }

    fn sleep(&mut self) {
        let kind = (self.state.control & SLEEP_TYPE) >> 10;
        if kind == SOFT_OFF {
            self.board.switch.power_off();
        } else {
            // No table of ours names another state.
            tracing::debug!(kind, "the guest asks for a sleeping state that there is not");
            self.state.status |= RESUME;
        }
    }

    fn write_gpe(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let value = u16::from(*byte) << (8 * (at & 1));
            let keep = !(0xff << (8 * (at & 1)));
            if at < 2 {
                self.state.gpe_status &= !value;
            } else {
                self.state.gpe_enable = self.state.gpe_enable & keep | value;
            }
        }
        self.update();
    }
}

impl Registers for Power {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            PM_REGION => self.read_pm(offset, data),
            SMI_REGION => read_le(u16::from_le_bytes(self.state.smi).into(), offset, data),
            GPE_REGION => {
                let both = u64::from(self.state.gpe_status) | u64::from(self.state.gpe_enable) << 16;
                read_le(both, offset, data);
            }
            // No transaction is under way, none was done.
            _ => data.fill(0),
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match region {
            PM_REGION => self.write_pm(offset, data),
            SMI_REGION => {
                let smi = self.state.smi.iter_mut().skip(usize::try_from(offset).unwrap_or(2));
                for (register, value) in smi.zip(data) {
                    *register = *value;
                }
                match (offset, data.first().copied()) {
                    (0, Some(ACPI_ENABLE)) => self.state.control |= SCI_ENABLE,
                    (0, Some(ACPI_DISABLE)) => self.state.control &= !SCI_ENABLE,
                    _ => {}
                }
                self.update();
            }
            GPE_REGION => self.write_gpe(offset, data),
            _ => {}
        }
    }

    fn expired(&mut self) {
        self.advance();
        self.update();
    }

    fn reset(&mut self) {
        self.config.reset();
        self.state = State { half: self.ticks().1, ..State::default() };
        self.place();
        self.update();
    }
}

impl PciFunction for Power {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.place();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;
    use crate::bus::value_le;

    type Move = (PowerBlock, Option<u16>, Option<u16>);

    #[derive(Default)]
    struct Board {
        now: Mutex<u64>,
        armed: Mutex<Option<u64>>,
        sci: Mutex<bool>,
        off: Mutex<u32>,
        moves: Mutex<Vec<Move>>,
    }

    impl IrqLine for Board {
        fn set(&self, high: bool) {
            *self.sci.lock().unwrap() = high;
        }
    }
    impl Timer for Board {
        fn now(&self) -> u64 {
            *self.now.lock().unwrap()
        }
        fn arm(&self, at: Option<u64>) {
            *self.armed.lock().unwrap() = at;
        }
    }
    impl PowerSwitch for Board {
        fn reset(&self) {}
        fn power_off(&self) {
            *self.off.lock().unwrap() += 1;
        }
    }
    impl PowerPlaces for Board {
        fn moved(&self, block: PowerBlock, old: Option<u16>, new: Option<u16>) {
            self.moves.lock().unwrap().push((block, old, new));
        }
    }

    fn power() -> (Arc<Board>, Power) {
        let board = Arc::new(Board::default());
        let config = PowerConfig {
            sci: Arc::clone(&board) as _,
            timer: Arc::clone(&board) as _,
            switch: Arc::clone(&board) as _,
            places: Arc::clone(&board) as _,
        };
        (board, Power::new(config))
    }

    fn get(power: &mut Power, region: Region, offset: u64, len: usize) -> u64 {
        let mut data = vec![0xff; len];
        power.read(region, offset, &mut data);
        value_le(&data)
    }

    fn put(power: &mut Power, region: Region, offset: u64, value: u16) {
        power.write(region, offset, &value.to_le_bytes());
    }

    #[test]
    fn software_places_the_registers() {
        let (board, mut power) = power();
        power.write_config(0x40, &0x0601u32.to_le_bytes());
        assert!(board.moves.lock().unwrap().is_empty());
        power.write_config(0x80, &[1]);
        power.write_config(0x90, &0x0701u32.to_le_bytes());
        power.write_config(0xd2, &[9]);
        power.write_config(0x41, &[0xb0]);
        power.reset();
        use PowerBlock::{PowerManagement, SmBus};
        let moves = [
            (PowerManagement, None, Some(0x600)),
            (SmBus, None, Some(0x700)),
            (PowerManagement, Some(0x600), Some(0xb000)),
            (PowerManagement, Some(0xb000), None),
            (SmBus, Some(0x700), None),
        ];
        assert_eq!(*board.moves.lock().unwrap(), moves);
    }

    #[test]
    fn the_button_interrupts_who_enabled_it() {
        let (board, mut power) = power();
        power.press_button();
        assert_eq!(get(&mut power, PM_REGION, 0, 2), 0x100);
        put(&mut power, PM_REGION, 2, 0xffff);
        assert_eq!(get(&mut power, PM_REGION, 2, 2), 0x521);
        assert!(!*board.sci.lock().unwrap(), "ACPI is not enabled yet");
        power.write(SMI_REGION, 0, &[0xf1]);
        assert_eq!((get(&mut power, PM_REGION, 4, 2), *board.sci.lock().unwrap()), (1, true));
        put(&mut power, PM_REGION, 0, 0x100);
        assert_eq!((get(&mut power, PM_REGION, 0, 2), *board.sci.lock().unwrap()), (0, false));
        power.press_button();
        power.write(SMI_REGION, 0, &[0xf0]);
        assert_eq!((get(&mut power, PM_REGION, 4, 2), *board.sci.lock().unwrap()), (0, false));
        assert_eq!(get(&mut power, SMI_REGION, 0, 1), 0xf0);
    }

    #[test]
    fn soft_off_needs_the_enable_bit() {
        let (board, mut power) = power();
        for (value, times) in [(0x0001, 0), (0x2001, 1), (0x3401, 1), (0x2001, 2)] {
            put(&mut power, PM_REGION, 4, value);
            assert_eq!(*board.off.lock().unwrap(), times, "{value:#x}");
        }
        // The enable bit reads as zero; in a single byte it works as well.
        assert_eq!(get(&mut power, PM_REGION, 4, 2), 1);
        power.write(PM_REGION, 5, &[0x20]);
        assert_eq!(*board.off.lock().unwrap(), 3);
    }

    #[test]
    fn the_timer_counts_24_bits_and_tells_each_carry() {
        let (board, mut power) = power();
        *board.now.lock().unwrap() = 1_000_000_000;
        assert_eq!(get(&mut power, PM_REGION, 8, 4), 3_579_545);
        assert_eq!(*board.armed.lock().unwrap(), None);
        put(&mut power, PM_REGION, 4, 1);
        put(&mut power, PM_REGION, 2, 1);
        // 2^23 ticks are 2.3435 s.
        let carry = board.armed.lock().unwrap().unwrap();
        assert_eq!(carry, (1u64 << 23) * 1_000_000_000 / 3_579_545 + 1);
        *board.now.lock().unwrap() = carry;
        power.expired();
        assert_eq!((*board.sci.lock().unwrap(), *board.armed.lock().unwrap()), (true, None));
        assert_eq!(get(&mut power, PM_REGION, 8, 4), 1 << 23);
        put(&mut power, PM_REGION, 0, 1);
        assert!(!*board.sci.lock().unwrap() && board.armed.lock().unwrap().unwrap() > carry);
        *board.now.lock().unwrap() = 3 * carry;
        assert!(get(&mut power, PM_REGION, 8, 4) < 1 << 24);
        assert_eq!(get(&mut power, PM_REGION, 0, 2), 1);
    }

    #[test]
    fn general_purpose_events_are_enabled_and_cleared() {
        let (board, mut power) = power();
        put(&mut power, GPE_REGION, 2, 0x1ff);
        assert_eq!(get(&mut power, GPE_REGION, 0, 4), 0x1ff_0000);
        power.state.gpe_status = 0x102;
        put(&mut power, PM_REGION, 4, 1);
        assert!(*board.sci.lock().unwrap());
        power.write(GPE_REGION, 0, &[0xff]);
        power.write(GPE_REGION, 1, &[0xff]);
        assert!(!*board.sci.lock().unwrap());
    }
}
