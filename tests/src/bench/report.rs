//! From figures to tables.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::material::Material;
use crate::driver::Place;
use crate::packages::run;
use crate::{Result, fail};

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Name in the protocol, text, digits, and whether more is better.
type Metric = (&'static str, &'static str, usize, bool);

const BOOT: [Metric; 5] = [
    ("first_instruction_s", "exec to the first guest instruction, s", 3, false),
    ("user_s", "exec to guest user space, s", 2, false),
    ("devices_s", "exec to disk and interface in the guest, s", 2, false),
    ("user_cpu_s", "host CPU until guest user space, s", 2, false),
    ("user_exits", "KVM exits until guest user space", 0, false),
];
const REST: [Metric; 13] = [
    ("idle_dirty_kib", "private dirty memory beyond guest RAM, idle, KiB", 0, false),
    ("loaded_dirty_kib", "the same after load, KiB", 0, false),
    ("idle_pss_kib", "PSS beyond guest RAM, idle, KiB", 0, false),
    ("loaded_pss_kib", "the same after load, KiB", 0, false),
    ("idle_cpu_percent", "CPU of an idle guest, % of one", 2, false),
    ("idle_exits", "KVM exits of an idle guest in 10 s", 0, false),
    ("disk_write_mib_s", "disk, sequential write, MiB/s", 0, true),
    ("disk_read_mib_s", "disk, sequential read, MiB/s", 0, true),
    ("disk_random_iops", "disk, random 4 KiB reads, one at a time, IOPS", 0, true),
    ("net_out_mbit_s", "TCP, guest to host, Mbit/s", 0, true),
    ("net_in_mbit_s", "TCP, host to guest, Mbit/s", 0, true),
    ("ping_min_ms", "ping from the guest, minimum, ms", 2, false),
    ("ping_average_ms", "ping from the guest, average, ms", 2, false),
];
const BOOT_PEERS: [&str; 6] =
    ["xvmm-bz", "qemu-xen-bz", "microvm-bz", "xvmm-elf", "qemu-xen-elf", "microvm-elf"];
const REST_PEERS: [&str; 3] = ["xvmm-bz", "qemu-xen-bz", "microvm-bz"];

/// All figures of a run.
#[derive(Default)]
pub struct Figures {
    /// Kernel release of the KVM host.
    pub host: String,
    /// Rounds whose host died, and that were begun again.
    pub repeated: u32,
    values: BTreeMap<(String, String), Vec<f64>>,
}

impl Figures {
    /// Adds one; what is no number is left out.
    pub fn add(&mut self, peer: &str, metric: &str, value: &str) {
        if let Ok(value) = value.parse() {
            self.values.entry((peer.to_owned(), metric.to_owned())).or_default().push(value);
        }
    }

    /// Adds those of a round.
    pub fn append(&mut self, round: Figures) {
        self.host = round.host;
        for (of, mut values) in round.values {
            self.values.entry(of).or_default().append(&mut values);
        }
    }

    /// Median and the best of the values.
    fn of(&self, peer: &str, metric: &Metric) -> Option<(f64, f64)> {
        let mut values = self.values.get(&(peer.to_owned(), metric.0.to_owned()))?.clone();
        let best = values.iter().copied().reduce(if metric.3 { f64::max } else { f64::min })?;
        Some((median(&mut values), best))
    }

    fn count(&self, metric: &str) -> usize {
        let counts = self.values.iter().filter(|((_, name), _)| name == metric);
        counts.map(|(_, values)| values.len()).max().unwrap_or(0)
    }

