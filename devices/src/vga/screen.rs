//! Looking at the card's picture.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::Vga;
use super::device::Look;
use super::dirty::Pages;
use super::draw::PLANE;
use super::picture::{Content, Cursor, Linear, Picture, VgaMode};
use crate::display::{Damage, Frame, Screen};
use crate::memory::{PAGE_SIZE, SharedPages};

/// Bytes of the four planes that the VGA's own modes show.
const PLANES: usize = 4 * PLANE;

/// A monitor of a card. Each has its own idea of what it has shown: several are told of all changes. The picture has a pixel
/// for each dot and each line that a monitor would see: 320x200 in 256 colours is 640x400.
pub struct VgaScreen {
    vga: Arc<Mutex<Vga>>,
    /// The look at the card that the frame shows, and the frame that it is in.
    since: u64,
    shown: Option<Shown>,
    /// Pages written to since then.
    dirty: Pages,
    /// The four planes as last seen.
    planes: Vec<u32>,
    buffers: Buffers,
}

struct Shown {
    picture: Picture,
    cursor: Cursor,
    /// Where the frame's pixels are: another frame shows something else.
    frame: usize,
    /// There are blinking characters.
    blinks: bool,
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    dots: Vec<u32>,
    row: Vec<u32>,
}

impl VgaScreen {
    /// A monitor of `vga`.
    pub fn new(vga: Arc<Mutex<Vga>>) -> Self {
        Self {
            vga,
            since: 0,
            shown: None,
            dirty: Pages::default(),
            planes: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Brings the copy of the planes up to date; `all`: also where nothing was written. Returns whether plane 2, with the
    /// fonts, has changed.
    fn copy_planes(&mut self, memory: &SharedPages, all: bool) -> bool {
        let all = all || self.planes.is_empty();
        self.planes.resize(PLANE, 0);
        let mut font = false;
        let mut page = [0; PAGE_SIZE];
        for (at, words) in (0..PLANES).step_by(PAGE_SIZE).zip(self.planes.chunks_mut(PAGE_SIZE / 4)) {
            if !(all || self.dirty.has(at)) || memory.read(at, &mut page).is_none() {
                continue;
            }
            for (word, bytes) in words.iter_mut().zip(page.as_chunks::<4>().0) {
                let new = u32::from_le_bytes(*bytes);
                font |= (*word ^ new) & 0xff_0000 != 0;
                *word = new;
            }
        }
        font
    }
}

impl Screen for VgaScreen {
    fn refresh(&mut self, frame: &mut Frame) -> Damage {
        let look = {
            let mut vga = self.vga.lock().unwrap_or_else(PoisonError::into_inner);
            vga.look(&mut self.since, &mut self.dirty)
        };
        let Look { picture, cursor, memory } = look;
        let (width, height) = (picture.width, picture.height);
        let place = |frame: &Frame| frame.pixels.as_ptr().addr();
        let was = self.shown.take().filter(|shown| {
            shown.frame == place(frame)
                && (frame.width, frame.height, frame.pixels.len()) == (width, height, width * height)
        });
        if was.is_none() {
            (frame.width, frame.height) = (width, height);
            frame.pixels.clear();
            frame.pixels.resize(width * height, 0);
        }
        let same = was.as_ref().filter(|was| was.picture == picture);
        let mut rows = Rows { pixels: &mut frame.pixels, width, changed: Vec::new() };
        let mut blinks = same.is_some_and(|was| was.blinks);
        match &picture.content {
            Content::Blank if same.is_none() => {
                self.buffers.row.clear();
                self.buffers.row.resize(width, 0);
                (0..height).for_each(|y| rows.put(y, &self.buffers.row));
            }
            Content::Blank => {}
            Content::Linear(linear) => {
                let dirty = same.map(|_| &self.dirty);
                draw_linear(linear, &memory, height, dirty, &mut self.buffers, &mut rows);
            }
            Content::Vga(mode) => {
                let font = self.copy_planes(&memory, same.is_none());
                let text = matches!(mode.dots, super::picture::Dots::Text(_));
                let before = same.filter(|was| {
                    let phase = was.cursor.characters == cursor.characters;
                    !(text && (font || was.blinks && !phase))
                });
                blinks &= before.is_some();
                let job = Job { mode, height, cursor, before: before.map(|was| (was.cursor, &self.dirty)) };
                blinks |= job.draw(&self.planes, &mut self.buffers, &mut rows);
            }
        }
        let changed = rows.changed;
        let all = was.is_none();
        self.shown = Some(Shown { picture, cursor, frame: place(frame), blinks });
        if all { Damage::All } else { Damage::Rows(changed) }
    }
}

/// The frame, and which of its rows have changed.
struct Rows<'a> {
    pixels: &'a mut [u32],
    width: usize,
    changed: Vec<Range<usize>>,
}

impl Rows<'_> {
    /// Row `y` is to look like this. Rows come from the top down.
    fn put(&mut self, y: usize, row: &[u32]) {
        let Some(old) = self.pixels.get_mut(y * self.width..(y + 1) * self.width) else { return };
        if row.len() != old.len() || old == row {
            return;
        }
        old.copy_from_slice(row);
        match self.changed.last_mut() {
            Some(last) if last.end == y => last.end = y + 1,
            _ => self.changed.push(y..y + 1),
        }
    }
}

