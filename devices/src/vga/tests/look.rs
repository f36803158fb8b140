//! What who looks is told: only what has changed, and all of that.

use super::*;

#[test]
fn an_unchanged_screen_has_no_damage() {
    let mut pc = Pc::in_mode(&MODE_12);
    pc.draw();
    assert_eq!(pc.changed(), []);
    // The same byte again, registers that only writes use, and memory that is not shown.
    pc.poke(0xa_0000, &[0]);
    pc.gc(8, 0x0f);
    pc.seq(2, 1);
    pc.poke(0xa_0000 + 80 * 480, &[0xff]);
    assert_eq!(pc.changed(), []);
}

#[test]
fn only_rows_that_changed_are_told() {
    let mut pc = Pc::in_mode(&MODE_12);
    pc.draw();
    for y in [3, 100, 101, 102, 479] {
        pc.poke(0xa_0000 + y * 80 + y % 80, &[0x10]);
    }
    assert_eq!(pc.changed(), [3..4, 100..103, 479..480]);
    assert_eq!(pc.changed(), []);
    // A colour of the palette that only some rows have.
    pc.out(0x3c8, MODE_12.ac[15]);
    for part in [1, 2, 3] {
        pc.out(0x3c9, part);
    }
    assert_eq!(pc.changed(), [3..4, 100..103, 479..480]);
    // The same picture from another place.
    pc.crtc(0x0d, 80);
    assert_eq!(pc.changed(), [2..4, 99..103, 478..480]);
}

#[test]
fn text_tells_its_rows_and_a_font_all_of_its_characters() {
    let mut pc = Pc::in_mode(&TEXT_80);
    pc.crtc(0x0a, 0x20);
    for cell in [0, 80 * 5, 80 * 24 + 79] {
        pc.poke(0xb_8000 + 2 * cell, &[b'x', 7]);
    }
    pc.draw();
    pc.poke(0xb_8000 + 2 * 80 * 7, &[b' ', 0x70]);
    assert_eq!(pc.changed(), [112..128]);
    // Line 4 of 'x', as a font is loaded.
    for (index, value) in [(2, 4), (4, 7)] {
        pc.seq(index, value);
    }
    for (index, value) in [(5, 0), (6, 4)] {
        pc.gc(index, value);
    }
    pc.poke(0xa_0000 + u64::from(b'x') * 32 + 4, &[0xff]);
    pc.gc(6, 0x0e);
    assert_eq!(pc.changed(), [4..5, 84..85, 388..389]);
}

#[test]
fn another_frame_gets_all() {
    let mut pc = Pc::in_mode(&MODE_13);
    pc.draw();
    let mut other = Frame::default();
    assert_eq!(pc.screen.refresh(&mut other), Damage::All);
    assert_eq!(pc.screen.refresh(&mut other), Damage::Rows(vec![]));
    assert_eq!(other, pc.frame);
    // The first has missed something meanwhile.
    pc.poke(0xa_0000, &[1]);
    assert_eq!(pc.screen.refresh(&mut other), Damage::Rows(vec![0..2]));
    assert_eq!(pc.refresh(), Damage::All);
    assert_eq!(other, pc.frame);
    // A new size.
    pc.set(&TEXT_80);
    assert_eq!(pc.refresh(), Damage::All);
    assert_eq!((pc.frame.width, pc.frame.height), (720, 400));
}

#[test]
fn each_screen_is_told_of_each_change() {
    let mut pc = Pc::in_mode(&MODE_13);
    let mut second = VgaScreen::new(Arc::clone(&pc.vga));
    let mut frame = Frame::default();
    pc.draw();
    second.refresh(&mut frame);
    for y in [10, 20] {
        pc.poke(0xa_0000 + 320 * y, &[9]);
        assert_eq!(pc.changed(), [2 * y as usize..2 * y as usize + 2]);
    }
    assert_eq!(second.refresh(&mut frame), Damage::Rows(vec![20..22, 40..42]));
    assert_eq!(frame, pc.frame);
    assert_eq!(second.refresh(&mut frame), Damage::Rows(vec![]));
}

