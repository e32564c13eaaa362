"""The resolver of a network: one dnsmasq, in namespaces of its own. Decision 92 says why so."""
