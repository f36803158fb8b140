//! The event timer on the board.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use devices::bus::{IrqLine, Shared};
use devices::chipset::InterruptRouter;
use devices::pc::hpet::{HPET_BASE, HPET_LEN, Hpet, HpetLines};
use devices::pc::rtc::RTC_IRQ;
use kvm_bindings::KVM_PIT_FLAGS_HPET_LEGACY;
use kvm_ioctls::VmFd;

use super::super::{Machine, MachineError};
use super::board::{Input, failed};
use super::mapper::Mapper;
use super::timers::Timers;

/// ISA interrupt of the interval timer.
const PIT_IRQ: u8 = 0;
/// Inputs of the I/O APIC that no other device has.
const FREE_INPUTS: std::ops::Range<u8> = 20..24;

/// A line that can be cut.
pub(super) struct Gate {
    line: Arc<dyn IrqLine>,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    high: bool,
    cut: bool,
}

impl Gate {
    pub(super) fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, state: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state);
        self.line.set(state.high && !state.cut);
    }

    fn cut(&self, cut: bool) {
        self.change(|state| state.cut = cut);
    }
}

impl IrqLine for Gate {
    fn set(&self, high: bool) {
        self.change(|state| state.high = high);
    }
}

/// With legacy replacement, KVM's interval timer does not interrupt.
fn replace_pit(vm: &VmFd, on: bool) {
    let switched = vm.get_pit2().and_then(|mut pit| {
        let flag = KVM_PIT_FLAGS_HPET_LEGACY;
        pit.flags = if on { pit.flags | flag } else { pit.flags & !flag };
        vm.set_pit2(&pit)
    });
    if let Err(error) = switched {
        tracing::debug!(%error, on, "KVM does not switch the interval timer");
    }
}

/// Makes the event timer. While it replaces interval timer and clock, `clock` is cut.
pub(super) fn build(
    machine: &Machine,
    mapper: &Mapper,
    router: &Arc<InterruptRouter>,
    clock: Arc<Gate>,
    timers: &mut Timers,
) -> Result<(), MachineError> {
    let vm = Arc::clone(&machine.vm);
    let replaced = AtomicBool::new(false);
    let lines = HpetLines {
        routes: FREE_INPUTS
            .map(|irq| {
                let input = Input { vm: Arc::clone(&machine.vm), irq: irq.into() };
                (irq, Arc::new(input) as Arc<dyn IrqLine>)
            })
            .collect(),
        legacy: [router.isa(PIT_IRQ), router.isa(RTC_IRQ)],
        replace: Box::new(move |on| {
            if replaced.swap(on, SeqCst) != on {
                replace_pit(&vm, on);
                clock.cut(on);
            }
        }),
    };
    let device: Shared = Arc::new(Mutex::new(Hpet::new(timers.clock().map_err(failed)?, lines)));
    timers.belongs_to(&device);
    mapper.memory.map(HPET_BASE, HPET_LEN, &device, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Wire(AtomicBool);

    impl IrqLine for Wire {
        fn set(&self, high: bool) {
            self.0.store(high, SeqCst);
        }
    }

    #[test]
    fn a_gate_remembers_the_level_behind_it() {
        let wire = Arc::new(Wire(AtomicBool::new(false)));
        let gate = Gate::new(Arc::clone(&wire) as _);
        let level = |gate: &Gate, f: &dyn Fn(&Gate)| {
            f(gate);
            wire.0.load(SeqCst)
        };
        assert!(level(&gate, &|gate| gate.set(true)));
        assert!(!level(&gate, &|gate| gate.cut(true)));
        assert!(!level(&gate, &|gate| gate.set(true)));
        assert!(level(&gate, &|gate| gate.cut(false)));
        assert!(!level(&gate, &|gate| gate.set(false)));
    }
}
