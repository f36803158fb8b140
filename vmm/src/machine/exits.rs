//! Counters of what makes vCPUs leave the kernel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a vCPU left the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitKind {
    PortIn,
    PortOut,
    MemoryRead,
    MemoryWrite,
    MsrRead,
    MsrWrite,
    Xen,
    HyperV,
    Interrupted,
    Other,
}

/// The names, in the order of [`ExitKind`].
const NAMES: [&str; 10] = [
    "port_in",
    "port_out",
    "memory_read",
    "memory_write",
    "msr_read",
    "msr_write",
    "xen",
    "hyperv",
    "interrupted",
    "other",
];

/// A counter for each reason; of all vCPUs together.
#[derive(Debug, Default)]
pub(super) struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    pub(super) fn count(&self, kind: ExitKind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn read(&self) -> BTreeMap<&'static str, u64> {
        NAMES.into_iter().zip(self.0.iter().map(|counter| counter.load(Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let counters = ExitCounters::default();
        counters.count(ExitKind::PortIn);
        counters.count(ExitKind::Other);
        counters.count(ExitKind::Other);
        let read = counters.read();
        assert_eq!(
            (read.len(), read.get("port_in"), read.get("other"), read.get("xen")),
            (10, Some(&1), Some(&2), Some(&0))
        );
    }
}
