# The recipes of aetherscale. Run them with `./justw RECIPE`, which makes all that they need.

bin := ".venv/bin"

# Python keeps what it compiled, also where the environment says otherwise: a test run starts some thousand processes.
export PYTHONDONTWRITEBYTECODE := ""

# List the recipes.
_default:
    @'{{ just_executable() }}' --list --unsorted

# Format the code, and mend what ruff can mend by itself.
fmt:
    {{ bin }}/ruff check --fix-only --quiet
    {{ bin }}/ruff format

# Style, likely bugs, and the dependency rules.
lint: && imports
    {{ bin }}/ruff format --check
    {{ bin }}/ruff check

# The dependency rules of docs/architecture.md, each an import-linter contract.
imports:
    {{ bin }}/lint-imports --no-logo --no-cache

# mypy, strict, over the source and the tests.
types:
    {{ bin }}/mypy

# Pure code: milliseconds each.
unit *args:
    {{ bin }}/pytest tests/unit {{ args }}

# One suite for each port, run on the fake and on the real thing.
contract *args:
    {{ bin }}/pytest tests/contract {{ args }}

# Real guests, a real nats-server, real files, real kills.
integration *args:
    {{ bin }}/pytest tests/integration {{ args }}

# The contract, from clients that are not ours; needs Go, Node.js and npm, which nothing else does.
conformance *args:
    #!/usr/bin/env bash
    set -eu
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/aetherscale/conformance"
    [ -x "$cache/nats" ] || GOBIN="$cache" go install github.com/nats-io/natscli/nats@v0.5.1
    npm install --prefix tests/conformance --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
    AETHERSCALE_NATS_CLI="$cache/nats" {{ bin }}/pytest tests/conformance/foreign_clients.py {{ args }}

# Everything: style, types, dependency rules, every test; two tests at a time, since most of them wait for a guest.
test *args: lint types
    {{ bin }}/pytest -n 2 --dist worksteal {{ args }}

# Simulated crashes: `just sim --seeds 500`, or `just sim --seed 7` for one again; see docs/simulation.md.
sim *args:
    {{ bin }}/python -m tests.simulation {{ args }}

# Stories of the simulated node that hypothesis makes up, and shrinks where one ends badly: `just stories 2000`.
stories count="500":
    {{ bin }}/python -m tests.simulation.stories {{ count }}

# A simulated month of a node: its tasks and its memory have to stay as they are.
month days="30":
    {{ bin }}/python -m tests.simulation.month {{ days }}

# SIGKILL of the real node at every call of a port, with real QEMU and real networks; then, under load, of anything.
kills count="300" seed=`date +%s`:
    AETHERSCALE_KILLS_EVERY=1 {{ bin }}/pytest -q -s tests/integration/test_kills.py tests/integration/test_network_kills.py tests/integration/test_firewall_kills.py tests/integration/test_init_kills.py
    AETHERSCALE_RANDOM_KILLS={{ count }} AETHERSCALE_SEED={{ seed }} {{ bin }}/pytest -q -s tests/integration/test_random_kills.py

# A million spoofed frames, while the rules are replaced 500 times and VMs start, stop and are deleted: none passes.
spoofs count="1000000":
    AETHERSCALE_SPOOFS={{ count }} AETHERSCALE_REPLACEMENTS=500 {{ bin }}/pytest -q -s tests/integration/test_network_storm.py

# Ten thousand random topologies, of which the kernel, the law as a function and `firewall explain` have to say the same.
judges count="10000" seed=`date +%s`:
    AETHERSCALE_JUDGES={{ count }} AETHERSCALE_SEED={{ seed }} {{ bin }}/pytest -q -s -n0 tests/integration/test_firewall_judges.py

# A hundred thousand rule sets as strangers send them: each is refused with its field, or nft loads it.
rulesets count="100000" seed=`date +%s`:
    AETHERSCALE_RULESETS={{ count }} AETHERSCALE_SEED={{ seed }} {{ bin }}/pytest -q -s -n0 tests/integration/test_firewall_fuzz.py

# Every command in all surroundings that nobody wishes for, and every word in each place: the suite runs a share of them.
surroundings share="1":
    AETHERSCALE_FUZZ_SHARE={{ share }} {{ bin }}/pytest -q -n 2 tests/integration/test_command_line_surroundings.py

# Exactly what CI runs.
check: test

