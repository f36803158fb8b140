//! The tables of an HVM guest, read as a guest reads them, and by ACPICA's programs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod acpica;
mod guest;
mod loader;
mod modern;
mod mp;
mod smbios;
mod states;
mod xp;
