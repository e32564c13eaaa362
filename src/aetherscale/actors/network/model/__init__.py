"""What networks mean: messages, state, decisions, views. Pure."""
