"""What CI and a fresh checkout install: the tools that tests name, and packages that go together."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

from harness.commands import ROOT
from packaging.requirements import Requirement

# `ci/run` is a script of bash's, and setup_venv installs the model that the demo's tests name.
ALWAYS_THERE = {"bash"}


def test_ci_installs_every_tool_that_a_test_needs() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    needed = {tool for file in files for tool in re.findall(r'mark\.needs\("([^"]+)"\)', file.read_text())}
    installed = set(re.findall(r"^need (\S+) \S+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert needed - ALWAYS_THERE == installed


def test_what_developers_install_goes_together_extras_included() -> None:
    """pip resolves no environment from packages whose extras exclude each other, and `pip check` passes extras over."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    unmet = [
        f"{wanted} of {requirement.name}{sorted(requirement.extras)}: {metadata.version(wanted.name)} is installed"
        for requirement in map(Requirement, extras["dev"])
        if requirement.name != "torchd"
        for wanted in map(Requirement, metadata.requires(requirement.name) or [])
        if any(_asked_for(wanted, extra) for extra in ["", *requirement.extras])
        if not wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    ]
    assert unmet == []


def _asked_for(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})
