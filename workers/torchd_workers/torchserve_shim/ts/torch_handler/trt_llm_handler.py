"""TorchServe: ts/torch_handler/trt_llm_handler.py."""

from torchd_workers.handlers.trt_llm_handler import TRTLLMHandler

__all__ = ["TRTLLMHandler"]
