"""The `optimize` entry of model-config.yaml: how a model is to be made faster. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torchd_workers.handlers.optimizing.report import text_of

DTYPES = ("float32", "float16", "bfloat16")
CASTS = ("layers", "weights", "autocast")
QUANTIZATIONS = ("int8_dynamic", "int8_weight_only")
# What people call the types.
SYNONYMS = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# What changes the model, in the order in which it is done.
OF_THE_MODEL = ("channels_last", "dtype", "quantize", "compile")


@dataclass(frozen=True, slots=True)
class Compile:
    """The arguments of torch.compile; its own defaults where an entry leaves one out."""

    mode: str | None = None
    dynamic: bool | None = None
    backend: str = "inductor"
    fullgraph: bool = False


@dataclass(frozen=True, slots=True)
class Optimize:
    """What is wished for. The names of the fields are the entry's keys, but for the last."""

    # The type a model computes in; None leaves it as its weights are.
    dtype: str | None = None
    # How it comes to that type; None lets the device decide.
    cast: str | None = None
    compile: Compile | None = None
    channels_last: bool = False
    quantize: str | None = None
    # Compute threads, and operators at the same time; None leaves both to the worker's share.
    threads: int | None = None
    interop_threads: int | None = None
    # Requests before the worker is ready.
    warmup: int = 0
    # A file or a folder of the archive with request bodies.
    samples: str | None = None
    # Whether inputs travel to a CUDA device by way of pinned memory.
    pin_memory: bool = True
    # The entry as it was written, for the report.
    asked: Mapping[str, Any] = field(default_factory=dict)

    def names_of(self, options: tuple[str, ...]) -> list[str]:
        """Those of these options that something is wished of."""
        return [name for name in options if getattr(self, name)]


def optimize_of(config: Mapping[str, Any]) -> Optimize:
    """The entry of a model-config.yaml; ValueError names what cannot be understood."""
    entry = config.get("optimize") or {}
    if not isinstance(entry, dict):
        raise ValueError(f"model-config.yaml has optimize: {entry!r}; it must be a mapping, like {{dtype: bfloat16}}")
    known = [each.name for each in fields(Optimize) if each.name != "asked"]
    _refuse_unknown("optimize", entry, known)
    given = {name: READERS[name](f"optimize.{name}", value) for name, value in entry.items() if value is not None}
    wish = Optimize(**given, asked=entry)
    if wish.cast and not wish.dtype:
        raise ValueError(f"optimize.cast is {wish.cast}, but there is no optimize.dtype to cast to")
    if wish.warmup and not wish.samples:
        raise ValueError(
            "optimize.warmup needs requests to send: name a file of them in the archive as optimize.samples"
        )
    if wish.compile and config.get("pt2"):
        raise ValueError("optimize.compile and pt2 both compile the model: keep one of them")
    return wish


def _refuse_unknown(place: str, entry: Mapping[str, Any], known: list[str]) -> None:
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        raise ValueError(f"{place} has the unknown entry {', '.join(unknown)}; it may have {', '.join(known)}")


def _one_of(names: tuple[str, ...], synonyms: Mapping[str, str] | None = None) -> Callable[[str, Any], str]:
    def read(place: str, value: Any) -> str:
        found = (synonyms or {}).get(value, value) if isinstance(value, str) else value
        if found not in names:
            raise ValueError(f"{place} is {value!r}; it may be {', '.join(names)}")
        return str(found)

    return read


def _flag(place: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{place} is {value!r}; it may be true or false")
    return value


def _count(place: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{place} is {value!r}; it may be a whole number from 1")
    return value


def _warmup(place: str, value: Any) -> int:
    if isinstance(value, dict):
        _refuse_unknown(place, value, ["requests"])
        value = value.get("requests")
    return 0 if value == 0 and not isinstance(value, bool) else _count(place, value)


def _name(place: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place} is {value!r}; it may be the name of a file or a folder in the archive")
    return value


def _compile(place: str, value: Any) -> Compile | None:
    if isinstance(value, bool):
        return Compile() if value else None
    if not isinstance(value, dict):
        names = ", ".join(each.name for each in fields(Compile))
        raise ValueError(f"{place} is {value!r}; it may be true, false or a mapping of {names}")
    _refuse_unknown(place, value, [each.name for each in fields(Compile)])
    readers: dict[str, Callable[[str, Any], Any]] = {
        "mode": _one_of(MODES),
        "dynamic": _flag,
        "backend": _backend,
        "fullgraph": _flag,
    }
    given = {name: readers[name](f"{place}.{name}", each) for name, each in value.items() if each is not None}
    return Compile(**given)


def _backend(place: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place} is {value!r}; it may be the name of a backend, such as inductor")
    return value


READERS: dict[str, Callable[[str, Any], Any]] = {
    "dtype": _one_of(DTYPES, SYNONYMS),
    "cast": _one_of(CASTS),
    "compile": _compile,
    "channels_last": _flag,
    "quantize": _one_of(QUANTIZATIONS),
    "threads": _count,
    "interop_threads": _count,
    "warmup": _warmup,
    "samples": _name,
    "pin_memory": _flag,
}


def asked(wish: Optimize, name: str) -> str:
    """What the entry says of this option, as text."""
    return text_of(wish.asked.get(name))
