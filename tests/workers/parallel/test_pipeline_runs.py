"""What a pipeline remembers of generations and shapes, on one rank."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from harness.tiny_models import language_model

from torchd_workers.context import Context
from torchd_workers.handlers.parallel.cutting import pipeline_of, run_as_pipeline
from torchd_workers.handlers.parallel.pipeline import MOST_RUNS, MOST_SCHEDULES, Pipeline, RunEnded, chunks_of
from torchd_workers.handlers.parallel.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
IDS = {"input_ids": torch.tensor([[5, 9, 31]])}


@pytest.fixture
def pipeline() -> Pipeline:
    """A decoder in one stage."""
    return pipeline_of(language_model("llama"), ALONE, None)


def test_a_generation_goes_on_where_it_was(pipeline: Pipeline) -> None:
    """Two steps of one run say what one step over both tokens says."""
    run = pipeline.new_run()
    pipeline.step({"input_ids": torch.tensor([[5, 9]])}, run=run)
    said = pipeline.step({"input_ids": torch.tensor([[31]])}, run=run)["logits"][:, -1]
    assert torch.allclose(said, pipeline.step(IDS)["logits"][:, -1], atol=1e-5)


def test_the_oldest_of_too_many_generations_gives_way(pipeline: Pipeline) -> None:
    """It cannot go on by mistake with an empty cache."""
    runs = [pipeline.new_run() for _ in range(MOST_RUNS + 1)]
    for run in runs:
        pipeline.step(IDS, run=run)
    with pytest.raises(RunEnded, match=f"generation {runs[0]} is over"):
        pipeline.step(IDS, run=runs[0])
    pipeline.step(IDS, run=runs[1])


def test_a_generation_that_is_over_frees_its_caches_at_the_next_step(pipeline: Pipeline) -> None:
    run = pipeline.new_run()
    pipeline.step(IDS, run=run)
    pipeline.end_run(run)
    pipeline.step(IDS)
    with pytest.raises(RunEnded):
        pipeline.step(IDS, run=run)


def test_what_generate_no_longer_holds_is_over() -> None:
    """transformers drops the cache with its last output; no close is called."""
    model: Any = run_as_pipeline(language_model("llama"), ALONE, None)
    first = model(**IDS, use_cache=True)
    kept = first.past_key_values
    del first, kept
    gc.collect()
    second = model(**IDS, use_cache=True)
    third = model(input_ids=torch.tensor([[7]]), past_key_values=second.past_key_values, use_cache=True)
    assert third.past_key_values.get_seq_length() == 4


def test_more_shapes_than_are_kept_are_answered(pipeline: Pipeline) -> None:
    for length in [*range(1, MOST_SCHEDULES + 3), 1]:
        assert pipeline.step({"input_ids": torch.ones(1, length, dtype=torch.long)})["logits"].shape[1] == length


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_ids": torch.ones(0, 3, dtype=torch.long)}, "without rows"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(4, 3)},
            r"the input input_ids has the shape \[2, 3\]; others have 4 rows",
        ),
        ({**IDS, "scale": torch.tensor(1.0)}, r"scale has the shape \[\]"),
    ],
)
def test_inputs_that_are_no_batch_are_refused(pipeline: Pipeline, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pipeline.step(inputs)


def test_ranks_without_a_way_to_tell_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a pipeline of 2 ranks needs the worker's group \(context.group\)"):
        Pipeline(pipeline_of(language_model("llama"), ALONE, None).stage, Ranks(0, 2, torch.device("cpu")), None)


@pytest.mark.parametrize("chunks", [0, -1, "2", 1.5, True])
def test_chunks_are_a_number_of_microbatches(chunks: Any) -> None:
    with pytest.raises(ValueError, match=r"pippy\.chunks is"):
        chunks_of(Context("m", "", {}, 1, None, model_yaml_config={"pippy": {"chunks": chunks}}))
