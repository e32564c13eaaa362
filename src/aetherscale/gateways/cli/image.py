"""`image`: what virtual machines boot from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import bad_usage
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.values import seconds
from aetherscale.gateways.cli.views import show_images, show_object
from aetherscale.gateways.cli.work import WAIT_OPTIONS, carry_out, info, suggesting

READY_BY = ("agent", "channel", "none")


def _import(context: Context) -> None:
    values = context.values
    options = {"source": _source(values["SOURCE"]), "ready": values["ready"]}
    options |= {name: values[name] for name in ("name", "sha256") if values[name] is not None}
    _work(context, "import-image", options, values["name"] or values["SOURCE"].rpartition("/")[2] or "image")


def _build(context: Context) -> None:
    values = context.values
    options = {"recipe": values["RECIPE"]}
    if values["name"] is not None:
        options["name"] = values["name"]
    _work(context, "build-image", options, values["name"] or values["RECIPE"])


def _delete(context: Context) -> None:
    _work(context, "delete-image", {"image": context.values["NAME"]}, context.values["NAME"])


def _work(context: Context, task: str, options: Mapping[str, Any], subject: str) -> None:
    with suggesting(context, "image", subject):
        image, elapsed_s = carry_out(context, "images", task, options, subject=subject, kind="image")
    if context.out.json:
        context.out.value(image)
        return
    context.out.line(f"{image['name']} ({image['id']}) is {image['phase']}, after {elapsed_s:.1f} s")
    if image["phase"] == "ready":
        context.out.note(f"next: aetherscale vm create --image {image['name']}")


def _list(context: Context) -> None:
    items = context.client.items("images", "list-images", {"all": context.values["all"]})
    images = [item["image"] for item in items]
    if context.out.json:
        context.out.value(images)
    elif images:
        show_images(context.out, images)
    else:
        context.out.note("no images; make one: aetherscale image build tiny")


def _show(context: Context) -> None:
    image = info(context, "image", context.values["NAME"])
    if context.out.json:
        context.out.value(image)
    else:
        show_object(context.out, image)


def _source(text: str) -> str:
    """A URL as it is, a file by its absolute path: the node does not know where we are."""
    if text.startswith(("http://", "https://")):
        return text
    if "://" in text:
        raise bad_usage(f"image import: got {text!r}, expected a file, or an http or https URL")
    return str(Path(text).absolute())


_NAME = Argument("NAME", "the name or id of the image", completes="image")

IMAGE = Group(
    "image",
    "what virtual machines boot from",
    (
        Command(
            "import",
            "bring in a disk image, raw or qcow2",
            _import,
            arguments=(Argument("SOURCE", "a file on the node's host, or an http or https URL", completes="file"),),
            options=(
                Option("name", "its name; made from the source if it is left out", "NAME"),
                Option("sha256", "what its SHA-256 has to be; checked before anything reads it", "HEX", str.lower),
                Option("ready", "how its guests say that they are ready", "HOW", choices=READY_BY, default="none"),
                WAIT_OPTIONS[0],
                Option("timeout", "how long to wait; the work goes on after that", "TIME", seconds, "1h"),
            ),
            examples=(
                "aetherscale image import ./debian-12.qcow2 --ready agent",
                "aetherscale image import https://images.example/debian-12.qcow2 --sha256 2f5c… --name debian-12",
            ),
            details=(
                "The node copies or downloads it (a download that broke off goes on), compares the checksum, checks "
                "the header. `--ready agent` is for guests with the QEMU guest agent, `channel` for those that write "
                "`ready` to the virtio port org.aetherscale.ready.0; with `none` a VM counts as ready when it runs.\n\n"
                "The source is kept in the log for ever: an address with a password or a signature in it is refused."
            ),
        ),
        Command(
            "build",
            "make an image from a recipe",
            _build,
            arguments=(Argument("RECIPE", "the recipe", choices=("tiny",)),),
            options=(
                Option("name", "its name; the recipe's if it is left out", "NAME"),
                WAIT_OPTIONS[0],
                Option("timeout", "how long to wait; the work goes on after that", "TIME", seconds, "10m"),
            ),
            examples=("aetherscale image build tiny",),
            details="`tiny` is a small Linux with a shell, made in seconds from Debian's packages (needs apt).",
        ),
        Command(
            "list",
            "all images, by name",
            _list,
            options=(Option("all", "also deleted ones"),),
            examples=("aetherscale image list", "aetherscale image list --json"),
        ),
        Command(
            "show",
            "everything that is known of an image",
            _show,
            arguments=(_NAME,),
            examples=("aetherscale image show tiny",),
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
