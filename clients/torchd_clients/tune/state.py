"""What a search knows, kept in its folder after every trial: an interrupted one goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from torchd_clients.bench.target import Input
from torchd_clients.tune import outcome
from torchd_clients.tune.errors import TuneFailed
from torchd_clients.tune.outcome import Trial
from torchd_clients.tune.space import Setting

FILE = "trials.json"
_FORMAT = 1


@dataclass(slots=True)
class State:
    """Trials in their order, and the default's answers to the inputs. `asked` tells one search from another."""

    path: Path
    asked: Mapping[str, Any]
    trials: list[Trial] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    # False where the default's own answers change from one time to the next.
    is_comparable: bool = True
    most_workers: int = 0
    # Of a trial on the first rung; each next one takes twice as long.
    shortest_seconds: float = 0.0
    # The last word, of two longer measurements of the default and of the best.
    confirmed: list[Trial] = field(default_factory=list)
    # What it takes to load the default.
    load_seconds: float = 0.0
    # What earlier runs took, and since when this one counts.
    earlier_seconds: float = 0.0
    clock: Callable[[], float] = monotonic
    opened: float = 0.0

    def find(self, setting: Setting, rung: int) -> Trial | None:
        """The trial of a setting on a rung; one that cannot be used is so on every rung."""
        known = [one for one in self.trials if one.setting == setting]
        return next((one for one in known if one.rung == rung or one.fate is not outcome.Fate.MEASURED), None)

    def add(self, trial: Trial) -> None:
        """One more trial, kept at once."""
        self.trials.append(trial)
        self.save()

    @property
    def spent_seconds(self) -> float:
        """The time the search took so far, that of interrupted runs included."""
        return self.earlier_seconds + self.clock() - self.opened

    def save(self) -> None:
        """Writes the file whole or not at all."""
        document = {
            "format": _FORMAT,
            "asked": self.asked,
            "is_comparable": self.is_comparable,
            "most_workers": self.most_workers,
            "shortest_seconds": self.shortest_seconds,
            "load_seconds": self.load_seconds,
            "spent_seconds": self.spent_seconds,
            "answers": [base64.b64encode(answer).decode() for answer in self.answers],
            "trials": [outcome.as_json(trial) for trial in self.trials],
            "confirmed": [outcome.as_json(trial) for trial in self.confirmed],
        }
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=1))
        os.replace(unfinished, self.path)


def open_state(
    folder: Path, asked: Mapping[str, Any], *, fresh: bool = False, clock: Callable[[], float] = monotonic
) -> State:
    """The state of this search in its folder, a new one where there is none; raises TuneFailed for another search's."""
    path = folder / FILE
    if fresh or not path.exists():
        return State(path, asked, clock=clock, opened=clock())
    try:
        document = json.loads(path.read_text())
        if document["format"] != _FORMAT:
            raise TuneFailed(f"{path} was written by another torchd; --fresh begins anew")
        other = [key for key in asked if document["asked"].get(key) != json.loads(json.dumps(asked[key]))]
        if other:
            raise TuneFailed(
                f"{path} is of another search (its {', '.join(other)} differ); --fresh begins anew, --output names "
                "another folder"
            )
        return State(
            path,
            asked,
            [outcome.from_json(trial) for trial in document["trials"]],
            [base64.b64decode(answer) for answer in document["answers"]],
            document["is_comparable"],
            document["most_workers"],
            document["shortest_seconds"],
            [outcome.from_json(trial) for trial in document["confirmed"]],
            document["load_seconds"],
            document["spent_seconds"],
            clock,
            clock(),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TuneFailed(f"{path} cannot be read ({error}); --fresh begins anew") from error


def digest(archive: Path) -> str:
    """What tells one archive from another: its content, or the names, sizes and times of a folder's files."""
    found = hashlib.sha256()
    if archive.is_dir():
        for file in sorted(path for path in archive.rglob("*") if path.is_file()):
            status = file.stat()
            found.update(f"{file.relative_to(archive)} {status.st_size} {status.st_mtime_ns}\n".encode())
    else:
        with archive.open("rb") as file_:
            return hashlib.file_digest(file_, "sha256").hexdigest()
    return found.hexdigest()


def digest_of_inputs(inputs: Sequence[Input]) -> str:
    """What tells one set of inputs from another."""
    found = hashlib.sha256()
    for one in inputs:
        found.update(f"{one.name} {one.content_type} {len(one.body)}\n".encode() + one.body)
    return found.hexdigest()
