"""TorchServe: ts/torch_handler/vllm_handler.py."""

from torchd_workers.handlers.vllm_handler import VLLMHandler

__all__ = ["VLLMHandler"]
