"""Virtual machines on this host: QEMU processes that are jailed, driven through QMP, and outlive the node."""