/// The board's half: what KVM's dirty log would tell.
#[derive(Default)]
struct Log {
    pages: Mutex<Vec<usize>>,
    windows: Mutex<Vec<Option<Window>>>,
}

impl Mapped for Log {
    fn take_dirty(&self, pages: &mut [u64]) {
        for page in self.pages.lock().unwrap().drain(..) {
            pages[page / 64] |= 1 << (page % 64);
        }
    }
    fn window(&self, window: Option<Window>) {
        self.windows.lock().unwrap().push(window);
    }
}

#[test]
fn writes_to_mapped_memory_show_by_the_dirty_log() {
    let mut pc = Pc::in_mode(&MODE_12);
    let log = Arc::new(Log::default());
    pc.vga.lock().unwrap().set_mapped(Arc::clone(&log) as _);
    for (index, value) in [(1, 1024), (2, 768), (3, 32), (4, 0x41)] {
        pc.dispi(index, value);
    }
    pc.draw();
    assert_eq!(pc.changed(), []);
    // A row is a page here.
    pc.pages().write(700 * 4096 + 12, &[0xff; 8]).unwrap();
    assert_eq!(pc.changed(), [], "nobody has told");
    log.pages.lock().unwrap().extend([699, 700, 4000]);
    assert_eq!(pc.changed(), [700..701]);
    assert_eq!(pc.row(700)[2..6], [0, 0xffffff, 0xffffff, 0]);
    // In a mode of the VGA, the planes are those pages.
    pc.dispi(4, 0);
    pc.draw();
    pc.put_planes(80 * 400, [0, 0, 0xff, 0]);
    log.pages.lock().unwrap().push(4 * 80 * 400 / 4096);
    assert_eq!(pc.changed(), [400..401]);
}

#[test]
fn the_board_is_told_what_of_the_window_is_memory() {
    let pc = Pc::new();
    let log = Arc::new(Log::default());
    pc.vga.lock().unwrap().set_mapped(Arc::clone(&log) as _);
    let told = |log: &Log| std::mem::take(&mut *log.windows.lock().unwrap());
    assert_eq!(told(&log), [None]);
    let window = |base, len, offset| Some(Window { base, len, offset });
    let chained = window(0xa_0000, 0x1_0000, 0);
    pc.set(&MODE_13);
    assert_eq!(told(&log).last(), Some(&chained));
    assert_eq!(pc.vga.lock().unwrap().window(), chained);
    // Whatever changes a byte on its way ends it; registers that do not matter are not told.
    pc.gc(0, 5);
    pc.gc(4, 2);
    assert_eq!(told(&log), []);
    for (index, odd, usual) in
        [(1, 1, 0), (3, 1, 0), (3, 8, 0), (5, 0x41, 0x40), (5, 0x48, 0x40), (8, 0x7f, 0xff)]
    {
        pc.gc(index, odd);
        pc.gc(index, usual);
        assert_eq!(told(&log), [None, chained], "{index}");
    }
    for (index, odd, usual) in [(2, 7, 15), (4, 6, 14)] {
        pc.seq(index, odd);
        pc.seq(index, usual);
        assert_eq!(told(&log), [None, chained], "{index}");
    }
    pc.out(0x3c2, MODE_13.misc & !2);
    pc.out(0x3c2, MODE_13.misc);
    pc.gc(6, 1);
    assert_eq!(told(&log), [None, chained, window(0xa_0000, 0x2_0000, 0)]);
    pc.gc(6, 0x0d);
    assert_eq!(told(&log), [window(0xb_8000, 0x8000, 0)]);
    // The extension: a bank, but not of planes.
    for (index, value) in [(3, 8), (4, 0x41), (5, 7), (3, 4), (4, 0)] {
        pc.dispi(index, value);
    }
    assert_eq!(told(&log), [chained, window(0xa_0000, 0x1_0000, 7 << 16), None, window(0xb_8000, 0x8000, 0)]);
}
