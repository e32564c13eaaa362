"""`image import`: a URL that the node fetches, or a file that is handed over to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aetherscale import service
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, WAIT_RAN_OUT, Failure, bad_usage
from aetherscale.gateways.cli.objects import carry_out_and_tell
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.place import is_service

TASK: Final = "import-image"


def import_image(context: Context, labels: Mapping[str, Any]) -> None:
    """Have an image imported, and say what became of it. Raises `Failure`."""
    values = context.values
    options = {name: values[name] for name in ("name", "sha256") if values[name] is not None}
    options |= {"ready": values["ready"], "first-boot": values["first-boot"], **labels}
    subject = values["name"] or values["SOURCE"].rpartition("/")[2] or "image"
    if values["SOURCE"].startswith(("http://", "https://")):
        _work(context, options | {"source": values["SOURCE"]}, subject)
    else:
        _import_file(context, _file(values["SOURCE"]), options, subject)


def _import_file(context: Context, file: Path, options: Mapping[str, Any], subject: str) -> None:
    """Hand a file over to the node of this host, which reads nothing for us that we may not read; or name it there.

    A node elsewhere has files of its own: it takes those that its operator has put below one of its `image-dirs`.
    """
    from aetherscale.incoming import withdraw

    settings = context.settings
    state_dir = service.STATE_DIR if is_service(settings) else settings.state_dir
    if settings.nats_url is not None and not is_service(settings):
        _work(context, {**options, "source": str(file)}, subject)
        return
    _require_good(options, file)
    _ = context.client.connection  # no file is copied for a node that is away
    _require_free(context, options.get("name"))
    token = context.program.new_token()
    with context.out.progress(subject) as progress:
        place, node = _hand_over(state_dir, file, token, progress)
    try:
        _work(context, {**options, "source": place}, subject, node)
    except Failure as failure:
        if failure.status not in (NO_NODE, WAIT_RAN_OUT):  # else it may yet be taken; the node removes it in the end
            withdraw(state_dir, token)
        raise


def _require_good(options: Mapping[str, Any], file: Path) -> None:
    """Have the options checked by the rules of the node before anything is copied for them. Raises `Failure`."""
    from aetherscale.actors.images.model.commands import ImportImageOptions, name_from
    from aetherscale.incoming import plain
    from aetherscale.kernel.errors import Refused
    from aetherscale.kernel.wire import decode, encode

    try:
        decode(encode({**options, "source": "/"}), ImportImageOptions, f"images.{TASK}")
        if "name" not in options:
            name_from(plain(file.name))
    except Refused as refused:
        raise Failure.of_refusal(refused) from None


def _require_free(context: Context, name: str | None) -> None:
    """Ask whether a name that was given is taken, before anything is copied. The node decides: it may be taken by then.

    A name that is made of that of the file is left to the node, which makes it. Raises `Failure`.
    """
    if name is None:
        return
    try:
        image = context.client.result("images", "image-info", {"image": name})["image"]
    except Failure as failure:
        if failure.code == 404:
            return
        raise
    raise Failure(
        409,
        f"an image named {name!r} exists already (it is {image['phase']})",
        hint=f"take another name; or, where no VM uses it: aetherscale image delete {name}",
        details={"field": "name", "image-id": image["id"]},
    )


def _hand_over(state_dir: Path, file: Path, token: str, progress: Progress) -> tuple[str, str]:
    """Where the node finds the file now, and the node's name. Raises `Failure`."""
    from aetherscale import shortage
    from aetherscale.incoming import hand_over
    from aetherscale.kernel.fault import Fault

    def advance(done_bytes: int, total_bytes: int) -> None:
        progress.step("copying the file to the node")

    try:
        return hand_over(state_dir, file, token, advance)
    except Fault as refused:
        raise Failure(500, f"image import: {file}: {refused.reason}", hint=refused.remedy) from None
    except OSError as error:
        lacking = shortage.hint_of(error.errno)
        if lacking:
            where = f"{state_dir}, to which the file is handed over"
            raise Failure(500, f"image import: {where}: {error.strerror}", hint=lacking) from None
        ours = error.filename in (None, str(file))
        what = f"{file} cannot be read" if ours else f"the file cannot be handed over: {error.filename}"
        rights = "run this as the node's user, or as a member of its group"
        hint = "check the path and its permissions" if ours else rights
        raise Failure(500, f"image import: {what}: {error.strerror}", hint=hint) from None


def _work(context: Context, options: Mapping[str, Any], subject: str, node: str = "") -> None:
    carry_out_and_tell(context, "image", TASK, options, subject=subject, use="vm create --image", node=node)


def _file(text: str) -> Path:
    """A file by its absolute path: the node does not know where we are."""
    if "://" in text:
        raise bad_usage(f"image import: got {text!r}, expected a file, or an http or https URL")
    try:
        return Path(text).absolute()
    except FileNotFoundError:
        raise bad_usage(f"image import: got {text!r}, and the working directory is gone", "give a full path") from None
