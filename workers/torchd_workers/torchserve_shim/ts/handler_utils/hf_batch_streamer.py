"""TorchServe: ts/handler_utils/hf_batch_streamer.py."""

from torchd_workers.handlers.hf_batch_streamer import TextIteratorStreamerBatch

__all__ = ["TextIteratorStreamerBatch"]
