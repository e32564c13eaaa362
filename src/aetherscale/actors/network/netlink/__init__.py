"""Network devices of the host, by netlink and /dev/net/tun: the only door to pyroute2."""
