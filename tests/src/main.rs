//! End-to-end tests of xvmm, on the host's KVM or in a nested host.
fn main() {}
