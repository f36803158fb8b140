//! The transmit ring: frames of the guest go to the tap.

use std::io;

use devices::xen::grant_table::{Access, PinnedPage};
use devices::xen::shared_ring::BackRing;

use crate::headers::{HEADER_MAX, HeaderError, Headers, IpVersion, Transport};
use crate::packet::{BadPacket, Taken, TxFatal, TxPacket};
use crate::protocol::{GsoKind, TxStatus, tx_response};
use crate::queue::{BATCH, Link, count};
use crate::tap::{PartialCsum, Vectors, VnetHeader};

/// Why a packet was answered with an error.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Packet(#[from] BadPacket),
    #[error(transparent)]
    Grant(#[from] devices::xen::grant_table::GrantError),
    #[error("checksum or segmentation offload is not possible: {0}")]
    Headers(#[from] HeaderError),
    #[error("segmentation offload is for TCP, and of the packet's IP version")]
    NotTcp,
    #[error("the tap refuses the frame: {0}")]
    Tap(io::Error),
}

/// The transmit half of a queue.
#[derive(Debug)]
pub(crate) struct Tx {
    ring: BackRing,
    packet: TxPacket,
    pages: Vec<PinnedPage>,
    complained: bool,
}

impl Tx {
    pub(crate) fn new(ring: BackRing) -> Self {
        Self { ring, packet: TxPacket::default(), pages: Vec::new(), complained: false }
    }

    /// Sends up to [`BATCH`] packets; true if there were any.
    pub(crate) fn run(&mut self, link: &Link) -> Result<bool, TxFatal> {
        for sent in 0..BATCH {
            let result = match self.packet.take(&mut self.ring)? {
                Taken::Nothing => return Ok(sent > 0),
                Taken::Packet => self.send(link),
                Taken::Bad(bad) => Err(bad.into()),
                Taken::Group(change) if link.settings.multicast.change(change) => Ok(TxStatus::Okay),
                // The list is full.
                Taken::Group(_) => Ok(TxStatus::Error),
            };
            for page in self.pages.drain(..) {
                link.grants.unpin(page);
            }
            let status = result.unwrap_or_else(|refused| {
                count(&link.counters.tx_errors, 1);
                if !self.complained {
                    self.complained = true;
                    tracing::warn!(
                        "{}: a frame of the guest is refused: {refused} (said once)",
                        link.tap.name()
                    );
                }
                TxStatus::Error
            });
            for id in self.packet.ids() {
                let response = match id {
                    Some(id) => tx_response(*id, status),
                    None => tx_response(0, TxStatus::Null),
                };
                self.ring.push_response(&response);
            }
        }
        Ok(true)
    }

    /// Sends the packet straight from the guest's pages, which stay pinned in `self.pages`.
    fn send(&mut self, link: &Link) -> Result<TxStatus, Refused> {
        for piece in self.packet.pieces() {
            self.pages.push(link.grants.pin(piece.gref, Access::Read)?);
        }
        let mut head = [0; HEADER_MAX];
        let mut header = VnetHeader::default();
        let mut copied: &mut [u8] = &mut [];
        if self.packet.csum_blank() || self.packet.gso().is_some() {
            // What is checked here must be what is sent, while the guest may change its pages at any time
            // (XSA-155): the headers go out from this copy.
            copied = self.copy_head(link, &mut head);
            header = offload(&self.packet, copied)?;
        }
        let mut bytes = header.emit();
        let mut vectors = Vectors::default();
        vectors.push(bytes.as_mut_ptr(), bytes.len());
        let mut skip = copied.len();
        if skip > 0 {
            vectors.push(copied.as_mut_ptr(), skip);
        }
        for (piece, page) in self.packet.pieces().iter().zip(&self.pages) {
            let skipped = skip.min(piece.len);
            skip -= skipped;
            if skipped < piece.len {
                let start = page.as_ptr().wrapping_add(piece.offset + skipped);
                vectors.push(start, piece.len - skipped);
            }
        }
        // SAFETY: the local buffers live here, and TxPacket vouches that each piece lies in its page, which
        // stays mapped while the grant table does.
        match unsafe { link.tap.writev(link.queue, &vectors) } {
            Ok(_) => {
                count(&link.counters.tx_packets, 1);
                count(&link.counters.tx_bytes, self.packet.len() as u64);
                Ok(TxStatus::Okay)
            }
            // The kernel finds the frame wrong.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Refused::Tap(error)),
            // The interface is down or gone, or the host is short of memory: as if the cable were out.
            Err(_) => {
                count(&link.counters.tx_drops, 1);
                Ok(TxStatus::Dropped)
            }
        }
    }

    /// Copies the first bytes of the packet; returns what was copied.
    fn copy_head<'a>(&self, link: &Link, head: &'a mut [u8; HEADER_MAX]) -> &'a mut [u8] {
        let mut done = 0;
        for (piece, page) in self.packet.pieces().iter().zip(&self.pages) {
            let room = head.get_mut(done..).unwrap_or_default();
            let len = piece.len.min(room.len());
            let Some(slice) = link.grants.slice(page, piece.offset, len) else { break };
            slice.copy_to(room);
            done += len;
        }
        head.get_mut(..done).unwrap_or_default()
    }

    /// Shows the responses; true: the guest wants an event.
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Before sleeping: true if packets came meanwhile.
    pub(crate) fn arm(&mut self) -> Result<bool, TxFatal> {
        Ok(self.ring.final_check()?)
    }
}

/// What the tap is told about a packet, whose first bytes are in `head`.
fn offload(packet: &TxPacket, head: &mut [u8]) -> Result<VnetHeader, Refused> {
    let headers = Headers::parse(head, packet.len())?;
    headers.set_pseudo_checksum(head);
    let mut header = VnetHeader {
        csum: Some(PartialCsum { start: headers.l4, offset: headers.csum_offset() }),
        ..VnetHeader::default()
    };
    if let Some(gso) = packet.gso() {
        let kind = match headers.ip {
            IpVersion::V4 => GsoKind::TcpV4,
            IpVersion::V6 => GsoKind::TcpV6,
        };
        if headers.transport != Transport::Tcp || gso.kind != kind {
            return Err(Refused::NotTcp);
        }
        // What fits one segment is no large segment; Linux would drop it.
        if packet.len() > usize::from(headers.payload) + usize::from(gso.size) {
            header.gso = Some(gso);
            header.hdr_len = headers.payload;
        }
    }
    Ok(header)
}
