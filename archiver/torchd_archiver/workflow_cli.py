"""The command torch-workflow-archiver."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchd_archiver.errors import ArchiveInvalid, PackFailed
from torchd_archiver.war import WorkflowPackRequest, pack

EXAMPLE = """\
example:
  %(prog)s --workflow-name dog_breed --spec-file workflow.yaml --handler workflow_handler.py --export-path wf_store
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Packs a specification and its functions into one .war; prints the path written, or one line why not."""
    parser = argparse.ArgumentParser(
        prog="torch-workflow-archiver",
        description="Packs a workflow's specification and functions into one archive to register.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workflow-name", required=True, help="name of the workflow and of the archive")
    add("--spec-file", required=True, type=Path, help="YAML file with the models and the graph")
    add("--handler", type=Path, help="Python file with the functions that are nodes; none where all nodes are models")
    add("--extra-files", help="comma list of files that the functions need")
    add("--export-path", type=Path, default=Path(), help="folder to write to (the current one)")
    add("-f", "--force", action="store_true", help="overwrite an existing archive")
    flags = parser.parse_args(argv)
    try:
        written = pack(
            WorkflowPackRequest(
                flags.workflow_name,
                flags.spec_file,
                flags.handler,
                tuple(Path(item.strip()) for item in (flags.extra_files or "").split(",") if item.strip()),
                flags.export_path,
                flags.force,
            )
        )
    except (ArchiveInvalid, PackFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(written)
    return 0
