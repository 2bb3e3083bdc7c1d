"""Several worker processes that are one worker, with the test at the daemon's end of every rank's socket."""

from __future__ import annotations

import json
from pathlib import Path

from torchd_protos.frames import Failure, Reply, Unload

# Only the leader answers: what a call was like on each rank is read from a file of that rank.
NOTES = """\
import json, os, sys, time


class Notes:
    def initialize(self, context):
        self.group = context.group
        self.rank = self.group.rank if self.group else 0
        self.file = open(f"rank{self.rank}", "w", buffering=1)
        self.prepare(context)

    def prepare(self, context):
        pass

    def note(self, *what):
        print(json.dumps(what), file=self.file)

    def texts(self, data):
        return [bytes(row["body"]).decode() for row in data]
"""

ROWS = (
    NOTES
    + """

class Rows(Notes):
    def handle(self, data, context):
        headers = [context.get_request_header(at, "x-name") for at in range(len(data))]
        self.note(self.texts(data), list(context.request_ids.values()), headers)
        return [f"{self.rank} of {self.group.size}: {text}" for text in self.texts(data)]

del Notes
"""
)


def notes(directory: Path, rank: int) -> list[list[object]]:
    """What a rank has noted so far."""
    return [json.loads(line) for line in (directory / f"rank{rank}").read_text().splitlines()]


def unload(group) -> None:
    """The worker's orderly end; every rank has done by then what it was told."""
    for rank in group.ranks:
        rank.send(Unload())
    for rank in group.ranks:
        status, _, told = rank.end()
        assert (status, told) == (0, "")


def test_every_rank_is_called_with_the_same_rows_in_the_same_order(grouped, tmp_path) -> None:
    group = grouped(ROWS, size=3)
    for first in range(1, 401, 2):
        answers = group.leader.run(b"%d" % first, b"%d" % (first + 1), first=first)
        assert [bytes(answer.body) for answer in answers] == [b"0 of 3: %d" % first, b"0 of 3: %d" % (first + 1)]
    unload(group)
    assert len(notes(tmp_path, 0)) == 200
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == notes(tmp_path, 2)
    assert not [message for rank in group.followers for message in rank.seen if isinstance(message, Reply | Failure)]
