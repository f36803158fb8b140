//! What the processor does for local APICs by itself, as KVM's modules tell.

/// Xen's leaf 4: accesses to the APIC's page, or to its MSRs, mostly do not leave the guest
/// (xen/include/public/arch-x86/cpuid.h).
const APIC_ACCESS_VIRT: u32 = 1;
const X2APIC_VIRT: u32 = 1 << 1;

/// Parameters of the modules, and what it means that they are on.
const PARAMETERS: [(&str, u32); 3] = [
    ("/sys/module/kvm_intel/parameters/flexpriority", APIC_ACCESS_VIRT),
    ("/sys/module/kvm_intel/parameters/enable_apicv", APIC_ACCESS_VIRT | X2APIC_VIRT),
    ("/sys/module/kvm_amd/parameters/avic", APIC_ACCESS_VIRT),
];

/// The flags of this host.
pub(super) fn flags() -> u32 {
    flags_of(|path| std::fs::read_to_string(path).ok())
}

fn flags_of(read: impl Fn(&str) -> Option<String>) -> u32 {
    let is_on = |path| read(path).is_some_and(|value| matches!(value.trim(), "Y" | "1"));
    PARAMETERS.iter().filter(|(path, _)| is_on(path)).fold(0, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_tell_what_the_processor_does() {
        let host = |on: &'static [&'static str]| {
            flags_of(move |path| {
                let module = path.starts_with("/sys/module/kvm_");
                module.then(|| if on.iter().any(|name| path.ends_with(name)) { "Y\n" } else { "N\n" }.into())
            })
        };
        assert_eq!((host(&[]), host(&["flexpriority"]), host(&["avic"])), (0, 1, 1));
        assert_eq!(host(&["flexpriority", "enable_apicv"]), 3);
        assert_eq!(flags_of(|_| None), 0);
    }
}
