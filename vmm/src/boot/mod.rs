//! Kernel images: unpacking, loading and the PVH entry.
