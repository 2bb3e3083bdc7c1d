"""The handler of scripts/bench_gpu.py: raw bytes in, the number of the likeliest class out."""

from __future__ import annotations

from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler


class BytesHandler(BaseHandler):
    """Takes what `handler: {dtype, shape}` of model-config.yaml says of one request's bytes."""

    def preprocess(self, data: Any) -> torch.Tensor:
        """The requests' bytes as one tensor; `inference` brings it to the device."""
        expected = self.model_yaml_config["handler"]
        joined = bytearray().join(row.get("data") or row["body"] for row in data)
        return torch.frombuffer(joined, dtype=getattr(torch, expected["dtype"])).reshape(len(data), *expected["shape"])

    def postprocess(self, data: torch.Tensor) -> list[str]:
        """One copy back, and a small one."""
        return [str(number) for number in data.argmax(1).tolist()]

    def describe_handle(self) -> dict[str, Any]:
        """Where and how the model really runs."""
        first = next(self.model.parameters())
        found = {"device": first.device.type, "name": "CPU", "dtype": str(first.dtype).removeprefix("torch.")}
        if first.device.type == "cuda":
            found["name"] = torch.cuda.get_device_name(first.device)
            found["reserved_mb"] = torch.cuda.max_memory_reserved(first.device) // 2**20
        return found
