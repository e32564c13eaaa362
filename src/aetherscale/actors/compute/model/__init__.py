"""What a VM means: events, commands, state, decisions and views. Pure."""
