"""`run_deepspeed.py FOLDER TEXTS_JSON`: the documentation's DeepSpeed handler on this rank; prints its answers."""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from harness.ranks import tell

import torchd_workers.loader as loader
from torchd_workers.context import Context

MODEL = Path(__file__).parents[2] / "models" / "seed_deepspeed"

logging.basicConfig(stream=sys.stderr)
torch.set_num_threads(1)
folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.path.insert(0, loader.SHIM)
spec = importlib.util.spec_from_file_location("deepspeed_handler", MODEL / "deepspeed_handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.ModelHandler()
context = Context(
    "bloom",
    str(folder),
    None,
    len(texts),
    None,
    model_yaml_config=yaml.safe_load((MODEL / "model-config.yaml").read_text()),
)
handler.initialize(context)
answers = handler.handle([{"body": text.encode()} for text in texts], context)
kind = type(handler.model.model.layers[0].self_attn.o_proj).__name__
rows = handler.model.model.layers[0].self_attn.q_proj.weight.shape[0]
# DeepSpeed prints to stdout, too.
tell("\n" + json.dumps({"answers": answers, "layer": kind, "rows": rows}))
