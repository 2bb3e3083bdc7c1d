"""The settings a model can be served with on one machine: which make sense, and which lie next to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torchd_clients.tune.errors import SpaceInvalid

ORDERED = ("workers", "threads", "batch_size", "batch_delay")
CHOICES = ("device", "dtype", "compile", "quantize")
DTYPES = ("float32", "float16", "bfloat16")
_WORDS_FOR_NONE = ("none", "own", "off")
# What people call the types, and the usual one of the kinds of int8.
_SYNONYMS = {
    "dtype": {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"},
    "compile": {"on": "default", "true": "default"},
    "quantize": {"int8": "int8_dynamic"},
}
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_BATCH_DELAYS = (5, 20, 100)
# A batch that pays on most machines without a latency that most bounds forbid.
_FAIR_BATCH = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to serve the model. "" leaves a choice to daemon and handler, threads 0 is a share of the cores."""

    workers: int = 1
    threads: int = 0
    batch_size: int = 1
    # Milliseconds.
    batch_delay: int = 100
    # "cpu" or "gpu".
    device: str = ""
    dtype: str = ""
    # The mode of torch.compile.
    compile: str = ""
    quantize: str = ""

    @property
    def optimization(self) -> str:
        """What is done to the model, as seed tables have it: N/A where nothing is."""
        compiled = f"compile {self.compile}" if self.compile else ""
        return " + ".join(filter(None, (self.dtype, compiled, self.quantize))) or "N/A"

    @property
    def family(self) -> tuple[str, str, str, str]:
        """What decides how the numbers come out: settings of one family compute alike."""
        return self.device, self.dtype, self.compile, self.quantize

    def __str__(self) -> str:
        threads = f" x {self.threads} threads" if self.threads else ""
        delay = f" within {self.batch_delay} ms" if self.batch_size > 1 else ""
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        words = [f"{workers}{threads}", f"batch {self.batch_size}{delay}", self.device, self.optimization]
        return ", ".join(word for word in words if word and word != "N/A")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute with."""

    cores: int
    gpus: int = 0
    # Whether the processor multiplies bfloat16 itself; one that only emulates it is slower for it.
    has_bfloat16: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """The values of each dimension, around the setting the archive has by itself."""

    default: Setting
    machine: Machine
    values: Mapping[str, Sequence[Any]]
    # More would not fit into memory; 0 where that is not known.
    most_workers: int = 0

    def seeds(self) -> list[Setting]:
        """Where a search starts: the default, then each type of numbers with few and many workers and a fair batch."""
        cheap = [self.default]
        for name in ("device", "dtype", "quantize"):
            cheap += [replace(one, **{name: value}) for one in list(cheap) for value in self.values[name]]
        found = [self.default]
        for one in cheap:
            for workers in (one.workers, *self._many(one)):
                many = replace(one, workers=workers)
                fair = [size for size in self.values["batch_size"] if size <= _FAIR_BATCH]
                found += [many, replace(many, batch_size=max(fair, default=one.batch_size))]
        return self._sensible(found)

    def neighbours(self, setting: Setting) -> list[Setting]:
        """The settings that differ in one dimension: the next value up and down of a number, each other of a choice."""
        found = []
        for name in ORDERED:
            values, here = sorted(set(self.values[name])), getattr(setting, name)
            below, above = [v for v in values if v < here], [v for v in values if v > here]
            found += [replace(setting, **{name: value}) for value in (*below[-1:], *above[:1])]
        for name in CHOICES:
            found += [replace(setting, **{name: value}) for value in self.values[name]]
        return [one for one in self._sensible(found) if one != self.canonical(setting)]

    def canonical(self, setting: Setting) -> Setting:
        """The one of several settings that mean the same which is measured."""
        if setting.batch_size == 1:  # nobody waits for a batch of one
            setting = replace(setting, batch_delay=self.default.batch_delay)
        if setting.threads == self.share(setting) and setting.threads != self.default.threads:
            setting = replace(setting, threads=0)
        return setting

    def is_sensible(self, setting: Setting) -> bool:
        """Whether it is worth a trial: no more compute threads than cores, no more workers than memory."""
        if setting == self.default:
            return True
        if self.most_workers and setting.workers > max(self.most_workers, self.default.workers):
            return False
        # Workers on a GPU wait for it more than they compute, but each has a thread that feeds it.
        threads = 1 if self.is_on_gpu(setting) else max(setting.threads, 1)
        return setting.workers * threads <= max(self.machine.cores, self.default.workers * max(self.default.threads, 1))

    def is_on_gpu(self, setting: Setting) -> bool:
        """Whether the daemon will give its workers a GPU."""
        return setting.device == "gpu" or (not setting.device and self.machine.gpus > 0)

    def share(self, setting: Setting) -> int:
        """The compute threads of each worker where the cores are shared evenly."""
        return max(1, self.machine.cores // max(1, setting.workers))

    def threads_of(self, setting: Setting) -> int:
        """The compute threads each worker will have."""
        return setting.threads or self.share(setting)

    def _many(self, setting: Setting) -> list[int]:
        most = max((n for n in self.values["workers"] if self.is_sensible(replace(setting, workers=n))), default=1)
        return [2 * self.machine.gpus] if self.is_on_gpu(setting) else [most]

    def _sensible(self, found: Iterable[Setting]) -> list[Setting]:
        return [one for one in dict.fromkeys(map(self.canonical, found)) if self.is_sensible(one)]


def space_of(default: Setting, machine: Machine, given: Sequence[str] = (), allowed: Sequence[str] = ()) -> Space:
    """The dimensions that fit the machine, those given (`batch_size=1,4,8`) in their place, and what needs allowing."""
    device = default.device or ("gpu" if machine.gpus else "cpu")
    values: dict[str, Sequence[Any]] = {
        "workers": _powers(machine.cores),
        "threads": (0, *_powers(machine.cores)),
        "batch_size": _BATCH_SIZES,
        "batch_delay": _BATCH_DELAYS,
        "device": (default.device,),
        "dtype": ("", *(["bfloat16"] if machine.has_bfloat16 else []), *(["float16"] if machine.gpus else [])),
        "compile": ("", "default"),
        # Only asked for by name: it can cost more accuracy than a few samples show.
        "quantize": ("",),
    }
    if machine.gpus and device == "gpu":
        values["device"] = (default.device, "cpu")
        values["workers"] = sorted({*_powers(min(machine.cores, 4 * machine.gpus)), machine.gpus})
        values["threads"] = (0,)  # they wait for the GPU
    values |= _read_all(given)
    values["quantize"] = (*values["quantize"], *(_named("quantize", one) for one in allowed))
    # What the archive has by itself is always there to come back to.
    merged = {name: tuple(dict.fromkeys((getattr(default, name), *values[name]))) for name in (*ORDERED, *CHOICES)}
    return Space(default, machine, merged)


def _powers(most: int) -> list[int]:
    return sorted({*(2**n for n in range(most.bit_length()) if 2**n <= most), most})


def _read_all(given: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    read = {}
    for words in given:
        for word in words.split():
            name, separator, text = word.partition("=")
            if not separator or name not in (*ORDERED, *CHOICES):
                known = ", ".join((*ORDERED, *CHOICES))
                raise SpaceInvalid(f"--space {word!r} is no dimension; write NAME=VALUE,VALUE with a name of {known}")
            read[name] = tuple(_read(name, value.strip()) for value in text.split(","))
    return read


def _read(name: str, text: str) -> int | str:
    if name in ORDERED:
        if not text.isdecimal() or (int(text) < 1 and name in ("workers", "batch_size")):
            raise SpaceInvalid(f"--space {name}={text}: {text!r} is no number that it may be")
        return int(text)
    if text in _WORDS_FOR_NONE:
        return ""
    text = _named(name, text)
    if name == "dtype" and text not in DTYPES:
        raise SpaceInvalid(f"--space dtype={text}: it may be {', '.join(DTYPES)}, or own for that of the weights")
    if name == "device" and text not in ("cpu", "gpu"):
        raise SpaceInvalid(f"--space device={text}: it may be cpu or gpu")
    return text


def _named(name: str, text: str) -> str:
    return _SYNONYMS.get(name, {}).get(text, text)


def as_json(setting: Setting) -> dict[str, Any]:
    """The setting as a file keeps it."""
    return asdict(setting)


def from_json(document: Mapping[str, Any]) -> Setting:
    """The setting a file kept."""
    return Setting(**{field.name: document[field.name] for field in fields(Setting)})
