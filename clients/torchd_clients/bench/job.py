"""What a load process is told on its standard input, and what it says on its standard output: JSON lines and bytes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import RawIOBase
from typing import IO

from torchd_clients.bench.load import Load

READY, WARM, PROGRESS, RESULT, TROUBLE = "ready", "warm", "progress", "result", "trouble"
GO = b"go\n"


@dataclass(frozen=True, slots=True)
class Job:
    """One process' share of a load. `requests` are as they go over the wire, but for what HTTP/2 puts around them."""

    protocol: str
    address: tuple[str, int]
    load: Load
    requests: tuple[bytes, ...]
    # gRPC: the header fields of every call.
    fields: tuple[tuple[bytes, bytes], ...] = ()
    expect: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process counted, between two times of `time.monotonic`."""

    begin: float
    end: float
    latencies_ms: array[float]
    errors: Mapping[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0


def write_job(job: Job, to: IO[bytes]) -> None:
    """Writes it as a process reads it."""
    head = {
        "protocol": job.protocol,
        "address": job.address,
        "load": asdict(job.load),
        "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in job.fields],
        "expect": job.expect.hex(),
        "sizes": [len(request) for request in job.requests],
    }
    to.write(json.dumps(head).encode() + b"\n" + b"".join(job.requests))
    to.flush()


def read_job(source: IO[bytes]) -> Job:
    """Reads what `write_job` wrote."""
    head = json.loads(source.readline())
    host, port = head["address"]
    return Job(
        protocol=head["protocol"],
        address=(host, port),
        load=Load(**head["load"]),
        requests=tuple(source.read(size) for size in head["sizes"]),
        fields=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in head["fields"]),
        expect=bytes.fromhex(head["expect"]),
    )


def write_outcome(outcome: Outcome, to: IO[bytes]) -> None:
    """Writes the line of the result, and the latencies behind it."""
    latencies = outcome.latencies_ms.tobytes()
    line = [RESULT, outcome.begin, outcome.end, dict(outcome.errors), outcome.cpu_seconds, len(latencies)]
    to.write(json.dumps(line).encode() + b"\n" + latencies)
    to.flush()


def read_outcome(line: list[object], source: RawIOBase) -> Outcome:
    """The result whose line was read: the latencies follow."""
    _, begin, end, errors, cpu_seconds, size = line
    if not (isinstance(size, int) and isinstance(errors, dict)):
        raise ValueError(f"{line!r} is no result")
    latencies = array("d")
    told = bytearray()
    while len(told) < size and (piece := source.read(size - len(told))):
        told += piece
    latencies.frombytes(told)
    return Outcome(float(str(begin)), float(str(end)), latencies, errors, float(str(cpu_seconds)))


def say(to: IO[bytes], *words: object) -> None:
    """Writes one line."""
    to.write(json.dumps(words).encode() + b"\n")
    to.flush()
