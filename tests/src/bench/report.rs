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

/// Name in the protocol, text, digits, and whether more is better.
type Metric = (&'static str, &'static str, usize, bool);

const BOOT: [Metric; 5] = [
    ("first_instruction_s", "exec to the first guest instruction, s", 3, false),
    ("user_s", "exec to guest user space, s", 2, false),
    ("devices_s", "exec to disk and interface in the guest, s", 2, false),
    ("user_cpu_s", "host CPU until guest user space, s", 2, false),
    ("user_exits", "KVM exits until guest user space", 0, false),
];
const REST: [Metric; 18] = [
    ("idle_dirty_kib", "private dirty memory beyond guest RAM, idle, KiB", 0, false),
    ("loaded_dirty_kib", "the same after load, KiB", 0, false),
    ("idle_pss_kib", "PSS beyond guest RAM, idle, KiB", 0, false),
    ("loaded_pss_kib", "the same after load, KiB", 0, false),
    ("idle_cpu_percent", "CPU of an idle guest, % of one", 2, false),
    ("idle_exits", "KVM exits of an idle guest in 10 s", 0, false),
    ("disk_write_mib_s", "disk, sequential write, MiB/s", 0, true),
    ("disk_read_mib_s", "disk, sequential read, MiB/s", 0, true),
    ("disk_random_1_iops", "disk, random 4 KiB reads, one at a time, IOPS", 0, true),
    ("disk_random_16_iops", "disk, random 4 KiB reads, 16 at a time, IOPS", 0, true),
    ("disk_write_exits", "KVM exits per MiB written", 1, false),
    ("disk_read_exits", "KVM exits per MiB read", 1, false),
    ("disk_random_1_exits", "KVM exits per random read, one at a time", 2, false),
    ("disk_random_16_exits", "KVM exits per random read, 16 at a time", 2, false),
    ("net_out_mbit_s", "TCP, guest to host, Mbit/s", 0, true),
    ("net_in_mbit_s", "TCP, host to guest, Mbit/s", 0, true),
    ("ping_min_ms", "ping from the guest, minimum, ms", 2, false),
    ("ping_average_ms", "ping from the guest, average, ms", 2, false),
];
const BOOT_PEERS: [&str; 6] =
    ["xvmm-bz", "qemu-xen-bz", "microvm-bz", "xvmm-elf", "qemu-xen-elf", "microvm-elf"];
const REST_PEERS: [&str; 3] = ["xvmm-bz", "qemu-xen-bz", "microvm-bz"];

/// What the ratios are of; those of the bzImage first.
const PAIRS: [(&str, &str, &str); 4] = [
    ("qemu-xen, bz", "xvmm-bz", "qemu-xen-bz"),
    ("microvm, bz", "xvmm-bz", "microvm-bz"),
    ("qemu-xen, elf", "xvmm-elf", "qemu-xen-elf"),
    ("microvm, elf", "xvmm-elf", "microvm-elf"),
];

/// All figures of a run.
#[derive(Default)]
pub struct Figures {
    /// Kernel release of the KVM host.
    pub host: String,
    /// Rounds whose host died, and that were begun again.
    pub repeated: u32,
    /// Runs of each peer that did not come to their end.
    failed: BTreeMap<String, u32>,
    values: BTreeMap<(String, String), Vec<f64>>,
}

impl Figures {
    /// Adds one; what is no number is left out.
    pub fn add(&mut self, peer: &str, metric: &str, value: &str) {
        if let Ok(value) = value.parse() {
            self.values.entry((peer.to_owned(), metric.to_owned())).or_default().push(value);
        }
    }

    /// Counts a run that did not come to its end.
    pub fn failed(&mut self, peer: &str) {
        *self.failed.entry(peer.to_owned()).or_default() += 1;
    }

