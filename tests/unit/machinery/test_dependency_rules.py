"""Each dependency rule of pyproject.toml is shown to bite: an import that it forbids is planted in a copy of the tree.

Without this a rule that matches nothing (a module renamed, a wildcard too narrow) would look like one that is kept.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

IMPURE = (
    "asyncio",
    "os",
    "pathlib",
    "time",
    "random",
    "uuid",
    "logging",
    "secrets",
    "subprocess",
    "socket",
    "threading",
)
DRIVERS = ("aiosqlite", "sqlite3", "nats", "qemu.qmp", "pyroute2", "rich")
PURE_MODULES = ("commands", "decide", "effects", "events", "presentation", "sentences", "state", "views", "planted")


@dataclass(frozen=True)
class Violation:
    """Imports planted in one module, and the contract that they have to break."""

    contract: str
    importer: str
    imported: tuple[str, ...]
    also: tuple[str, ...] = field(default=())
    """Modules that have to exist for the import to mean something; made if they do not."""

    def __str__(self) -> str:
        return f"{self.contract}: {self.importer} imports {', '.join(self.imported)}"


VIOLATIONS = [
    Violation("layers", "aetherscale.kernel.planted", ("aetherscale.bus",)),
    Violation("layers", "aetherscale.kernel.planted", ("aetherscale.settings",), also=("aetherscale.settings",)),
    Violation("layers", "aetherscale.eventstore.planted", ("aetherscale.bus",)),
    Violation("layers", "aetherscale.eventstore.planted", ("aetherscale.actors.compute",)),
    Violation("layers", "aetherscale.bus.planted", ("aetherscale.eventstore",)),
    Violation("layers", "aetherscale.bus.planted", ("aetherscale.settings",), also=("aetherscale.settings",)),
    Violation("layers", "aetherscale.actors.compute.planted", ("aetherscale.gateways",)),
    Violation("layers", "aetherscale.actors.compute.planted", ("aetherscale.debugger",)),
    Violation("layers", "aetherscale.debugger.planted", ("aetherscale.gateways",)),
    Violation("layers", "aetherscale.gateways.planted", ("aetherscale.setup",)),
    Violation("layers", "aetherscale.setup.planted", ("aetherscale.__main__",)),
    Violation("layers", "aetherscale.processes.planted", ("aetherscale.actors.compute",)),
    Violation("layers", "aetherscale.processes.planted", ("aetherscale.runtime",)),
    Violation("layers", "aetherscale.runtime.planted", ("aetherscale.actors.compute",)),
    Violation("layers", "aetherscale.runtime.planted", ("aetherscale.components",)),
    Violation("layers", "aetherscale.actors.compute.planted", ("aetherscale.components",)),
    Violation("kernel", "aetherscale.kernel.planted", (*IMPURE, *DRIVERS, "aetherscale.bus", "aetherscale.eventstore")),
    *(
        Violation(
            "meaning",
            f"aetherscale.actors.compute.model.{module}",
            (
                *IMPURE,
                *DRIVERS,
                "aetherscale.bus",
                "aetherscale.eventstore",
                "aetherscale.runtime.actor",
                "aetherscale.actors.compute.driver",
            ),
            also=("aetherscale.runtime.actor", "aetherscale.actors.compute.driver"),
        )
        for module in PURE_MODULES
    ),
    Violation(
        "components",
        "aetherscale.actors.compute.planted",
        ("aetherscale.actors.images.model.state",),
        also=("aetherscale.actors.images.model.state",),
    ),
    Violation("components", "aetherscale.actors.images.planted", ("aetherscale.actors.compute.model.decide",)),
    Violation("components", "aetherscale.actors.compute.planted", ("aetherscale.actors.images.driver",)),
    Violation("gateways", "aetherscale.gateways.planted", ("aetherscale.eventstore",)),
    Violation("gateways", "aetherscale.gateways.cli.planted", ("aetherscale.actors.compute.model.decide",)),
    Violation("gateways", "aetherscale.gateways.cli.planted", ("aetherscale.actors.compute.driver",)),
    Violation("gateways", "aetherscale.gateways.planted", ("aetherscale.runtime.actor",)),
    Violation("debugger", "aetherscale.debugger.planted", ("aetherscale.bus",)),
    Violation("debugger", "aetherscale.debugger.planted", ("aetherscale.actors.compute.driver",)),
    Violation("debugger", "aetherscale.debugger.planted", ("aetherscale.runtime.actor",)),
    Violation("door-sqlite", "aetherscale.eventstore.memory", ("aiosqlite", "sqlite3")),
    Violation("door-nats", "aetherscale.runtime.publisher", ("nats",)),
    Violation("door-qmp", "aetherscale.actors.images.planted", ("qemu.qmp",)),
    Violation("door-netlink", "aetherscale.actors.compute.planted", ("pyroute2",)),
    Violation("apart", "aetherscale.gateways.http.planted", ("aetherscale.gateways.cli.output",)),
    Violation("door-http", "aetherscale.gateways.http.planted", ("h11",)),
    Violation("door-terminal", "aetherscale.debugger.planted", ("rich",)),
]

NEIGHBOURS = [
    ("aetherscale.actors.compute.planted", "aetherscale.actors.images.model.commands"),
    ("aetherscale.actors.compute.planted", "aetherscale.actors.images.model.views"),
    ("aetherscale.actors.compute.planted", "aetherscale.actors.images.ports"),
    ("aetherscale.gateways.cli.planted", "aetherscale.components"),
    ("aetherscale.actors.compute.model.decide", "aetherscale.actors.images.model.events"),
    ("aetherscale.gateways.cli.planted", "aetherscale.actors.compute.model.views"),
    ("aetherscale.gateways.cli.planted", "rich"),
    ("aetherscale.bus.planted", "nats"),
    ("aetherscale.actors.compute.planted", "qemu.qmp"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the rules are about."""
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=without_caches)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=without_caches)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def write(tree: Path, module: str, text: str) -> None:
    """Add text to the end of a module, which is made, with the packages around it, if it is not there."""
    path = tree.joinpath("src", *module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for package in path.relative_to(tree / "src").parents[:-1]:
        (tree / "src" / package).mkdir(exist_ok=True)
        (tree / "src" / package / "__init__.py").touch()
    with path.open("a") as file:
        file.write(text)


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the copy as `just imports` runs it on the project."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def broken(output: str) -> set[str]:
    """The ids of the contracts that are reported as broken."""
    return {id_ for id_, contract in CONTRACTS.items() if f"{contract['name']} BROKEN" in output}


def test_the_tree_as_it_is_keeps_every_rule(tree: Path) -> None:
    result = lint_imports(tree)
    assert (result.returncode, broken(result.stdout)) == (0, set()), result.stdout


@pytest.mark.parametrize("violation", VIOLATIONS, ids=str)
def test_a_forbidden_import_breaks_the_rule_against_it(tree: Path, violation: Violation) -> None:
    for module in violation.also:
        write(tree, module, "")
    for imported in violation.imported:
        if imported.startswith("aetherscale."):
            write(tree, imported, "")
    write(tree, violation.importer, "".join(f"\nimport {imported}" for imported in violation.imported) + "\n")

    result = lint_imports(tree)

    assert result.returncode == 1, result.stdout
    assert violation.contract in broken(result.stdout), result.stdout
    for imported in violation.imported:
        seen_as = imported if imported.startswith("aetherscale.") else imported.partition(".")[0]
        assert f"{violation.importer} -> {seen_as} " in result.stdout, result.stdout


@pytest.mark.parametrize(("importer", "imported"), NEIGHBOURS)
def test_an_import_that_no_rule_forbids_is_let_through(tree: Path, importer: str, imported: str) -> None:
    if imported.startswith("aetherscale."):
        write(tree, imported, "")
    write(tree, importer, f"\nimport {imported}\n")
    result = lint_imports(tree)
    assert result.returncode == 0, result.stdout


def test_a_module_that_nobody_placed_breaks_the_layers(tree: Path) -> None:
    write(tree, "aetherscale.helpers", "")
    result = lint_imports(tree)
    assert broken(result.stdout) == {"layers"}, result.stdout
    assert "helpers" in result.stdout


def test_every_rule_is_violated_by_a_test() -> None:
    assert {violation.contract for violation in VIOLATIONS} == set(CONTRACTS)
