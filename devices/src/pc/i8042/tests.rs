use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use super::super::SECOND;
use super::super::manual::{ManualLine, ManualMachine, ManualTimer, inb, outb};
use super::*;

struct Bench {
    device: I8042,
    timer: Arc<ManualTimer>,
    keyboard: Arc<ManualLine>,
    mouse: Arc<ManualLine>,
    machine: Arc<ManualMachine>,
}

impl Bench {
    fn new() -> Self {
        let timer = Arc::new(ManualTimer::default());
        let (keyboard, mouse) = (Arc::new(ManualLine::default()), Arc::new(ManualLine::default()));
        let machine = Arc::new(ManualMachine::default());
        let device = I8042::new(
            Arc::clone(&keyboard) as _,
            Arc::clone(&mouse) as _,
            Arc::clone(&timer) as _,
            Arc::clone(&machine) as _,
        );
        Self { device, timer, keyboard, mouse, machine }
    }

    fn command(&mut self, command: u8) {
        outb(&mut self.device, COMMAND, 0, command);
    }

    fn data(&mut self, byte: u8) {
        outb(&mut self.device, DATA, 0, byte);
    }

    fn status(&mut self) -> u8 {
        inb(&mut self.device, COMMAND, 0)
    }

    fn read(&mut self) -> u8 {
        inb(&mut self.device, DATA, 0)
    }

    /// With this command byte.
    fn with(mut self, value: u8) -> Self {
        self.command(0x60);
        self.data(value);
        self
    }

    fn key(&mut self, code: u16, down: bool) {
        self.device.input(Input::Key { code, down });
    }

    /// All that comes within a tenth of a second, polled.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let end = self.timer.now() + SECOND / 10;
        while self.timer.now() < end {
            if self.status() & OUTPUT_FULL != 0 {
                bytes.push(self.read());
            }
            let next = self.timer.armed().unwrap_or(end).clamp(self.timer.now() + 1, end);
            self.timer.run(&mut self.device, next);
        }
        bytes
    }
}

#[test]
fn commands_of_the_controller_are_answered() {
    let mut bench = Bench::new();
    for (command, reply) in [
        (0xaa, 0x55),
        (0xa9, 0x00),
        (0xab, 0x00),
        (0x20, 0x44),
        (0xa4, 0xf1),
        (0xc0, 0xb0),
        (0xd0, 0xc3),
        (0xe0, 0x03),
    ] {
        bench.command(command);
        assert_eq!((bench.status() & !SYSTEM, bench.read()), (0x19, reply), "{command:#x}");
        assert_eq!((bench.status() & OUTPUT_FULL, bench.read()), (0, reply), "read twice");
    }
    assert_eq!(bench.status(), UNLOCKED | WAS_COMMAND | SYSTEM);
    for n in 1..32 {
        bench.command(0x60 + n);
        bench.data(0x5a ^ n);
        bench.command(0x20 + n);
        assert_eq!(bench.read(), 0x5a ^ n);
    }
    // The two interfaces are bits of the command byte.
    for (command, value) in [(0xad, 0x54), (0xa7, 0x74), (0xae, 0x64), (0xa8, 0x44)] {
        bench.command(command);
        bench.command(0x20);
        assert_eq!(bench.read(), value, "{command:#x}");
    }
    // A password is swallowed to its end.
    bench.command(0xa5);
    for byte in [0x1e, 0x30, 0] {
        bench.data(byte);
    }
    assert_eq!(bench.drain(), []);
    bench.data(0xee);
    assert_eq!(bench.drain(), [0xee]);
}

#[test]
fn the_output_port_resets_and_opens_the_gate() {
    let mut bench = Bench::new();
    for (writes, a20, resets) in [
        (&[(COMMAND, 0xd1), (DATA, 0xdd)][..], false, 0),
        (&[(COMMAND, 0xd1), (DATA, 0xdf)], true, 0),
        (&[(COMMAND, 0xdd)], false, 0),
        (&[(COMMAND, 0xdf)], true, 0),
        (&[(COMMAND, 0xff)], true, 0),
        (&[(COMMAND, 0xfe)], true, 1),
        (&[(COMMAND, 0xf0)], true, 2),
        (&[(COMMAND, 0xd1), (DATA, 0x02)], true, 3),
    ] {
        for (region, byte) in writes {
            outb(&mut bench.device, *region, 0, *byte);
        }
        assert_eq!(bench.machine.resets.load(SeqCst), resets, "{writes:x?}");
        assert_eq!(bench.machine.a20.load(SeqCst), a20, "{writes:x?}");
        bench.command(0xd0);
        assert_eq!(bench.read() & PORT_A20 != 0, a20);
    }
}

