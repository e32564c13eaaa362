"""The node over HTTP: see `docs/http.md`."""
