"""Checkpoints larger than a device: what is read of them, what a model gets, what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.ranks import outputs, run_ranks
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from torchd_protos.frames import Reply
from torchd_workers.handlers.parallel.checkpoints import (
    Checkpoint,
    CheckpointUnusable,
    ShapesDiffer,
    WeightsMissing,
    empty_model,
    fill,
    keeps_prefixes,
    load_model,
    plan_for,
    report_of,
    slice_of_rank,
)
from torchd_workers.handlers.parallel.load_progress import LoadProgress

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 60}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=3, num_key_value_heads=2)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=2, tie_word_embeddings=True)),
    "gpt2, tied": lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=60, bos_token_id=1, eos_token_id=2)
    ),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, num_hidden_layers=2)),
    # Its checkpoint has a tensor for each expert, the model one weight for all of them; ten come after two.
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=11)
    ),
    "t5, tied": lambda: T5ForConditionalGeneration(
        T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=60)
    ),
}


def made(name: str) -> Any:
    torch.manual_seed(3)
    return MODELS[name]().eval()


def saved(model: Any, folder: Path) -> Path:
    """The model's checkpoint, in many shards."""
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def logits(model: Any) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, **extra).logits
    return found


def is_empty(module: Any) -> bool:
    return all(parameter.device.type == "meta" for parameter in module.parameters())


def index_of(folder: Path) -> dict[str, str]:
    weights: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return weights


