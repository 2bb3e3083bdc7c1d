"""Where transformers models are cut, and which are refused."""

from __future__ import annotations

import pytest
import torch
import transformers

from torchd_workers.handlers.parallel.blocks import CannotCut, layout_of
from torchd_workers.handlers.parallel.graph_stage import GraphStage
from torchd_workers.handlers.parallel.partition import shares

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def test_the_heaviest_stage_is_as_light_as_can_be() -> None:
    assert shares([1, 1, 1, 1], 2) == [range(2), range(2, 4)]
    assert shares([1, 1, 1, 1], 2, before=2) == [range(1), range(1, 4)]
    assert shares([1, 1, 1, 1], 2, after=2) == [range(3), range(3, 4)]
    assert shares([5, 1, 1, 1, 1], 3) == [range(1), range(1, 3), range(3, 5)]


def test_fewer_parts_than_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="2 parts cannot be shared by 3 stages"):
        shares([1, 1], 3)


def test_a_model_is_cut_at_its_blocks_with_the_head_at_the_end() -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    layout = layout_of(model, 2)
    assert layout.blocks == "bert.encoder.layer"
    assert layout.table == "bert.embeddings.word_embeddings"
    assert layout.after == ("bert.pooler.dense", "classifier")
    assert [block for stage in layout.stages for block in stage] == [0, 1, 2, 3]


def test_a_model_without_weights_can_be_cut() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    assert len(layout_of(model, 4).stages) == 4


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (transformers.T5Model(transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32)), "two rows of blocks"),
        (transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=8)), "1 blocks, fewer than 2"),
        (torch.nn.Linear(2, 2), "only transformers models"),
    ],
    ids=["encoder and decoder", "one shared block", "no transformers model"],
)
def test_what_has_no_row_of_blocks_is_refused_by_name(model: torch.nn.Module, why: str) -> None:
    with pytest.raises(CannotCut, match=f"{type(model).__name__} cannot be cut into a pipeline: .*{why}"):
        layout_of(model, 2)


class Undecided(torch.nn.Module):
    """Takes a way that depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_traced_is_refused_by_name() -> None:
    with pytest.raises(CannotCut, match="Undecided cannot be cut into a pipeline: its forward cannot be traced"):
        GraphStage(Undecided(), 2, 0)


def test_inputs_that_the_forward_does_not_know_are_refused() -> None:
    with pytest.raises(CannotCut, match="its forward has no argument input_ids; it has x, needed"):
        GraphStage(Undecided(), 2, 0, ["input_ids"])
    with pytest.raises(CannotCut, match="nobody gives needed"):
        GraphStage(Undecided(), 2, 0, ["x"])
