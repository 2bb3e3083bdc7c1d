"""The distribution torchd-ts: built as pip builds it, used as somebody who tests handlers uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / folder for folder in ("workers", "protos", "archiver")]

HANDLER_TEST = """
import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.request_envelope.json import JSONEnvelope
from ts.torch_handler.unit_tests.test_utils.mock_context import MockContext

context = MockContext(model_pt_file=None, model_dir=".", model_file="model.py", model_name="mnist")
handler = BaseHandler()
handler.initialize(context)
assert handler.handle([{"body": [1.0, 2.0]}], context) == [3.0]
answers = JSONEnvelope(handler.handle).handle([{"body": {"instances": [[4.0, 3.0], [5.0, 6.0]]}}], context)
assert answers == ['{"predictions": [7.0, 11.0]}'], answers
assert {metric.name for metric in context.metrics.store} == {"HandlerTime"}

from ts.torch_handler.image_classifier import ImageClassifier
import ts
assert ts.__version__ == "0.12.0"
"""
PACK = """
import zipfile
from model_archiver import ModelArchiver, ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging import generate_model_archive

config = ModelArchiverConfig(model_name="m", version="1.0", handler="base_handler", model_file="model.py")
ModelArchiver.generate_model_archive(config)
assert "model.py" in zipfile.ZipFile("m.mar").namelist()
try:
    generate_model_archive(config)
except ModelArchiverError as error:
    assert "already exists" in str(error)
else:
    raise SystemExit("the archive was overwritten without --force")
"""
MODEL = "import torch\n\n\nclass Sum(torch.nn.Module):\n    def forward(self, rows):\n        return rows.sum(dim=1)\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built without the network and unpacked as pip does it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    source = ROOT / "workers" / "torchd_ts"
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("torchd_ts-*.whl")
    target = folder / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, folder: Path, source: str) -> None:
    (folder / "model.py").write_text(MODEL)
    (folder / "program.py").write_text(source)
    paths = os.pathsep.join(map(str, [installed, *PACKAGES]))
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_handlers_unit_test_runs_with_a_mock_context(installed, tmp_path):
    pytest.importorskip("torch")
    run(installed, tmp_path, HANDLER_TEST)


def test_a_model_is_packed_from_python(installed, tmp_path):
    run(installed, tmp_path, PACK)


def test_it_ships_two_names_and_no_command(installed):
    """`torchserve` and `torch-model-archiver` come with torchd; two packages cannot both bring them."""
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "ts",
        "model_archiver",
    }
    (info,) = installed.glob("*.dist-info")
    assert not (info / "entry_points.txt").exists()


def test_it_has_torchds_version_and_asks_for_it():
    """Its `ts` is torchd's own; one of another version would be another package's."""
    ours, its = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in ("", "workers/torchd_ts")
    )
    assert its["version"] == ours["version"]
    assert its["dependencies"] == [f"torchd=={ours['version']}"]
