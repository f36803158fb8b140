//! Frames that are for no queue, or for another one than that whose tap had them.

use super::{Frame, HEAD, Read, Rx};
use crate::headers::HEADER_MAX;
use crate::protocol::{MAX_SLOTS, RXF_EXTRA_INFO, RXF_MORE_DATA};
use crate::queue::{Link, count};
use crate::steering::{Mail, Verdict};

impl Rx {
    /// What becomes of a frame, by its first bytes. Its further pages begin with posted page `from`, here and below.
    pub(super) fn judge(&self, link: &Link, read: &Read, from: usize, len: usize) -> Verdict {
        if !self.view.looks() {
            return Verdict::Here(None);
        }
        let mut head = [0; HEADER_MAX];
        let head = head.get_mut(..len.min(HEADER_MAX)).unwrap_or_default();
        self.copy_out(link, read, from, head);
        self.view.judge(head, len)
    }

    /// Copies the first bytes of a frame that was read.
    fn copy_out(&self, link: &Link, read: &Read, from: usize, to: &mut [u8]) {
        let layout = self.layout;
        let (first, pages) = if layout.by_head {
            let (first, rest) = to.split_at_mut(to.len().min(HEAD));
            first.copy_from_slice(read.head.get(..first.len()).unwrap_or_default());
            (None, rest)
        } else {
            (self.posted.front(), to)
        };
        let further = self.posted.iter().skip(from);
        for (chunk, posted) in pages.chunks_mut(layout.page()).zip(first.into_iter().chain(further)) {
            if let Some(from) = link.grants.slice(&posted.page, layout.headroom, chunk.len()) {
                from.copy_to(chunk);
            }
        }
    }

    /// Gives a frame to another queue; false if that cannot take it.
    pub(super) fn hand_over(
        &self,
        link: &Link,
        read: &Read,
        from: usize,
        frame: Frame,
        queue: usize,
    ) -> bool {
        let Frame { len, flags, extras } = frame;
        let mut frame = vec![0; len];
        self.copy_out(link, read, from, &mut frame);
        count(&link.counters.rx_steered, 1);
        self.view.hand_over(queue, Mail { frame, flags, extras })
    }

    /// Puts a frame that another queue handed over into the next pages.
    pub(super) fn deliver_mail(&mut self, link: &Link, Mail { frame, flags, mut extras }: Mail) -> bool {
        extras.headroom = self.view.headroom();
        let size = self.layout.page();
        let slots = frame.len().div_ceil(size);
        if slots > MAX_SLOTS || slots + extras.count() > self.posted.len() {
            return false;
        }
        let mut flags = if extras.count() > 0 { flags | RXF_EXTRA_INFO } else { flags };
        let mut left = frame.len();
        for chunk in frame.chunks(size) {
            left -= chunk.len();
            self.copy_to_first(link, chunk);
            self.respond(chunk.len(), if left > 0 { flags | RXF_MORE_DATA } else { flags });
            if flags & RXF_EXTRA_INFO != 0 {
                self.respond_extras(extras.emit(0));
            }
            flags = 0;
        }
        self.count_frame(frame.len());
        true
    }
}
