//! What firmware leaves in memory: the tables of the board's state, and no others.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{LIMIT, Pc, tool_file};
use crate::cases::Bench;
use crate::{Result, check, fail, guest};

/// Bytes of a piece of memory that the boot sector writes down, and where the first one is on the disk.
const PIECE: usize = 32 << 10;
const FIRST: usize = 32 << 10;
/// Addresses of the pieces' ranges, and numbers of pieces; the first piece is not memory.
const RANGES: [(usize, usize); 3] = [(0x9_0000, 2), (0xe_0000, 4), (0x3fc_0000, 8)];
/// CPUID 1, EDX: a local APIC.
const APIC: u32 = 1 << 9;
/// Power management of the PIIX4, and what a bus says where no function is.
const PIIX4_POWER: u32 = 0x7113_8086;
const NOTHING: u32 = u32::MAX;

/// What the boot sector wrote down.
struct Memory {
    features: u32,
    power: u32,
    ranges: Vec<(usize, Vec<u8>)>,
}

impl Memory {
    fn parse(disk: &[u8]) -> Result<Memory> {
        let mut pieces = disk.get(FIRST..).unwrap_or_default().chunks(PIECE);
        let first = pieces.next().unwrap_or_default();
        check!(first.get(8..12) == Some(&b"done"[..]), "the boot sector wrote nothing");
        let ranges =
            RANGES.map(|(base, count)| (base, pieces.by_ref().take(count).collect::<Vec<_>>().concat()));
        Ok(Memory { features: word(first, 0), power: word(first, 4), ranges: ranges.into() })
    }

    /// The bytes from `address` on.
    fn at(&self, address: usize) -> &[u8] {
        let range = self.ranges.iter().find(|(base, bytes)| (*base..base + bytes.len()).contains(&address));
        range.and_then(|(base, bytes)| bytes.get(address - base..)).unwrap_or_default()
    }

    /// Where below 1 MiB `signature` is, at multiples of 16, with a sum of zero over the length that `len` tells.
    fn find(&self, signature: &[u8], len: impl Fn(&[u8]) -> usize) -> Vec<usize> {
        let low = self.ranges.iter().filter(|(base, _)| *base < 1 << 20);
        let places = low.flat_map(|(base, bytes)| (0..bytes.len()).step_by(16).map(move |at| base + at));
        places
            .filter(|place| {
                let bytes = self.at(*place);
                bytes.starts_with(signature) && bytes.get(..len(bytes)).is_some_and(|table| sum(table) == 0)
            })
            .collect()
    }

