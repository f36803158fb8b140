//! What the guest is told of a frame, and what is done for it.

use devices::memory::PAGE_SIZE;

use super::{Frame, Read, Rx};
use crate::headers::{Checksum, HEADER_MAX, Headers, IpVersion};
use crate::protocol::{GsoKind, RXF_CSUM_BLANK, RXF_DATA_VALIDATED, RxExtras};
use crate::queue::Link;
use crate::tap::{PartialCsum, VnetHeader};

impl Rx {
    /// Decides what the guest is told of a frame that was read, and fills in a checksum that it would not find.
    pub(super) fn accept(
        &self,
        link: &Link,
        read: &mut Read,
        header: &VnetHeader,
        len: usize,
    ) -> Option<Frame> {
        let headroom = u16::try_from(self.layout.headroom).unwrap_or(0);
        let extras = RxExtras { headroom, gso: header.gso, hash: None };
        let Some(csum) = header.csum else {
            let flags = if header.data_valid { RXF_DATA_VALIDATED } else { 0 };
            // A large segment always has a blank checksum.
            return header.gso.is_none().then_some(Frame { len, flags, extras });
        };
        // A frontend looks for the checksum itself. The copy of the headers may differ from what it will see
        // only if the guest changes its own pages.
        let found = self.headers(link, read, len).is_some_and(|headers| {
            let at = PartialCsum { start: headers.l4, offset: headers.csum_offset() };
            let able = match headers.ip {
                IpVersion::V4 => self.features.csum4,
                IpVersion::V6 => self.features.csum6,
            };
            // Frontends do not look behind VLAN tags.
            able && at == csum && !headers.tagged
        });
        let gso_ok = match header.gso.map(|gso| gso.kind) {
            None => true,
            Some(GsoKind::TcpV4) => self.features.gso4 && found,
            Some(GsoKind::TcpV6) => self.features.gso6 && found,
        };
        if !gso_ok {
            // Sent again, it will come in segments.
            link.requests.ask_for_small_frames();
            return None;
        }
        let flags = if found {
            RXF_CSUM_BLANK | RXF_DATA_VALIDATED
        } else {
            self.fill_in(link, read, csum, len)?;
            RXF_DATA_VALIDATED
        };
        Some(Frame { len, flags, extras })
    }

    /// What the headers of a frame say.
    pub(super) fn headers(&self, link: &Link, read: &Read, len: usize) -> Option<Headers> {
        if self.layout.by_head {
            return Headers::parse(read.head.get(..len.min(HEADER_MAX))?, len).ok();
        }
        let mut head = [0; HEADER_MAX];
        let head = head.get_mut(..len.min(HEADER_MAX))?;
        link.grants.slice(&self.posted.front()?.page, self.layout.headroom, head.len())?.copy_to(head);
        Headers::parse(head, len).ok()
    }

    /// Fills in a checksum. Not for frames to be segmented: theirs stays blank.
    pub(super) fn fill_in(&self, link: &Link, read: &mut Read, csum: PartialCsum, len: usize) -> Option<()> {
        let start = usize::from(csum.start);
        let at = start + usize::from(csum.offset);
        if at + 2 > len {
            return None;
        }
        let mut sum = Checksum::default();
        if self.layout.by_head {
            let frame = read.head.get_mut(..len)?;
            sum.add(frame.get(start..)?);
            frame.get_mut(at..at + 2)?.copy_from_slice(&sum.complement().to_be_bytes());
            return Some(());
        }
        let size = self.layout.page();
        let page = |piece: usize| {
            let slot = if piece == 0 { 0 } else { self.layout.lead + piece - 1 };
            self.posted.get(slot).map(|posted| &posted.page)
        };
        let mut bytes = [0u8; PAGE_SIZE];
        for piece in 0..len.div_ceil(size) {
            let first = start.saturating_sub(piece * size).min(size);
            let end = (len - piece * size).min(size);
            let part = bytes.get_mut(..end.saturating_sub(first))?;
            link.grants.slice(page(piece)?, self.layout.headroom + first, part.len())?.copy_to(part);
            sum.add(part);
        }
        for (byte, at) in sum.complement().to_be_bytes().iter().zip(at..) {
            let offset = self.layout.headroom + at % size;
            link.grants.slice(page(at / size)?, offset, 1)?.copy_from(std::slice::from_ref(byte));
        }
        Some(())
    }
}
