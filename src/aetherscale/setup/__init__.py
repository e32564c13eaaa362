"""What an operator's host needs: checks, the system service, its removal, and the demonstration."""
