"""A host of virtual machines in memory, and the driver on it."""
