//! console_io (18): early console output of the guest.

use super::{Errno, GuestCopy, Hypercalls, Reply};

const CONSOLEIO_WRITE: u64 = 0;
/// Bytes taken from one call; Xen takes a few at a time too. The guest may claim any length, and a vCPU must
/// not be kept in here.
const MAX_WRITE: u64 = 4096;

impl Hypercalls {
    pub(super) fn console_io(&self, op: u64, count: u64, buffer: u64, copy: &GuestCopy<'_>) -> Reply {
        if op != CONSOLEIO_WRITE {
            return Err(self.unknown("console_io", op));
        }
        let mut text = vec![0; usize::try_from(count.min(MAX_WRITE)).map_err(|_| Errno::INVAL)?];
        copy.read(buffer, &mut text)?;
        self.platform.early_output(&text);
        Ok(0)
    }
}
