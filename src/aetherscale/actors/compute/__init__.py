"""Virtual machines: what may be asked of them, what happened to them, and what is pending on the host."""
