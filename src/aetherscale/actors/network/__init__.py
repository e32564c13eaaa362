"""The networks that virtual machines are in."""
