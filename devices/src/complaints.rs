//! Lines in the host's log that a guest may cause (XSA-180): it can repeat what it is told off for as often as it
//! likes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Lines that one device of a guest may cause while it exists.
pub const MAX_COMPLAINTS: u32 = 32;

/// The lines so far; threads share it.
#[derive(Debug, Default)]
pub struct Complaints(AtomicU32);

impl Complaints {
    /// Whether there is room for another line, which then has it.
    pub fn may_complain(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |lines| (lines < MAX_COMPLAINTS).then_some(lines + 1)).is_ok()
    }
}
