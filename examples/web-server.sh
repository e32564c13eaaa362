#!/bin/sh
# A web server that says which VM it runs in. An init script for an image of Debian: see README.md.
set -eu
export DEBIAN_FRONTEND=noninteractive

dpkg --status nginx >/dev/null 2>&1 || { apt-get update; apt-get install --yes --no-install-recommends nginx; }

cat > /var/www/html/index.html <<END
<!doctype html>
<title>$(hostname)</title>
<p>This is $(hostname), which was set up at $(date --utc +%FT%TZ).
END
systemctl enable --now nginx
