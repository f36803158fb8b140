//! The Xen ioctls of KVM, which kvm-ioctls does not wrap (Linux Documentation/virt/kvm/api.rst, 4.125 ff.).
//!
//! The structures come from kvm-bindings; the ioctl numbers are defined here.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVM_IRQ_ROUTING_XEN_EVTCHN, KVM_XEN_ATTR_TYPE_EVTCHN, KVM_XEN_ATTR_TYPE_LONG_MODE,
    KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, KVM_XEN_ATTR_TYPE_SHARED_INFO, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR,
    KVM_XEN_ATTR_TYPE_XEN_VERSION, KVM_XEN_EVTCHN_DEASSIGN, KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, KVM_XEN_VCPU_ATTR_TYPE_TIMER,
    KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
    KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, KVMIO, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_xen_evtchn, kvm_xen_hvm_attr, kvm_xen_hvm_attr__bindgen_ty_1,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1, kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1__bindgen_ty_1 as EvtchnPort,
    kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1__bindgen_ty_2 as EvtchnEventFd,
    kvm_xen_hvm_config, kvm_xen_vcpu_attr, kvm_xen_vcpu_attr__bindgen_ty_1,
    kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2,
};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, KVMIO, 0xc9, kvm_xen_hvm_attr);
ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, KVMIO, 0xcb, kvm_xen_vcpu_attr);
ioctl_iow_nr!(KVM_XEN_HVM_EVTCHN_SEND, KVMIO, 0xd0, kvm_irq_routing_xen_evtchn);

/// KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL.
const PRIORITY_2LEVEL: u32 = u32::MAX;
const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
const EVTCHNSTAT_IPI: u32 = 5;
/// An address attribute with this value is switched off (KVM_XEN_INVALID_GPA, KVM_XEN_INVALID_GFN).
pub(super) const INVALID: u64 = u64::MAX;

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes KVM give all hypercalls to us except those it serves itself. `msr` is the one that the guest writes
/// to place the hypercall page; KVM fills the page.
pub(super) fn configure(vm: &impl AsRawFd, msr: u32) -> io::Result<()> {
    let flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;
    let config = kvm_xen_hvm_config { flags, msr, ..Default::default() };
    // SAFETY: the structure has the layout that the ioctl number encodes, and outlives the call.
    check(unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), &config) })
}

fn set_hvm_attr(vm: &impl AsRawFd, kind: u32, u: kvm_xen_hvm_attr__bindgen_ty_1) -> io::Result<()> {
    let type_ = u16::try_from(kind).map_err(io::Error::other)?;
    let attr = kvm_xen_hvm_attr { type_, pad: [0; 3], u };
    // SAFETY: as in configure().
    check(unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_SET_ATTR(), &attr) })
}

/// Whether shared_info and the time areas have the 64-bit layout.
pub(super) fn set_long_mode(vm: &impl AsRawFd, on: bool) -> io::Result<()> {
    let u = kvm_xen_hvm_attr__bindgen_ty_1 { long_mode: u8::from(on) };
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_LONG_MODE, u)
}

/// The guest frame of shared_info, or [`INVALID`].
pub(super) fn set_shared_info(vm: &impl AsRawFd, gfn: u64) -> io::Result<()> {
    let shared_info = kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1 { gfn };
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_SHARED_INFO, kvm_xen_hvm_attr__bindgen_ty_1 { shared_info })
}

/// The vector that is injected on any vCPU with a pending upcall (HVM_PARAM_CALLBACK_IRQ type 2); 0: none.
pub(super) fn set_upcall_vector(vm: &impl AsRawFd, vector: u8) -> io::Result<()> {
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, kvm_xen_hvm_attr__bindgen_ty_1 { vector })
}

/// What XENVER_version answers, which KVM serves itself: major << 16 | minor.
pub(super) fn set_xen_version(vm: &impl AsRawFd, xen_version: u32) -> io::Result<()> {
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_XEN_VERSION, kvm_xen_hvm_attr__bindgen_ty_1 { xen_version })
}

/// VMASST_TYPE_runstate_update_flag.
pub(super) fn set_runstate_update_flag(vm: &impl AsRawFd, on: bool) -> io::Result<()> {
    let u = kvm_xen_hvm_attr__bindgen_ty_1 { runstate_update_flag: u8::from(on) };
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, u)
}

fn set_evtchn(
    vm: &impl AsRawFd,
    send_port: u32,
    type_: u32,
    flags: u32,
    deliver: kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1,
) -> io::Result<()> {
    let evtchn = kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2 { send_port, type_, flags, deliver };
    set_hvm_attr(vm, KVM_XEN_ATTR_TYPE_EVTCHN, kvm_xen_hvm_attr__bindgen_ty_1 { evtchn })
}

