//! Each command by its registers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod disc;
mod disk;
mod dma;
