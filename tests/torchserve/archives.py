"""The archives that scenarios name: which handler of models/, which manifest, which model-config.yaml."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "models"
# Packs: is given torch-model-archiver's arguments.
Packer = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive of the store, packed by torch-model-archiver."""

    model: str
    version: str = "1.0"
    handler: str = ""
    config: str = ""
    archive_format: str = "default"

    def pack(self, name: str, folder: Path, packer: Packer) -> None:
        """Writes it into `folder` as `name`."""
        scratch = folder / f".{name}"
        scratch.mkdir()
        handler = MODELS / (self.handler or self.model) / "handler.py"
        arguments = ["--model-name", self.model, "--version", self.version, "--handler", str(handler)]
        arguments += ["--export-path", str(scratch), "--archive-format", self.archive_format]
        if self.config:
            # Outside the export path: a model-config.yaml there would be an archive to some.
            written = folder / f".{name}.yaml"
            written.write_text(self.config)
            arguments += ["--config-file", str(written)]
        packer(arguments)
        (made,) = scratch.iterdir()
        made.rename(folder / name)
        shutil.rmtree(scratch)


ARCHIVES = {
    "echo.mar": Archive("echo"),
    "echo_2.mar": Archive("echo", "2.0"),
    "echo_3.mar": Archive("echo", "3.0"),
    "echo.tar.gz": Archive("echo", "1.0", archive_format="tgz"),
    "echo_folder": Archive("echo_folder", handler="echo", archive_format="no-archive"),
    "answers.mar": Archive("answers"),
    "streams.mar": Archive("streams"),
    "breaks.mar": Archive("breaks"),
    "dies.mar": Archive("dies", config="maxRetryTimeoutInSec: 5\n"),
    "measured.mar": Archive("measured"),
    "identity.mar": Archive("identity"),
    "described.mar": Archive("described"),
    "sequences.mar": Archive(
        "sequences",
        config="minWorkers: 1\nmaxWorkers: 1\nbatchSize: 2\nmaxBatchDelay: 10\nsequenceBatching: true\n"
        "sequenceMaxIdleMSec: 20000\nmaxNumSequence: 4\nmaxSequenceJobQueueSize: 5\n",
    ),
    "configured.mar": Archive(
        "configured",
        "1.5",
        "echo",
        "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 3\nmaxBatchDelay: 7\nresponseTimeout: 11\nstartupTimeout: 99\n"
        "deviceType: cpu\nmaxRetryTimeoutInSec: 33\nclientTimeoutInMills: 60000\njobQueueSize: 17\n"
        "handler:\n  profile: false\n  words: [a, b]\nfree: {key: 1.5}\n",
    ),
    "timeouts.mar": Archive("timeouts", handler="echo", config="batchSize: 2\n"),
    "parallel.mar": Archive(
        "parallel",
        handler="echo",
        config="parallelType: pp\nparallelLevel: 1\ndeviceType: gpu\ndeviceIds: [0, 1]\n"
        "torchrun:\n  nproc-per-node: 1\n",
    ),
    "stateful.mar": Archive(
        "stateful",
        handler="echo",
        config="sequenceBatching: true\ncontinuousBatching: true\nsequenceMaxIdleMSec: 1000\n"
        "sequenceTimeoutMSec: 2000\nmaxNumSequence: 3\nmaxSequenceJobQueueSize: 9\n",
    ),
    "wrong_types.mar": Archive(
        "wrong_types",
        handler="echo",
        config="minWorkers: one\nbatchSize: [1]\nmaxBatchDelay: fast\nresponseTimeout: -5\ndeviceType: abacus\n"
        "deviceIds: none\nuseJobTicket: 7\nmaxNumSequence: many\n",
    ),
    "zeroes.mar": Archive("zeroes", handler="echo", config="batchSize: 0\nmaxBatchDelay: 0\nresponseTimeout: 0\n"),
    "ticket.mar": Archive("ticket", handler="answers", config="minWorkers: 1\nmaxWorkers: 1\nuseJobTicket: true\n"),
    "narrow.mar": Archive("narrow", handler="answers", config="minWorkers: 1\nmaxWorkers: 1\njobQueueSize: 1\n"),
    "pairs.mar": Archive("pairs", handler="answers", config="batchSize: 2\nmaxBatchDelay: 50\n"),
    "impatient.mar": Archive(
        "impatient", handler="answers", config="minWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 1\n"
    ),
    "hasty.mar": Archive("hasty", handler="answers", config="minWorkers: 1\nmaxWorkers: 1\nclientTimeoutInMills: 1\n"),
    "hungry.mar": Archive("hungry"),
    "continuous.mar": Archive(
        "continuous", config="minWorkers: 1\nmaxWorkers: 1\nbatchSize: 2\nmaxBatchDelay: 50\ncontinuousBatching: true\n"
    ),
    "bad_yaml.mar": Archive("bad_yaml", handler="echo", config="minWorkers: [1\n  nothing: {closes\n"),
}
_JUNK = {"junk.mar": b"this is no archive", "empty.mar": b""}
# Spec and handler of each workflow archive.
_SPEC = "models:\n  min-workers: 1\n  max-workers: 1\n  batch-size: 1\n  max-batch-delay: 10\n  retry-attempts: 1\n"
WORKFLOWS = {
    "notes.war": _SPEC + "dag:\n  begin: [left, right]\n  left: [join]\n  right: [join]\n",
    "chain.war": _SPEC + "  timeout-ms: 5000\n  reader:\n    url: described.mar\ndag:\n  begin: [reader]\n",
    "leaves.war": _SPEC + "dag:\n  begin: [left, right]\n",
    "failing.war": _SPEC + "dag:\n  begin: [fails]\n",
    "circle.war": _SPEC + "dag:\n  begin: [left]\n  left: [begin]\n",
}


def make(name: str, folder: Path, packer: Packer) -> Path:
    """The file (or folder) `name` in `folder`, made if it is not there."""
    path = folder / name
    if path.exists():
        return path
    if name in _JUNK:
        path.write_bytes(_JUNK[name])
    elif name in WORKFLOWS:
        _write_workflow(path, WORKFLOWS[name])
    else:
        ARCHIVES[name].pack(name, folder, packer)
    return path


def _write_workflow(path: Path, spec: str) -> None:
    manifest = {
        "createdOn": "01/01/2025 00:00:00",
        "runtime": "python",
        "workflow": {"workflowName": path.stem, "specFile": "spec.yaml", "handler": "workflow_handler.py"},
        "archiverVersion": "0.2.15",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("WAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("spec.yaml", spec)
        archive.write(MODELS / "notes" / "workflow_handler.py", "workflow_handler.py")