    /// The ACPI table at `address`.
    fn acpi(&self, address: usize) -> Result<&[u8]> {
        let bytes = self.at(address);
        let Some(table) = bytes.get(..word(bytes, 4) as usize).filter(|table| table.len() >= 36) else {
            return fail!("there is no ACPI table at {address:#x}");
        };
        check!(sum(table) == 0, "the ACPI table at {address:#x} has a wrong checksum");
        Ok(table)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    let source = bytes.get(at..).unwrap_or_default();
    word.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
    u32::from_le_bytes(word)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The low memory, with every state of `--acpi` and `--apic`, has the tables of that state once, and none that the
/// firmware made itself.
pub fn tables(bench: &Bench) -> Result<()> {
    for (acpi, apic, vcpus, hpet) in
        [(true, true, 2, true), (true, false, 1, false), (false, true, 2, false), (false, false, 1, false)]
    {
        let memory = boot(bench, (acpi, apic), vcpus, hpet)?;
        look(&memory, (acpi, apic), vcpus, hpet)
            .map_err(|error| format!("acpi {acpi}, apic {apic}: {error}"))?;
    }
    bench.nothing_is_left()
}

fn boot(bench: &Bench, (acpi, apic): (bool, bool), vcpus: usize, hpet: bool) -> Result<Memory> {
    let switch = |on| if on { "on" } else { "off" };
    let disk = bench.disk("tables.img", 2 << 20)?;
    let mut image = fs::read(tool_file("pc-tables.bin"))?;
    image.resize(2 << 20, 0);
    fs::write(&disk, image)?;
    let mut command = guest::xvmm(&bench.folder);
    command.args(["--hvm", "--memory", "64M", "--console", "null", "--on-reboot", "destroy", "-vv"]);
    command.args(["--acpi", switch(acpi), "--apic", switch(apic), "--hpet", switch(hpet)]);
    command.args(["--vcpus", &vcpus.to_string()]).arg("--disk").arg(&disk);
    command.arg("--bios").arg(tool_file("bios.bin")).arg("--vgabios").arg(tool_file("vgabios.bin"));
    let log = bench.folder.join(format!("tables-{}-{}.log", switch(acpi), switch(apic)));
    let mut pc = Pc(command.stdin(Stdio::null()).stderr(File::create(log)?).spawn()?);
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = pc.0.try_wait()? {
            break status;
        }
        check!(Instant::now() < end, "the boot sector did not reset the PC");
        std::thread::sleep(Duration::from_millis(50));
    };
    check!(status.success(), "xvmm ended with {status}");
    Memory::parse(&fs::read(disk)?)
}

fn look(memory: &Memory, (acpi, apic): (bool, bool), vcpus: usize, hpet: bool) -> Result<()> {
    check!((memory.features & APIC != 0) == apic, "CPUID's features are {:#x}", memory.features);
    let power = if acpi { PIIX4_POWER } else { NOTHING };
    check!(memory.power == power, "PCI function 1.3 is {:#x}", memory.power);

    let found = [
        ("RSD PTR ", memory.find(b"RSD PTR ", |_| 20), usize::from(acpi)),
        (
            "_MP_",
            memory.find(b"_MP_", |bytes| usize::from(bytes.get(8).copied().unwrap_or(0)) * 16),
            usize::from(!acpi && apic),
        ),
        ("PCMP", memory.find(b"PCMP", |bytes| word(bytes, 4) as usize & 0xffff), usize::from(!acpi && apic)),
        ("$PIR", memory.find(b"$PIR", |bytes| word(bytes, 4) as usize >> 16), usize::from(!acpi)),
        ("_SM_", memory.find(b"_SM_", |bytes| usize::from(bytes.get(5).copied().unwrap_or(0))), 1),
        ("_SM3_", memory.find(b"_SM3_", |bytes| usize::from(bytes.get(6).copied().unwrap_or(0))), 0),
    ];
    for (name, places, wanted) in &found {
        check!(places.len() == *wanted, "{name} is at {places:x?}, {wanted} wanted");
    }
    let [rsdp, pointer, config, pir, ..] = found.map(|(_, places, _)| places.first().copied());
    if let Some(rsdp) = rsdp {
        check_acpi(memory, rsdp, apic, vcpus, hpet)?;
    }
    if let (Some(pointer), Some(config)) = (pointer, config) {
        check!(word(memory.at(pointer), 4) as usize == config, "the MP pointer does not point to its table");
        let table = memory.at(config);
        check!(table.get(8..16) == Some(&b"XVMM    "[..]), "the MP table is not ours");
        let count = word(table, 34) & 0xffff;
        let mut entries = table.get(44..).unwrap_or_default();
        let (mut processors, mut io_apics) = (0, 0);
        for _ in 0..count {
            let kind = entries.first().copied().unwrap_or(0xff);
            processors += usize::from(kind == 0);
            io_apics += usize::from(kind == 2);
            entries = entries.get(if kind == 0 { 20 } else { 8 }..).unwrap_or_default();
        }
        check!(
            (processors, io_apics) == (vcpus, 1),
            "the MP table has {processors} processors, {io_apics} I/O APICs"
        );
    }
    if let Some(pir) = pir {
        let table = memory.at(pir);
        check!(table.get(8..10) == Some(&[0, 8][..]), "the $PIR's router is not PCI 1.0");
        let slots: Vec<u8> = (0..(word(table, 4) >> 16) as usize / 16 - 2)
            .filter_map(|slot| table.get(33 + slot * 16).copied())
            .collect();
        check!(slots.contains(&0x08), "the $PIR has the devices {slots:x?}");
    }
    // Nothing else in memory is a MADT, where no table is to name an APIC.
    let anywhere =
        memory.ranges.iter().flat_map(|(base, bytes)| (0..bytes.len()).step_by(4).map(move |at| base + at));
    let madts = anywhere.filter(|at| memory.at(*at).starts_with(b"APIC") && memory.acpi(*at).is_ok()).count();
    check!(madts == usize::from(acpi && apic), "there are {madts} MADTs");
    Ok(())
}

/// The RSDP at `rsdp` is that of the XP profile, and lists exactly the tables of the state.
fn check_acpi(memory: &Memory, rsdp: usize, apic: bool, vcpus: usize, hpet: bool) -> Result<()> {
    let root = memory.at(rsdp);
    check!(root.get(9..16) == Some(&b"XVMM  \0"[..]), "the RSDP is not ours: {:x?}", root.get(..20));
    let rsdt = memory.acpi(word(root, 16) as usize)?;
    let tables: Vec<&[u8]> =
        (36..rsdt.len()).step_by(4).map(|at| memory.acpi(word(rsdt, at) as usize)).collect::<Result<_>>()?;
    let names: Vec<String> = tables
        .iter()
        .map(|table| String::from_utf8_lossy(table.get(..4).unwrap_or_default()).into_owned())
        .collect();
    let mut wanted = vec!["FACP"];
    wanted.extend(apic.then_some("APIC"));
    wanted.extend(hpet.then_some("HPET"));
    check!(names == wanted, "the RSDT lists {names:?}");
    let fadt = tables.first().copied().unwrap_or_default();
    let dsdt = memory.acpi(word(fadt, 40) as usize)?;
    check!(dsdt.starts_with(b"DSDT"), "the FADT names no DSDT");
    if apic {
        let madt = tables.get(1).copied().unwrap_or_default();
        let mut entries = madt.get(44..).unwrap_or_default();
        let mut processors = 0;
        while let [kind, len, ..] = entries
            && *len >= 2
        {
            processors += usize::from(*kind == 0);
            entries = entries.get(usize::from(*len)..).unwrap_or_default();
        }
        check!(processors == vcpus, "the MADT has {processors} processors");
    }
    Ok(())
}
