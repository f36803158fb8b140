//! PCI interrupt routing: the PIRQ inputs of the PIIX3 as link devices, and _PRT.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, CreateDWordField, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Local, Method, MethodCall, Name, OpRegion, OpRegionSpace, Or, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, ZERO,
};

use super::resources::{FIRST_INTERRUPT, Interrupts};
use super::{Raw, children, raw};
use crate::routing::{LINK_IRQS, PCI_DEVICES, PCI_PINS, PciPin, Route, SCI_IRQ};

/// Name of link and register field of each PIRQ.
const LINKS: [(&str, &str); 4] = [("LNKA", "PRQA"), ("LNKB", "PRQB"), ("LNKC", "PRQC"), ("LNKD", "PRQD")];
/// The link of the SCI, which cannot be moved.
const SCI_LINK: &str = "LNKS";

/// PIRQRC[A] of the PIIX3's PCI function 0; the others follow.
const PIRQ_REGISTERS: u8 = 0x60;
/// Bit 7 of a route control register: not routed. Bits 3 to 0: the interrupt.
const NOT_ROUTED: u8 = 0x80;
const IRQ_MASK: u8 = 0x0f;

/// _STA: present and working, enabled or not.
const ENABLED: u8 = 0x0b;
const DISABLED: u8 = 0x09;

/// The registers, inside the ISA bridge's device: a region of its PCI configuration space.
pub(super) fn registers() -> Raw {
    let len = u8::try_from(LINKS.len()).unwrap_or(u8::MAX);
    raw(&OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &PIRQ_REGISTERS, &len))
}

/// \_SB.LNKA to LNKD and LNKS.
pub(super) fn links() -> Raw {
    let mut parts = vec![fields(), status(), current()];
    parts.extend((1u8..).zip(LINKS).map(|(uid, (link, field))| pirq_link(uid, link, field)));
    parts.push(sci_link());
    raw(&Scope::new("\\_SB_".into(), children(&parts)))
}

fn fields() -> Raw {
    let entries = LINKS.iter().map(|(_, field)| {
        let mut name = [b'_'; 4];
        for (to, from) in name.iter_mut().zip(field.bytes()) {
            *to = from;
        }
        FieldEntry::Named(name, 8)
    });
    raw(&Field::new(
        "\\_SB_.PCI0.ISA_.PIRQ".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        entries.collect(),
    ))
}

/// Method LSTA: a register's value -> _STA.
fn status() -> Raw {
    let not_routed = And::new(&ZERO, &Arg(0), &NOT_ROUTED);
    let disabled = Return::new(&DISABLED);
    let branch = If::new(&not_routed, vec![&disabled]);
    let enabled = Return::new(&ENABLED);
    raw(&Method::new("LSTA".into(), 1, false, vec![&branch, &enabled]))
}

/// Method LCRS: a register's value -> _CRS. Interrupt 0 while it is not routed.
fn current() -> Raw {
    let interrupt = Interrupts(&[0]);
    let template = ResourceTemplate::new(vec![&interrupt]);
    let buffer = Name::new("RBUF".into(), &template);
    let (buffer_name, field_name) = (Path::new("RBUF"), Path::new("IRQN"));
    let field = CreateDWordField::new(&field_name, &buffer_name, &FIRST_INTERRUPT);
    let local = Local(0);
    let flag = And::new(&local, &Arg(0), &NOT_ROUTED);
    let routed = Equal::new(&local, &ZERO);
    let set = And::new(&field_name, &Arg(0), &IRQ_MASK);
    let branch = If::new(&routed, vec![&set]);
    let result = Return::new(&buffer_name);
    raw(&Method::new("LCRS".into(), 1, true, vec![&buffer, &field, &flag, &branch, &result]))
}

fn pirq_link(uid: u8, link: &str, register: &str) -> Raw {
    let register = Path::new(register);
    let possible = Interrupts(&LINK_IRQS);
    let possible = ResourceTemplate::new(vec![&possible]);
    let call = |method: &str| raw(&Return::new(&MethodCall::new(method.into(), vec![&register])));
    let (status, current) = (call("LSTA"), call("LCRS"));
    let disable = Or::new(&register, &register, &NOT_ROUTED);
    let field_name = Path::new("IRQN");
    let field = CreateDWordField::new(&field_name, &Arg(0), &FIRST_INTERRUPT);
    let set = Store::new(&register, &field_name);
    raw(&Device::new(
        link.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &uid),
            &Name::new("_PRS".into(), &possible),
            &Method::new("_STA".into(), 0, false, vec![&status]),
            &Method::new("_CRS".into(), 0, false, vec![&current]),
            &Method::new("_DIS".into(), 0, false, vec![&disable]),
            &Method::new("_SRS".into(), 1, true, vec![&field, &set]),
        ],
    ))
}

fn sci_link() -> Raw {
    let interrupt = Interrupts(&[SCI_IRQ as u32]);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    raw(&Device::new(
        SCI_LINK.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &5u8),
            &Name::new("_PRS".into(), &resources),
            &Name::new("_STA".into(), &ENABLED),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_DIS".into(), 0, false, vec![]),
            &Method::new("_SRS".into(), 1, false, vec![]),
        ],
    ))
}

/// \_SB.PCI0._PRT: all pins of all devices of the bus, those that are not there too. A PCI device whose pin has no
/// entry stops Windows XP (stop 0xa5).
pub(super) fn routing_table() -> Raw {
    let mut table = PackageBuilder::new();
    for device in 0..PCI_DEVICES {
        for pin in 0..PCI_PINS {
            let link = match (PciPin { device, function: 0, pin }).route() {
                Route::Pirq(pirq) => LINKS.get(usize::from(pirq)).map_or(SCI_LINK, |(link, _)| *link),
                Route::Sci => SCI_LINK,
            };
            // Any function of the device.
            let address = u32::from(device) << 16 | 0xffff;
            let mut entry = PackageBuilder::new();
            entry.add_element(&address);
            entry.add_element(&pin);
            entry.add_element(&Path::new(&format!("\\_SB_.{link}")));
            entry.add_element(&ZERO);
            table.add_element(&entry);
        }
    }
    let name = Name::new("_PRT".into(), &table);
    raw(&Scope::new("\\_SB_.PCI0".into(), vec![&name as &dyn Aml]))
}