    /// The tables with what is to be known of them.
    pub fn report(&self, place: Place, made: &Material) -> String {
        let today = run(Command::new("date").arg("+%F")).unwrap_or_default();
        let words: Vec<String> = std::env::args().skip(2).filter(|word| word != "--write").collect();
        let place = match place {
            Place::Direct => "directly on this machine's KVM",
            Place::Nested => {
                "in the nested host: below QEMU's emulation of a processor, so only ratios mean something"
            }
        };
        let mut text = format!(
            "Measured on {} with `tests/bench{}`, {place}.\n\
             KVM host: Linux {}. Guest: Linux {}, one vCPU, 256 MiB. Peer: {}.\n\
             Each cell: median (best) of {} boots, or of {} runs with load.\n",
            today.trim(),
            words.iter().map(|word| format!(" {word}")).collect::<String>(),
            self.host,
            made.release,
            made.qemu,
            self.count("user_s"),
            self.count("idle_dirty_kib").max(self.count("disk_read_mib_s")),
        );
        if self.repeated > 0 {
            let _ = writeln!(
                text,
                "The host died in {} rounds, which were repeated on a new one.",
                self.repeated
            );
        }
        text += "\n### Boot\n\n";
        self.table(&mut text, &BOOT, &BOOT_PEERS);
        text += "\n### Memory, idle, disk, network\n\n";
        self.table(&mut text, &REST, &REST_PEERS);
        text += "\n### xvmm divided by the other (medians)\n\n";
        let pairs = [
            ("qemu-xen, bz", "xvmm-bz", "qemu-xen-bz"),
            ("qemu-xen, elf", "xvmm-elf", "qemu-xen-elf"),
            ("microvm, bz", "xvmm-bz", "microvm-bz"),
            ("microvm, elf", "xvmm-elf", "microvm-elf"),
        ];
        row(&mut text, "xvmm divided by", pairs.iter().map(|(title, _, _)| (*title).to_owned()));
        rule(&mut text, pairs.len());
        for metric in BOOT.iter().chain(&REST) {
            let cells = pairs.iter().map(|(_, ours, theirs)| {
                match (self.of(ours, metric), self.of(theirs, metric)) {
                    (Some((ours, _)), Some((theirs, _))) if theirs > 0.0 => format!("{:.2}", ours / theirs),
                    _ => String::new(),
                }
            });
            let better = if metric.3 { " (more is better)" } else { "" };
            row(&mut text, &format!("{}{better}", metric.1), cells);
        }
        text
    }

    fn table(&self, text: &mut String, metrics: &[Metric], peers: &[&str]) {
        row(text, "", peers.iter().map(|peer| (*peer).to_owned()));
        rule(text, peers.len());
        for metric in metrics {
            let cells = peers.iter().map(|peer| match self.of(peer, metric) {
                Some((median, best)) => format!("{median:.0$} ({best:.0$})", metric.2),
                None => String::new(),
            });
            row(text, metric.1, cells);
        }
    }
}

fn row(text: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "| {first} |");
    for cell in cells {
        let _ = write!(text, " {cell} |");
    }
    text.push('\n');
}

fn rule(text: &mut String, columns: usize) {
    let _ = writeln!(text, "|---|{}", "---:|".repeat(columns));
}

/// The median; of an even number of values the upper one of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Puts the text between the marks of docs/benchmarks.md.
pub fn write(text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let old = fs::read_to_string(&path)?;
    let Some(new) = replace(&old, text) else {
        return fail!("{} has not the lines {BEGIN} and {END}", path.display());
    };
    fs::write(&path, new)?;
    eprintln!("written to {}", path.display());
    Ok(())
}

fn replace(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn medians_and_the_best_of_either_direction() {
        let mut figures = Figures::default();
        for value in ["3", "1", "2", "x"] {
            figures.add("a", "m", value);
        }
        assert_eq!(figures.of("a", &("m", "", 0, false)), Some((2.0, 1.0)));
        assert_eq!(figures.of("a", &("m", "", 0, true)), Some((2.0, 3.0)));
        assert_eq!(figures.of("b", &("m", "", 0, true)), None);
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let old = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        assert_eq!(replace(&old, "new\n").unwrap(), format!("a\n{BEGIN}\n\nnew\n\n{END}\nz\n"));
        assert_eq!(replace("a", "new"), None);
    }
}
