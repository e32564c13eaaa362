"""Virtual machines: what may be asked of them, what happened to them, and what is owed to the host."""
