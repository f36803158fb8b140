//! The tables in the hands of ACPICA (Debian package acpica-tools): iasl takes them apart and puts them together
//! again, acpiexec runs the DSDT.

use std::path::Path;
use std::process::Command;

use acpi::{DomainTopology, HvmTopology, Profile};

use crate::guest::{Memory, board, u32_at, u64_at};

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program}, of the package acpica-tools: {error}"));
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Disassembles the tables and compiles the result. `ignored`: numbers of remarks and warnings that may be.
fn round_trip(case: &str, tables: &[&[u8]], ignored: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for table in tables {
        let name = String::from_utf8_lossy(&table[..4]).to_lowercase();
        std::fs::write(folder.path().join(format!("{name}.dat")), table).unwrap();
        let said = run(folder.path(), "iasl", &["-d", &format!("{name}.dat")]);
        let source = std::fs::read_to_string(folder.path().join(format!("{name}.dsl"))).unwrap_or_default();
        for bad in ["Error", "Warning", "Invalid", "Incorrect"] {
            assert!(
                !said.contains(bad) && !source.contains(bad),
                "{case}: {name}: iasl -d: {said}\n{source}"
            );
        }
        let mut arguments: Vec<_> = ignored.iter().flat_map(|number| ["-vw", number]).collect();
        let file = format!("{name}.dsl");
        arguments.push(&file);
        let said = run(folder.path(), "iasl", &arguments);
        let clean = said.contains("Compilation successful. 0 Errors, 0 Warnings, 0 Remarks")
            || said.contains("Table Input:") && !said.contains("Error") && !said.contains("Warning");
        assert!(clean, "{case}: {name}: iasl: {said}");
        let again = std::fs::read(folder.path().join(format!("{name}.aml"))).unwrap();
        // iasl has shorter names for some objects of a DSDT. Elsewhere, it puts its own name and version where the
        // creator's was, and changes the checksum for it.
        if name != "dsdt" && name != "facs" {
            assert_eq!(
                (again[8], &again[36..]),
                (table[8], &table[36..]),
                "{case}: {name} is another table now"
            );
        }
    }
}

#[test]
fn tables_of_pvh_guests_survive_iasl() {
    for vcpus in [1, 300] {
        let base = 0xfc00_0000;
        let tables = DomainTopology::new(vcpus).pvh_tables(base).unwrap();
        let at = |gpa: u64| {
            let bytes = &tables.bytes[(gpa - base) as usize..];
            &bytes[..u32_at(bytes, 4) as usize]
        };
        let xsdt = at(u64_at(&tables.bytes, 24));
        let mut all: Vec<_> = xsdt[36..].chunks_exact(8).map(|entry| at(u64_at(entry, 0))).collect();
        all.extend([xsdt, at(u64_at(all[0], 140))]);
        round_trip(&format!("PVH, {vcpus} vCPUs"), &all, &[]);
    }
}

#[test]
fn tables_of_hvm_guests_survive_iasl_in_every_state() {
    for profile in [Profile::Xp, Profile::Modern] {
        for (vcpus, apic) in [(1, true), (1, false), (4, true), (255, true)] {
            for extras in [false, true] {
                let hpet = extras.then_some(0x8086_a201);
                let board = HvmTopology { profile, apic, hpet, com1: extras, ..board(vcpus) };
                let case = format!("{profile:?}, {vcpus} vCPUs, apic {apic}, HPET and serial port {extras}");
                // 2173: a remark that _CRS makes its buffer anew each time, as two may be asked for at once.
                // 3168: Processor() is of the past. So is the XP profile.
                let ignored: &[&str] = if profile == Profile::Xp { &["2173", "3168"] } else { &["2173"] };
                round_trip(&case, &Memory::of(&board).all(), ignored);
            }
        }
    }
}

