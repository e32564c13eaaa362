"""aetherscale: a small VM cloud out of Linux hosts, driven by messages and kept as an event log."""

__version__ = "0.1.0"
