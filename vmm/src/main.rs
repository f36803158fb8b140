//! The `xvmm` program.
fn main() {}
