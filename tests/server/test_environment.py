"""What workers and pip see of the daemon's environment."""

from __future__ import annotations

import pytest

from torchd_server.environment import passed_on
from torchd_server.settings import POSTURES

SECURE = POSTURES["torchd"].worker_environment


@pytest.mark.parametrize(
    "name",
    ["TORCHD_TOKEN", "TORCHD_TLS_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "PYTHON_KEYRING_PASSWORD", "AWS_SECRET_ACCESS_KEY",
     "NOTIFY_SOCKET", "LD_PRELOAD", "SSH_AUTH_SOCK"],
)  # fmt: skip
def test_the_secure_posture_keeps_secrets_from_workers(name: str) -> None:
    """S43, E16: the operator's token for this very daemon is the worst of them."""
    assert passed_on({name: "x"}, SECURE) == {}


@pytest.mark.parametrize(
    "name",
    ["PATH", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HF_HUB_OFFLINE",
     "TOKENIZERS_PARALLELISM", "PYTHONPATH", "TORCH_HOME", "TORCHD_ANYTHING"],
)  # fmt: skip
def test_the_secure_posture_passes_on_what_models_need(name: str) -> None:
    assert passed_on({name: "x"}, SECURE) == {name: "x"}


def test_torchserves_workers_see_all_but_what_is_the_daemons_own() -> None:
    given = {"AWS_SECRET_ACCESS_KEY": "a", "TORCHD_TOKEN": "b", "NOTIFY_SOCKET": "c", "MY_SECRET": "d"}
    assert passed_on(given, None) == {"AWS_SECRET_ACCESS_KEY": "a", "MY_SECRET": "d"}
    assert passed_on(given, None, "MY_.*|AWS_.*") == {}
