"""A host's networks in memory: what simulations, tests and `serve --simulated` have instead of netlink and nft."""
