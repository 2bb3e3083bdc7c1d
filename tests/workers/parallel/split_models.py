"""Splits models over the ranks and prints, for each, how far its output is from the whole model's, or why it cannot be.

Prints also what was unpickled from joining on: nothing may be.
"""

import json
import pickle
import sys

unpickled: list[str] = []
sys.addaudithook(lambda event, found: unpickled.append(str(found)) if event == "pickle.find_class" else None)

# ruff: noqa: E402  (the audit begins before anything is imported)
import torch
from harness import byte_models
from harness.ranks import tell
from transformers import (
    AutoModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from torchd_workers.handlers.parallel.plans import CannotSplit
from torchd_workers.handlers.parallel.ranks import join_ranks, leave_ranks
from torchd_workers.handlers.parallel.tensor_parallel import settle, split

SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


class Loads(pickle.Unpickler):
    """Plain values need no class, so the audit does not see them."""

    def load(self):
        unpickled.append("a value")
        return super().load()


torch.distributed.distributed_c10d._unpickler = Loads
torch.set_num_threads(1)
ranks = join_ranks()
told = {"again": join_ranks() == ranks, "rank": ranks.rank, "distances": {}, "kept": {}, "refused": {}}


def compare(name, model):
    model.eval()
    torch.manual_seed(1)
    tokens = {"input_ids": torch.randint(3, 90, (2, 7)), "attention_mask": torch.tensor([[0, 0] + [1] * 5, [1] * 7])}
    with torch.inference_mode():
        whole = model(**tokens)[0]
        size = sum(parameter.numel() for parameter in model.parameters())
        split(model, ranks)
        settle(model)
        told["distances"][name] = float((model(**tokens)[0] - whole)[1].abs().max() / whole[1].abs().max())
        told["kept"][name] = sum(parameter.numel() for parameter in model.parameters()) / size


def refuse(name, model):
    before = {key: tuple(value.shape) for key, value in model.named_parameters()}
    try:
        split(model, ranks)
    except CannotSplit as error:
        told["refused"][name] = str(error)
    assert before == {key: tuple(value.shape) for key, value in model.named_parameters()}


compare("llama", byte_models.llama())
compare("tied llama", byte_models.llama(tied=True))
compare("llama of an odd vocabulary", byte_models.llama(vocabulary=261))
compare("qwen2", byte_models.qwen2())
compare("scaled embeddings", Gemma2ForCausalLM(Gemma2Config(**SMALL, **ENDS, num_key_value_heads=2, head_dim=8)))
compare("fused projections", Phi3ForCausalLM(Phi3Config(**SMALL, **ENDS)))
compare("bert", byte_models.bert_classifier())
compare("roberta", RobertaModel(RobertaConfig(**SMALL)))
compare("distilbert", DistilBertModel(DistilBertConfig(vocab_size=96, dim=32, hidden_dim=64, n_layers=2, n_heads=4)))
if len(sys.argv) > 1:
    compare("the sentence model", AutoModel.from_pretrained(sys.argv[1]))
refuse("no plan", GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4)))
refuse("odd heads", byte_models.bert_classifier(heads=3))
refuse("odd key-value heads", byte_models.llama(heads=4, key_value_heads=1))
leave_ranks()
leave_ranks()
tell(json.dumps(told | {"unpickled": unpickled}))
