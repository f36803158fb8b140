//! One picture for all who watch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::display::{Damage, Frame, Input, InputSink, Screen};
use vmm_sys_util::eventfd::EventFd;

use super::area::{Area, TILE, Tiles};
use super::pace::Pace;

/// The picture of a guest that has none yet.
const DARK: (usize, usize) = (640, 480);
/// Pixels of the widest and of the highest picture: what fits into the 16 bits of the RFB protocol, and is far above what
/// a screen offers.
const SIDE_MAX: usize = 16384;
/// Pixels of the largest picture.
const PIXELS_MAX: usize = 1 << 24;

/// The devices' state that those who watch are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The keyboard's lights, as [`InputSink::leds`].
    pub leds: u8,
    /// A device takes absolute positions of the pointer.
    pub absolute: bool,
}

/// What there is for somebody who waited.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The picture.
    pub frame: Arc<Frame>,
    /// Of the devices.
    pub status: Status,
    /// What of the picture has changed. Nothing, if its size is another one than was told.
    pub areas: Vec<Area>,
}

/// A screen with its keyboard and pointer, for everybody in front of it. [`Display::connect`] gives it devices.
pub struct Display {
    source: Mutex<Source>,
    /// Locked after `source`, where both are.
    state: Mutex<State>,
    /// Somebody wants a picture, or nobody is left who could.
    wanted: Condvar,
    sink: Mutex<Option<Arc<dyn InputSink>>>,
    /// How often the devices were replaced, and who waits for time to pass meanwhile.
    plugs: Mutex<u64>,
    plugged: Condvar,
}

/// The screen, and the picture that it keeps up to date.
struct Source {
    screen: Option<Box<dyn Screen>>,
    frame: Frame,
}

struct State {
    shown: Arc<Frame>,
    status: Status,
    /// How often the screen was looked at.
    looks: u64,
    watchers: BTreeMap<u64, Watch>,
    last_id: u64,
    /// There is a thread that looks at the screen.
    refreshing: bool,
    pace: Pace,
}

struct Watch {
    unseen: Tiles,
    /// It waits, and for this many looks.
    wants: Option<u64>,
    /// The status it was last told of.
    told: Status,
    wake: Arc<EventFd>,
}

impl std::fmt::Debug for Display {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Display").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Display {
    /// A display without devices: dark, and deaf.
    pub fn new() -> Arc<Display> {
        let state = State {
            shown: Arc::default(),
            status: Status::default(),
            looks: 0,
            watchers: BTreeMap::new(),
            last_id: 0,
            refreshing: false,
            pace: Pace::new(),
        };
        Arc::new(Display {
            source: Mutex::new(Source { screen: None, frame: Frame::default() }),
            state: Mutex::new(state),
            wanted: Condvar::new(),
            sink: Mutex::new(None),
            plugs: Mutex::new(0),
            plugged: Condvar::new(),
        })
    }

    /// Gives it a screen, and a keyboard and a pointer, in place of those that it had.
    pub fn connect(&self, screen: Box<dyn Screen>, sink: Arc<dyn InputSink>) {
        self.plug(Some(screen), Some(sink));
    }

    /// Lets go of the devices. The picture stays for those who see it.
    pub fn disconnect(&self) {
        self.plug(None, None);
    }

    fn plug(&self, screen: Option<Box<dyn Screen>>, sink: Option<Arc<dyn InputSink>>) {
        *lock(&self.source) = Source { screen, frame: Frame::default() };
        *lock(&self.sink) = sink;
        *lock(&self.plugs) += 1;
        self.plugged.notify_all();
        lock(&self.state).pace.hurry();
        self.wanted.notify_all();
    }

    /// Whether it has a screen.
    pub fn is_connected(&self) -> bool {
        lock(&self.source).screen.is_some()
    }

    /// Width and height in pixels of the picture that was seen last.
    pub fn size(&self) -> (usize, usize) {
        size_of_picture(&lock(&self.state).shown)
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        lock(&self.state).watchers.len()
    }

    /// How often the screen was looked at. For tests and counters.
    pub fn looks(&self) -> u64 {
        lock(&self.state).looks
    }

    /// How often the devices were replaced.
    pub(super) fn plugs(&self) -> u64 {
        *lock(&self.plugs)
    }

