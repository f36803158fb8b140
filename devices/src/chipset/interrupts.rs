//! From the devices' interrupt lines to the inputs of the interrupt controllers.
//!
//! ISA devices have an input of their own. The PCI pins are wired to four lines, PIRQA to PIRQD, which the PIIX3 routes
//! to ISA inputs. An input is high while one of the lines that lead to it is (Intel 82371SB data sheet, "PIRQx route
//! control"); a PCI input and an ISA device on the same input share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PIIX_DEVICE;
use super::power::SCI_IRQ;
use crate::bus::IrqLine;

/// Inputs of the two interrupt controllers.
const INPUTS: usize = 16;
const PIRQS: usize = 4;

#[derive(Default)]
struct State {
    /// How many ISA lines are high, by input.
    isa: [u32; INPUTS],
    /// How many PCI lines are high, by PIRQ.
    pirq: [u32; PIRQS],
    /// The input that each PIRQ is routed to.
    routes: [Option<u8>; PIRQS],
    levels: [bool; INPUTS],
}

/// Who knows all lines.
pub struct InterruptRouter {
    inputs: Vec<Arc<dyn IrqLine>>,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum Wire {
    Isa(usize),
    Pirq(usize),
}

struct Line {
    router: Arc<InterruptRouter>,
    wire: Wire,
    high: Mutex<bool>,
}

impl InterruptRouter {
    /// `input(n)` is input `n` of the controllers, 0 to 15. No PIRQ is routed.
    pub fn new(input: impl FnMut(u8) -> Arc<dyn IrqLine>) -> Arc<Self> {
        let inputs = (0..).take(INPUTS).map(input).collect();
        Arc::new(Self { inputs, state: Mutex::default() })
    }

    /// A line of an ISA device to input `irq`, 0 to 15.
    pub fn isa(self: &Arc<Self>, irq: u8) -> Arc<dyn IrqLine> {
        self.line(Wire::Isa(usize::from(irq) % INPUTS))
    }

    /// The line of pin `pin` (0 to 3: INTA# to INTD#) of PCI device `device`. The pins of neighbouring devices are on
    /// different PIRQs; INTA# of the PIIX is the power management's, and not routed but fixed.
    pub fn pci(self: &Arc<Self>, device: u8, pin: u8) -> Arc<dyn IrqLine> {
        if (device, pin) == (PIIX_DEVICE, 0) {
            return self.isa(SCI_IRQ);
        }
        self.line(Wire::Pirq(pirq_of(device, pin)))
    }

    /// The input that the pin of a PCI device leads to now, with the numbers of [`InterruptRouter::pci`].
    pub fn input_of(&self, device: u8, pin: u8) -> Option<u8> {
        if (device, pin) == (PIIX_DEVICE, 0) {
            return Some(SCI_IRQ);
        }
        *self.lock().routes.get(pirq_of(device, pin))?
    }

    fn line(self: &Arc<Self>, wire: Wire) -> Arc<dyn IrqLine> {
        Arc::new(Line { router: Arc::clone(self), wire, high: Mutex::new(false) })
    }

    /// Routes PIRQ `pirq` (0 to 3) to an input, or to none.
    pub fn route(&self, pirq: usize, input: Option<u8>) {
        let mut state = self.lock();
        if let Some(route) = state.routes.get_mut(pirq) {
            *route = input.filter(|input| usize::from(*input) < INPUTS);
        }
        self.update(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, wire: Wire, high: bool) {
        let mut state = self.lock();
        let count = match wire {
            Wire::Isa(input) => state.isa.get_mut(input),
            Wire::Pirq(pirq) => state.pirq.get_mut(pirq),
        };
        if let Some(count) = count {
            *count = if high { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
        self.update(&mut state);
    }

    fn update(&self, state: &mut State) {
        let mut levels = state.isa.map(|count| count > 0);
        for (route, count) in state.routes.iter().zip(state.pirq) {
            if let Some(level) = route.and_then(|input| levels.get_mut(usize::from(input))) {
                *level |= count > 0;
            }
        }
        for ((input, before), now) in self.inputs.iter().zip(&mut state.levels).zip(levels) {
            if *before != now {
                *before = now;
                input.set(now);
            }
        }
    }
}

/// The PIRQ that a pin is wired to.
fn pirq_of(device: u8, pin: u8) -> usize {
    (usize::from(device) + usize::from(pin) + PIRQS - 1) % PIRQS
}

impl Drop for Line {
    /// A device that is gone does not interrupt.
    fn drop(&mut self) {
        self.set(false);
    }
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        let mut before = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != high {
            *before = high;
            self.router.change(self.wire, high);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    type Log = Arc<Mutex<Vec<(u8, bool)>>>;
    struct Input(u8, Log);

    impl IrqLine for Input {
        fn set(&self, high: bool) {
            self.1.lock().unwrap().push((self.0, high));
        }
    }

    fn router() -> (Arc<InterruptRouter>, Log) {
        let log = Log::default();
        let to = Arc::clone(&log);
        (InterruptRouter::new(move |irq| Arc::new(Input(irq, Arc::clone(&to)))), log)
    }

    fn taken(log: &Log) -> Vec<(u8, bool)> {
        std::mem::take(&mut log.lock().unwrap())
    }

    #[test]
    fn lines_that_share_an_input_are_ored() {
        let (router, log) = router();
        router.route(1, Some(11));
        router.route(2, Some(11));
        // Device 2 INTA# is PIRQB, device 3 INTA# is PIRQC.
        let lines = [router.pci(2, 0), router.pci(3, 0), router.isa(11)];
        lines[0].set(true);
        lines[0].set(true);
        lines[1].set(true);
        lines[2].set(true);
        lines[0].set(false);
        lines[1].set(false);
        assert_eq!(taken(&log), [(11, true)]);
        lines[2].set(false);
        assert_eq!(taken(&log), [(11, false)]);
    }

    #[test]
    fn a_pirq_takes_its_level_along() {
        let (router, log) = router();
        let line = router.pci(4, 3);
        line.set(true);
        assert_eq!((taken(&log), router.input_of(4, 3)), (vec![], None));
        router.route(2, Some(5));
        assert_eq!(
            (router.input_of(4, 3), router.input_of(1, 0), router.input_of(3, 1)),
            (Some(5), Some(9), None)
        );
        assert_eq!(taken(&log), [(5, true)]);
        router.route(2, Some(10));
        assert_eq!(taken(&log), [(5, false), (10, true)]);
        router.route(2, Some(16));
        assert_eq!(taken(&log), [(10, false)]);
        router.route(4, Some(3));
        assert_eq!(taken(&log), []);
    }

    #[test]
    fn a_line_whose_device_is_gone_is_low() {
        let (router, log) = router();
        let line = router.isa(7);
        line.set(true);
        drop(line);
        assert_eq!(taken(&log), [(7, true), (7, false)]);
    }

    #[test]
    fn the_sci_is_not_routed() {
        let (router, log) = router();
        let line = router.pci(1, 0);
        line.set(true);
        assert_eq!(taken(&log), [(9, true)]);
    }
}
