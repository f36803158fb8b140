//! event_channel_op (32), 2-level ABI. The structures are the same in both modes.

use devices::xen::event_channel::EventError;
use devices::xen::{DomId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Errno, GuestCopy, Hypercalls, Reply};

impl From<EventError> for Errno {
    fn from(e: EventError) -> Self {
        Errno(i32::try_from(-e.errno()).unwrap_or(libc::EINVAL))
    }
}

/// evtchn_bind_interdomain: remote_dom @0, remote_port @4, local_port (out) @8.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct BindInterdomain {
    remote_dom: u16,
    pad: u16,
    remote_port: u32,
    local_port: u32,
}

/// evtchn_bind_virq, evtchn_bind_ipi (without virq): virq @0, vcpu @4, port (out) @8.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct BindVirq {
    virq: u32,
    vcpu: u32,
    port: u32,
}

/// evtchn_bind_ipi: vcpu @0, port (out) @4; evtchn_bind_vcpu has the same shape: port @0, vcpu @4.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Pair {
    first: u32,
    second: u32,
}

/// evtchn_status: dom @0, port @4, status (out) @8, vcpu (out) @12, union (out) @16: dom and port, or virq.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Status {
    dom: u16,
    pad: u16,
    port: u32,
    status: u32,
    vcpu: u32,
    detail: u32,
    remote_port: u32,
}

/// evtchn_alloc_unbound: dom @0, remote_dom @2, port (out) @4.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct AllocUnbound {
    dom: u16,
    remote_dom: u16,
    port: u32,
}

impl Hypercalls {
    pub(super) fn event_channel_op(&self, op: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        match op {
            0 => {
                let mut a: BindInterdomain = copy.get(arg)?;
                a.local_port = self.events.bind_interdomain(DomId(a.remote_dom), Port(a.remote_port))?.0;
                copy.put(arg, &a)?;
            }
            1 => {
                let mut a: BindVirq = copy.get(arg)?;
                a.port = self.events.bind_virq(a.virq, a.vcpu)?.0;
                copy.put(arg, &a)?;
            }
            3 => self.events.close(Port(copy.get(arg)?))?,
            4 => self.events.send(Port(copy.get(arg)?))?,
            5 => {
                let mut a: Status = copy.get(arg)?;
                self.require_self(a.dom)?;
                let s = self.events.status(Port(a.port))?;
                (a.status, a.vcpu, a.detail, a.remote_port) = (s.status, s.vcpu, s.detail, s.remote_port);
                copy.put(arg, &a)?;
            }
            6 => {
                let mut a: AllocUnbound = copy.get(arg)?;
                a.port = self.events.alloc_unbound(DomId(a.dom), DomId(a.remote_dom))?.0;
                copy.put(arg, &a)?;
            }
            7 => {
                let mut a: Pair = copy.get(arg)?;
                a.second = self.events.bind_ipi(a.first)?.0;
                copy.put(arg, &a)?;
            }
            8 => {
                let a: Pair = copy.get(arg)?;
                self.events.bind_vcpu(Port(a.first), a.second)?;
            }
            9 => self.events.unmask(Port(copy.get(arg)?))?,
            10 => {
                self.require_self(copy.get(arg)?)?;
                self.events.reset();
            }
            // FIFO (11 init_control, 12 expand_array, 13 set_priority): guests stay with 2-level then.
            _ => return Err(self.unknown("event_channel_op", op)),
        }
        Ok(0)
    }
}
