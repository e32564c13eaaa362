"""`image export` and `image inspect`: an image out of a node, and what is in one."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure, bad_usage
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.views import show_object
from aetherscale.gateways.cli.work import measured, suggesting, tell

UNKNOWN: Final = "unknown"
_NO_NAMELESS_FILES: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


def inspect(context: Context) -> None:
    """What is in an image, or in a file: read from it, never run. Raises `Failure`."""
    what: str = context.values["WHAT"]
    if "/" in what:
        try:
            found = context.program.look_into(Path(what).absolute())
        except OSError as error:
            raise Failure(
                500, f"image inspect: {what} cannot be read: {error.strerror}", hint="check the path"
            ) from None
    else:
        try:
            with suggesting(context, "image", what):
                answer = context.client.result("images", "inspect-image", {"image": what})
        except Failure as failure:
            if failure.code == 404 and Path(what).is_file():
                raise Failure(404, failure.message, hint=f"for the file in this directory: ./{what}") from None
            raise
        found = _with_log(answer["image"], answer["contents"])
    if context.out.json:
        context.out.value(found)
        return
    show_object(context.out, {name: value for name, value in found.items() if value not in (UNKNOWN, [UNKNOWN])})
    if found.get("unread"):
        context.out.note(f"what is not shown cannot be told without running it: {found['unread']}")


def _with_log(image: Mapping[str, Any], contents: Mapping[str, Any]) -> dict[str, Any]:
    """What is in an image of a node, with what the node knows of it besides: that counts for its VMs."""
    known = {name: image[name] for name in ("name", "id", "source", "sha256", "ready")}
    found = {**known, **contents, "first-boot": image["first-boot"], "labels": image.get("labels", {})}
    if found["default-user"] == UNKNOWN and image.get("user"):
        found["default-user"] = image["user"]
    found["could-take"] = contents["first-boot"]
    return found


def export(context: Context) -> None:
    """An image as a qcow2 file, or to stdout. Raises `Failure`."""
    name, target = context.values["NAME"], context.values["FILE"]
    if target == "-":
        if sys.stdout.isatty():
            raise bad_usage("image export: stdout is a terminal", "redirect it, or give a file")
        _receive(context, name, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = Path(target).absolute()
    force = bool(context.values["force"])
    _require_replaceable(path, name, force=force)
    try:
        with _whole(path, context.program.new_token(), force=force) as file:
            _receive(context, name, file)
    except OSError as error:
        raise Failure(
            500, f"image export: {path}: {error.strerror}", hint="check the path, its permissions and df -h"
        ) from None
    if context.out.json:
        context.out.value({"file": str(path), "format": "qcow2", "size-bytes": path.stat().st_size})
    else:
        context.suggest(f"{path} has the image; to import it elsewhere: aetherscale image import {path.name}")


def _require_replaceable(path: Path, name: str, *, force: bool) -> None:
    """Raises `Failure` where something is there that is not to be replaced, by whatever option."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise Failure(409, f"image export: {path} is a directory", hint=f"name a file in it: {path / name}.qcow2")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise Failure(409, f"image export: {path} is no regular file, and is not replaced", hint="- writes to stdout")
    if not force:
        raise _exists(path)


def _exists(path: Path) -> Failure:
    return Failure(409, f"image export: {path} is there already", hint="another file; or --force, which replaces it")


@contextmanager
def _whole(path: Path, token: str, *, force: bool) -> Iterator[BinaryIO]:
    """A file without a name until it is whole and on the disk. Raises OSError; `Failure` where the name is taken."""
    fresh = path.with_name(f".{path.name[:100]}.{token}")
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        is_named = False
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES or not path.parent.is_dir():
            raise
        # Here a kill leaves a file with such a name, which is no image to anybody.
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        is_named = True
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            try:
                if is_named and not force:
                    os.link(fresh, path)
                elif not is_named:
                    _name(descriptor, fresh if force else path)
            except FileExistsError:
                raise _exists(path) from None
            if force:
                fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _name(descriptor: int, path: Path) -> None:
    """Give a file without a name one, as open(2) has it. Raises OSError."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a directory Python calls linkat(2), which follows the link; without one it does not.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=root, follow_symlinks=True)
    finally:
        os.close(root)


def _receive(context: Context, name: str, file: BinaryIO) -> None:
    """Write all of an image to a file, and compare its checksum. Raises `Failure` and OSError."""
    client = context.client
    with context.out.progress(name) as progress, suggesting(context, "image", name):
        told = _prepared(context, name, progress)
        digest, done, total = hashlib.sha256(), 0, told["size-bytes"]
        while done < total:
            options = {"image": told["image-id"], "sha256": told["of"], "offset": done}
            piece = base64.b64decode(client.result("images", "read-image", options)["data"])
            if not piece:
                break
            digest.update(piece)
            file.write(piece)
            done += len(piece)
            progress.measure("exporting", measured({"done-bytes": done, "total-bytes": total}))
    if done != total or digest.hexdigest() != told["sha256"]:
        raise Failure(500, f"image export: {name}: what came is not what the node has", hint="try again")


def _prepared(context: Context, name: str, progress: Progress) -> Mapping[str, Any]:
    for chunk in context.client.ask("images", "export-image", {"image": name}, timeout_s=context.values["timeout"]):
        if chunk["type"] == "result":
            return chunk
        tell(progress, chunk)
    raise Failure(500, f"image export: {name}: the node said nothing more", hint="try again")
