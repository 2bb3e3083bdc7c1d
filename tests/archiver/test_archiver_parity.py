"""Our archivers against TorchServe's: the same flags, the same archives, entry by entry (recorded by record.py); and
archives that its older archivers wrote (A08)."""

from __future__ import annotations

import asyncio
import json
import logging
import zipfile
from pathlib import Path

import pytest
from harness.archiver_cases import FILES, MODEL_CASES, WORKFLOW_CASES, outcome, write_files

from torchd_archiver import cli, war, workflow_cli
from torchd_archiver.errors import ArchiveInvalid
from torchd_server.store import ModelStore

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
# 0.12.0 needs the folder; its last source state makes it, and so do we.
BETTER = {"export path"}
COMMANDS = {"model": (cli.main, MODEL_CASES), "workflow": (workflow_cli.main, WORKFLOW_CASES)}
OLD = sorted(path.name for path in GOLDEN.iterdir() if path.suffix in (".mar", ".gz"))


def run(command: str, case: str) -> int:
    main, cases = COMMANDS[command]
    try:
        return main(cases[case].split())
    except SystemExit as left:  # argparse
        return int(left.code or 0)


@pytest.mark.parametrize(("command", "case"), [(command, case) for command in CASES for case in CASES[command]])
def test_the_same_flags_give_the_same_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, case: str
) -> None:
    """5.1, 5.2."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = outcome(tmp_path, run(command, case))
    if case in BETTER:
        assert CASES[command][case] == {"fails": True}
        assert not found["fails"]
    else:
        assert found == CASES[command][case]


def test_every_case_was_recorded() -> None:
    assert {command: set(CASES[command]) for command in CASES} == {
        command: set(cases) for command, (_, cases) in COMMANDS.items()
    }


@pytest.mark.parametrize("name", OLD)
def test_archives_of_every_archiver_since_0_1_are_served(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A08."""
    with caplog.at_level(logging.WARNING, "torchd_server.store"):
        model = asyncio.run(ModelStore(GOLDEN, tmp_path).fetch(name))
    assert (model.model_name, model.version, model.handler, model.runtime) == ("old", "1.0", "handler.py", "python")
    assert (model.directory / "weights.bin").read_text() == FILES["weights.bin"]
    manifest = json.loads(model.manifest_json)
    assert manifest["model"]["serializedFile"] == "weights.bin"
    assert ("pack it again" in caplog.text) == ("modelServerVersion" in manifest)


def test_a_workflow_needs_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optional in TorchServe's flags too, where leaving it out is an AttributeError."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert workflow_cli.main(["--workflow-name", "w", "--spec-file", "spec.yaml"]) == 0
    folder, manifest = war.unpack(Path("w.war"), tmp_path / "out")
    assert (manifest.workflow_name, manifest.spec_file, manifest.handler) == ("w", "spec.yaml", None)
    assert sorted(path.name for path in folder.iterdir()) == ["WAR-INF", "spec.yaml"]


def test_two_files_of_one_name_and_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path)
    (tmp_path / "serve" / "handler.py").write_text("another")
    monkeypatch.chdir(tmp_path)
    for extra in ("serve/handler.py", "extra"):
        flags = f"--workflow-name w --spec-file spec.yaml --handler handler.py --extra-files {extra}"
        assert workflow_cli.main(flags.split()) == 1
        assert extra in capsys.readouterr().err
    assert not Path("w.war").exists()


MANIFESTS = {
    "no object": "[]",
    "no workflow": "{}",
    "no name": '{"workflow": {"specFile": "s.yaml"}}',
    "bad name": '{"workflow": {"workflowName": "../w", "specFile": "s.yaml"}}',
    "spec outside": '{"workflow": {"workflowName": "w", "specFile": "../s.yaml"}}',
    "function file outside": '{"workflow": {"workflowName": "w", "specFile": "s.yaml", "handler": "/etc/h.py"}}',
    "file missing": '{"workflow": {"workflowName": "w", "specFile": "s.yaml", "handler": "h.py"}}',
    "wrong type": '{"workflow": {"workflowName": "w", "specFile": "s.yaml", "handler": 3}}',
    "doubled": '{"workflow": {"workflowName": "w", "workflowName": "x", "specFile": "s.yaml"}}',
    "deep": "[" * 10_000,
    "large": '{"x": "' + "y" * 300_000 + '"}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """S52, S16."""
    with zipfile.ZipFile(tmp_path / "w.war", "w") as archive:
        archive.writestr("s.yaml", "dag: {a: []}")
        archive.writestr("WAR-INF/MANIFEST.json", MANIFESTS[name])
    with pytest.raises(ArchiveInvalid):
        war.unpack(tmp_path / "w.war", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["w.war"]
