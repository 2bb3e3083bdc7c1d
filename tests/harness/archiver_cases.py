"""Command lines of the two archivers and the files they name: run by TorchServe's own once, by ours in every test."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

FILES = {
    "handler.py": "def handle(data, context):\n    return data\n",
    "net.py": "class Net:\n    pass\n",
    "weights.bin": "0123456789" * 20,
    "index_to_name.json": '{"0": "cat"}',
    "requirements.txt": "answerlib==1.0\n",
    "model-config.yaml": "minWorkers: 1\n",
    "serve/llm.py": "def run(data, context):\n    return data\n",
    "extra/vocab.txt": "a b c",
    "extra/nested/deep.txt": "deep",
    "extra/__pycache__/x.pyc": "bytes",
    "extra/.hidden/secret.txt": "secret",
    "spec.yaml": "dag:\n  pre: []\n",
    "taken.mar": "here before",
    "taken.war": "here before",
}
_BASE = "--model-name m --version 1.0"
MODEL_CASES = {
    "file handler": f"{_BASE} --handler handler.py --serialized-file weights.bin",
    "default handler": f"{_BASE} --handler image_classifier --serialized-file weights.bin --extra-files "
    "index_to_name.json",
    "eager": f"{_BASE} --handler handler.py --serialized-file weights.bin --model-file net.py",
    "function": f"{_BASE} --handler serve/llm:run",
    "module": f"{_BASE} --handler serve/llm",
    "requirements and config": f"{_BASE} --handler handler.py -r requirements.txt -c model-config.yaml",
    "folder": f"{_BASE} --handler handler.py --extra-files extra",
    "pattern": f"{_BASE} --handler handler.py --extra-files *.json",
    "zip-store": f"{_BASE} --handler handler.py --archive-format zip-store",
    "tgz": f"{_BASE} --handler handler.py --archive-format tgz",
    "no-archive": f"{_BASE} --handler handler.py --archive-format no-archive",
    "export path": f"{_BASE} --handler handler.py --export-path made/for/it",
    "runtime": f"{_BASE} --handler handler.py --runtime python3",
    "force": "--model-name taken --version 1.0 --handler handler.py -f",
    "taken": "--model-name taken --version 1.0 --handler handler.py",
    "bad name": "--model-name m! --version 1.0 --handler handler.py",
    "bad runtime": f"{_BASE} --handler handler.py --runtime ruby",
    "bad format": f"{_BASE} --handler handler.py --archive-format rar",
    "no version": "--model-name m --handler handler.py",
    "no handler": _BASE,
    "missing handler": f"{_BASE} --handler nowhere.py",
    "missing weights": f"{_BASE} --handler handler.py --serialized-file nowhere.bin",
    "missing extra": f"{_BASE} --handler handler.py --extra-files nowhere.txt",
}
WORKFLOW_CASES = {
    "plain": "--workflow-name w --spec-file spec.yaml --handler handler.py",
    "extra": "--workflow-name w --spec-file spec.yaml --handler handler.py --extra-files index_to_name.json,net.py",
    "folders": "--workflow-name w --spec-file ./spec.yaml --handler serve/llm.py",
    "force": "--workflow-name taken --spec-file spec.yaml --handler handler.py -f",
    "taken": "--workflow-name taken --spec-file spec.yaml --handler handler.py",
    "bad name": "--workflow-name w! --spec-file spec.yaml --handler handler.py",
    "no export path": "--workflow-name w --spec-file spec.yaml --handler handler.py --export-path nowhere",
    "missing spec": "--workflow-name w --spec-file nowhere.yaml --handler handler.py",
    "no spec": "--workflow-name w --handler handler.py",
}


def write_files(folder: Path) -> None:
    """The inputs that the cases name."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def outcome(folder: Path, code: int) -> dict[str, Any]:
    """What a command has left in its folder: the new file, its entries by content, its manifest without the time."""
    found: dict[str, Any] = {"fails": code != 0}
    if code:
        return found
    [made] = [
        path
        for path in (*folder.glob("*"), *folder.glob("made/for/it/*"))
        if path.name in ("m", "w") or (path.suffix in (".mar", ".war", ".gz") and path.name != _untouched(path))
    ]
    entries = _entries(made)
    name = next(name for name in entries if name.endswith("MANIFEST.json"))
    manifest = json.loads(entries.pop(name))
    manifest.pop("createdOn")
    hashes = {path: hashlib.sha256(content).hexdigest()[:16] for path, content in sorted(entries.items())}
    return found | {"path": str(made.relative_to(folder)), "entries": hashes, "manifest": [name, manifest]}


def _untouched(path: Path) -> str:
    return path.name if path.read_bytes() == FILES.get(path.name, "").encode() else ""


def _entries(made: Path) -> dict[str, bytes]:
    if made.is_dir():
        return {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    if made.suffix == ".gz":
        with tarfile.open(made) as tar:
            files = [member for member in tar.getmembers() if member.isfile()]
            return {member.name: tar.extractfile(member).read() for member in files}  # type: ignore[union-attr]
    with zipfile.ZipFile(made) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
