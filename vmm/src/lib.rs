//! The library behind the `xvmm` program: one Xen guest as one process on plain KVM.

pub mod api;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod domain;
pub mod exit;
mod host_tool;
pub mod hypercall;
pub mod machine;
pub mod network;
pub mod storage;
mod text;
