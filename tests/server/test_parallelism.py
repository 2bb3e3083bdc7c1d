"""What model-config.yaml says of several processes (section 4.1): refused by name, or said to have no effect."""

from __future__ import annotations

from typing import Any

import pytest

from torchd_server import errors, parallelism
from torchd_server.settings import ModelSettings, merge_model_settings


def checked(config: dict[str, Any]) -> list[str]:
    return parallelism.check(merge_model_settings(ModelSettings(), config, {}), config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"parallelType": "tp", "parallelLevel": 2},
        {"parallelType": "pp", "torchrun": {"nproc-per-node": 4, "nnodes": 1, "OMP_NUMBER_THREADS": 2}},
        {"parallelType": "custom", "parallelLevel": 2, "asyncCommunication": True},
        {"parallelType": "pp", "parallelLevel": 2, "asyncCommunication": True},
        {"parallelType": "tp", "parallelLevel": 2, "continuousBatching": True},
    ],
)
def test_what_has_its_effect_is_passed_over_in_silence(config: dict[str, Any]) -> None:
    assert checked(config) == []


@pytest.mark.parametrize("kind", ["tp", "pptp"])
def test_ranks_that_are_called_together_cannot_be_called_for_each_request(kind: str) -> None:
    with pytest.raises(errors.ArchiveInvalid, match=f"parallelType {kind}.*asyncCommunication.*custom"):
        checked({"parallelType": kind, "parallelLevel": 2, "asyncCommunication": True})


def test_several_machines_are_refused() -> None:
    with pytest.raises(errors.ArchiveInvalid, match=r"torchrun\.nnodes 2: a worker runs on one machine"):
        checked({"parallelType": "tp", "torchrun": {"nnodes": 2, "nproc-per-node": 4}})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"parallelLevel": 4}, "parallelLevel 4 has no effect without parallelType"),
        ({"parallelType": "tp"}, "parallelType tp has no effect without parallelLevel"),
        (
            {"parallelType": "tp", "torchrun": {"nproc-per-node": 2, "rdzv-backend": "c10d", "max-restarts": 3}},
            "torchrun: rdzv-backend, max-restarts not read: the ranks are started without torchrun's rendezvous",
        ),
        ({"parallelType": "tp", "torchrun": {"nproc-per-node": 2, "nproc_per_node": 4}}, "nproc_per_node not known"),
        ({"parallelType": "tp", "torchrun": {"nproc-per-node": 2, "nnodes": "2"}}, "torchrun.nnodes: '2' will not do"),
        ({"parallelType": "tp", "parallelLevel": 2, "torchrun": 2}, "torchrun: 2 will not do"),
        ({"torchrun": {"OMP_NUMBER_THREADS": 2}}, "torchrun starts nothing without parallelType"),
    ],
)
def test_what_has_no_effect_is_said_once(config: dict[str, Any], said: str) -> None:
    (warning,) = checked(config)
    assert said in warning
