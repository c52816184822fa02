//! Which modules go into a guest's initrd; a host's depend on a table of the builder. What a name needs comes along by
//! itself ([`super::Index::select`]); names that the kernel at hand has built in cost nothing.

/// Into a guest's initrd: what stands between the kernel and its root, its networks and its agent.
/// Everything else a guest has in its kernel layer.
pub const GUEST: &[&str] = &[
    // The root: pmem with DAX, EROFS, overlay.
    "virtio_pci",
    "libnvdimm",
    "nd_btt",
    "nd_virtio",
    "virtio_pmem",
    "nd_pmem",
    "erofs",
    "overlay",
    // The other devices of our machine.
    "virtio_net",
    "virtio_rng",
    "virtio_blk",
    "virtio_balloon",
    "virtio_console",
    // The agent.
    "vsock",
    "vmw_vsock_virtio_transport",
    // The power button, and the device that systemd-logind reads it from.
    "button",
    "evdev",
];
