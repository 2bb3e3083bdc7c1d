"""The files of a checkpoint: which tensor is in which, and reading one tensor or one slice of it at a time.

Safetensors are mapped, so that nothing is read that nobody wants, and workers of one host share the pages.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, Protocol, Self

import torch

logger = logging.getLogger(__name__)

# What save_pretrained writes, the best first: the index of several shards, or the one file.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
CONVERT = (
    "convert it once, where it may be trusted: load it with from_pretrained "
    'and call model.save_pretrained(folder, max_shard_size="5GB")'
)

# A part of a tensor: one slice for each of its first dimensions.
Index = tuple[slice, ...]


class CheckpointUnusable(ValueError):
    """A checkpoint's files are missing, damaged or not what its index says."""


class Shard(Protocol):
    """One file of tensors."""

    def names(self) -> Sequence[str]:
        """The names of its tensors, in the order of the file."""

    def view(self, name: str, index: Index) -> torch.Tensor:
        """A part of a tensor on the CPU, which may be a view of the mapped file; an empty index is all of it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a tensor without reading it."""

    file: str
    shape: torch.Size
    dtype: torch.dtype


class Checkpoint:
    """A folder with the weights of a model; says what there is, and reads what is asked for.

    A context manager: leaving it lets go of the files. Views that were handed out stay valid.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Shard] = {}
        self._files = _files_by_name(self.folder)
        self._heads: dict[str, Head] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        self._open.clear()

    def names(self) -> list[str]:
        """The names of all tensors, those of one file together and in the order of the file."""
        return list(self._read_heads())

    @property
    def shards(self) -> list[str]:
        """The names of the files."""
        return [self._files] if isinstance(self._files, str) else sorted(set(self._files.values()))

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor."""
        return {name: head.shape for name, head in self._read_heads().items()}

    def head(self, name: str) -> Head:
        """What is known of a tensor without reading it."""
        heads = self._read_heads()
        if name not in heads:
            raise CheckpointUnusable(f"the checkpoint {self.folder} has no tensor {name}; it has {some_of(heads)}")
        return heads[name]

    def read(
        self,
        name: str,
        index: Index = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        mapped: bool = False,
    ) -> torch.Tensor:
        """A tensor, or the part of it that `index` says. `mapped` lets it be a view of the file, where it can be."""
        view = self._shard(self.head(name).file).view(name, index)
        wanted = dtype if dtype is not None and view.is_floating_point() else view.dtype
        if torch.device(device).type == "cpu" and wanted == view.dtype:
            return view if mapped and view.is_contiguous() else view.clone(memory_format=torch.contiguous_format)
        # A part of rows with gaps goes over as one piece, and only that piece is copied on the way.
        return view.contiguous().to(device=device, dtype=wanted)

    def _read_heads(self) -> dict[str, Head]:
        if not self._heads:
            heads = {name: head for file in self.shards for name, head in self._heads_of(file)}
            absent = [] if isinstance(self._files, str) else [name for name in self._files if name not in heads]
            if absent:
                raise CheckpointUnusable(f"the shards of {self.folder} lack what their index names: {some_of(absent)}")
            self._heads = heads
        return self._heads

    def _heads_of(self, file: str) -> Iterator[tuple[str, Head]]:
        shard = self._shard(file)
        for name in shard.names():
            if isinstance(self._files, str) or self._files.get(name) == file:
                tensor = shard.view(name, ())
                yield name, Head(file, tensor.shape, tensor.dtype)

    def _shard(self, file: str) -> Shard:
        if file not in self._open:
            path = self.folder / file
            # Mapped files cost addresses only. A pickled one may be in memory, so there is one of them at a time.
            self._open = {name: shard for name, shard in self._open.items() if isinstance(shard, MappedShard)}
            self._open[file] = MappedShard(path) if file.endswith(".safetensors") else PickledShard(path)
        return self._open[file]


class MappedShard:
    """A safetensors file, mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open  # optional: only who has a checkpoint needs it

        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointUnusable(f"{path} is no whole safetensors file: {error}") from error
        self._names: list[str] = list(getattr(self._file, "offset_keys", self._file.keys)())

    def names(self) -> list[str]:
        """The names of its tensors, in the order of the file."""
        return self._names

    def view(self, name: str, index: Index) -> torch.Tensor:
        """A part of a tensor."""
        tensor: torch.Tensor = self._file.get_slice(name)[index] if index else self._file.get_tensor(name)
        return tensor


class PickledShard:
    """A file that torch.save wrote: only tensors are taken out of it, never code."""

    def __init__(self, path: Path) -> None:
        is_zip = zipfile.is_zipfile(path)
        if not is_zip:
            logger.warning("%s is in torch.save's old format and is read whole; %s", path, CONVERT)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except (UnpicklingError, EOFError, RuntimeError) as error:
            raise CheckpointUnusable(f"{path} is no whole, plain dict of tensors; {CONVERT}") from error
        if not isinstance(loaded, dict):
            raise CheckpointUnusable(f"{path} holds a {type(loaded).__name__} and no dict of tensors; {CONVERT}")
        self._tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}

    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._tensors)

    def view(self, name: str, index: Index) -> torch.Tensor:
        """A part of a tensor."""
        tensor: torch.Tensor = self._tensors[name].detach()[index]
        return tensor


def _files_by_name(folder: Path) -> dict[str, str] | str:
    """The file of each tensor as the index says, or the one file there is."""
    for index in INDEXES:
        if (folder / index).is_file():
            return _read_index(folder, index)
        single = SINGLE_FILES[INDEXES.index(index)]
        if (folder / single).is_file():
            return single
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    raise CheckpointUnusable(
        f"{folder} holds no checkpoint: neither {', '.join((*INDEXES, *SINGLE_FILES))} is there"
        + (f", and of {some_of(others)} no index says which tensor is where" if others else "")
    )


def _read_index(folder: Path, index: str) -> dict[str, str]:
    try:
        files = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        named = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointUnusable(f"{folder / index} is no index of a checkpoint: {error!r}") from error
    for file in sorted(set(named.values())):
        path = PurePosixPath(file)
        # An index comes with the checkpoint, from anywhere: it names files beside itself and no others.
        if path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file or not path.parts:
            raise CheckpointUnusable(f"{folder / index} names {file!r}, which is outside its folder; it is not read")
        if path.suffix not in {".safetensors", ".bin"}:
            raise CheckpointUnusable(f"{folder / index} names {file!r}; shards end with .safetensors or .bin")
    absent = sorted({file for file in named.values() if not (folder / file).is_file()})
    if absent:
        raise CheckpointUnusable(f"{folder} lacks {len(absent)} of the shards its index names: {some_of(absent)}")
    return named


def some_of(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names."""
    every = list(names)
    shown = ", ".join(islice(every, most))
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"
