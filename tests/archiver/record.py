"""Records what TorchServe's archivers write: `record.py INTERPRETER VERSIONS`.

INTERPRETER is a Python that has torch-model-archiver 0.12 and torch-workflow-archiver; VERSIONS is a folder with one
installation (pip install --no-deps --target) of torch-model-archiver in each subfolder, called after its version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.archiver_cases import MODEL_CASES, WORKFLOW_CASES, outcome, write_files

GOLDEN = Path(__file__).parent / "golden"
OLD = "--model-name old --version 1.0 --handler handler.py --serialized-file weights.bin"


def main() -> None:
    """Writes golden/cases.json and one archive of each version."""
    interpreter, versions = Path(sys.argv[1]), Path(sys.argv[2])
    found = {
        "model": {name: _run(interpreter, "torch-model-archiver", flags) for name, flags in MODEL_CASES.items()},
        "workflow": {
            name: _run(interpreter, "torch-workflow-archiver", flags) for name, flags in WORKFLOW_CASES.items()
        },
    }
    (GOLDEN / "cases.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for version in sorted(versions.iterdir()):
        if (version / "model_archiver").is_dir():
            _old(interpreter, version)


def _run(interpreter: Path, command: str, flags: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_files(folder)
        program = [str(interpreter), str(interpreter.parent / command), *flags.split()]
        return outcome(folder, subprocess.run(program, cwd=folder, capture_output=True, timeout=60).returncode)


def _old(interpreter: Path, version: Path) -> None:
    """The archive of one version, as .mar and as .tar.gz."""
    for suffix, archive_format in ((".mar", "default"), (".tar.gz", "tgz")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_files(folder)
            code = "from model_archiver.model_packaging import generate_model_archive as g; g()"
            program = [str(interpreter), "-c", code, *OLD.split(), "--archive-format", archive_format]
            environment = {"PYTHONPATH": str(version), "PATH": "/usr/bin:/bin", "TMPDIR": scratch}
            subprocess.run(program, cwd=folder, env=environment, check=True, timeout=60)
            shutil.copy(folder / f"old{suffix}", GOLDEN / f"{version.name.removeprefix('v')}{suffix}")


if __name__ == "__main__":
    main()
