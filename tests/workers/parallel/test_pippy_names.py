"""PiPPy's names on our pipeline, in one process: what of `pippy` is read and what is refused (torchserve.md 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import tiny_models

from torchd_workers.context import Context
from torchd_workers.handlers.distributed.base_pippy_handler import BasePippyHandler
from torchd_workers.handlers.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers
from torchd_workers.handlers.parallel.blocks import CannotCut

DOCUMENTED = {
    "chunks": 1,
    "input_names": ["input_ids"],
    "model_type": "HF",
    "rpc_timeout": 1800,
    "num_worker_threads": 512,
}


def context(handler: dict[str, Any] | None = None, **pippy: Any) -> Context:
    """A model with the documented entry; None takes a key out."""
    entry = {name: value for name, value in {**DOCUMENTED, **pippy}.items() if value is not None}
    return Context("bloom", "/nowhere", {}, 1, None, model_yaml_config={"pippy": entry, "handler": handler or {}})


def test_the_base_handler_alone_is_rank_0_of_1_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchrun's environment is missing there is one rank."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    handler = BasePippyHandler()
    handler.initialize(context())
    assert (handler.local_rank, handler.world_size, handler.device) == (0, 1, torch.device("cpu"))


def test_a_transformers_model_stays_itself_and_generates() -> None:
    """`generate` is what handlers written for PiPPy call."""
    model, whole = tiny_models.language_model("bloom"), tiny_models.language_model("bloom")
    driver = get_pipeline_driver(model, 1, context())
    assert driver is model
    ids = torch.tensor([[5, 9, 31]])
    assert driver.generate(ids, max_new_tokens=5).tolist() == whole.generate(ids, max_new_tokens=5).tolist()


def test_a_model_without_weights_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    """As TorchServe's examples make large ones: on the meta device, with handler.model_path beside."""
    whole = tiny_models.language_model("llama")
    whole.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = type(whole)(whole.config)
    with pytest.raises(ValueError, match=r"lacks handler\.model_path"):
        get_pipeline_driver(empty, 1, context())
    driver = get_pipeline_driver(empty, 1, context(handler={"model_path": str(tmp_path)}))
    ids = torch.tensor([[5, 9, 31]])
    assert driver.generate(ids, max_new_tokens=5).tolist() == whole.generate(ids, max_new_tokens=5).tolist()


def test_another_module_takes_its_input_names() -> None:
    """By place and by name; more or other ones are refused."""
    driver = get_pipeline_driver(tiny_models.module("skip"), 1, context(model_type="", input_names=["x", "y"]))
    x, y = torch.randn(2, 6), torch.randn(2, 3)
    wanted = tiny_models.module("skip")(x, y)["out"]
    assert torch.allclose(driver(x, y)["out"], wanted)
    assert torch.allclose(driver(x, y=y)["out"], wanted)
    with pytest.raises(TypeError, match="the pipeline takes x, y; it got"):
        driver(x)


@pytest.mark.parametrize("missing", ["input_names", "model_type"])
def test_a_driver_needs_these_keys(missing: str) -> None:
    with pytest.raises(ValueError, match=f"model-config.yaml lacks pippy.{missing}"):
        get_pipeline_driver(torch.nn.Linear(1, 1), 1, context(**{missing: None}))


@pytest.mark.parametrize("missing", ["rpc_timeout", "num_worker_threads"])
def test_the_group_needs_these_keys(missing: str) -> None:
    with pytest.raises(ValueError, match=f"model-config.yaml lacks pippy.{missing}"):
        initialize_rpc_workers(0, 1, context(**{missing: None}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"chunks": 0}, "pippy.chunks is 0"),
        ({"chunks": "2"}, "pippy.chunks is '2'"),
        ({"chunks": 1.5}, "pippy.chunks is 1.5"),
        ({"input_names": "x", "model_type": ""}, "pippy.input_names is 'x'"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        get_pipeline_driver(tiny_models.language_model("bloom"), 1, context(**wrong))


def test_a_handler_that_asks_for_more_ranks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="asks for 4 stages and its worker has 1 ranks"):
        get_pipeline_driver(tiny_models.language_model("bloom"), 4, context())


def test_hf_is_for_transformers_models_only() -> None:
    with pytest.raises(CannotCut, match=r"leave pippy\.model_type empty"):
        get_pipeline_driver(torch.nn.Linear(1, 1), 1, context())


def test_an_index_that_is_not_there_is_named() -> None:
    """handler.model_path is needed where it says something."""
    with pytest.raises(FileNotFoundError, match=r"/nowhere/model\.index\.json"):
        get_pipeline_driver(
            tiny_models.language_model("bloom"),
            1,
            context(handler={"model_path": "/nowhere", "index_filename": "model.index.json"}),
        )
    with pytest.raises(ValueError, match=r"lacks handler\.model_path"):
        get_pipeline_driver(
            tiny_models.language_model("bloom"), 1, context(handler={"index_filename": "model.index.json"})
        )
