"""The kernel's packet filter: libnftables, and the counters of dropped packets."""
