"""Where a model's files are looked for: the archive, the host, the Hugging Face cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.model_path import ModelNotFound, model_path

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: huggingface_hub reads its variables once.
FIND = """
import json, sys
from pathlib import Path
from torchd_workers.handlers.parallel.model_path import ModelNotFound, find_model
try:
    print(find_model(*json.loads(sys.argv[1])[:1], Path(sys.argv[2]), *json.loads(sys.argv[1])[1:]))
except ModelNotFound as error:
    print(error)
"""


def path_of(archive: Path, **handler: Any) -> Path:
    config = {"handler": handler} if handler else {}
    return model_path(Context("m", str(archive), {}, 1, None, model_yaml_config=config))


def found(archive: Path, *arguments: Any, **variables: str) -> str:
    """What a process with these variables finds."""
    named = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    folders = os.pathsep.join(str(ROOT / name) for name in ("workers", "protos"))
    environment |= {"PYTHONPATH": folders, "HF_HUB_OFFLINE": "1", "HOME": str(archive), **variables}
    command = [sys.executable, "-c", FIND, json.dumps(arguments), str(archive)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def cached(cache: Path, name: str = "acme/tiny", commit: str = "c0ffee", ref: str = "main") -> Path:
    """A model as huggingface_hub keeps it; gives its snapshot."""
    model = cache / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / ref).write_text(commit)
    return snapshot


def test_without_a_path_the_archive_is_the_model(tmp_path: Path) -> None:
    assert path_of(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["weights", "./weights", "deep/weights", "."])
def test_a_folder_of_the_archive(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    assert path_of(tmp_path, model_path=name) == (tmp_path / name).resolve()


def test_a_folder_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    assert path_of(tmp_path / "archive", model_path=str(tmp_path / "opt")) == tmp_path / "opt"


@pytest.mark.parametrize("name", ["model", "/absolute"])
def test_a_model_of_a_cache_folder_is_its_snapshot(name: str, tmp_path: Path) -> None:
    """As TorchServe's examples name it: model/models--org--name, in the archive or on the host."""
    snapshot = cached(tmp_path / "model")
    model = "model/models--acme--tiny" if name == "model" else str(tmp_path / "model" / "models--acme--tiny")
    assert path_of(tmp_path, model_path=model) == snapshot


def test_of_several_snapshots_refs_main_names_one(tmp_path: Path) -> None:
    cached(tmp_path, commit="old", ref="v1")
    newest = cached(tmp_path, commit="new")
    assert path_of(tmp_path, model_path="models--acme--tiny") == newest
    (tmp_path / "models--acme--tiny" / "refs" / "main").unlink()
    with pytest.raises(ModelNotFound, match=r"has 2 snapshots and no refs/main"):
        path_of(tmp_path, model_path="models--acme--tiny")


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HOME", "hub"),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("TRANSFORMERS_CACHE", ""),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)
def test_a_name_is_looked_up_in_the_cache(variable: str, below: str, tmp_path: Path) -> None:
    """The variables that the large-model guide of TorchServe tells to set, and today's."""
    snapshot = cached(tmp_path / "cache" / below)
    assert found(tmp_path, "acme/tiny", **{variable: str(tmp_path / "cache")}) == str(snapshot)


def test_a_name_at_a_revision(tmp_path: Path) -> None:
    cached(tmp_path / "cache")
    snapshot = cached(tmp_path / "cache", commit="deadbeef", ref="v2")
    variables = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    assert found(tmp_path, "acme/tiny", "v2", **variables) == str(snapshot)
    assert "the model acme/tiny at revision v3 is neither in the archive" in found(
        tmp_path, "acme/tiny", "v3", **variables
    )


def test_what_is_nowhere_is_told_with_the_places_and_the_ways_out(tmp_path: Path) -> None:
    caches = {"HF_HUB_CACHE": str(tmp_path / "one"), "TRANSFORMERS_CACHE": str(tmp_path / "two")}
    assert found(tmp_path, "acme/tiny", **caches) == (
        f"the model acme/tiny is neither in the archive ({tmp_path / 'acme/tiny'}) nor in the Hugging Face cache "
        f"({tmp_path / 'one'}, {tmp_path / 'two'}). Fetch it before with: hf download acme/tiny; or say "
        "download: true under handler: in model-config.yaml, and the worker fetches it when it loads"
    )


def test_offline_nothing_is_fetched_whatever_the_configuration_says(tmp_path: Path) -> None:
    """Without the check the hub would be asked, at an address where nobody is, and the error be another."""
    variables = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert found(tmp_path, "acme/tiny", None, True, **variables).endswith(
        "handler.download is of no use: HF_HUB_OFFLINE is set"
    )


@pytest.mark.parametrize("name", ["../other", "a/../../other", ".."])
def test_a_path_does_not_leave_the_archive(name: str, tmp_path: Path) -> None:
    """S10."""
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelNotFound, match="leaves the archive; say an absolute folder"):
        path_of(tmp_path / "archive", model_path=name)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_path": "/nowhere/at/all"}, "is /nowhere/at/all, and this host has no such folder"),
        ({"model_path": "three/part/name"}, "the archive has no such folder, and it is no name of a model"),
        ({"model_path": "https://acme/tiny"}, "the archive has no such folder, and it is no name of a model"),
        ({"model_path": 7}, "handler.model_path: 7; it must be a folder"),
        ({"model_path": "acme/tiny", "download": "yes"}, "handler.download: 'yes'; it must be true or false"),
    ],
)
def test_what_is_no_path_is_named(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=message):
        path_of(tmp_path, **said)
