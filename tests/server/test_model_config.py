"""model-config.yaml as TorchServe reads it (reference section 4.1)."""

from __future__ import annotations

from typing import Any

import pytest

from torchd_server.torchserve.model_config import lenient


@pytest.mark.parametrize(
    "config",
    [
        {"minWorkers": 1, "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 5, "handler": {"profile": True}},
        {"deviceType": "cpu", "deviceIds": [0, 1], "useJobTicket": True, "pt2": "inductor"},
        {},
    ],
)
def test_what_will_do_is_read_as_it_stands(config: dict[str, Any]) -> None:
    assert lenient(config) == (config, [])


@pytest.mark.parametrize(
    ("config", "read", "named"),
    [
        ({"batchSize": 0}, {}, "batchSize: 0"),
        ({"batchSize": -3}, {}, "batchSize: -3"),
        ({"maxBatchDelay": 0}, {}, "maxBatchDelay: 0"),
        ({"responseTimeout": 0}, {}, "responseTimeout"),
        ({"batchSize": "4", "maxBatchDelay": 7}, {"maxBatchDelay": 7}, "batchSize: '4'"),
        ({"batchSize": True}, {}, "batchSize: True"),
        ({"deviceType": "tpu"}, {}, "deviceType: 'tpu'"),
        ({"deviceIds": ["a"]}, {}, "deviceIds"),
        ({"useVenv": "yes"}, {}, "useVenv: 'yes'"),
        ({"parallelType": 3}, {}, "parallelType: 3"),
        ({"torchrun": {"nproc-per-node": "4"}}, {"torchrun": {}}, "torchrun.nproc-per-node: '4'"),
        ({"torchrun": {"OMP_NUMBER_THREADS": -1}}, {"torchrun": {}}, "torchrun.OMP_NUMBER_THREADS: -1"),
        ({"minWorkers": 2}, {}, "TorchServe needs both"),
        ({"maxWorkers": 2}, {}, "TorchServe needs both"),
        ({"minWorkers": 3, "maxWorkers": 2}, {}, "TorchServe needs both"),
        ({"minWorkers": 0, "maxWorkers": 2}, {"minWorkers": 1, "maxWorkers": 2}, "minWorkers: 0 is less than 1"),
    ],
)
def test_what_will_not_do_is_left_out_and_named(config: dict[str, Any], read: dict[str, Any], named: str) -> None:
    found, warnings = lenient(config)
    assert found == read
    assert named in " ".join(warnings)
