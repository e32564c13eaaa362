"""Brings in the file of an image, from a path or a server."""