#[test]
fn keys_reach_the_guest_translated_with_an_interrupt_each() {
    let mut bench = Bench::new().with(0x45);
    bench.key(0xe048, true);
    bench.key(0xe048, false);
    let mut codes = Vec::new();
    while let Some(at) = bench.timer.armed().or(bench.keyboard.is_high().then_some(0)) {
        bench.timer.run(&mut bench.device, at);
        if bench.keyboard.is_high() {
            assert_eq!((bench.keyboard.rises(), bench.timer.armed()), (1, None));
            codes.push(bench.read());
            assert_eq!((bench.keyboard.is_high(), bench.read()), (false, codes[codes.len() - 1]));
        }
    }
    assert_eq!(codes, [0xe0, 0x48, 0xe0, 0xc8]);
    assert_eq!(bench.mouse.rises(), 0);
}

#[test]
fn translation_is_a_switch() {
    for (value, codes, id) in
        [(0x40, &[0x1e, 0x9e][..], &[0xfa, 0xab, 0x41][..]), (0x00, &[0x1c, 0xf0, 0x1c], &[0xfa, 0xab, 0x83])]
    {
        let mut bench = Bench::new().with(value);
        bench.key(0x1e, true);
        bench.key(0x1e, false);
        assert_eq!(bench.drain(), codes);
        bench.data(0xf2);
        assert_eq!(bench.drain(), id);
        assert_eq!(bench.keyboard.rises(), 0, "its interrupt is off");
    }
}

#[test]
fn a_disabled_keyboard_keeps_its_codes_until_it_is_heard_again() {
    for again in [(COMMAND, 0xae), (DATA, 0xed)] {
        let mut bench = Bench::new().with(0x41);
        bench.command(0xad);
        bench.key(0x1e, true);
        assert_eq!((bench.status() & OUTPUT_FULL, bench.timer.armed()), (0, None));
        outb(&mut bench.device, again.0, 0, again.1);
        let expected: &[u8] = if again.0 == DATA { &[0xfa, 0x1e] } else { &[0x1e] };
        assert_eq!(bench.drain(), expected);
    }
}

#[test]
fn the_mouse_speaks_by_its_own_interrupt() {
    let mut bench = Bench::new().with(0x47);
    for byte in [0xff, 0xf4] {
        bench.command(0xd4);
        bench.data(byte);
        assert_eq!(bench.status() & (OUTPUT_FULL | OUTPUT_AUX), OUTPUT_FULL | OUTPUT_AUX);
        bench.drain();
    }
    assert_eq!(bench.mouse.rises(), 4);
    bench.device.input(Input::Relative { dx: 5, dy: -3, dz: 0, buttons: 1 });
    assert_eq!(bench.drain(), [0x09, 5, 3]);
    assert_eq!((bench.mouse.rises(), bench.keyboard.rises()), (3, 0));
    bench.device.input(Input::Absolute { x: 1, y: 1, buttons: 7 });
    assert_eq!(bench.drain(), []);
    // The loop that drivers test the second port by.
    bench.command(0xd3);
    bench.data(0xf0);
    assert_eq!((bench.status() & 0x21, bench.read(), bench.mouse.rises()), (0x21, 0xf0, 1));
    bench.command(0xd2);
    bench.data(0x5a);
    assert_eq!((bench.status() & 0x21, bench.read(), bench.keyboard.rises()), (0x01, 0x5a, 1));
    // Ports are independent: the mouse is heard while the keyboard is not.
    bench.command(0xad);
    bench.key(0x1e, true);
    bench.device.input(Input::Relative { dx: 1, dy: 0, dz: 0, buttons: 0 });
    assert_eq!(bench.drain(), [0x08, 1, 0]);
}

#[test]
fn a_held_key_wakes_only_while_the_guest_takes_codes() {
    let mut bench = Bench::new().with(0x41);
    bench.key(0x1e, true);
    assert_eq!(bench.timer.run(&mut bench.device, 10 * SECOND), 0);
    bench.read();
    let (mut codes, end) = (0, bench.timer.now() + SECOND);
    while let Some(at) = bench.timer.armed().filter(|at| *at <= end) {
        bench.timer.run(&mut bench.device, at);
        codes += bench.keyboard.rises();
        bench.read();
    }
    // The rate is 10.9 a second; the delay has passed long ago.
    assert!((9..=12).contains(&codes), "{codes}");
    bench.key(0x1e, false);
    assert_eq!(bench.drain(), [0x9e]);
    assert_eq!(bench.timer.armed(), None);
}

#[test]
fn viewers_reach_it_from_their_threads_and_see_the_lights() {
    let bench = Bench::new().with(0x41);
    let keyboard = Arc::clone(&bench.keyboard);
    let shared = Arc::new(Mutex::new(bench.device));
    let sink: Arc<dyn InputSink> = Arc::new(Ps2Input(Arc::clone(&shared)));
    let viewer = Arc::clone(&sink);
    std::thread::spawn(move || viewer.input(Input::Key { code: 0x10, down: true })).join().unwrap();
    assert_eq!((keyboard.rises(), inb(&mut *shared.lock().unwrap(), DATA, 0)), (1, 0x10));
    for byte in [0xed, 0x04] {
        outb(&mut *shared.lock().unwrap(), DATA, 0, byte);
    }
    assert_eq!((sink.leds(), sink.is_absolute()), (4, false));
    shared.lock().unwrap().reset();
    assert_eq!((sink.leds(), keyboard.is_high()), (0, false));
}
