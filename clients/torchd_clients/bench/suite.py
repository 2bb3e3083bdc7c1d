"""The files of TorchServe's benchmark suite: what they ask to be measured, as cases, and what of them is not done here.

A model's file maps model to mode to settings, each a value or a list; benchmark_config_template.yaml names such files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from torchd_clients.bench.errors import BenchError

_BYTES_AT_MOST = 256 * 1024
_CASES_AT_MOST = 1000
# Least value, and what TorchServe's benchmark-ab.py takes where a file says nothing.
_NUMBERS = {
    "workers": (1, 1),
    "batch_size": (1, 1),
    "batch_delay": (0, 200),
    "requests": (1, 100),
    "concurrency": (1, 10),
}
_OTHERS = ("url", "input", "processors", "benchmark_engine", "exec_env", "backend_profiling")
_TEMPLATE_ONLY = {
    "ts_version": "what is measured is this installation of torchd",
    "hardware": "each model's `processors` say on what it is measured",
    "metrics_cmd": "no command of a file is run",
    "report_cmd": "no command of a file is run; --report DIR says where the report goes",
}


class SuiteInvalid(BenchError):
    """The file asks for nothing that can be measured; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Processor:
    """On what a model runs. `gpus` 0: as many as there are."""

    device: str
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One setting, under `group`, TorchServe's name for it: <mode>_<model>."""

    group: str
    archive: Path
    inputs: tuple[Path, ...]
    workers: int
    batch_size: int
    batch_delay_ms: int
    requests: int
    clients: int
    processor: Processor

    @property
    def served_as(self) -> tuple[object, ...]:
        """Cases that are equal in this are asked of one daemon."""
        return (self.group, self.archive, self.workers, self.batch_size, self.batch_delay_ms, self.processor)

    def __str__(self) -> str:
        batch = f"batch {self.batch_size} / {self.batch_delay_ms} ms"
        return f"{self.group}, {self.processor.device}, {self.workers} workers, {batch}"


@dataclass(frozen=True, slots=True)
class Suite:
    """What is measured, in order, and what is done otherwise than the files say."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def read_suite(path: Path) -> Suite:
    """Reads a model's file, or a template that names several. Raises SuiteInvalid."""
    document = _document(path)
    # A model may have any name, "models" too: only the template's is a list.
    if not isinstance(document.get("models"), list):
        return _suite(path, document)
    notes = [f"{path}: {key} is ignored: {_TEMPLATE_ONLY.get(key, 'not known')}" for key in document if key != "models"]
    suites = [_suite(file, _document(file)) for file in (_model_file(path, name) for name in document["models"])]
    if not suites:
        raise SuiteInvalid(f"{path}: models is empty; it lists the files of the models")
    return Suite(
        tuple(case for suite in suites for case in suite.cases),
        (*notes, *dict.fromkeys(note for suite in suites for note in suite.notes)),
    )


