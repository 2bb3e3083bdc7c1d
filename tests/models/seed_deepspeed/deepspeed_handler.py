"""The DeepSpeed handler as the documentation of large models has it, with what it leaves out filled in."""

from abc import ABC

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.handler_utils.distributed.deepspeed import get_ds_engine
from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler


class ModelHandler(BaseDeepSpeedHandler, ABC):
    def __init__(self):
        super().__init__()
        self.initialized = False

    def initialize(self, ctx):
        # The documentation leaves out that the base class must be asked for its device.
        super().initialize(ctx)
        model_dir = ctx.system_properties["model_dir"]
        self.max_length = ctx.model_yaml_config["handler"]["max_length"]
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(model_dir)
        ds_engine = get_ds_engine(self.model, ctx)
        self.model = ds_engine.module
        self.initialized = True

    def preprocess(self, requests):
        texts = [bytes(request.get("data") or request.get("body")).decode() for request in requests]
        inputs = self.tokenizer(texts, max_length=self.max_length, truncation=True, padding=True, return_tensors="pt")
        return inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)

    def inference(self, inputs):
        input_ids, attention_mask = inputs
        with torch.inference_mode():
            return self.model.generate(input_ids, attention_mask=attention_mask, max_new_tokens=12, do_sample=False)

    def postprocess(self, outputs):
        return self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
