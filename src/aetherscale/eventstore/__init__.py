"""The log: streams of events, their versions and payloads. Has never heard of virtual machines."""
