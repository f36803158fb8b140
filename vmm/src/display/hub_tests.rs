//! Who watches sees what has changed, and nobody else costs anything.
#![allow(clippy::unwrap_used)]

use vmm_sys_util::eventfd::EventFd;

use super::super::testing::{Recorder, TestScreen};
use super::*;

fn display(screen: &TestScreen) -> (Arc<Display>, Arc<Recorder>) {
    let (display, sink) = (Display::new(), Recorder::new());
    display.connect(Box::new(screen.clone()), Arc::clone(&sink) as _);
    (display, sink)
}

/// Somebody who watches all of a screen.
struct Eye {
    watcher: Watcher,
    wake: Arc<EventFd>,
    size: (usize, usize),
    status: Status,
}

impl Eye {
    fn new(display: &Arc<Display>) -> Eye {
        let wake = Arc::new(EventFd::new(0).unwrap());
        let watcher = display.watch(Arc::clone(&wake));
        let picture = display.picture();
        Eye { watcher, wake, size: (picture.width, picture.height), status: Status::default() }
    }

    fn take(&mut self) -> Option<Ready> {
        let all = Area::whole(self.size.0, self.size.1);
        let ready = self.watcher.take(all, self.size, self.status, None)?;
        self.size = (ready.frame.width, ready.frame.height);
        self.status = ready.status;
        Some(ready)
    }

    /// Waits for news.
    fn wait(&mut self) -> Ready {
        loop {
            if let Some(ready) = self.take() {
                return ready;
            }
            self.wake.read().unwrap();
        }
    }
}

fn area(x: usize, y: usize, width: usize, height: usize) -> Area {
    Area { x, y, width, height }
}

#[test]
fn each_watcher_gets_what_it_has_not_seen() {
    let screen = TestScreen::new(100, 60);
    let (display, _) = display(&screen);
    let mut first = Eye::new(&display);
    assert_eq!(first.wait().areas, [area(0, 0, 100, 60)]);
    screen.fill(20, 20, 1, 1, 7);
    assert_eq!(first.wait().areas, [area(16, 16, 16, 16)]);
    let mut second = Eye::new(&display);
    assert_eq!(second.wait().areas, [area(0, 0, 100, 60)]);
    screen.fill(99, 59, 1, 1, 8);
    let ready = first.wait();
    assert_eq!(ready.areas, [area(96, 48, 4, 12)]);
    assert_eq!(*ready.frame, screen.frame());
    assert_eq!(second.wait().areas, [area(96, 48, 4, 12)]);
}

#[test]
fn rows_that_are_damaged_and_look_the_same_are_no_news() {
    let screen = TestScreen::new(64, 64);
    let (display, _) = display(&screen);
    let mut eye = Eye::new(&display);
    eye.wait();
    screen.fill(0, 0, 64, 64, 0);
    screen.fill(32, 32, 16, 16, 5);
    assert_eq!(eye.wait().areas, [area(32, 32, 16, 16)]);
}

#[test]
fn another_size_is_news_and_then_all_of_it() {
    let screen = TestScreen::new(64, 64);
    let (display, _) = display(&screen);
    let mut eye = Eye::new(&display);
    eye.wait();
    screen.show(Frame { width: 80, height: 25, pixels: vec![3; 80 * 25] });
    let ready = eye.wait();
    assert!(ready.areas.is_empty());
    assert_eq!((ready.frame.width, ready.frame.height), (80, 25));
    assert_eq!(eye.wait().areas, [area(0, 0, 80, 25)]);
}

#[test]
fn lights_are_news() {
    let screen = TestScreen::new(64, 64);
    let (display, sink) = display(&screen);
    let mut eye = Eye::new(&display);
    eye.wait();
    sink.set_leds(2);
    sink.set_absolute(true);
    let ready = eye.wait();
    assert!(ready.areas.is_empty());
    // Both were set between two looks, or one look came in between.
    let last = if ready.status.absolute { ready } else { eye.wait() };
    assert_eq!(last.status, Status { leds: 2, absolute: true });
}

#[test]
fn pictures_that_cannot_be_are_not_shown() {
    let screen = TestScreen::new(64, 64);
    let (display, _) = display(&screen);
    let before = display.picture();
    assert_eq!(*before, screen.frame());
    let wake = Arc::new(EventFd::new(0).unwrap());
    let _watcher = display.watch(wake);
    display.picture();
    for frame in [
        Frame { width: 0, height: 0, pixels: Vec::new() },
        Frame { width: 10, height: 10, pixels: vec![1; 99] },
        Frame { width: 20_000, height: 1, pixels: vec![1; 20_000] },
    ] {
        screen.show(frame);
        assert_eq!(*display.picture(), *before);
    }
}

#[test]
fn without_devices_it_is_dark_and_deaf() {
    let display = Display::new();
    let picture = display.picture();
    assert_eq!((picture.width, picture.height), DARK);
    assert!(picture.pixels.iter().all(|pixel| *pixel == 0));
    display.input(Input::Key { code: 1, down: true });
    assert_eq!((display.leds(), display.is_absolute(), display.is_connected()), (0, false, false));
}

#[test]
fn devices_may_be_replaced_while_somebody_watches() {
    let screen = TestScreen::new(64, 64);
    let (display, first) = display(&screen);
    let mut eye = Eye::new(&display);
    eye.wait();
    display.disconnect();
    display.input(Input::Key { code: 1, down: true });
    // The last picture stays, and nothing is new about it.
    assert_eq!(*display.picture(), screen.frame());
    assert!(eye.take().is_none());
    let other = TestScreen::new(64, 64);
    other.fill(0, 0, 8, 8, 9);
    let second = Recorder::new();
    display.connect(Box::new(other), Arc::clone(&second) as _);
    assert_eq!(eye.wait().areas, [area(0, 0, 16, 16)]);
    display.input(Input::Key { code: 2, down: true });
    assert_eq!((first.keys(), second.keys()), (String::new(), "+02".into()));
}

#[test]
fn nobody_looks_at_the_screen_while_nobody_waits() {
    let screen = TestScreen::new(64, 64);
    let (display, _) = display(&screen);
    let mut eye = Eye::new(&display);
    eye.wait();
    let looks = screen.looks();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(screen.looks(), looks, "somebody watches, and has not asked for more");
    assert!(eye.take().is_none());
    while screen.looks() < looks + 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(eye);
    // The thread ends; a look that it was in the middle of counts.
    while lock(&display.state).refreshing {
        std::thread::yield_now();
    }
    let looks = screen.looks();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((screen.looks(), display.watchers()), (looks, 0));
    assert!(lock(&display.state).shown.pixels.is_empty(), "nothing is kept for nobody");
}

#[test]
fn a_picture_in_use_does_not_change() {
    let screen = TestScreen::new(64, 64);
    let (display, _) = display(&screen);
    let mut eye = Eye::new(&display);
    let ready = eye.wait();
    screen.fill(0, 0, 64, 64, 1);
    eye.wait();
    assert!(ready.frame.pixels.iter().all(|pixel| *pixel == 0));
}
