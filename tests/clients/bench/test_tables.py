"""What a person is shown."""

from __future__ import annotations

from array import array
from io import StringIO
from math import inf

from rich.console import Console, RenderableType

from torchd_clients.bench.measurement import Measurement, Point, ServerFigures, Usage
from torchd_clients.bench.tables import histograms, results


def point(measurement: Measurement, clients: int = 8, rate: float = 0.0) -> Point:
    return Point(
        model="m",
        protocol="grpc",
        device="cpu",
        workers=2,
        batch_size=4,
        batch_delay_ms=5,
        clients=clients,
        rate=rate,
        optimization="",
        input="x.json",
        measurement=measurement,
        repeats=(measurement, measurement),
        usage=Usage(3.0, 120.4, 3),
        server=ServerFigures(1.25, 2.0, 3.5, {4.0: 10, inf: 1}, {0.5: 7}),
    )


def shown(what: RenderableType, width: int = 120) -> str:
    text = StringIO()
    Console(file=text, width=width, markup=False).print(what)
    return text.getvalue()


def test_a_row_has_throughput_percentiles_and_what_the_server_used() -> None:
    kept = Measurement(2.0, array("d", [float(one) for one in range(1, 1001)]), client_cpu_seconds=0.1)
    text = shown(results([point(kept)]))
    assert "m, cpu, 2 workers, batch 4 / 5 ms, x.json" in text
    wanted = "grpc 8 clients 1000 0 500 500 500 500.00 900.00 990.00 999.00 1.25 3.5 1.50 120"
    assert wanted in [" ".join(line.split()) for line in text.splitlines()]


def test_errors_stand_below_the_table_as_text_and_not_as_markup() -> None:
    text = shown(results([point(Measurement(1.0, array("d"), {"[red]INTERNAL: a\x1b[2J": 3}), rate=12.5)]))
    assert "grpc, 12.5/s by at most 8: 3 x [red]INTERNAL: a\N{REPLACEMENT CHARACTER}[2J" in text


def test_clients_that_were_the_bottleneck_are_named() -> None:
    kept = Measurement(2.0, array("d", [1.0]), client_cpu_seconds=3.8, client_processes=2)
    text = " ".join(shown(results([point(kept)])).split())
    assert "the clients used 1.90 cores in 2 processes: they, not the server, were the bottleneck" in text


def test_histograms_have_a_line_for_each_bucket() -> None:
    text = shown(histograms([point(Measurement(1.0, array("d", [1.0])))]))
    rows = [line.replace("│", " ").split() for line in text.splitlines() if "│" in line]
    assert rows == [["4", "10", "0.5", "7"], ["more", "1"]]