    /// Waits for this long, or until the devices are no longer those after so many replacements: false then.
    pub(super) fn pass(&self, time: Duration, plugs: u64) -> bool {
        let result = self.plugged.wait_timeout_while(lock(&self.plugs), time, |now| *now == plugs);
        result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Looks at the screen now, whoever else does: the picture.
    pub fn picture(&self) -> Arc<Frame> {
        self.look();
        let picture = Arc::clone(&lock(&self.state).shown);
        self.forget_unwatched();
        picture
    }

    /// Somebody begins to watch; all is new to them. The event says that it is worth calling [`Watcher::take`] again.
    pub fn watch(self: &Arc<Self>, wake: Arc<EventFd>) -> Watcher {
        let mut state = lock(&self.state);
        state.last_id += 1;
        let id = state.last_id;
        let (width, height) = (state.shown.width, state.shown.height);
        let told = state.status;
        state.watchers.insert(id, Watch { unseen: Tiles::new(width, height, true), wants: None, told, wake });
        state.pace.hurry();
        Watcher { display: Arc::clone(self), id }
    }

    /// Brings the picture up to date, and tells who waits for that.
    fn look(&self) {
        let sink = lock(&self.sink).clone();
        let status = sink.map(|sink| Status { leds: sink.leds(), absolute: sink.is_absolute() });
        let mut source = lock(&self.source);
        let Source { screen, frame } = &mut *source;
        let damage = screen.as_mut().map(|screen| screen.refresh(frame));
        let mut state = lock(&self.state);
        let changed = match damage {
            Some(damage) if is_sound(frame) => state.take(frame, &damage),
            // A screen that is being set up, or none at all: what was there before, or nothing.
            _ if is_sound(&state.shown) => false,
            _ => state.take(&dark(), &Damage::All),
        };
        state.looks += 1;
        state.status = status.unwrap_or(state.status);
        state.pace.looked(Instant::now(), changed);
        state.wake();
    }

    /// Frees the picture if nobody sees it.
    fn forget_unwatched(&self) {
        let mut source = lock(&self.source);
        let mut state = lock(&self.state);
        if state.watchers.is_empty() {
            source.frame = Frame::default();
            state.shown = Arc::default();
        }
    }

    /// Looks at the screen while somebody waits for a change; ends when nobody watches any more.
    fn keep_looking(&self) {
        let mut state = lock(&self.state);
        loop {
            if state.watchers.is_empty() {
                state.refreshing = false;
                break;
            }
            if state.watchers.values().all(|watch| watch.wants.is_none()) {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let wait = state.pace.wait(Instant::now());
            if !wait.is_zero() {
                state = self.wanted.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            drop(state);
            self.look();
            state = lock(&self.state);
        }
        drop(state);
        self.forget_unwatched();
    }

    /// Has a thread look at the screen.
    fn refresh(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.refreshing {
            self.wanted.notify_all();
            return;
        }
        let display = Arc::clone(self);
        let thread = std::thread::Builder::new().name("vnc-refresh".into());
        match thread.spawn(move || display.keep_looking()) {
            Ok(_) => state.refreshing = true,
            Err(error) => tracing::warn!("the screen cannot be shown: no thread: {error}"),
        }
    }
}

impl InputSink for Display {
    fn input(&self, event: Input) {
        let sink = lock(&self.sink).clone();
        if let Some(sink) = sink {
            sink.input(event);
            // What is typed shows soon.
            lock(&self.state).pace.hurry();
        }
    }

    fn is_absolute(&self) -> bool {
        lock(&self.sink).as_ref().is_some_and(|sink| sink.is_absolute())
    }

    fn leds(&self) -> u8 {
        lock(&self.sink).as_ref().map_or(0, |sink| sink.leds())
    }
}

impl State {
    /// Takes over what has changed in `frame`; whether anything has. A screen may name more rows than have changed.
    fn take(&mut self, frame: &Frame, damage: &Damage) -> bool {
        let (width, height) = (frame.width, frame.height);
        if (self.shown.width, self.shown.height) != (width, height) {
            self.shown = Arc::new(frame.clone());
            for watch in self.watchers.values_mut() {
                watch.unseen = Tiles::new(width, height, true);
            }
            return true;
        }
        #[allow(clippy::single_range_in_vec_init)]
        let all = [0..height];
        let rows = match damage {
            Damage::All => all.as_slice(),
            Damage::Rows(rows) => rows,
        };
        let mut changed = Tiles::new(width, height, false);
        for rows in rows {
            self.take_rows(frame, rows.clone(), &mut changed);
        }
        let any = changed.any();
        if any {
            self.watchers.values_mut().for_each(|watch| watch.unseen.merge(&changed));
        }
        any
    }

    fn take_rows(&mut self, frame: &Frame, rows: Range<usize>, changed: &mut Tiles) {
        let width = frame.width;
        for y in rows.start.min(frame.height)..rows.end.min(frame.height) {
            let of = y * width..(y + 1) * width;
            let (Some(new), Some(old)) = (frame.pixels.get(of.clone()), self.shown.pixels.get(of.clone()))
            else {
                return;
            };
            if new == old {
                continue;
            }
            for (column, (new, old)) in new.chunks(TILE).zip(old.chunks(TILE)).enumerate() {
                if new != old {
                    changed.mark(column, y / TILE);
                }
            }
            // Those who are just reading the picture go on with a copy of it.
            if let Some(old) = Arc::make_mut(&mut self.shown).pixels.get_mut(of) {
                old.copy_from_slice(new);
            }
        }
    }

    fn wake(&self) {
        for watch in self.watchers.values() {
            let due = watch.wants.is_some_and(|looks| looks <= self.looks);
            if due && (watch.unseen.any() || watch.told != self.status || watch.wants != Some(0)) {
                let _ = watch.wake.write(1);
            }
        }
    }
}

/// Whether these are the pixels of a picture that can be shown.
fn is_sound(frame: &Frame) -> bool {
    let (width, height) = (frame.width, frame.height);
    let sides = 1..=SIDE_MAX;
    sides.contains(&width)
        && sides.contains(&height)
        && width * height <= PIXELS_MAX
        && frame.pixels.len() == width * height
}

fn dark() -> Frame {
    let (width, height) = DARK;
    Frame { width, height, pixels: vec![0; width * height] }
}

fn size_of_picture(frame: &Frame) -> (usize, usize) {
    if frame.width == 0 { DARK } else { (frame.width, frame.height) }
}

/// Somebody who watches, until dropped.
#[derive(Debug)]
pub struct Watcher {
    display: Arc<Display>,
    id: u64,
}

impl Watcher {
    /// The picture as it was seen last, and its size: also when there was none yet.
    pub fn size(&self) -> (usize, usize) {
        self.display.size()
    }

    /// The next look at the screen, counted. To be waited for by who wants a picture that is not older than now.
    pub fn next_look(&self) -> u64 {
        let mut state = lock(&self.display.state);
        state.pace.hurry();
        state.looks + 1
    }

    /// What has changed in `area` since the last call; `None`: nothing yet, and the event will be signalled. `size` and
    /// `status` are what was told to the viewer: if one of them is another now, or `look` has come, that is news, too. A picture of another
    /// size stays unseen.
    pub fn take(&self, area: Area, size: (usize, usize), status: Status, look: Option<u64>) -> Option<Ready> {
        let mut state = lock(&self.display.state);
        let State { shown, status: current, looks, watchers, .. } = &mut *state;
        let watch = watchers.get_mut(&self.id)?;
        let resized = size_of_picture(shown) != size;
        let come = look.is_none_or(|look| *looks >= look) && shown.width > 0;
        let areas = if come && !resized { watch.unseen.take(area) } else { Vec::new() };
        if come && (look.is_some() || resized || *current != status || !areas.is_empty()) {
            watch.wants = None;
            return Some(Ready { frame: Arc::clone(shown), status: *current, areas });
        }
        watch.wants = Some(look.unwrap_or(0));
        watch.told = status;
        self.display.refresh(state);
        None
    }

    /// The picture as it is now.
    pub fn frame(&self) -> Arc<Frame> {
        Arc::clone(&lock(&self.display.state).shown)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.display.state).watchers.remove(&self.id);
        self.display.wanted.notify_all();
        self.display.forget_unwatched();
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