/// EVTCHNOP_send on `send_port` writes `fd`, without leaving the kernel.
pub(super) fn assign_eventfd(vm: &impl AsRawFd, send_port: u32, fd: RawFd) -> io::Result<()> {
    let eventfd = EvtchnEventFd { port: 0, fd };
    let deliver = kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1 { eventfd };
    set_evtchn(vm, send_port, EVTCHNSTAT_INTERDOMAIN, 0, deliver)
}

/// EVTCHNOP_send on `send_port` raises `port` on `vcpu`.
pub(super) fn assign_port(vm: &impl AsRawFd, send_port: u32, port: u32, vcpu: u32) -> io::Result<()> {
    let type_ = if send_port == port { EVTCHNSTAT_IPI } else { EVTCHNSTAT_INTERDOMAIN };
    let port = EvtchnPort { port, vcpu, priority: PRIORITY_2LEVEL };
    let deliver = kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2__bindgen_ty_1 { port };
    set_evtchn(vm, send_port, type_, 0, deliver)
}

/// Ends an assignment.
pub(super) fn deassign(vm: &impl AsRawFd, send_port: u32) -> io::Result<()> {
    set_evtchn(vm, send_port, 0, KVM_XEN_EVTCHN_DEASSIGN, Default::default())
}

/// Sets `port` pending and raises the upcall of `vcpu` unless the port is masked. True: it was neither masked nor pending.
pub(super) fn send(vm: &impl AsRawFd, port: u32, vcpu: u32) -> io::Result<bool> {
    let event = kvm_irq_routing_xen_evtchn { port, vcpu, priority: PRIORITY_2LEVEL };
    // SAFETY: as in configure().
    let result = unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_EVTCHN_SEND(), &event) };
    check(result).map(|()| result > 0)
}

/// The route of the global interrupt `gsi` to the event channel `port`, at `vcpu`.
pub(super) fn route(gsi: u32, port: u32, vcpu: u32) -> kvm_irq_routing_entry {
    let xen_evtchn = kvm_irq_routing_xen_evtchn { port, vcpu, priority: PRIORITY_2LEVEL };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_XEN_EVTCHN,
        u: kvm_irq_routing_entry__bindgen_ty_1 { xen_evtchn },
        ..Default::default()
    }
}

/// An attribute of one vCPU. Only its own thread may set it: the ioctl waits for the vCPU to leave KVM_RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VcpuAttr {
    /// Guest physical address of vcpu_info, or [`INVALID`].
    Info(u64),
    /// Guest physical address of the secondary time area, or [`INVALID`].
    TimeInfo(u64),
    /// Guest physical address of the runstate area, or [`INVALID`].
    Runstate(u64),
    /// The id that hypercalls name the vCPU by.
    Id(u32),
    /// The port that the one-shot timer raises, 0: none; and its next expiry in guest ns, 0: off.
    Timer(u32, u64),
    /// The vector of the per-vCPU upcall, 0: none.
    UpcallVector(u8),
}

/// Sets an attribute of a vCPU.
pub(super) fn set_vcpu_attr(vcpu: &impl AsRawFd, attr: VcpuAttr) -> io::Result<()> {
    let (kind, u) = match attr {
        VcpuAttr::Info(gpa) => (KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, kvm_xen_vcpu_attr__bindgen_ty_1 { gpa }),
        VcpuAttr::TimeInfo(gpa) => {
            (KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, kvm_xen_vcpu_attr__bindgen_ty_1 { gpa })
        }
        VcpuAttr::Runstate(gpa) => {
            (KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, kvm_xen_vcpu_attr__bindgen_ty_1 { gpa })
        }
        VcpuAttr::Id(vcpu_id) => {
            (KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, kvm_xen_vcpu_attr__bindgen_ty_1 { vcpu_id })
        }
        VcpuAttr::Timer(port, expires_ns) => {
            let timer =
                kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2 { port, priority: PRIORITY_2LEVEL, expires_ns };
            (KVM_XEN_VCPU_ATTR_TYPE_TIMER, kvm_xen_vcpu_attr__bindgen_ty_1 { timer })
        }
        VcpuAttr::UpcallVector(vector) => {
            (KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, kvm_xen_vcpu_attr__bindgen_ty_1 { vector })
        }
    };
    let type_ = u16::try_from(kind).map_err(io::Error::other)?;
    let attr = kvm_xen_vcpu_attr { type_, pad: [0; 3], u };
    // SAFETY: as in configure().
    check(unsafe { ioctl_with_ref(vcpu, KVM_XEN_VCPU_SET_ATTR(), &attr) })
}