def _model_file(template: Path, name: object) -> Path:
    if not isinstance(name, str):
        raise SuiteInvalid(f"{template}: models: {name!r} is no path of a file")
    tried = [template.parent / name, template.parent / "models_config" / name]
    for path in tried:
        if path.is_file():
            return path
    raise SuiteInvalid(f"{template}: models: there is no {' nor '.join(map(str, tried))}")


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_AT_MOST + 1)
        if len(text) > _BYTES_AT_MOST:
            raise SuiteInvalid(f"{path} has more than {_BYTES_AT_MOST} bytes")
        document = yaml.safe_load(text)
    except OSError as error:
        raise SuiteInvalid(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SuiteInvalid(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not document:
        raise SuiteInvalid(f"{path} must map models to modes to settings")
    return document


def _suite(path: Path, document: Mapping[Any, Any]) -> Suite:
    cases: list[Case] = []
    notes: dict[str, None] = {}
    for model, modes in document.items():
        for mode, entry in _mapping(f"{path}: {model}", modes).items():
            where = f"{path}: {model}: {mode}"
            settings = _mapping(where, entry)
            notes |= dict.fromkeys(_notes(path, settings))
            cases += _cases(where, path, f"{mode}_{model}", settings)
            if len(cases) > _CASES_AT_MOST:
                raise SuiteInvalid(f"{where}: more than {_CASES_AT_MOST} settings to measure")
    return Suite(tuple(cases), tuple(notes))


def _cases(where: str, path: Path, group: str, settings: Mapping[str, Any]) -> Iterator[Case]:
    archive, inputs = _file(where, path, "url", settings), _inputs(where, path, settings)
    numbers = [_numbers(where, key, settings) for key in _NUMBERS]
    for processor, (workers, batch_size, delay, requests, clients) in product(
        _processors(where, settings), product(*numbers)
    ):
        yield Case(group, archive, inputs, workers, batch_size, delay, requests, clients, processor)


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value:
        raise SuiteInvalid(f"{where} is {value!r}; it must be a mapping")
    return value


def _numbers(where: str, key: str, settings: Mapping[str, Any]) -> list[int]:
    least, usual = _NUMBERS[key]
    values = _listed(settings.get(key, usual))
    for value in values:
        if type(value) is not int or value < least:  # True is an int too
            raise SuiteInvalid(f"{where}: {key}: {value!r}; it must be a number from {least}, or a list of such")
    if not values:
        raise SuiteInvalid(f"{where}: {key} is an empty list")
    return list(dict.fromkeys(values))


def _inputs(where: str, path: Path, settings: Mapping[str, Any]) -> tuple[Path, ...]:
    """A list is of files that are sent in turn."""
    files = _listed(settings.get("input"))
    return tuple(_file(where, path, "input", {"input": file}) for file in files or [None])


def _file(where: str, path: Path, key: str, settings: Mapping[str, Any]) -> Path:
    told = settings.get(key)
    if not isinstance(told, str) or not told:
        raise SuiteInvalid(f"{where}: {key}: {told!r}; it must be the path of a file")
    name = told.removeprefix("file://")
    if "://" in name:
        raise SuiteInvalid(f"{where}: {key}: {told}: nothing is downloaded; fetch it and put its path there")
    tried = list(dict.fromkeys(folder / name for folder in (Path.cwd(), path.parent.absolute())))
    for file in tried:
        if file.is_file():
            return file
    raise SuiteInvalid(f"{where}: {key}: {told}: there is no {' nor '.join(map(str, tried))}")


def _processors(where: str, settings: Mapping[str, Any]) -> list[Processor]:
    found = [_processor(where, one) for one in _listed(settings.get("processors", "cpu"))]
    if not found:
        raise SuiteInvalid(f"{where}: processors is an empty list")
    return list(dict.fromkeys(found))


def _processor(where: str, told: object) -> Processor:
    match told:
        case "cpu":
            return Processor("cpu")
        case "gpu" | "gpus" | {"gpus": "all"}:
            return Processor("gpu")
        case {"gpus": int(count)} if type(count) is int and count > 0:
            return Processor("gpu", count)
        case str(name) if name.startswith(("neuron", "inf")):
            return Processor(name)
    raise SuiteInvalid(f'{where}: processors: {told!r}; it takes "cpu", "gpus": "all" and "gpus": N')


def _notes(path: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    if engine := settings.get("benchmark_engine"):
        yield f"{path}: benchmark_engine {engine!r} is not run: torchd bench asks by itself"
    if (place := settings.get("exec_env", "local")) != "local":
        yield f"{path}: exec_env {place!r} is not used: each setting is served on this machine, by a daemon of its own"
    if settings.get("backend_profiling"):
        yield f"{path}: backend_profiling is ignored: no profile is taken"
    for key in settings:
        if key not in _NUMBERS and key not in _OTHERS:
            yield f"{path}: {key} is not known and ignored"


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