/// Draws the rows that have dirty pages, or all of them.
fn draw_linear(
    linear: &Linear,
    memory: &SharedPages,
    height: usize,
    dirty: Option<&Pages>,
    buffers: &mut Buffers,
    rows: &mut Rows<'_>,
) {
    if dirty.is_some_and(Pages::is_empty) {
        return;
    }
    let end = memory.pages() * PAGE_SIZE;
    for y in 0..height {
        let (first, len) = linear.row(y);
        if dirty.is_some_and(|dirty| !dirty.has_any(first, len)) {
            continue;
        }
        // What lies beyond the end of the memory is black.
        buffers.bytes.clear();
        buffers.bytes.resize(len.min(end.saturating_sub(first)), 0);
        if memory.read(first, &mut buffers.bytes).is_none() {
            buffers.bytes.clear();
        }
        buffers.bytes.resize(len, 0);
        linear.draw(&buffers.bytes, &mut buffers.dots, &mut buffers.row);
        rows.put(y, &buffers.row);
    }
}

struct Job<'a> {
    mode: &'a VgaMode,
    height: usize,
    cursor: Cursor,
    /// What the frame shows, and what was written since; `None`: draw all.
    before: Option<(Cursor, &'a Pages)>,
}

impl Job<'_> {
    /// Draws what may have changed. Returns whether there were blinking characters.
    fn draw(&self, planes: &[u32], buffers: &mut Buffers, rows: &mut Rows<'_>) -> bool {
        if self.before.is_some_and(|(cursor, dirty)| dirty.is_empty() && !self.cursor.moved(&cursor)) {
            return false;
        }
        let mut blinks = false;
        for (y, line) in self.mode.lines().take(self.height).enumerate() {
            if self.before.is_some_and(|(cursor, dirty)| !self.touched(line, &cursor, dirty)) {
                continue;
            }
            blinks |= self.mode.draw(line, planes, &self.cursor, &mut buffers.dots, &mut buffers.row);
            rows.put(y, &buffers.row);
        }
        blinks
    }

    /// Whether a line may look different.
    fn touched(&self, line: super::picture::Line, before: &Cursor, dirty: &Pages) -> bool {
        let columns = self.mode.columns + 1;
        if self.cursor.moved(before)
            && (self.cursor.column(line, columns).is_some() || before.column(line, columns).is_some())
        {
            return true;
        }
        let mut last = None;
        !dirty.is_empty()
            && (0..columns).any(|column| {
                let byte = 4 * self.mode.address(line, column);
                let page = Some(byte / PAGE_SIZE);
                let new = page != last;
                last = page;
                new && dirty.has(byte)
            })
    }
}