def write_index(folder: Path, weights: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_answers_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    model = made(name)
    saved(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", [name for name in MODELS if "tied" in name])
def test_tied_weights_stay_one(name: str, tmp_path: Path) -> None:
    loaded = load_model(saved(made(name), tmp_path))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_names_that_differ_in_the_checkpoint_are_not_tied(tmp_path: Path) -> None:
    """What config.json says is a promise of one who may have trained them apart."""
    saved(made("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert torch.equal(logits(load_model(tmp_path)), logits(made("llama")))


def test_an_empty_model_has_no_weights_but_the_values_that_it_computes(tmp_path: Path) -> None:
    model = made("llama")
    empty = empty_model(saved(model, tmp_path))
    assert is_empty(empty)
    assert torch.equal(empty.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_the_model_may_be_another_than_the_checkpoint_names(tmp_path: Path) -> None:
    """The body alone, for its features: its weights have a prefix less."""
    model = made("bert")
    body = load_model(saved(model, tmp_path), AutoModel)
    with torch.inference_mode():
        assert torch.equal(body(IDS).last_hidden_state, model.bert(IDS).last_hidden_state)


def test_a_model_takes_generation_settings_along(tmp_path: Path) -> None:
    model = made("llama")
    model.generation_config.max_new_tokens = 17
    assert load_model(saved(model, tmp_path)).generation_config.max_new_tokens == 17


def test_weights_are_cast_and_computed_values_keep_their_precision(tmp_path: Path) -> None:
    loaded = load_model(saved(made("llama"), tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_without_a_dtype_it_is_the_checkpoints(tmp_path: Path) -> None:
    loaded = load_model(saved(made("llama").to(torch.float16), tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


def test_what_overflows_in_16_bits_stays_in_32(tmp_path: Path) -> None:
    """T5 says so of `wo`."""
    loaded = load_model(saved(made("t5, tied"), tmp_path), dtype=torch.float16)
    kinds = {name.split(".")[-2]: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert kinds["wo"] == torch.float32
    assert kinds["wi"] == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_a_model_computes_is_rounded_as_from_pretrained_does(dtype: torch.dtype, tmp_path: Path) -> None:
    """GPT-J keeps a table of positions; computed in 16 bits it would be another."""
    config = GPTJConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=60, rotary_dim=4, bos_token_id=1, eos_token_id=2)
    GPTJForCausalLM(config).save_pretrained(tmp_path)
    expected = dict(GPTJForCausalLM.from_pretrained(tmp_path, dtype=dtype).named_buffers())
    found = dict(load_model(tmp_path, dtype=dtype).named_buffers())
    assert found.keys() == expected.keys()
    assert found
    for name, buffer in expected.items():
        assert found[name].dtype == buffer.dtype
        assert torch.equal(found[name], buffer)


def test_a_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    """A classifier made of nothing would answer, and wrong."""
    BertForMaskedLM(BertConfig(**SMALL, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(
        WeightsMissing, match=r"lacks 4 weights.*BertForSequenceClassification.*bert.pooler.dense.weight"
    ):
        load_model(tmp_path, BertForSequenceClassification)


def test_a_tensor_without_a_weight_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(saved(made("bert"), tmp_path), AutoModel)
    assert "2 tensors that the model has no place for: classifier.bias, classifier.weight" in caplog.text


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    saved(made("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 61}))
    with pytest.raises(ShapesDiffer, match=r"of shape \[60, 32\]; the model's is \[61, 32\]"):
        load_model(tmp_path)


def test_a_stage_keeps_its_layers_and_leaves_the_others_empty(tmp_path: Path) -> None:
    model = made("llama")
    empty = empty_model(saved(model, tmp_path))
    with Checkpoint(tmp_path) as checkpoint:
        filled = fill(empty, checkpoint, keep=keeps_prefixes("model.layers.1", "model.norm"))
    assert is_empty(empty.model.layers[0])
    assert is_empty(empty.model.layers[2])
    assert torch.equal(empty.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in filled.loaded)
    assert filled.unexpected == ()
    assert filled.bytes_kept == sum(weight.nbytes for weight in [*empty.model.layers[1].parameters()]) + 32 * 4


def test_the_last_stage_has_the_embeddings_numbers_for_its_tied_head(tmp_path: Path) -> None:
    """The checkpoint has one tensor for both, under the name of the embeddings, which another stage keeps."""
    model = made("llama, tied")
    empty = empty_model(saved(model, tmp_path))
    with Checkpoint(tmp_path) as checkpoint:
        fill(empty, checkpoint, keep=keeps_prefixes("lm_head"))
    assert torch.equal(empty.lm_head.weight, model.lm_head.weight)
    assert is_empty(empty.model)


def test_a_part_cut_off_a_model_is_filled_by_the_plan_of_the_whole(tmp_path: Path) -> None:
    model = made("llama, tied")
    empty = empty_model(saved(model, tmp_path))
    with Checkpoint(tmp_path) as checkpoint:
        plan = plan_for(empty, checkpoint)
        part = torch.nn.ModuleDict({"lm_head": empty.lm_head})
        fill(part, checkpoint, plan=plan)
    assert torch.equal(part["lm_head"].weight, model.lm_head.weight)


@pytest.mark.parametrize("is_cut_already", [False, True])
def test_a_rank_gets_its_slice_of_a_weight(is_cut_already: bool, tmp_path: Path) -> None:
    """Whether the empty model has whole weights still, or those of the rank."""
    model = made("llama")
    empty = empty_model(saved(model, tmp_path))
    dims = {"up_proj": 0, "down_proj": 1}
    if is_cut_already:
        for layer in empty.model.layers:
            layer.mlp.up_proj = torch.nn.Linear(32, 32, bias=False, device="meta")
            layer.mlp.down_proj = torch.nn.Linear(32, 32, bias=False, device="meta")

    def shard(name: str, shape: torch.Size) -> tuple[slice, ...] | None:
        dim = dims.get(name.split(".")[-2])
        return None if dim is None else slice_of_rank(shape, dim, rank=1, ranks=2)

    with Checkpoint(tmp_path) as checkpoint:
        fill(empty, checkpoint, shard=shard)
    there, whole = empty.model.layers[2].mlp, model.model.layers[2].mlp
    assert torch.equal(there.up_proj.weight, whole.up_proj.weight[32:])
    assert torch.equal(there.down_proj.weight, whole.down_proj.weight[:, 32:])
    assert there.down_proj.weight.is_contiguous()
    assert torch.equal(there.gate_proj.weight, whole.gate_proj.weight)


def test_distributed_weights_get_what_their_placements_say(tmp_path: Path) -> None:
    """Two ranks with gloo: each reads its half of the feed-forward weights, and together they answer as one."""
    model = made("llama")
    program = Path(__file__).parent / "programs" / "fill_distributed.py"
    ranks = [json.loads(text) for text in outputs(run_ranks(program, str(saved(model, tmp_path))))]
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6, 7, 8]])).logits.flatten()
    whole = sum(weight.nbytes for weight in model.parameters())
    halves = sum(weight.nbytes for name, weight in model.named_parameters() if ".mlp." in name)
    for rank in ranks:
        assert rank["shapes"] == [[32, 32], [32, 32]]
        assert rank["bytes"] == whole - halves / 2
        torch.testing.assert_close(torch.tensor(rank["logits"]), expected)


@pytest.mark.parametrize(("shape", "ranks"), [((8, 3), 2), ((7, 3), 3), ((2, 3), 4)])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_slices_of_all_ranks_are_the_weight(shape: tuple[int, ...], ranks: int, dim: int) -> None:
    weight = torch.arange(shape[0] * shape[1]).reshape(shape)
    parts = [weight[slice_of_rank(shape, dim, rank, ranks)] for rank in range(ranks)]
    assert torch.equal(torch.cat(parts, dim), weight)
    for part, expected in zip(parts, weight.chunk(ranks, dim), strict=False):
        assert torch.equal(part, expected)


def test_a_rank_that_is_none_and_a_dimension_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is none of 2 ranks"):
        slice_of_rank((4, 4), 0, 2, 2)
    with pytest.raises(ValueError, match=r"a tensor of shape \[4\] has no dimension 1"):
        slice_of_rank((4,), 1, 0, 2)


def test_a_stage_of_experts_is_made_of_its_own_tensors_only(tmp_path: Path) -> None:
    """The weights of a layer's experts are one weight each in the model, and eleven tensors in the checkpoint."""
    model = made("mixtral")
    empty = empty_model(saved(model, tmp_path))
    with Checkpoint(tmp_path) as checkpoint:
        filled = fill(empty, checkpoint, keep=keeps_prefixes("model.layers.1"))
    assert is_empty(empty.model.layers[0])
    experts, whole = empty.model.layers[1].mlp.experts, model.model.layers[1].mlp.experts
    assert torch.equal(experts.gate_up_proj, whole.gate_up_proj)
    assert torch.equal(experts.down_proj, whole.down_proj)
    assert filled.bytes_kept == sum(weight.nbytes for weight in model.model.layers[1].parameters())


def test_a_rank_gets_its_slice_of_experts(tmp_path: Path) -> None:
    model = made("mixtral")
    empty = empty_model(saved(model, tmp_path))

    def shard(name: str, shape: torch.Size) -> tuple[slice, ...] | None:
        return slice_of_rank(shape, 0, rank=1, ranks=2) if ".experts." in name else None

    with Checkpoint(tmp_path) as checkpoint:
        fill(empty, checkpoint, shard=shard)
    assert torch.equal(empty.model.layers[0].mlp.experts.down_proj, model.model.layers[0].mlp.experts.down_proj[6:])


def test_what_is_done_to_a_view_of_a_file_does_not_reach_the_file(tmp_path: Path) -> None:
    """Handlers may change weights; other workers have the same pages."""
    model = made("llama")
    changed = load_model(saved(model, tmp_path))
    with torch.no_grad():
        for weight in changed.parameters():
            weight.zero_()
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_a_plain_module_is_filled_too(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    save_file({name: value + 1 for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    with Checkpoint(tmp_path) as checkpoint:
        fill(empty, checkpoint)
    assert torch.equal(empty[0].weight, model[0].weight + 1)
    assert torch.equal(empty[1].running_var, torch.full((4,), 2.0))


def test_a_checkpoint_says_what_it_has_without_reading_it(tmp_path: Path) -> None:
    model = made("llama")
    with Checkpoint(saved(model, tmp_path)) as checkpoint:
        assert checkpoint.shapes == {name: value.shape for name, value in model.state_dict().items()}
        files = [checkpoint.head(name).file for name in checkpoint.names()]
        assert files == sorted(files)
        assert checkpoint.head("lm_head.weight").dtype == torch.float32


def test_a_view_outlives_its_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.arange(12.0).reshape(3, 4)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        rows = checkpoint.read("a", (slice(1, 3),), mapped=True)
        columns = checkpoint.read("a", (slice(None), slice(1, 3)), dtype=torch.float64)
    assert rows.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert columns.tolist() == [[1, 2], [5, 6], [9, 10]]
    assert columns.dtype == torch.float64


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "a/../../outside.safetensors",
        "..\\outside.safetensors",
        "",
    ],
)
def test_an_index_that_points_outside_its_folder_is_refused(file: str, tmp_path: Path) -> None:
    """S10: what comes with a checkpoint names nothing of the host."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    write_index(folder, {"a": file})
    with pytest.raises(CheckpointUnusable, match="outside its folder"):
        Checkpoint(folder)


def test_a_shard_may_be_a_link_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "1234"
    blob.parent.mkdir()
    save_file({"a": torch.ones(2)}, blob)
    folder = tmp_path / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "one.safetensors").symlink_to("../../blobs/1234")
    write_index(folder, {"a": "one.safetensors"})
    assert Checkpoint(folder).read("a").tolist() == [1, 1]


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    saved(made("llama"), tmp_path)
    lost = sorted(set(index_of(tmp_path).values()))[2]
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointUnusable, match=f"lacks 1 of the shards its index names: {lost}"):
        Checkpoint(tmp_path)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    saved(made("llama"), tmp_path)
    weights = index_of(tmp_path)
    write_index(tmp_path, {**weights, "model.layers.9.weight": weights["lm_head.weight"]})
    with pytest.raises(CheckpointUnusable, match=r"lack what their index names: model\.layers\.9\.weight"):
        Checkpoint(tmp_path).names()


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointUnusable, match="is no index of a checkpoint"):
        Checkpoint(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(200)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointUnusable, match=r"model\.safetensors is no whole safetensors file"):
        Checkpoint(tmp_path).names()


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnusable, match=r"holds no checkpoint: neither model\.safetensors\.index\.json"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_checkpoint_is_read_as_tensors_only(is_zip: bool, tmp_path: Path) -> None:
    model = made("llama")
    saved(model, tmp_path / "safe")
    config = (tmp_path / "safe" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    weights = {}
    for number, file in enumerate(sorted((tmp_path / "safe").glob("*.safetensors"))):
        tensors = load_file(file)
        name = f"pytorch_model-{number:05}.bin"
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        weights.update(dict.fromkeys(tensors, name))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


class Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("intruded"),))


def test_a_pickled_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S18."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Intruder()}, tmp_path / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(CheckpointUnusable, match=r"no whole, plain dict of tensors; .*save_pretrained"):
        Checkpoint(tmp_path).names()
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "nobody_has_this"},
            "knows no model 'nobody_has_this', and code that comes with a checkpoint is",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "describes quantized weights"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_a_config_that_cannot_be_built_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(made("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    with pytest.raises(CheckpointUnusable, match=message):
        empty_model(tmp_path)


def test_progress_is_told_at_most_twice_a_second_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """And logged by whom it is told, not twice."""
    caplog.set_level("INFO")
    now = 0.0
    told: list[tuple[int, str]] = []
    progress = LoadProgress(4_000_000, lambda percent, text: told.append((percent, text)), clock=lambda: now)
    for step in range(40):
        now = step * 0.1
        progress.advance(100_000, f"shard {step}")
    assert [percent for percent, _ in told] == [2, 15, 27, 40, 52, 65, 77, 90, 100]
    assert told[-1][1] == "4.00 of 4.00 MB of weights loaded, now from shard 39"
    assert caplog.records == []


def test_a_load_that_nobody_is_told_of_is_logged_in_tenths(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    progress = LoadProgress(4_000_000, None)
    for step in range(40):
        progress.advance(100_000, f"shard {step}")
    assert [record.message.split("%")[0] for record in caplog.records] == [str(tenth * 10) for tenth in range(1, 11)]


def test_a_load_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    load_model(saved(made("llama"), tmp_path), progress=lambda percent, text: told.append((percent, text)))
    assert told[-1][0] == 100
    assert "model-0000" in told[-1][1]


HANDLER = """
import torch
from torchd_workers.handlers.parallel.checkpoints import load_model, report_of
from torchd_workers.handlers.parallel.model_path import model_path


class Handler:
    def initialize(self, context):
        self.model = load_model(model_path(context), progress=report_of(context))

    def handle(self, data, context):
        with torch.inference_mode():
            return [self.model(torch.tensor([[5, 6, 7, 8, 9]])).logits.sum().item() for _ in data]
"""


def test_a_handler_of_ones_own_loads_in_a_worker_as_the_page_says(loaded: Callable[..., Any], tmp_path: Path) -> None:
    """docs/large_models.md."""
    model = made("llama")
    saved(model, tmp_path / "weights")
    (tmp_path / "handler.py").write_text(HANDLER)
    worker = loaded(tmp_path, config_json=json.dumps({"handler": {"model_path": "weights"}}), threads=1)
    answer = worker.ask(b"")
    assert isinstance(answer, Reply)
    assert float(bytes(answer.body)) == pytest.approx(logits(model)[0].sum().item(), abs=1e-3)


def test_a_context_that_tells_progress_is_asked_to() -> None:
    class Telling:
        def report_progress(self, percent: float, text: str = "") -> None:
            told.append((percent, text))

    told: list[tuple[float, str]] = []
    report = report_of(Telling())
    assert report is not None
    report(7, "weights")
    assert told == [(7, "weights")]
    assert report_of(object()) is None
