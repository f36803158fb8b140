//! Keys: names, layouts, and what people type.

mod keymap;
mod names;
mod sequence;
mod typist;

pub use keymap::Keymap;
pub use sequence::{KeySequence, KeysError};
pub use typist::Typist;
