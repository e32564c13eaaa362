"""The pure core: messages, events, deciders, subjects, names, errors. Knows no clock, no I/O and no component."""
