#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::RecordedDelivery;

const OTHER: DomId = DomId(7);

struct Bench {
    events: Arc<EventChannels>,
    delivery: Arc<RecordedDelivery>,
    shared_info: Arc<SharedPages>,
}

fn bench() -> Bench {
    let delivery = Arc::new(RecordedDelivery::default());
    let shared_info = Arc::new(SharedPages::new("shared_info", 1).unwrap());
    let accelerator = Arc::clone(&delivery) as Arc<dyn EventDelivery>;
    let table = EventChannels::new(DomId(1), 4, Arc::clone(&shared_info), accelerator);
    Bench { events: Arc::new(table), delivery, shared_info }
}

impl Bench {
    fn raised(&self) -> Vec<(u32, u32)> {
        self.delivery.raised.lock().unwrap().drain(..).map(|(port, vcpu)| (port.0, vcpu)).collect()
    }

    fn set(&self, array: usize, port: Port) {
        self.events.change_bit(array, port, true);
    }

    fn assigned(&self, port: Port) -> Option<SendTarget> {
        self.delivery.assigned.lock().unwrap().iter().find(|(p, _)| *p == port).map(|(_, target)| *target)
    }

    fn waiting(&self) -> Port {
        self.events.alloc_unbound(DomId::SELF, DomId::DOM0).unwrap()
    }
}

#[test]
fn the_lowest_free_port_is_given_and_port_0_never() {
    let b = bench();
    assert_eq!([b.waiting(), b.waiting(), b.waiting()], [Port(1), Port(2), Port(3)]);
    b.events.close(Port(2)).unwrap();
    assert_eq!(b.events.bind_ipi(0).unwrap(), Port(2));
    assert_eq!(b.events.close(Port(0)), Err(EventError::Invalid));
}

#[test]
fn ports_end_at_4096_and_for_32_bit_guests_at_1024() {
    for (wide, limit) in [(true, 4096), (false, 1024)] {
        let b = bench();
        b.events.set_long_mode(wide);
        let given = (0..5000).filter(|_| b.events.alloc_unbound(DomId::SELF, DomId::DOM0).is_ok()).count();
        assert_eq!(given + 1, limit as usize);
        assert_eq!(b.events.bind_virq(VIRQ_TIMER, 0), Err(EventError::NoPorts));
        assert_eq!(b.events.unmask(Port(limit)), Err(EventError::Invalid));
    }
}

#[test]
fn no_other_domain_is_reachable() {
    let b = bench();
    assert_eq!(b.events.alloc_unbound(DomId::SELF, OTHER), Err(EventError::NoDomain));
    assert_eq!(b.events.alloc_unbound(OTHER, DomId::DOM0), Err(EventError::NoDomain));
    let port = b.waiting();
    assert_eq!(b.events.bind_interdomain(OTHER, port), Err(EventError::NoDomain));
    // Not even domain 0: it has no ports for guests to bind, and the guest's own is meant for a backend.
    assert_eq!(b.events.bind_interdomain(DomId::DOM0, port), Err(EventError::Invalid));
    assert_eq!(b.events.bind_interdomain(DomId::SELF, port), Err(EventError::Invalid));
}

#[test]
fn a_backend_hears_the_guest_and_notifies_the_vcpu_that_the_port_targets() {
    let b = bench();
    let port = b.waiting();
    let channel = b.events.bind_backend(port).unwrap();
    assert_eq!(b.assigned(port), Some(SendTarget::EventFd(channel.event().as_raw_fd())));
    b.events.send(port).unwrap();
    assert_eq!(channel.event().read().unwrap(), 1);
    channel.notify();
    b.events.bind_vcpu(port, 3).unwrap();
    channel.notify();
    assert_eq!(b.raised(), [(1, 0), (1, 3)]);
    assert!(matches!(b.events.bind_backend(port), Err(EventError::Invalid)), "a second backend");
}

#[test]
fn a_backend_that_goes_leaves_the_port_to_the_next() {
    let b = bench();
    let port = b.waiting();
    drop(b.events.bind_backend(port).unwrap());
    assert_eq!(b.assigned(port), None);
    assert_eq!(b.events.status(port).unwrap().status, 1);
    assert!(b.events.bind_backend(port).is_ok());
}

#[test]
fn a_closed_port_is_not_notified_even_if_its_number_lives_on() {
    let b = bench();
    let port = b.waiting();
    let channel = b.events.bind_backend(port).unwrap();
    b.set(PENDING, port);
    b.events.close(port).unwrap();
    assert!(!b.events.is_pending(port));
    assert_eq!(b.events.bind_ipi(1).unwrap(), port);
    channel.notify();
    drop(channel);
    assert_eq!(b.raised(), []);
    assert_eq!(b.assigned(port), Some(SendTarget::Guest(port, 1)));
}

#[test]
fn a_backend_hears_that_the_guest_has_closed_its_end() {
    for reset in [false, true] {
        let b = bench();
        let channel = b.events.bind_backend(b.waiting()).unwrap();
        assert!(channel.is_open() && channel.event().read().is_err());
        if reset {
            b.events.reset();
        } else {
            b.events.close(channel.port()).unwrap();
        }
        assert!(!channel.is_open() && channel.event().read().is_ok());
    }
}

#[test]
fn a_reserved_port_survives_close_and_reset() {
    let b = bench();
    let channel = b.events.open_reserved().unwrap();
    b.events.close(channel.port()).unwrap();
    b.events.reset();
    channel.notify();
    assert_eq!(b.raised(), [(channel.port().0, 0)]);
}

