"""The bus: messages between nodes and their callers, over NATS or in memory. Has never heard of the event log."""
