"""What processes of ours have in common: the jail that they start in, whose they are, and how one is told again."""
