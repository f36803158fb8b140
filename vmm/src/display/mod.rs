//! The guest's screen, keyboard and pointer, and who uses them.
//!
//! A [`Display`] stands between the devices and everybody in front of them: the viewers of the [`vnc`] server, and the
//! requests of the API for a screenshot or for keys. There is one picture for all of them, and for each viewer a list of the tiles of it
//! that it has not seen. The screen is looked at while a viewer waits for a change, 30 times a second at most, and never
//! while nobody does. Devices may come and go under it, as they do when a guest reboots.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod area;
mod hub;
pub mod keys;
mod pace;
mod screenshot;
pub mod testing;
pub mod vnc;

pub use area::{Area, TILE, Tiles};
pub use hub::{Display, Ready, Status, Watcher};
