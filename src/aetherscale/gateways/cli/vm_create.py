"""`vm create`, the command with the most options, and the options that it shares with others of `vm`."""

from __future__ import annotations

from aetherscale.gateways.cli import vm_tasks
from aetherscale.gateways.cli.grammar import Argument, Command, Option
from aetherscale.gateways.cli.values import gibibytes, label, mebibytes, positive, user_name
from aetherscale.gateways.cli.work import WAIT_OPTIONS

LABEL = Option("label", "a label; may be given more than once", "KEY=VALUE", label, many=True)
ALLOW_ADDRESS = Option(
    "allow-address",
    "an address or a prefix that the guest may send from besides its own; may be given more than once",
    "PREFIX",
    many=True,
)
_LATER = "not in this version: refused"

CREATE = Command(
    "create",
    "create a VM, start it, and wait until its guest is ready",
    vm_tasks.create_vm,
    arguments=(Argument("NAME", "the name of the VM; generated if not given", required=False),),
    options=(
        Option(
            "image",
            "the image to boot from, by name or id; one of the catalogue is fetched if it is not here",
            "IMAGE",
            completes="image",
            needed=True,
        ),
        Option("cpus", "virtual CPUs; 1 if not given", "N", positive),
        Option("memory", "memory, like 512M or 2G; 512M if not given", "SIZE", mebibytes),
        Option(
            "disk",
            "size of the disk, like 20G; if not given, the size of the image, but at least 10G",
            "SIZE",
            gibibytes,
        ),
        Option(
            "restart",
            "when to start it again after it has ended by itself; on-failure if not given",
            "POLICY",
            choices=("always", "on-failure", "never"),
        ),
        Option("no-autostart", "do not start it again after a reboot of the host"),
        Option(
            "network",
            "a network to be in, or vde: and the path of a VDE switch of the host, where nothing is filtered; "
            "may be given more than once; user-mode networking if not given",
            "NETWORK",
            many=True,
            completes="network",
        ),
        ALLOW_ADDRESS,
        Option(
            "publish",
            "a port of the host that leads to one of the guest, like 8080:80; open to the host alone unless an "
            "address is named, as in 0.0.0.0:8080:80; without --network; may be given more than once",
            "[ADDRESS:]HOST:GUEST[/udp]",
            many=True,
        ),
        Option(
            "group",
            "a group of the firewall that it bears, with --network or --public-ip; may be given more than once",
            "GROUP",
            many=True,
            completes="group",
        ),
        Option(
            "public-ip",
            "a port on the public bridge of the host, with an address by DHCP of its network; it takes only "
            "what groups allow",
        ),
        Option(
            "address",
            "with --public-ip, the address that it has there instead; may be given once for IPv4 and once for IPv6",
            "ADDRESS",
            many=True,
        ),
        Option("host-loopback", "let the guest reach what listens on the host's loopback, at 10.0.2.2"),
        Option(
            "ssh-key",
            "a file of public keys, - for stdin, whose owners may log in by SSH, as root or as --user; may be given "
            "more than once",
            "FILE",
            many=True,
            completes="file",
        ),
        Option("user", "a user whom the guest makes, with sudo and the keys", "NAME", user_name),
        LABEL,
        Option("node", "the node to create it on", "NODE", completes="node"),
        *WAIT_OPTIONS,
        Option(
            "init-script",
            "a script that the guest runs once, as root, when it has booted; - for stdin",
            "FILE",
            completes="file",
        ),
        Option(
            "cloud-init",
            "user-data for cloud-init, with an image that has it",
            "FILE",
            completes="file",
        ),
        Option(
            "wait-for",
            "until when to wait: the guest is ready, or its init script has ended too; ready if not given",
            "STATE",
            choices=("ready", "init"),
        ),
        Option("vpn", _LATER, "VPN", many=True),
    ),
    examples=(
        "aetherscale vm create web --image tiny",
        "aetherscale vm create db --image debian-12 --cpus 2 --memory 2G --disk 20G --timeout 5m",
        "aetherscale vm create web --image tiny --network lab",
        "aetherscale vm create web --image tiny --network lab --group http",
        "aetherscale vm create web --image tiny --publish 8080:80",
        "aetherscale vm create web --image tiny --public-ip --group http",
        "aetherscale vm create web --image tiny --init-script setup.sh --wait-for init",
        "aetherscale vm create db --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --user joe",
        "aetherscale vm create db --image ubuntu-24.04 --cloud-init user-data.yaml --ssh-key ~/.ssh/id_ed25519.pub",
        "aetherscale vm create --image tiny --no-wait --json",
    ),
    details=(
        "A VM is ready when its guest has reported so. With an image that cannot report it, the command "
        "returns as soon as the VM runs. If the wait ends first (exit status 5), that is not a failure: the VM "
        "continues to boot.\n\n"
        "An init script begins with #! and an interpreter, and has at most 128 KiB of text in UTF-8, with the line "
        "ends of Unix and without a byte order mark: nothing is changed in it. It is a secret: the log "
        "has its SHA-256, its exit status and the end of what it prints. The guest runs it once, whatever "
        "comes. With --wait-for init the exit status is 1 where it does not end well, and the VM goes on. In a "
        "Debian: journalctl -f -u aetherscale-init. docs/guests.md has the rest.\n\n"
        "User-data for cloud-init is a #cloud-config, a script, or a MIME message, of at most 64 KiB. The guest "
        "has it as it is. It is a secret too, and kept until the VM is deleted: cloud-init reads it at each "
        "boot.\n\n"
        "With --network vde:/run/lab.ctl it has a card on the VDE switch of the host in that directory, where "
        "vde_switch has to run: docs/networks.md says how. Nothing that passes there is filtered: groups, the "
        "protection against spoofing and resolvers are of networks."
    ),
)
