//! `xvmm network` as a whole: in namespaces of its own, with a world outside and guests, and the host's programs.

#![allow(clippy::unwrap_used)]

mod managers;
mod private;
mod shared;
mod world;
