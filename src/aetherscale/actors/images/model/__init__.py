"""What an image means: events, commands, state, decisions and views. Pure."""
