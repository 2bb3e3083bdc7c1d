"""TorchServe: ts/handler_utils/text_utils.py."""

from torchd_workers.handlers.text_utils import get_tokenizer, ngrams_iterator

__all__ = ["get_tokenizer", "ngrams_iterator"]
