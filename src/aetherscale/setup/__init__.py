"""The setup of an operator's host: checks, the system service, its removal, and the demonstration."""