/// acpiexec cannot print all of _PRT (16 KiB is its limit), so its entries are returned one by one.
const ENTRY_OF_PRT: &str = r#"
DefinitionBlock ("prt.aml", "SSDT", 1, "TEST", "PRT", 1)
{
    External (\_SB.PCI0._PRT, PkgObj)
    Method (\PE, 1) { Return (DerefOf (Index (\_SB.PCI0._PRT, Arg0))) }
    Method (\PS, 0) { Return (SizeOf (\_SB.PCI0._PRT)) }
}
"#;

/// Runs commands (at most 1000 bytes) of acpiexec on a board's DSDT; without repairs of what methods return.
fn execute(board: &HvmTopology, commands: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("dsdt.aml"), Memory::of(board).dsdt()).unwrap();
    std::fs::write(folder.path().join("prt.asl"), ENTRY_OF_PRT).unwrap();
    run(folder.path(), "iasl", &["prt.asl"]);
    let text =
        run(folder.path(), "acpiexec", &["-dr", "-ds", "-b", &commands.join(";"), "dsdt.aml", "prt.aml"]);
    for bad in ["Error", "Warning", "AE_"] {
        assert!(!text.replace("AE_OK", "").contains(bad), "{text}");
    }
    text
}

/// What acpiexec printed for each command that was an evaluation, without addresses.
fn results(text: &str) -> Vec<Vec<String>> {
    let evaluations = text.split("\nEvaluating ").skip(1);
    let values = |part: &str| -> Vec<String> {
        part.lines().filter_map(|line| line.trim().strip_prefix('[')).map(str::to_owned).collect()
    };
    evaluations.map(values).collect()
}

fn integer(value: u64) -> String {
    format!("Integer] = {value:016X}")
}

/// The bytes of the buffer that each evaluation returned.
fn buffers(text: &str) -> Vec<String> {
    let bytes = |line: &str| Some(line.split_once("//")?.0.rsplit_once(": ")?.1.trim().to_owned());
    let buffer = |part: &str| part.lines().filter_map(bytes).collect::<Vec<_>>().join(" ");
    text.split("\nEvaluating ").skip(1).map(buffer).filter(|buffer| !buffer.is_empty()).collect()
}

/// A resource template with one level-triggered, active-high, shared interrupt.
fn interrupt(irq: u8) -> String {
    format!("89 06 00 09 01 {irq:02X} 00 00 00 79 00")
}

#[test]
fn pic_and_s5_evaluate_in_both_profiles() {
    for profile in [Profile::Xp, Profile::Modern] {
        let board = HvmTopology { profile, ..board(2) };
        let text = execute(&board, &["evaluate \\_PIC 1", "evaluate \\PICM", "evaluate \\_S5"]);
        let zero = integer(0);
        let s5 = vec!["Package] Contains 4 Elements:".into(), zero.clone(), zero.clone(), zero.clone(), zero];
        assert_eq!(results(&text), [vec![], vec![integer(1)], s5]);
    }
}

#[test]
fn a_link_device_programs_its_register() {
    for link in ["LNKA", "LNKB", "LNKC", "LNKD"] {
        let method = |name: &str| format!("evaluate \\_SB.{link}.{name}");
        let register = format!("evaluate \\_SB.PRQ{}", &link[3..]);
        let set = format!("evaluate \\_SB.{link}._SRS (89 06 00 09 01 0B 00 00 00 79 00)");
        let crs = method("_CRS");
        let sta = method("_STA");
        let dis = method("_DIS");
        let text = execute(&board(1), &[&set, &register, &crs, &sta, &dis, &register, &crs, &sta]);
        let integers: Vec<_> =
            results(&text).into_iter().flatten().filter(|line| line.starts_with("Int")).collect();
        assert_eq!(integers, [integer(11), integer(0xb), integer(0x8b), integer(9)], "{link}");
        assert_eq!(buffers(&text), [interrupt(11), interrupt(0)], "{link}");
    }
}

#[test]
fn the_links_offer_5_10_and_11_and_the_sci_9() {
    let text = execute(
        &board(1),
        &["evaluate \\_SB.LNKC._PRS", "evaluate \\_SB.LNKS._PRS", "evaluate \\_SB.LNKS._CRS"],
    );
    let offered = "89 0E 00 09 03 05 00 00 00 0A 00 00 00 0B 00 00 00 79 00";
    assert_eq!(buffers(&text), [offered.to_owned(), interrupt(9), interrupt(9)]);
}

