"""Who may import whom (ARCHITECTURE.md), kept by reading the source. Tables first."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "protos": set(),
    "archiver": set(),
    "clients": {"protos", "archiver"},
    "workers": {"protos"},
    "server": {"protos", "archiver"},
}
# A module imports from its own floor or a lower one.
FLOORS = {
    "cli": 13,
    "commands": 13,
    "start": 13,
    "switch_commands": 13,
    "daemon": 12,
    "plugins": 11,
    "surfaces": 11,
    "torchserve": 10,
    "inference": 9,
    "open_inference": 9,
    "management": 9,
    "workflows": 9,
    "registry": 8,
    "devices": 8,
    "model": 7,
    "pool": 6,
    "worker": 5,
    "group": 5,
    "rank": 5,
    "placement": 4,
    "accelerators": 3,
    "batching": 3,
    "store": 3,
    "archive_place": 3,
    "dependencies": 3,
    "parallelism": 3,
    "download": 3,
    "url_policy": 3,
    "workflow_spec": 3,
    "workflow_store": 3,
    "exposure": 3,
    "settings": 2,
    "request": 2,
    "deadlines": 2,
    "link": 2,
    "run_directory": 2,
    "bounded_yaml": 1,
    "environment": 1,
    "service_manager": 1,
    "clock": 1,
    "errors": 1,
    "request_ids": 1,
    "faults": 1,
    "logs": 1,
    "metrics": 1,
}
MODELS_ONLY = {"torch", "torchvision", "transformers", "safetensors", "numpy"}
CODE_FROM_BYTES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
# Handlers are user code that we bring: they import what models need, when they are used.
USER_SIDE = ("torchd_workers/handlers/", "torchd_workers/torchserve/", "torchd_workers/torchserve_shim/")
SOURCES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder / f"torchd_{folder}").rglob("*.py"))]
SOURCES = [path for path in SOURCES if not path.stem.endswith(("_pb2", "_pb2_grpc"))]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        if isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[1:-1][: -node.level + 1 or None] if node.level else ()
            yield from ((node.lineno, ".".join([*package, *filter(None, [node.module]), n.name])) for n in node.names)


def refused(path: Path, is_allowed: object) -> list[str]:
    return [f"{label(path)}:{line} imports {name}" for line, name in imports(path) if not is_allowed(name)]  # type: ignore[operator]


def is_user_side(path: Path) -> bool:
    return any(part in label(path) for part in USER_SIDE)


def test_there_is_something_to_keep() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_a_folder_imports_only_the_folders_below_it(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = {f"torchd_{name}" for name in {folder, *MAY_IMPORT[folder]}}
    assert not refused(path, lambda name: not name.startswith("torchd_") or name.split(".")[0] in allowed)


@pytest.mark.parametrize("path", [path for path in SOURCES if "torchd_server" in path.parts], ids=label)
def test_a_server_module_imports_from_its_own_floor_or_below(path: Path) -> None:
    def floor_of(name: str) -> int:
        parts = name.split(".")
        return FLOORS[parts[1]] if parts[0] == "torchd_server" and len(parts) > 1 and parts[1] in FLOORS else 0

    here = Path(label(path)).with_suffix("").parts[2]
    assert here in {"__init__", "__main__", *FLOORS}, f"{here} has no floor: give it one here and in ARCHITECTURE.md"
    assert not refused(path, lambda name: floor_of(name) <= FLOORS.get(here, 13))


def test_the_architecture_draws_these_floors() -> None:
    """A line: the floor, its modules with one space between, what they are after two or more."""
    lines = re.findall(r"^ ?(\d+) (\S+(?: \S+)*)", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert {name.rstrip("/"): int(floor) for floor, names in lines for name in names.split()} == FLOORS


@pytest.mark.parametrize("path", [path for path in SOURCES if "torchd_server" in path.parts], ids=label)
def test_the_daemon_never_imports_what_models_need(path: Path) -> None:
    assert not refused(path, lambda name: name.split(".")[0] not in MODELS_ONLY)


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if "torchd_workers" in path.parts and not is_user_side(path)], ids=label
)
def test_the_worker_runtime_imports_the_standard_library_only(path: Path) -> None:
    """So that no model's own protobuf, numpy or virtual environment can break a worker."""
    ours = ("torchd_workers", "torchd_protos.frames", "torchd_protos.tensors")
    assert not refused(path, lambda name: name.split(".")[0] in sys.stdlib_module_names or name.startswith(ours))


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_user_side(path)], ids=label)
def test_nothing_that_runs_code_out_of_bytes_is_imported(path: Path) -> None:
    """S18, E10: no pickle and its kin, on any wire and in any file."""
    assert not refused(path, lambda name: name.split(".")[0] not in CODE_FROM_BYTES)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_check_is_an_assert(path: Path) -> None:
    """E29: `python -O` removes them."""
    asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert not asserts, f"{label(path)}: assert statements in lines {asserts}"
