"""A handler for a program of one fixed shape, as users of TorchServe on Neuron have them, without a word of torchd.

It reads config.json where it stands, imports torch_neuronx, and fills the compiled batch up by itself.
"""

import json
import logging
import os
from pathlib import Path

import torch
import torch_neuronx  # noqa: F401  # makes the operators of compiled programs known
from transformers import AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

# One NeuronCore for each worker; the runtime reads it when the first program is loaded.
os.environ["NEURON_RT_NUM_CORES"] = "1"

logger = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ANSWERS = {False: ["not paraphrase"], True: ["paraphrase"]}


class FixedShape(BaseHandler):
    """Every call has the rows that the program was compiled for: what is missing is zeros, and its scores are cut."""

    def initialize(self, context):
        config = json.loads(Path("config.json").read_text())
        self.rows, self.length = config["batch_size"], config["max_length"]
        self.tokenizer = AutoTokenizer.from_pretrained(config["model_name"])
        folder = Path(context.system_properties["model_dir"])
        self.model = torch.jit.load(folder / context.manifest["model"]["serializedFile"]).eval()
        self.initialized = True

    def preprocess(self, requests):
        logger.info("a batch of %d", len(requests))
        self.asked = len(requests)
        first, second = ([bytes(request[part]).decode() for request in requests] for part in ("seq_0", "seq_1"))
        found = self.tokenizer(
            first, second, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        full = torch.zeros(len(INPUTS), self.rows, self.length, dtype=torch.int64)
        full[:, : self.asked] = torch.stack([found[name] for name in INPUTS])
        return full

    def inference(self, full):
        (scores,) = self.model(*full)
        return scores[: self.asked]

    def postprocess(self, scores):
        return [ANSWERS[same] for same in (scores[:, 1] > scores[:, 0]).tolist()]
