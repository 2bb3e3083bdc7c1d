"""What a second worker brings: the same requests one at a time and in parallel, with one and with two workers."""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.paraphrase.pack import MODEL_NAME
from demo.paraphrase.pairs import AnswerWrong, load_pair
from demo.rest_client import RestClient
from torchd_clients import Client

# A connection to the model over REST.
Connect = Callable[[], RestClient]

WARM_UPS = 4
PILOT_SECONDS = 1.0
# A little more work than the pilot calls for, so that the fastest cell is not shorter than it should be.
MARGIN = 1.1
# 19.611 s / 38.201 s in the TorchServe tutorial whose measurement this repeats.
TUTORIAL_RATIO = 0.51


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: so many workers, so many requests at once."""

    workers: int
    at_once: int

    @property
    def row(self) -> str:
        """The cell's row of the table."""
        return f"{self.workers} Worker{'s' * (self.workers > 1)}"

    @property
    def column(self) -> str:
        """The cell's column of the table."""
        return "Sequential" if self.at_once == 1 else f"Parallel ({self.at_once} at once)"


CELLS = (Cell(1, 1), Cell(1, 2), Cell(2, 1), Cell(2, 2), Cell(2, 4))


@dataclass(frozen=True, slots=True)
class Scaling:
    """The seconds of each cell, and the number of requests, which is the same in all of them."""

    requests: int
    seconds: dict[Cell, float]

    @property
    def ratio(self) -> float:
        """The time of two workers over that of one, both with two requests at once."""
        return self.seconds[Cell(2, 2)] / self.seconds[Cell(1, 2)]

    def table(self) -> Table:
        """One row per number of workers, one column per number of requests at once."""
        cores = len(os.sched_getaffinity(0))
        table = Table(title=f"{self.requests} requests, one compute thread per worker, {cores} cores", box=MARKDOWN)
        columns = list(dict.fromkeys(cell.column for cell in sorted(CELLS, key=lambda cell: cell.at_once)))
        for column in ("", *columns):
            table.add_column(column)
        for row in dict.fromkeys(cell.row for cell in CELLS):
            times = {cell.column: f"{seconds:.3f}s" for cell, seconds in self.seconds.items() if cell.row == row}
            table.add_row(row, *(times.get(column, "") for column in columns))
        return table


class ThreadsWrong(RuntimeError):
    """The workers do not compute with one thread each, so that the table would say nothing."""


def measure(console: Console, client: Client, connect: Connect, seconds: float) -> Scaling:
    """Measures every cell over REST; the number of requests is chosen so that the fastest one takes about `seconds`."""
    _check_threads(client, 1)
    requests = _requests_for(connect, seconds)
    scaling = Scaling(requests, {})
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=hidden) as progress:
        for cell in CELLS:
            client.scale(MODEL_NAME, cell.workers, cell.workers)
            _check_threads(client, cell.workers)
            # The first forwards of a process are slow; each worker gets its share of a few before the clock runs.
            _send(connect, WARM_UPS * cell.workers, cell.workers)
            name = f"{cell.row}, {cell.column}"
            task = progress.add_task(name, total=requests)
            taken = _send(connect, requests, cell.at_once, partial(progress.advance, task))
            progress.remove_task(task)
            console.print(f"  {name}: {taken:.1f} s", highlight=False)
            scaling.seconds[cell] = taken
    return scaling


def _requests_for(connect: Connect, seconds: float) -> int:
    """So many requests that two workers, or one where there is only one core, take about `seconds`."""
    _send(connect, WARM_UPS, 1)
    sent = 2 * WARM_UPS
    while (taken := _send(connect, sent, 1)) < PILOT_SECONDS:
        sent = math.ceil(1.2 * sent * PILOT_SECONDS / taken)
    fastest = sent / taken * min(2, len(os.sched_getaffinity(0)))
    return math.ceil(MARGIN * fastest * seconds)


def _check_threads(client: Client, workers: int) -> None:
    """With more than one thread, a worker alone would use every core already."""
    threads = [worker.threads for worker in client.describe(MODEL_NAME)[0].workers]
    if threads != [1] * workers:
        raise ThreadsWrong(f"expected {workers} workers with one compute thread each; the daemon's have {threads}")


def _send(connect: Connect, requests: int, at_once: int, on_answer: Callable[[], object] = lambda: None) -> float:
    """Sends the long pair so many times, so many at once over persistent connections; answers the seconds it took."""
    pair = load_pair()
    todo: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(requests):
        todo.put(None)

    def send() -> None:
        with closing(connect()) as rest:
            while _take(todo):
                answer = rest.ask(pair)
                if answer != pair.answer:
                    raise AnswerWrong(f"the long pair should be {pair.answer}, not {answer}")
                on_answer()

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        try:
            for future in as_completed([threads.submit(send) for _ in range(at_once)]):
                future.result()
        finally:
            # After a failure, or Ctrl-C, the other threads find nothing more to do.
            while _take(todo):
                pass
    return time.perf_counter() - started


def _take(todo: queue.SimpleQueue[None]) -> bool:
    try:
        todo.get_nowait()
    except queue.Empty:
        return False
    return True
