//! blkback: the back half of a Xen block device.
