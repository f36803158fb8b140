//! The last output of a console, for any number of readers.

use std::collections::VecDeque;
use std::io;

/// Bytes of output that a log keeps.
pub const LOG_BYTES: usize = 1 << 20;
/// Characters of a line in [`ConsoleLog::last_lines`]: a guest may print a megabyte without a line end.
const LINE_CHARS: usize = 400;

/// A log that keeps the last [`LOG_BYTES`] of what was appended. Its memory grows with the output up to that
/// bound; readers cost nothing but their position.
#[derive(Debug)]
pub struct ConsoleLog {
    bytes: VecDeque<u8>,
    limit: usize,
    /// Bytes ever appended: the position after the last byte.
    end: u64,
}

/// How far one reader has come. A reader that falls behind what the log keeps goes on with the oldest byte
/// there is, after a line that says how much it missed.
#[derive(Debug, Clone, Default)]
pub struct LogReader {
    position: u64,
    /// The rest of a line of ours that the reader is to see before it goes on.
    note: Vec<u8>,
}

impl Default for ConsoleLog {
    fn default() -> Self {
        Self::new(LOG_BYTES)
    }
}

impl ConsoleLog {
    /// An empty log that keeps `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit, end: 0 }
    }

    /// Appends output; the oldest bytes beyond the limit go.
    pub fn append(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let kept = &data[data.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        let needed = self.bytes.len() + kept.len();
        if needed > self.bytes.capacity() {
            // Doubling as usual, but never past the limit.
            let capacity = needed.next_power_of_two().max(4096).min(self.limit);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(kept);
    }

    /// Position of the oldest byte kept.
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// A reader that starts with the oldest byte kept.
    pub fn reader(&self) -> LogReader {
        LogReader { position: self.start(), note: Vec::new() }
    }

    /// Whether there is something that `reader` has not seen.
    pub fn has_more(&self, reader: &LogReader) -> bool {
        reader.position < self.end || !reader.note.is_empty()
    }

    /// Hands `reader` what it has not seen, about `budget` bytes of it. `write` returns how much it took; its
    /// error (WouldBlock, say) ends the turn, and the next turn goes on where it took the last byte.
    pub fn feed(
        &self,
        reader: &mut LogReader,
        mut budget: usize,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while budget > 0 && self.has_more(reader) {
            if reader.note.is_empty() && reader.position < self.start() {
                let lost = self.start() - reader.position;
                reader.note = format!("\r\n[xvmm: {lost} bytes of console output lost]\r\n").into_bytes();
                reader.position = self.start();
            }
            let piece = if reader.note.is_empty() { self.piece(reader.position) } else { &reader.note };
            let piece = &piece[..piece.len().min(budget)];
            let taken = write(piece)?.min(piece.len());
            if taken == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            budget -= taken;
            if reader.note.is_empty() {
                reader.position += taken as u64;
            } else {
                reader.note.drain(..taken);
            }
        }
        Ok(())
    }

    /// The contiguous bytes from `position` on.
    fn piece(&self, position: u64) -> &[u8] {
        let skip = usize::try_from(position.saturating_sub(self.start())).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        match skip.checked_sub(first.len()) {
            None => &first[skip..],
            Some(skip) => second.get(skip..).unwrap_or(&[]),
        }
    }

    /// The last `count` lines, for a crash report. They are meant for a log or a terminal of the host: control
    /// characters, with which a guest could steer the terminal, are gone, and each line is cut to 400
    /// characters.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let mut end = self.bytes.len();
        while end > 0 && lines.len() < count {
            let start = self.bytes.range(..end).rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            // Four bytes make a character at most.
            let line: Vec<u8> = self.bytes.range(start..end).copied().take(LINE_CHARS * 4).collect();
            let line = String::from_utf8_lossy(&line);
            let line: String = line.chars().filter(|c| !c.is_control()).take(LINE_CHARS).collect();
            // What follows the last line end is no line yet while it is empty.
            if end < self.bytes.len() || !line.is_empty() {
                lines.push(line);
            }
            end = start.saturating_sub(1);
        }
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(log: &ConsoleLog, reader: &mut LogReader) -> String {
        let mut out = Vec::new();
        log.feed(reader, usize::MAX, |piece| {
            out.extend_from_slice(piece);
            Ok(piece.len())
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn readers_have_their_own_positions() {
        let mut log = ConsoleLog::new(100);
        log.append(b"one ");
        let mut first = log.reader();
        assert_eq!(read(&log, &mut first), "one ");
        log.append(b"two");
        let mut second = log.reader();
        assert_eq!(read(&log, &mut first), "two");
        assert_eq!(read(&log, &mut second), "one two");
        assert!(!log.has_more(&first));
    }

    #[test]
    fn the_oldest_output_goes_and_memory_stays_bounded() {
        let mut log = ConsoleLog::default();
        for i in 0..5000 {
            log.append(format!("{i:0999}\n").as_bytes());
            assert!(log.bytes.capacity() <= LOG_BYTES);
        }
        let mut reader = log.reader();
        let text = read(&log, &mut reader);
        assert_eq!(text.len(), LOG_BYTES);
        assert!(text.ends_with("4999\n"));
        log.append(&vec![b'x'; 3 * LOG_BYTES]);
        assert_eq!(log.bytes.len(), LOG_BYTES);
        assert!(log.bytes.capacity() <= LOG_BYTES);
    }

    #[test]
    fn a_quiet_guest_costs_little_memory() {
        let mut log = ConsoleLog::default();
        log.append(b"login: ");
        assert!(log.bytes.capacity() <= 4096);
    }

    #[test]
    fn a_reader_too_slow_is_told_what_it_lost() {
        let mut log = ConsoleLog::new(10);
        let mut reader = log.reader();
        log.append(b"abc");
        assert_eq!(read(&log, &mut reader), "abc");
        log.append(b"defghijklm0123456789");
        let expected = "\r\n[xvmm: 10 bytes of console output lost]\r\n0123456789";
        assert_eq!(read(&log, &mut reader), expected);
    }

    #[test]
    fn a_note_survives_being_taken_byte_by_byte() {
        let mut log = ConsoleLog::new(10);
        let mut reader = log.reader();
        log.append(b"abcdefghijklm");
        let mut out = Vec::new();
        while log.has_more(&reader) {
            let mut room = 1;
            let result = log.feed(&mut reader, usize::MAX, |piece| {
                let taken = piece.len().min(room);
                out.extend_from_slice(&piece[..taken]);
                room -= taken;
                Ok(taken)
            });
            assert!(result.is_ok() || result.unwrap_err().kind() == io::ErrorKind::WouldBlock);
        }
        let expected = "\r\n[xvmm: 3 bytes of console output lost]\r\ndefghijklm";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_turn_ends_with_its_budget() {
        let mut log = ConsoleLog::new(100);
        log.append(&[b'x'; 50]);
        let mut reader = log.reader();
        let mut taken = 0;
        log.feed(&mut reader, 20, |piece| {
            taken += piece.len();
            Ok(piece.len())
        })
        .unwrap();
        assert_eq!(taken, 20);
        assert!(log.has_more(&reader));
    }

    #[test]
    fn last_lines_are_fit_for_a_terminal() {
        let mut log = ConsoleLog::new(1000);
        assert!(log.last_lines(3).is_empty());
        log.append(b"one\r\n\r\nthree\x1b]0;title\x07\r\npart");
        assert_eq!(log.last_lines(2), ["three]0;title", "part"]);
        assert_eq!(log.last_lines(9), ["one", "", "three]0;title", "part"]);
        log.append(b"\r\n");
        assert_eq!(log.last_lines(1), ["part"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut log = ConsoleLog::default();
        log.append(&vec![b'a'; LOG_BYTES]);
        assert_eq!(log.last_lines(10), ["a".repeat(LINE_CHARS)]);
    }
}
