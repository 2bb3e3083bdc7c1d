"""The archive in a folder for each setting: its files once on the disk, a model-config.yaml of its own in each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torchd_archiver import mar
from torchd_archiver.errors import ArchiveInvalid
from torchd_archiver.manifest import Manifest
from torchd_archiver.packing import FORMATS, replacing
from torchd_clients.bench.target import Input
from torchd_clients.tune import config_file
from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.space import Setting

# Where the samples for the worker's own check lie in a variant.
SAMPLES = "tune-samples"
_MANIFEST = "MAR-INF/MANIFEST.json"


class Variants:
    """The archive `path`, unpacked into `folder`, whose subfolder `store` holds the variants."""

    def __init__(self, path: Path, folder: Path, inputs: Sequence[Input]) -> None:
        self.store = folder / "store"
        self._source, self._manifest = _unpacked(path, folder / "unpacked")
        self.model_name = self._manifest.model_name or path.stem
        self._config_name = self._manifest.config_file or config_file.FILE
        self._bodies = [one.body for one in inputs]
        # How many of them a worker checks itself by.
        self.samples = len(self._bodies)
        file = self._source / self._config_name
        self.text = file.read_text(encoding="utf-8") if file.exists() else ""
        self.config = config_file.read_config(self.text)
        self.default = config_file.setting_of(self.config)
        # A run that was cut short may have left some, perhaps of another search.
        shutil.rmtree(self.store, ignore_errors=True)
        self.store.mkdir(parents=True)

    def write(self, setting: Setting) -> str:
        """Makes the folder for this setting; gives its name in the store."""
        name = f"variant-{len(list(self.store.iterdir())) + 1}"
        self._write(self.store / name, setting)
        return name

    def text_of(self, setting: Setting) -> str:
        """The archive's model-config.yaml with this setting."""
        return config_file.edited(self.text, config_file.merged(self.config, self.default, setting))

    def pack(self, setting: Setting, target: Path) -> None:
        """Writes an archive with this setting, and with the samples by which its workers check themselves."""
        with replacing(target) as unfinished:
            folder = unfinished.with_name("content")
            self._write(folder, setting)
            _, make_sink = FORMATS["default"]
            sink = make_sink(unfinished, self.model_name)
            for file in sorted(one for one in folder.rglob("*") if one.is_file()):
                with file.open("rb") as content:
                    sink.add(str(file.relative_to(folder)), file.stat().st_size, content)
            sink.close()

    def _write(self, folder: Path, setting: Setting) -> None:
        own = (self._config_name, _MANIFEST)
        for file in sorted(one for one in self._source.rglob("*") if one.is_file()):
            path = file.relative_to(self._source)
            if str(path) not in own:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                _link(file, folder / path)
        config = config_file.merged(self.config, self.default, setting)
        text = config_file.edited(self.text, self._with_samples(config, folder, setting))
        (folder / self._config_name).write_text(text, encoding="utf-8")
        (folder / _MANIFEST).parent.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).write_text(json.dumps(self._manifest_document()))

    def _with_samples(self, config: Mapping[str, Any], folder: Path, setting: Setting) -> dict[str, Any]:
        """The configuration with the inputs as samples, where something is done to the model and it has none."""
        changed = deepcopy(dict(config))
        if not (setting.dtype or setting.compile or setting.quantize) or changed["optimize"].get("samples"):
            return changed
        (folder / SAMPLES).mkdir(parents=True)
        for number, body in enumerate(self._bodies[: self.samples]):
            (folder / SAMPLES / f"{number:05}").write_bytes(body)
        changed["optimize"]["samples"] = SAMPLES
        return changed

    def _manifest_document(self) -> dict[str, Any]:
        document = deepcopy(dict(self._manifest.raw))
        model = document.setdefault("model", {})
        model.setdefault("modelName", self.model_name)
        model["configFile"] = self._config_name
        return document


def _unpacked(path: Path, folder: Path) -> tuple[Path, Manifest]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with mar.open_archive(path) as archive:
            return archive.unpack(folder), archive.manifest
    except ArchiveInvalid as error:
        raise TuneFailed(f"{path} is no archive that can be served: {error}") from error
    except OSError as error:
        raise TuneFailed(f"{path} cannot be read: {error.strerror}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