#[test]
fn prt_names_a_link_for_all_pins_of_all_devices() {
    let board = board(1);
    let mut found = results(&execute(&board, &["evaluate \\PS"]));
    assert_eq!(found, [[integer(128)]]);
    found.clear();
    for quarter in 0..4 {
        let commands: Vec<_> =
            (quarter * 32..quarter * 32 + 32).map(|entry| format!("evaluate \\PE {entry}")).collect();
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        found.extend(results(&execute(&board, &commands)));
    }
    assert_eq!(found.len(), 128);
    for (entry, found) in (0u64..).zip(found) {
        let (device, pin) = (entry / 4, entry % 4);
        // INTA# to INTD# of device 1 would be LNKA to LNKD; each next device begins one further.
        let link = match (device, pin) {
            (1, 0) => 'S',
            _ => ['A', 'B', 'C', 'D'][((device + pin + 3) % 4) as usize],
        };
        assert_eq!(found[1..3], [integer(device << 16 | 0xffff), integer(pin)]);
        assert!(
            found[3].ends_with(&format!("Name LNK{link} Device")),
            "device {device}, pin {pin}: {found:?}"
        );
        assert_eq!(found[4], integer(0));
    }
}

#[test]
fn isa_devices_have_the_resources_of_a_pc() {
    let board = HvmTopology { hpet: Some(0x8086_a201), ..board(1) };
    let expected = [
        ("PIC", "47 01 20 00 20 00 01 02 47 01 A0 00 A0 00 01 02 47 01 D0 04 D0 04 01 02 22 04 00 79 00"),
        ("TMR", "47 01 40 00 40 00 01 04 22 01 00 79 00"),
        ("DMA", "47 01 00 00 00 00 01 10 47 01 81 00 81 00 01 0F 47 01 C0 00 C0 00 01 20 2A 10 06 79 00"),
        ("RTC", "47 01 70 00 70 00 01 02 22 00 01 79 00"),
        ("KBD", "47 01 60 00 60 00 01 01 47 01 64 00 64 00 01 01 22 02 00 79 00"),
        ("MOU", "22 00 10 79 00"),
        ("SPKR", "47 01 61 00 61 00 01 01 79 00"),
        ("FPU", "47 01 F0 00 F0 00 01 10 22 00 20 79 00"),
        ("COM1", "47 01 F8 03 F8 03 01 08 22 10 00 79 00"),
        ("HPET", "86 09 00 00 00 00 D0 FE 00 04 00 00 79 00"),
    ];
    let commands = expected.map(|(name, _)| format!("evaluate \\_SB.PCI0.ISA.{name}._CRS"));
    let found = buffers(&execute(&board, &commands.each_ref().map(String::as_str)));
    assert_eq!(found, expected.map(|(_, bytes)| bytes));
}

#[test]
fn ports_of_power_management_are_reserved_and_the_pci_window_begins_behind_ram() {
    let text = execute(&board(1), &["evaluate \\_SB.PCI0.ISA.SYSR._CRS", "evaluate \\_SB.PCI0._CRS"]);
    let [reserved, window] = buffers(&text).try_into().unwrap();
    for ports in [
        "47 01 00 06 00 06 01 40",
        "47 01 00 07 00 07 01 10",
        "47 01 E0 AF E0 AF 01 04",
        "47 01 B2 00 B2 00 01 02",
    ] {
        assert!(reserved.contains(ports), "{ports} in {reserved}");
    }
    // Minimum 0x40000000, maximum 0xfebfffff, no translation, length 0xbec00000.
    let hole = "00 00 00 40 FF FF BF FE 00 00 00 00 00 00 C0 BE";
    assert!(window.contains(hole) && window.contains("47 01 F8 0C F8 0C 01 08"), "{window}");
}
