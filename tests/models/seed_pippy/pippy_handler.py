"""A handler as TorchServe's documentation of large models shows it for PiPPy, with its slips mended.

The documentation never says `super().initialize(ctx)`, without which there is no `local_rank`, and divides by the
number of GPUs, which is 0 on a machine without one.
"""

from abc import ABC

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.handler_utils.distributed.pt_pippy import get_pipline_driver
from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler


class ModelHandler(BasePippyHandler, ABC):
    def __init__(self):
        super().__init__()
        self.initialized = False

    def initialize(self, ctx):
        super().initialize(ctx)
        model_dir = ctx.system_properties["model_dir"]
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        self.max_length = ctx.model_yaml_config["handler"]["max_length"]
        if torch.cuda.is_available():
            self.device = self.local_rank % torch.cuda.device_count()
        else:
            self.device = "cpu"
        self.model = get_pipline_driver(model, self.world_size, ctx)
        self.initialized = True

    def preprocess(self, requests):
        texts = [request.get("data") or request.get("body") for request in requests]
        texts = [text.decode() if isinstance(text, bytes | bytearray) else text for text in texts]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return tokens.to(self.device)

    def inference(self, data):
        return self.model.generate(**data, max_new_tokens=20, do_sample=False)

    def postprocess(self, data):
        return self.tokenizer.batch_decode(data, skip_special_tokens=True)