    /// Adds those of a round.
    pub fn append(&mut self, round: Figures) {
        self.host = round.host;
        for (peer, count) in round.failed {
            *self.failed.entry(peer).or_default() += count;
        }
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

    /// The tables of what was measured with what is to be known of them, by the name of their place in
    /// docs/benchmarks.md.
    pub fn report(&self, place: Place, made: &Material) -> Vec<(&'static str, String)> {
        let boots = self.count("user_s");
        let loads = self.count("disk_write_mib_s").max(self.count("ping_min_ms"));
        let mut sections = Vec::new();
        if boots > 0 {
            let mut text = self.head(place, made, &format!("{boots} boots"));
            self.table(&mut text, &BOOT, &BOOT_PEERS);
            self.ratios(&mut text, &BOOT, &PAIRS);
            sections.push(("boots", text));
        }
        if loads > 0 {
            let mut text = self.head(place, made, &format!("{loads} runs"));
            self.table(&mut text, &REST, &REST_PEERS);
            self.ratios(&mut text, &REST, PAIRS.get(..2).unwrap_or_default());
            sections.push(("loads", text));
        }
        sections
    }

    fn head(&self, place: Place, made: &Material, count: &str) -> String {
        let today = run(Command::new("date").arg("+%F")).unwrap_or_default();
        let words: Vec<String> = std::env::args().skip(2).filter(|word| word != "--write").collect();
        let place = match place {
            Place::Direct => "directly on this machine's KVM",
            Place::Nested => {
                "in the nested host, whose processor the peer's QEMU emulates: only ratios mean something"
            }
        };
        let mut text = format!(
            "Measured on {} with `tests/bench{}`, {place}.\n\
             KVM host: Linux {}. Guest: Linux {}, one vCPU, 256 MiB. Peer: {}.\n\
             Each cell: median (best) of {count}.\n",
            today.trim(),
            words.iter().map(|word| format!(" {word}")).collect::<String>(),
            self.host,
            made.release,
            made.qemu,
        );
        if self.repeated > 0 {
            let _ = writeln!(
                text,
                "The host died in {} rounds, which were repeated on a new one.",
                self.repeated
            );
        }
        if !self.failed.is_empty() {
            let failed: Vec<_> =
                self.failed.iter().map(|(peer, count)| format!("{count} of {peer}")).collect();
            let _ = writeln!(
                text,
                "Runs that hung or ended early, with what they had measured by then: {}.",
                failed.join(", ")
            );
        }
        text.push('\n');
        text
    }

    fn ratios(&self, text: &mut String, metrics: &[Metric], pairs: &[(&str, &str, &str)]) {
        text.push('\n');
        row(text, "xvmm divided by (medians)", pairs.iter().map(|(title, _, _)| (*title).to_owned()));
        rule(text, pairs.len());
        for metric in metrics {
            let cells = pairs.iter().map(|(_, ours, theirs)| {
                match (self.of(ours, metric), self.of(theirs, metric)) {
                    (Some((ours, _)), Some((theirs, _))) if theirs > 0.0 => format!("{:.2}", ours / theirs),
                    _ => String::new(),
                }
            });
            let better = if metric.3 { " (more is better)" } else { "" };
            row(text, &format!("{}{better}", metric.1), cells);
        }
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

/// Puts the text between the marks of that name in docs/benchmarks.md.
pub fn write(name: &str, text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let old = fs::read_to_string(&path)?;
    let Some(new) = replace(&old, name, text) else {
        return fail!("{} has no marks for {name}", path.display());
    };
    fs::write(&path, new)?;
    eprintln!("{name} written to {}", path.display());
    Ok(())
}

fn replace(old: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
    let (before, rest) = old.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim()))
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
        let (begin, end) = ("<!-- x: begin -->", "<!-- x: end -->");
        let old = format!("a\n{begin}\nold\n{end}\nz\n");
        assert_eq!(replace(&old, "x", "new\n").unwrap(), format!("a\n{begin}\n\nnew\n\n{end}\nz\n"));
        assert_eq!(replace(&old, "y", "new"), None);
    }
}
