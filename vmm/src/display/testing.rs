//! Devices for tests: a screen that is painted by the test, and a keyboard that notes what comes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::display::{Damage, Frame, Input, InputSink, Screen};

/// A screen of which clones are the same screen.
#[derive(Clone, Debug)]
pub struct TestScreen {
    frame: Arc<Mutex<(Frame, Vec<usize>)>>,
    looks: Arc<AtomicUsize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestScreen {
    /// A black one.
    pub fn new(width: usize, height: usize) -> TestScreen {
        let frame = Frame { width, height, pixels: vec![0; width * height] };
        TestScreen { frame: Arc::new(Mutex::new((frame, Vec::new()))), looks: Arc::default() }
    }

    /// How often it was looked at.
    pub fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    /// What it shows.
    pub fn frame(&self) -> Frame {
        lock(&self.frame).0.clone()
    }

    /// Shows something else, of any size.
    pub fn show(&self, frame: Frame) {
        let mut shown = lock(&self.frame);
        shown.1 = (0..frame.height).collect();
        shown.0 = frame;
    }

    /// Fills a rectangle; what is outside of the screen is left out.
    pub fn fill(&self, x: usize, y: usize, width: usize, height: usize, colour: u32) {
        let mut shown = lock(&self.frame);
        let (frame, rows) = &mut *shown;
        for row in y..(y + height).min(frame.height) {
            let start = row * frame.width;
            let columns = start + x.min(frame.width)..start + (x + width).min(frame.width);
            frame.pixels.get_mut(columns).into_iter().flatten().for_each(|pixel| *pixel = colour);
            rows.push(row);
        }
    }

    /// Fills it with a pattern of all kinds of areas: plain, few colours, runs, noise.
    pub fn noise(&self, seed: u32) {
        let mut random = seed;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 8
        };
        let Frame { width, height, .. } = self.frame();
        let pixels = (0..width * height).map(|at| {
            let (x, y) = (at % width.max(1), at / width.max(1));
            let noise = next();
            match (x / 48 + y / 40) % 6 {
                0 => 0x0a_5500,
                1 => (noise & 1) * 0xff_ffff,
                2 => (noise & 3) * 0x20_4060,
                3 => u32::try_from(x / 7 % 40).unwrap_or_default() * 0x03_0507,
                4 => (noise % 200) * 0x01_0101,
                _ => noise,
            }
        });
        let frame = Frame { width, height, pixels: pixels.collect() };
        self.show(frame);
    }
}

impl Screen for TestScreen {
    fn refresh(&mut self, frame: &mut Frame) -> Damage {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let mut shown = lock(&self.frame);
        let rows = std::mem::take(&mut shown.1);
        let same = (frame.width, frame.height) == (shown.0.width, shown.0.height);
        frame.clone_from(&shown.0);
        if same { Damage::Rows(rows.into_iter().map(|row| row..row + 1).collect()) } else { Damage::All }
    }
}

/// A keyboard and a pointer.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Input>>,
    leds: AtomicU8,
    absolute: AtomicBool,
}

impl Recorder {
    /// Without lights, and a mouse.
    pub fn new() -> Arc<Recorder> {
        Arc::default()
    }

    /// Switches the lights.
    pub fn set_leds(&self, leds: u8) {
        self.leds.store(leds, Ordering::SeqCst);
    }

    /// The pointer is a tablet, or a mouse.
    pub fn set_absolute(&self, absolute: bool) {
        self.absolute.store(absolute, Ordering::SeqCst);
    }

    /// All that came.
    pub fn events(&self) -> Vec<Input> {
        lock(&self.events).clone()
    }

    /// The keys that came: `+` or `-` and the scan code in hexadecimal, with spaces between them.
    pub fn keys(&self) -> String {
        let events = self.events();
        let keys = events.iter().filter_map(|event| match event {
            Input::Key { code, down } => Some(format!("{}{code:02x}", if *down { '+' } else { '-' })),
            _ => None,
        });
        keys.collect::<Vec<_>>().join(" ")
    }
}

impl InputSink for Recorder {
    fn input(&self, event: Input) {
        let mut events = lock(&self.events);
        // A flood is not what is looked at here.
        if events.len() < 1 << 16 {
            events.push(event);
        }
    }

    fn is_absolute(&self) -> bool {
        self.absolute.load(Ordering::SeqCst)
    }

    fn leds(&self) -> u8 {
        self.leds.load(Ordering::SeqCst)
    }
}
