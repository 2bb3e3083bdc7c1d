"""torchd's handler for split models, in which a test sees each rank's steps and what it unpickles, and can disturb it.

Under `handler` in model-config.yaml: `watch` is a folder where a rank writes `steps-RANK` and `unpickled-RANK`, and
`gate` a socket at which it waits while it loads, at each tensor, as long as somebody listens there.
"""

import os
import sys

HEARD = []
HEARD_FILES = []


def hear(event, found):
    """What is unpickled in a load, a generation, a call, and by the imports below."""
    if event == "pickle.find_class":
        HEARD.append(f"{found}\n")
        for file in HEARD_FILES:
            os.write(file, HEARD[-1].encode())


sys.addaudithook(hear)

# ruff: noqa: E402
import socket
from pathlib import Path

import torch

from torchd_workers.handlers.parallel import load_progress
from torchd_workers.handlers.parallel.asked import asked_by
from torchd_workers.handlers.parallel.handler import ParallelHandler


class WatchedHandler(ParallelHandler):
    """A request's "fails_on" names a rank that has no memory left after five steps; "objects" pickles between ranks."""

    def initialize(self, context):
        self._rank = int(os.environ["RANK"])
        options = context.model_yaml_config["handler"]
        folder = Path(options["watch"])
        HEARD_FILES.append(created(folder / f"unpickled-{self._rank}"))
        os.write(HEARD_FILES[0], "".join(HEARD).encode())
        self._steps, self._steps_file = 0, created(folder / f"steps-{self._rank}")
        os.write(self._steps_file, b"0")
        self._counted = None
        self._fails_after = None
        context.group.serve("watched.objects", lambda arguments, body: self._objects())

        tell = context.report_progress
        load_progress.INTERVAL_SECONDS = 0.0

        def report(percent, text):
            tell(percent, text)
            wait_at(options["gate"], f"{self._rank}:{percent}")

        context.report_progress = report
        super().initialize(context)
        # Only now: a model is called while it is cut, too.
        torch.nn.modules.module.register_module_forward_pre_hook(self._count)

    def handle(self, data, context):
        asked = asked_by(data[0]).options
        self._fails_after = self._steps + 5 if asked.get("fails_on") == self._rank else None
        if asked.get("objects"):
            if not context.group.same_rows:
                context.group.call("watched.objects")
            self._objects()
        return super().handle(data, context)

    def _objects(self):
        torch.distributed.broadcast_object_list([torch.Size([1])])

    def _count(self, module, arguments):
        """A step is a call of the first of this rank's blocks."""
        if not type(module).__name__.endswith(("DecoderLayer", "Block")):
            return
        self._counted = self._counted or module
        if module is not self._counted:
            return
        self._steps += 1
        os.pwrite(self._steps_file, b"%12d" % self._steps, 0)
        if self._fails_after is not None and self._steps > self._fails_after:
            raise MemoryError(f"no room for step {self._steps} on rank {self._rank}")


def created(path):
    """An empty file to write to."""
    return os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)


def wait_at(gate, name):
    """Until the test lets it through (tests/harness/gate.py); where no gate is, nobody waits."""
    with socket.socket(socket.AF_UNIX) as visitor:
        try:
            visitor.connect(gate)
            visitor.sendall(f"{name} {os.getpid()}\n".encode())
            visitor.recv(1)
        except OSError:
            return
