//! netback: the back half of a Xen network interface.
