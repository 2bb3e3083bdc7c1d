"""The command `torchd tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

DEFAULT_BUDGET = 480.0
DEFAULT_LOAD_SECONDS = 120.0
FAILED, INTERRUPTED = 1, 130
EXAMPLE = "Example: torchd tune bert.mar --input samples.jsonl --slo p99=100ms"


def add_commands(app: typer.Typer) -> None:
    """Adds it to the command line of `torchd`."""
    app.command(epilog=EXAMPLE)(tune)


def tune(
    model: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="The model: a .mar or a folder.", show_default=False)
    ],
    input: Annotated[
        list[Path],
        typer.Option(
            "--input", "-T", metavar="FILE", help="Request bodies: a file, a folder, or .jsonl.", show_default=False
        ),
    ],
    slo: Annotated[
        str, typer.Option(metavar="pN=TIME", help="The bound, as in p99=100ms or p50=0.5s.", show_default=False)
    ],
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V",
            help="Values to search: workers, threads, batch_size, batch_delay, dtype, compile, quantize, device.",
            show_default="what the machine has",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="int8", help="Also try int8, which is not tried unless named.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where results go.", show_default="tune-MODEL")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(metavar="OUT.mar", help="Also write an archive with the best setting.")
    ] = None,
    budget: Annotated[float, typer.Option(min=1.0, help="Seconds to search at most.")] = DEFAULT_BUDGET,
    trial_seconds: Annotated[
        float, typer.Option(min=0.0, help="Length of the shortest trial.", show_default="by the model's speed")
    ] = 0.0,
    load_timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to load at most.")] = DEFAULT_LOAD_SECONDS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted search found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Find the setting of most throughput under a bound on latency, on a daemon of its own.

    Tries workers, threads, batch size and delay, number type and torch.compile: many settings shortly, the better ones
    longer. A setting whose answers to the inputs differ from the default's is never recommended. Writes
    model-config.yaml (the archive's own, with the tuned keys changed), trials.json and tune.png. Interrupted, the same
    command goes on.
    """
    from torchd_clients.bench.errors import BenchError
    from torchd_clients.errors import TorchdError
    from torchd_clients.tune.errors import TuneFailed
    from torchd_clients.tune.session import Request, run

    request = Request(
        archive=model,
        inputs=tuple(input),
        slo=slo,
        space=tuple(space or ()),
        allowed=tuple(allow or ()),
        output=output or Path(f"tune-{model.name.removesuffix(''.join(model.suffixes[-1:]))}"),
        packed=archive,
        budget=budget,
        trial_seconds=trial_seconds,
        load_seconds=load_timeout,
        is_fresh=fresh,
    )
    try:
        run(request, as_json=as_json)
    except (TuneFailed, BenchError) as error:
        _fail(str(error), FAILED)
    except TorchdError as error:
        _fail(error.message, FAILED)
    except OSError as error:
        _fail(f"cannot use {error.filename or 'a file'}: {error.strerror}", FAILED)
    except KeyboardInterrupt:
        _fail(f"interrupted; the same command goes on with what {request.output} holds", INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    print(f"torchd: {message}", file=sys.stderr)
    raise typer.Exit(code)
