"""The ways in, each in a package of its own. They know messages and views, and nothing of how work is done."""
