"""The log as the debugger: replay, diff, why. Reads a log; needs no server and acts on nothing."""