# Measure against floors and peers: `just bench`, `just bench append-1 replay`, `just bench --list`.
bench *args:
    {{ bin }}/python -m benchmarks {{ args }}

# Install libvirt from Debian's packages, so that it stands beside us in `just bench`; nothing of it runs otherwise.
bench-peers:
    apt-get install --yes --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt

# How cost grows with VMs and events: the plots of docs/performance.md.
bench-growth *args:
    {{ bin }}/python -m benchmarks.growth {{ args }}

# A thousand living QEMUs, found again by a node that was killed: 10 GiB of memory for as long as it lasts.
readoption count="1000":
    {{ bin }}/python -m benchmarks.readoption {{ count }}

# Write docs/events.md, docs/states.md, docs/subjects.md, the reference in docs/cli.md and the index of decisions anew.
docs:
    {{ bin }}/python -m aetherscale.docs
    {{ bin }}/python -m tools.decisions

# Write docs/limits.md anew from the code and tests/promises/limits.toml.
limits:
    {{ bin }}/python -m tools.limits

# Fail where docs/events.md, docs/states.md, docs/subjects.md, the reference in docs/cli.md or the index of decisions have drifted.
docs-check:
    {{ bin }}/python -m aetherscale.docs --check
    {{ bin }}/python -m tools.decisions --check

# A booted systemd in a container, and what needs one: scopes of virtual machines, the service, `host setup`.
systemd *args:
    {{ bin }}/python -m tests.systemd {{ args }}

# README's section "As a service", word by word, on bare Debian 13 and 12; needs root, mmdebstrap, the network, minutes.
readme-service *args:
    {{ bin }}/python -m tests.systemd.readme {{ args }}

# A real kill for want of memory, on a Debian host of its own under emulation; needs mmdebstrap, and minutes.
oom:
    {{ bin }}/python -m tests.systemd.oom

# The suites of networks on Debian's own kernel, under emulation: `just debian-guest`, `just debian-guest trixie bookworm`; needs root, mmdebstrap, minutes.
debian-guest *args:
    {{ bin }}/python -m tests.debian {{ args }}

# `image build debian-12` in earnest, and two guests of it under emulation; `RECIPE=debian-13` for the other; needs root, mmdebstrap, minutes.
debian-image *args:
    {{ bin }}/pytest -q -s tests/integration/debian_images.py {{ args }}

# The same build on a node of a user without root, who has subordinate ids; needs root to become that user, mmdebstrap, uidmap, minutes.
debian-user *args:
    {{ bin }}/pytest -q -s tests/integration/debian_user.py {{ args }}

# Ask for every image of the catalogue, and for its checksum: `just catalogue`, `just catalogue FILE|URL`; needs the internet.
catalogue *args:
    {{ bin }}/python -m tools.catalogue {{ args }}

# A guest with Debian's own cloud-init, under emulation; `RECIPE=debian-13` for the other; needs root, mmdebstrap, minutes.
debian-cloud-init *args:
    {{ bin }}/pytest -q -s tests/integration/debian_cloud_init.py {{ args }}

# The lines of examples/README.md with real guests of a whole Debian, under emulation; needs root, mmdebstrap, minutes.
examples *args:
    {{ bin }}/pytest -q -s tests/integration/examples.py {{ args }}

# Thousands of power cuts under the real log: `just powercuts`, `just powercuts --seed 7 --cuts 300`.
powercuts *args:
    {{ bin }}/python -m tests.powercuts.cuts {{ args }}

# Ten thousand damages to the files of a log, each told or without effect: `just flips --seed 7 --count 300`.
flips *args:
    {{ bin }}/python -m tests.damage.flips {{ args }}

# Plant bugs into copies of the tree, one by one, and say what catches each: `just planted`, `just planted undo-dropped`.
planted *args:
    {{ bin }}/python -m tests.planted.planting {{ args }}

# Change the code one small step at a time, and show which changes no test sees: `just mutants`, `just mutants kernel`.
mutants *args:
    {{ bin }}/python -m tests.mutants {{ args }}

# Run what shows the promises (those whose text has all words given), and write PROMISES.md.
promises *words:
    {{ bin }}/python -m tools.promises run {{ words }}

# From nothing to a ready virtual machine, and back to nothing.
demo *args:
    {{ bin }}/aetherscale demo {{ args }}

# Remove what can be made again: .venv, caches, builds.
clean:
    rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
    find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
