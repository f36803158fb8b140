//! `DomainConfig`: the one description of a guest.
