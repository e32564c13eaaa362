"""Images of a host in memory, and the driver on it."""
