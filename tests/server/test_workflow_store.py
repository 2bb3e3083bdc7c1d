"""Workflow archives by name and URL, and the hostile ones (S52: what holds for .mar holds for .war)."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import pytest

from torchd_server import errors
from torchd_server.download import Downloads
from torchd_server.url_policy import UrlPolicy
from torchd_server.workflow_store import UnpackedWorkflow, WorkflowStore

GOOD = {"spec.yaml": "dag: {pre: [post]}\n", "functions.py": "x = 1\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty workflow store beside an empty scratch folder."""
    (tmp_path / "scratch").mkdir()
    store = tmp_path / "store"
    store.mkdir()
    return store


def archive(folder: Path, files: dict[str, str], handler: str | None = "functions.py", spec: str = "spec.yaml") -> Path:
    path = folder / "w.war"
    workflow = {"workflowName": "w", "specFile": spec, **({"handler": handler} if handler else {})}
    with zipfile.ZipFile(path, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
        made.writestr("WAR-INF/MANIFEST.json", json.dumps({"workflow": workflow}))
    return path


def fetch(folder: Path, url: str = "w.war", downloads: Downloads | None = None) -> UnpackedWorkflow:
    return asyncio.run(WorkflowStore(folder, folder.parent / "scratch", downloads).fetch(url))


def test_an_archive_is_unpacked_and_read(folder: Path) -> None:
    archive(folder, GOOD)
    found = fetch(folder)
    assert (found.name, found.handler, found.spec.leaves, found.is_ours) == ("w", "functions.py", ("post",), True)
    assert (found.directory / "functions.py").is_file()
    asyncio.run(WorkflowStore(folder, folder.parent / "scratch").drop(found))
    assert not found.directory.exists()
    assert (folder / "w.war").exists()


def test_a_folder_of_the_store_is_used_where_it_lies(folder: Path) -> None:
    with zipfile.ZipFile(archive(folder, GOOD)) as made:
        made.extractall(folder / "plain")
    found = fetch(folder, "plain")
    assert (found.directory, found.is_ours) == (folder / "plain", False)
    asyncio.run(WorkflowStore(folder, folder.parent / "scratch").drop(found))
    assert (folder / "plain" / "spec.yaml").exists()


def test_one_that_was_downloaded_goes_with_its_workflow(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    archive(elsewhere, GOOD)
    downloads = Downloads(UrlPolicy([f"file://{elsewhere}/.*"]))
    found = fetch(folder, f"file://{elsewhere}/w.war", downloads)
    assert found.downloaded == folder / "w.war"
    asyncio.run(WorkflowStore(folder, folder.parent / "scratch").drop(found))
    assert not (folder / "w.war").exists()
    archive(elsewhere, {"spec.yaml": "dag: {a: [a]}"})
    with pytest.raises(errors.WorkflowInvalid):
        fetch(folder, f"file://{elsewhere}/w.war", downloads)
    assert list(folder.iterdir()) == []


HOSTILE: dict[str, tuple[dict[str, str], str]] = {
    "climbing entry": ({**GOOD, "../../evil.py": "x"}, "'..' in its path"),
    "absolute entry": ({**GOOD, "/tmp/evil.py": "x"}, "absolute"),
    "twice in other letters": ({**GOOD, "SPEC.yaml": "x"}, "letter case"),
    "no spec": ({"functions.py": "x"}, "no file 'spec.yaml'|the file 'spec.yaml'"),
    "no functions": ({"spec.yaml": GOOD["spec.yaml"]}, "functions.py"),
    "no yaml": ({**GOOD, "spec.yaml": "a: [b"}, "YAML"),
    "python in yaml": ({**GOOD, "spec.yaml": '!!python/object/apply:os.system ["touch M"]'}, "YAML"),
    "laughs": ({**GOOD, "spec.yaml": "a: &a [x]\n" + "".join(f"b{i}: [*a]\n" for i in range(60))}, "aliases"),
    "large yaml": ({**GOOD, "spec.yaml": "#" * 300_000}, "more than"),
    "no mapping": ({**GOOD, "spec.yaml": "- a\n- b\n"}, "mapping"),
    "cycle": ({**GOOD, "spec.yaml": "dag: {a: [b], b: [c], c: [b]}"}, "Cycle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(folder: Path, name: str) -> None:
    """S05 to S17 in a .war, S52."""
    files, message = HOSTILE[name]
    archive(folder, files)
    with pytest.raises(errors.WorkflowInvalid, match=message):
        fetch(folder)
    assert list((folder.parent / "scratch").iterdir()) == []


def test_functions_without_a_file_for_them_are_refused(folder: Path) -> None:
    archive(folder, {"spec.yaml": GOOD["spec.yaml"]}, handler=None)
    with pytest.raises(errors.WorkflowInvalid, match="nodes pre, post are functions"):
        fetch(folder)


def test_a_missing_archive_and_a_missing_store_are_told_apart(folder: Path) -> None:
    with pytest.raises(errors.WorkflowArchiveNotFound, match=r"not found in workflow store: w\.war"):
        fetch(folder)
    with pytest.raises(errors.WorkflowArchiveNotFound, match="has not been configured"):
        asyncio.run(WorkflowStore(None, folder).fetch("w.war"))
