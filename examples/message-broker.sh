#!/bin/sh
# A NATS server that keeps messages on its disk. An init script for an image of Debian: see README.md.
set -eu
export DEBIAN_FRONTEND=noninteractive
PASSWORD=change-me  # a guest has this script in memory alone, and the log of the node has its checksum

dpkg --status nats-server >/dev/null 2>&1 || { apt-get update; apt-get install --yes --no-install-recommends nats-server; }

install --directory --owner=nats --group=nats --mode=0700 /var/lib/nats
install --owner=nats --group=nats --mode=0600 /dev/null /etc/nats-server.conf
cat > /etc/nats-server.conf <<END
listen: "[::]:4222"
authorization { user: app, password: "$PASSWORD" }
jetstream { store_dir: /var/lib/nats }
END
systemctl enable nats-server
systemctl restart nats-server