#[test]
fn a_loopback_channel_has_both_ends_in_the_guest() {
    let b = bench();
    let waiting = b.events.alloc_unbound(DomId::SELF, DomId::SELF).unwrap();
    let bound = b.events.bind_interdomain(DomId::SELF, waiting).unwrap();
    b.events.bind_vcpu(bound, 2).unwrap();
    assert_eq!(b.assigned(waiting), Some(SendTarget::Guest(bound, 2)));
    b.events.send(waiting).unwrap();
    b.events.send(bound).unwrap();
    assert_eq!(b.raised(), [(bound.0, 2), (waiting.0, 0)]);
    b.events.close(bound).unwrap();
    assert_eq!(b.events.status(waiting).unwrap().status, 1);
    assert_eq!(b.assigned(waiting), None);
}

#[test]
fn virqs_are_bound_once_and_per_vcpu_ones_once_each() {
    let b = bench();
    let first = b.events.bind_virq(VIRQ_TIMER, 0).unwrap();
    assert_eq!(b.events.bind_virq(VIRQ_TIMER, 0), Err(EventError::Exists));
    assert!(b.events.bind_virq(VIRQ_TIMER, 1).is_ok());
    assert_eq!(b.events.bind_virq(VIRQ_TIMER, 4), Err(EventError::NoVcpu));
    assert_eq!(b.events.bind_virq(2, 1), Err(EventError::Invalid));
    assert!(b.events.bind_virq(2, 0).is_ok());
    assert_eq!(b.events.bind_virq(NR_VIRQS, 0), Err(EventError::Invalid));
    assert_eq!(b.events.virq_port(VIRQ_TIMER, 0), Some(first));
    // A per-vCPU VIRQ stays where it is.
    assert_eq!(b.events.bind_vcpu(first, 1), Err(EventError::Invalid));
    b.events.raise_virq(2, 0);
    assert_eq!(b.raised(), [(3, 0)]);
}

#[test]
fn only_an_unmasked_event_that_is_pending_is_delivered() {
    let b = bench();
    let port = b.events.bind_ipi(2).unwrap();
    b.events.unmask(port).unwrap();
    b.set(MASK_64, port);
    b.events.unmask(port).unwrap();
    assert_eq!(b.raised(), []);
    b.set(MASK_64, port);
    b.set(PENDING, port);
    b.events.unmask(port).unwrap();
    assert_eq!(b.raised(), [(port.0, 2)]);
}

#[test]
fn a_moved_pending_event_goes_to_the_new_vcpu() {
    let b = bench();
    let port = b.waiting();
    b.set(PENDING, port);
    b.events.bind_vcpu(port, 1).unwrap();
    assert_eq!(b.raised(), [(port.0, 1)]);
    b.set(PENDING, port);
    b.set(MASK_64, port);
    b.events.bind_vcpu(port, 2).unwrap();
    assert_eq!(b.raised(), []);
    assert_eq!(b.events.bind_vcpu(port, 4), Err(EventError::NoVcpu));
}

#[test]
fn the_32_bit_mask_is_at_its_own_place() {
    let b = bench();
    b.events.set_long_mode(false);
    let port = b.events.bind_ipi(0).unwrap();
    b.shared_info.u8_at(MASK_32).unwrap().store(1 << port.0, SeqCst);
    b.set(PENDING, port);
    b.events.unmask(port).unwrap();
    assert_eq!(b.shared_info.u8_at(MASK_32).unwrap().load(SeqCst), 0);
    assert_eq!(b.raised(), [(port.0, 0)]);
}

#[test]
fn reset_closes_everything() {
    let b = bench();
    let channel = b.events.bind_backend(b.waiting()).unwrap();
    b.events.bind_ipi(0).unwrap();
    b.events.bind_virq(VIRQ_TIMER, 0).unwrap();
    b.events.reset();
    channel.notify();
    assert_eq!(b.raised(), []);
    assert!((1..4).all(|p| b.events.status(Port(p)).unwrap().status == 0));
    assert!(b.delivery.assigned.lock().unwrap().is_empty());
}

#[test]
fn a_notifier_follows_its_port_to_another_vcpu_and_ends_with_it() {
    let b = bench();
    b.delivery.offer_notifiers();
    let port = b.events.alloc_unbound(DomId::SELF, DomId::DOM0).unwrap();
    let channel = b.events.bind_backend(port).unwrap();
    let fd = channel.notifier().unwrap();
    assert_eq!(channel.notifier(), Some(fd));
    let targets = || b.delivery.notifiers.lock().unwrap().iter().map(|n| (n.0, n.1)).collect::<Vec<_>>();
    assert_eq!(targets(), [(port, 0)]);
    b.events.bind_vcpu(port, 3).unwrap();
    assert_eq!(targets(), [(port, 3)]);
    b.events.close(port).unwrap();
    assert_eq!(targets(), []);
    drop(channel);

    let port = b.events.alloc_unbound(DomId::SELF, DomId::DOM0).unwrap();
    let channel = b.events.bind_backend(port).unwrap();
    channel.notifier().unwrap();
    drop(channel);
    assert_eq!(targets(), []);
    let channel = b.events.bind_backend(port).unwrap();
    b.events.close(port).unwrap();
    assert_eq!(channel.notifier(), None);
}
