"""A handler as the Neuron tutorial for TorchServe has it: one compiled batch size, one length, padding of its own.

It knows nothing of torchd, reads config.json from its working directory, and imports torch_neuronx.
"""

import json
import logging
import os

import torch
import torch_neuronx  # noqa: F401  # makes the operators of compiled programs known
from transformers import AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

# Each worker takes one NeuronCore.
os.environ["NEURON_RT_NUM_CORES"] = "1"

logger = logging.getLogger(__name__)


class PairHandler(BaseHandler):
    def initialize(self, ctx):
        self.manifest = ctx.manifest
        with open("config.json") as file:
            config = json.load(file)
        self.max_length, self.batch_size = config["max_length"], config["batch_size"]
        self.labels = ["not paraphrase", "paraphrase"]
        weights = self.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(os.path.join(ctx.system_properties.get("model_dir"), weights))
        self.model.to("cpu")
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(config["model_name"])
        self.initialized = True

    def preprocess(self, rows):
        logger.info("a batch of %d", len(rows))
        columns = ([], [], [])
        for row in rows:
            encoded = self.tokenizer(
                row["seq_0"].decode("utf-8"),
                row["seq_1"].decode("utf-8"),
                padding="max_length",
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            for column, name in zip(columns, ("input_ids", "attention_mask", "token_type_ids"), strict=True):
                column.append(encoded[name])
        return [torch.cat(column) for column in columns]

    def inference(self, inputs):
        found = len(inputs[0])
        assert found <= self.batch_size
        missing = torch.nn.ConstantPad1d((0, 0, 0, self.batch_size - found), 0)
        scores = self.model(*map(missing, inputs))[0]
        return [[self.labels[int(scores[row].argmax())]] for row in range(found)]

    def postprocess(self, answers):
        return answers
