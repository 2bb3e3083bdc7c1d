"""Seed 004's walk with the commands it types: pack, start in the background, one picture, stop."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.commands import environment, install_commands
from harness.daemon import CONFIG, free_ports
from harness.leaks import files_in
from harness.sample_images import DATA, KITTEN

torch = pytest.importorskip("torch")

MODEL = '''
import torch
from torch import nn


class Classifier(nn.Module):
    """A thousand scores for a picture of 224 by 224."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Linear(256, 1000)

    def forward(self, image):
        return self.classifier(torch.flatten(self.features(image), 1))
'''


class Terminal:
    """The folder the walk is walked in. Its config.properties moves the ports, and switches tokens off as servers of
    the walk's time had it; TorchServe 0.12 asks for tokens unless it is told not to, and so does torchd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = 0
        self.ports = free_ports(5)
        (folder / "config.properties").write_text(CONFIG.format(*self.ports) + "disable_token_authorization=true\n")
        (folder / "scratch").mkdir()
        self.variables = environment(install_commands(folder / "bin"), folder / "scratch")
        self.variables |= {"XDG_RUNTIME_DIR": str(folder)}

    def types(self, command: str) -> str:
        """Runs a line of the walk; returns what it prints. Port 8080 is this test's."""
        command = re.sub(r":8080\b", f":{self.ports[0]}", command)
        self.lines += 1
        log = self.folder / f"terminal-{self.lines}.log"
        with log.open("w") as output:  # a file of its own: a server left in the background goes on writing to it
            subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=100,
                check=True,
            )
        return log.read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    found: dict[str, type[torch.nn.Module]] = {}
    exec(compile(MODEL, "model.py", "exec"), found)
    torch.manual_seed(0)
    torch.save(found["Classifier"]().state_dict(), tmp_path / "classifier-8d451a50.pth")
    (tmp_path / "index_to_name.json").write_bytes((DATA / "imagenet_index_to_name.json").read_bytes())
    (tmp_path / "kitten_small.jpg").write_bytes(KITTEN.read_bytes())
    yield terminal
    terminal.types("torchserve --stop --foreground")


@pytest.mark.needs("curl")
def test_the_walk_gives_five_classes_and_leaves_nothing_behind(terminal: Terminal) -> None:
    terminal.types("mkdir model_store")
    terminal.types(
        "torch-model-archiver --model-name classifier --version 1.0 --model-file model.py"
        " --serialized-file classifier-8d451a50.pth --export-path model_store"
        " --extra-files index_to_name.json --handler image_classifier"
    )
    assert terminal.types("ls model_store/") == "classifier.mar\n"
    console = terminal.types("torchserve --start --ncs --model-store model_store --models classifier.mar")
    assert "Model server started." in console
    server = psutil.Process(int((terminal.folder / "scratch" / ".model_server.pid").read_text()))
    answer = json.loads(terminal.types("curl -s http://127.0.0.1:8080/predictions/classifier -T kitten_small.jpg"))
    names = {name for _, name in json.loads((DATA / "imagenet_index_to_name.json").read_text()).values()}
    assert len(answer) == 5
    assert answer.keys() <= names
    assert all(0 < probability < 1 for probability in answer.values())
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    access = (terminal.folder / "logs" / "access_log.log").read_text()
    assert '"PUT /predictions/classifier HTTP/1.1" 200' in access
    assert terminal.types("torchserve --stop") == "TorchServe has stopped.\n"
    assert not server.is_running()
    assert not files_in(terminal.folder / "scratch")
