"""`image`: what virtual machines boot from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.objects import carry_out_and_tell, done, labels, list_objects, show
from aetherscale.gateways.cli.values import gibibytes, label, seconds
from aetherscale.gateways.cli.views import WIDE
from aetherscale.gateways.cli.work import WAIT_OPTIONS, info, taken, told_of

READY_BY = ("agent", "channel", "none")


def _import(context: Context) -> None:
    from aetherscale.gateways.cli.imageimport import import_image

    import_image(context, _labels(context))


def _build(context: Context) -> None:
    values = context.values
    options: dict[str, Any] = {"recipe": values["RECIPE"]}
    options |= {name: values[name] for name in ("name", "mirror") if values[name] is not None}
    if values["package"]:
        options["packages"] = values["package"]
    if values["size"] is not None:
        options["size-gib"] = values["size"]
    options |= _labels(context)
    _work(context, "build-image", options, values["name"] or values["RECIPE"])


def _fetch(context: Context) -> None:
    name = context.values["NAME"]
    _work(context, "fetch-image", {"name": name, **_labels(context)}, name)


def _update(context: Context) -> None:
    name = context.values["NAME"]
    before = info(context, "image", name)
    after = done(context, "image", "update-image", {"image": name}, subject=name)
    if context.out.json:
        with taken(told_of("image", after)):
            context.out.value(after)
    elif after["sha256"] == before["sha256"]:
        context.out.line(f"{after['name']} was the newest already")
    else:
        context.suggest("VMs that use the older one keep it; new ones are made of the newer one")


def _search(context: Context) -> None:
    """What the catalogue has, with what is here. Raises `Failure`."""
    from aetherscale.gateways.cli.imagecatalogue import search

    search(context)


def _inspect(context: Context) -> None:
    from aetherscale.gateways.cli.imagefiles import inspect

    inspect(context)


def _export(context: Context) -> None:
    from aetherscale.gateways.cli.imagefiles import export

    export(context)


def _labels(context: Context) -> dict[str, Any]:
    given = labels(context.values["label"])
    return {"labels": given} if given else {}


def _delete(context: Context) -> None:
    _work(context, "delete-image", {"image": context.values["NAME"]}, context.values["NAME"])


def _work(context: Context, task: str, options: Mapping[str, Any], subject: str, node: str = "") -> None:
    carry_out_and_tell(context, "image", task, options, subject=subject, use="vm create --image", node=node)


def _list(context: Context) -> None:
    none = "no images; to build one: aetherscale image build tiny; to see what can be fetched: aetherscale image search"
    list_objects(context, "image", none=none, options=_labels(context))


def _show(context: Context) -> None:
    show(context, "image")


_NAME = Argument("NAME", "the name or id of the image", completes="image")
_LABEL = Option("label", "a label; may be given more than once", "KEY=VALUE", label, many=True)
_LONG_WAIT = (
    WAIT_OPTIONS[0],
    Option("timeout", "how long to wait; the work continues after that", "TIME", seconds, "1h"),
)

IMAGE = Group(
    "image",
    "the images that VMs boot from",
    (
        Command(
            "import",
            "import a disk image, raw or qcow2, also compressed",
            _import,
            arguments=(Argument("SOURCE", "a file, or an http or https URL", completes="file"),),
            options=(
                Option("name", "the name of the image; derived from the source if not given", "NAME"),
                Option("sha256", "the expected SHA-256; checked before the file is parsed", "HEX", str.lower),
                Option("ready", "how its guests report that they are ready", "HOW", choices=READY_BY, default="none"),
                Option(
                    "first-boot",
                    "how its guests take what is theirs at their first boot, such as SSH keys",
                    "HOW",
                    choices=("credentials", "aetherscale", "tiny", "cloud-init", "none"),
                    default="none",
                ),
                _LABEL,
                *_LONG_WAIT,
            ),
            examples=(
                "aetherscale image import ./debian-12.qcow2 --ready agent",
                "aetherscale image import ./disk.raw.xz --name web --label env=test",
                "aetherscale image import https://images.example/debian-12.qcow2 --sha256 2f5c… --name debian-12",
            ),
            details=(
                "A file is copied to the node of this host. You need the right to read it, and no program may be "
                "writing to it. With --nats, the path is one on the node's host, below a directory of its setting "
                "image-dirs.\n\n"
                "An interrupted download continues where it ended, even in a new import of the same URL within a "
                "week, if the server says by ETag or Last-Modified that its file is the same, and sends parts of it. "
                "Else it begins anew. Addresses that are not public are refused, unless the node's setting "
                "image-networks allows them.\n\n"
                "A file that is compressed with gzip, xz or zstd is unpacked, whatever it is called; --sha256 is that "
                "of the file as it is given. Two images of the same content are one file on the disk.\n\n"
                "The node compares the checksum, then checks the header. `--ready agent` is for guests with the QEMU "
                "guest agent. `--ready channel` is for guests that write `ready` to the virtio port "
                "org.aetherscale.ready.0. With `none` a VM counts as ready as soon as it runs.\n\n"
                "`--first-boot cloud-init` is for guests with cloud-init, as those of most distributions' images for "
                "clouds: they take keys, a user, an init script and user-data, and need no other way to report that "
                "they are ready than `--ready channel`. `image inspect` says what an image has.\n\n"
                "`--first-boot credentials` is for guests with systemd from version 252 on, as Debian 12: they take "
                "the keys of `vm create --ssh-key`. `aetherscale` and `tiny` are for images that `image build` has "
                "made elsewhere: guests of the first take init scripts too, those of the second these alone.\n\n"
                "The source is kept in the log for ever. A URL with a password or a signature in it is refused."
            ),
        ),
        Command(
            "build",
            "build an image from a recipe",
            _build,
            arguments=(Argument("RECIPE", "the recipe", choices=("tiny", "debian-12", "debian-13")),),
            options=(
                Option("name", "the name of the image; that of the recipe if not given", "NAME"),
                Option("package", "a Debian package to install beside the recipe's", "PACKAGE", many=True),
                Option("size", "the size of the disk, in GiB; what it needs if not given", "SIZE", gibibytes),
                Option("mirror", "where Debian's packages come from", "URL"),
                _LABEL,
                *_LONG_WAIT,
            ),
            examples=(
                "aetherscale image build tiny",
                "aetherscale image build debian-12 --package nginx --name web",
            ),
            details=(
                "`tiny` is a small Linux with a shell. It is built from Debian's packages, and needs apt.\n\n"
                "`debian-12` and `debian-13` are whole Debian systems, made of current packages in a minute or more. "
                "They need mmdebstrap, and a node that runs as root or as a user with subordinate ids. The next "
                "build of the same packages within a day takes seconds.\n\n"
                "Such a guest boots by BIOS or UEFI, asks for addresses by DHCP, and grows into its disk. It has "
                "sshd, the QEMU guest agent and sudo. It makes its machine id and its SSH host keys at its first "
                "boot. No account has a password: SSH takes keys alone (`vm create --ssh-key`), and the serial console "
                "has a shell of root.\n\n"
                "Without --mirror, packages come from where apt of the node's host takes those of this release, else "
                "from Debian's own archive. With it no other archive is asked, nor known to the guest: add one with "
                "security updates there."
            ),
        ),
        Command(
            "search",
            "show the images of the catalogue, and which of them are here",
            _search,
            arguments=(Argument("WORD", "a part of a name or description", required=False),),
            examples=("aetherscale image search", "aetherscale image search debian"),
            details=(
                "`vm create --image NAME` fetches an image of the catalogue that is not here. An image that is here "
                "comes first, wherever it is from. HERE shows its phase; `another` is an image of that name which is "
                "not of the catalogue, and `never` one that the catalogue has for other architectures alone.\n\n"
                "The catalogue comes with the program. The node's setting image-catalogue adds that of a file or a "
                "URL, whose entries come first."
            ),
        ),
        Command(
            "fetch",
            "fetch an image of the catalogue",
            _fetch,
            arguments=(Argument("NAME", "the name of the image in the catalogue"),),
            options=(_LABEL, *_LONG_WAIT),
            examples=("aetherscale image fetch debian-13",),
            details=(
                "The file has to have the checksum that its distribution publishes beside it. An interrupted download "
                "continues where it ended if the server can show that its file is still the same."
            ),
        ),
        Command(
            "update",
            "fetch the newest file of an image of the catalogue",
            _update,
            arguments=(_NAME,),
            options=_LONG_WAIT,
            examples=("aetherscale image update debian-13",),
            details=(
                "Nothing is fetched if the published checksum is still the same. VMs keep the file that they were "
                "made of; VMs that are created later get the newer one. If the update fails, the image stays as it was."
            ),
        ),
        Command(
            "list",
            "list all images, sorted by name",
            _list,
            options=(Option("all", "include deleted images"), WIDE, _LABEL),
            examples=("aetherscale image list", "aetherscale image list --json"),
        ),
        Command(
            "show",
            "show all details of an image",
            _show,
            arguments=(_NAME,),
            examples=("aetherscale image show tiny",),
        ),
        Command(
            "inspect",
            "show what is in an image, or in a file, without running it",
            _inspect,
            arguments=(Argument("WHAT", "the name or id of an image, or a path with a / in it", completes="image"),),
            examples=("aetherscale image inspect tiny", "aetherscale image inspect ./debian-12.qcow2 --json"),
            details=(
                "It reads the image itself: its header, its partitions, and some files of an ext2, ext3 or ext4 file "
                "system. What cannot be told that way, as with xfs and btrfs, is left out, or `unknown` with --json; "
                "`unread` says why.\n\n"
                "Of an image it also shows what the node knows: its source and SHA-256, how its guests say that they "
                "are ready, and `first-boot`, how they take what is theirs, which VMs go by. `could-take` is how "
                "they could, by what is in the image.\n\n"
                "A file is read with your own rights, and no node is needed; `refused` says why it cannot be imported."
            ),
        ),
        Command(
            "export",
            "write an image to a qcow2 file",
            _export,
            arguments=(_NAME, Argument("FILE", "the file, or - for stdout", completes="file")),
            options=(
                Option("force", "replace a file that is there"),
                Option("timeout", "how long the node may take to prepare it", "TIME", seconds, "1h"),
            ),
            examples=("aetherscale image export tiny ./tiny.qcow2",),
            details=(
                "The file gets its name when it is whole, with the checksum that the node has told, and on the disk. "
                "It works from another host too, at the speed of NATS."
            ),
        ),
        Command(
            "delete",
            "delete an image that no VM uses",
            _delete,
            arguments=(_NAME,),
            options=WAIT_OPTIONS,
            examples=("aetherscale image delete tiny",),
        ),
    ),
)
