//! The library behind the `xvmm` program: one Xen guest as one process on plain KVM.

pub mod boot;
pub mod config;
pub mod console;
