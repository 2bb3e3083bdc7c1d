"""The command torch-model-archiver, whose arguments `torchd archive` shares."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torchd_archiver.errors import ArchiveInvalid, PackFailed
from torchd_archiver.manifest import DEFAULT_HANDLERS, RUNTIMES
from torchd_archiver.packing import FORMATS, PackRequest, pack

DESCRIPTION = "Packs a model, its handler and what they need into one archive to register with torchd or TorchServe."

EXAMPLES = f"""\
examples:
  %(prog)s --model-name bert --version 1.0 --handler handler.py \\
      --serialized-file model.safetensors --extra-files "config.json,tokenizer/"
  %(prog)s --model-name resnet --version 1.0 --handler image_classifier \\
      --serialized-file resnet18.pt --extra-files index_to_name.json --export-path model_store
  %(prog)s --model-name llm --version 1.0 --handler serve/llm:handle -r requirements.txt -c model-config.yaml \\
      --archive-format no-archive

default handlers, which need no file: {", ".join(DEFAULT_HANDLERS)}
"""

_PROGRESS_FROM_BYTES = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser torch-model-archiver's flags, description and examples."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model-name", required=True, help="name of the model and of the archive")
    add("-v", "--version", required=True, help="version of the model, such as 1.0")
    add("--handler", required=True, help="a default handler, a file x.py, or path/module:function")
    add("--serialized-file", type=Path, help="weights or a whole serialized model")
    add("--model-file", type=Path, help="Python file with the one class of the model's architecture (eager mode)")
    add("--extra-files", help="comma list of files, patterns, and folders whose content goes to the archive's root")
    add("-r", "--requirements-file", type=Path, help="requirements.txt to install for this model")
    add("-c", "--config-file", type=Path, help="model-config.yaml with settings for serving it")
    add("--runtime", choices=RUNTIMES, default=PackRequest.runtime, help="what runs the handler (%(default)s)")
    add("--export-path", type=Path, default=Path(), help="folder to write to, made if missing (the current one)")
    add(
        "--archive-format",
        choices=tuple(FORMATS),
        default=PackRequest.archive_format,
        help="default: .mar; zip-store: .mar without compression; tgz: .tar.gz; no-archive: a folder",
    )
    add("-f", "--force", action="store_true", help="overwrite an existing archive")
    add("--follow-links", action="store_true", help="pack what symbolic links lead to (they are an error otherwise)")


def run(arguments: argparse.Namespace) -> int:
    """Packs what parsed arguments say; prints the path written, or one line why not. Answers the exit code."""
    request = PackRequest(
        model_name=arguments.model_name,
        version=arguments.version,
        handler=arguments.handler,
        serialized_file=arguments.serialized_file,
        model_file=arguments.model_file,
        extra_files=tuple(item.strip() for item in (arguments.extra_files or "").split(",") if item.strip()),
        requirements_file=arguments.requirements_file,
        config_file=arguments.config_file,
        runtime=arguments.runtime,
        export_path=arguments.export_path,
        archive_format=arguments.archive_format,
        force=arguments.force,
        follow_links=arguments.follow_links,
    )
    try:
        with _progress(request.model_name) as on_bytes:
            written = pack(request, on_bytes)
    except (ArchiveInvalid, PackFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(written)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command torch-model-archiver."""
    parser = argparse.ArgumentParser(prog="torch-model-archiver")
    add_arguments(parser)
    return run(parser.parse_args(argv))


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """What `pack` reports to: on a terminal, and for input so large that one waits for it, a progress bar."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def on_bytes(count: int, total: int) -> None:
            nonlocal advance
            if total >= _PROGRESS_FROM_BYTES:
                advance = advance or stack.enter_context(_bar(name, total))
                advance(count)

        yield on_bytes


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("packing {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)
