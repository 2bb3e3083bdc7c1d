"""TextClassifier: the class of a text."""

from __future__ import annotations

import logging
from typing import Any

import torch

from torchd_workers.handlers.explaining import token_reference
from torchd_workers.handlers.labels import map_class_to_label
from torchd_workers.handlers.rows import BadInput, payload_of
from torchd_workers.handlers.text_handler import TextHandler
from torchd_workers.handlers.text_utils import ngrams_iterator

logger = logging.getLogger(__name__)


class TextClassifier(TextHandler):
    """Answers {label: probability}. The model takes token numbers and offsets, as an EmbeddingBag does."""

    # The model's input is one text; TorchServe answers the first of a batch only.
    takes_batches = False
    ngrams = 2

    def preprocess(self, data: Any) -> tuple[torch.Tensor, list[str]]:
        """The numbers of the cleaned text's n-grams, and its tokens."""
        tokens = self._tokenize(self._cleaned(_text_of(payload_of(data[0]))))
        numbers = [self.source_vocab[token] for token in ngrams_iterator(tokens, self.ngrams)]
        return torch.as_tensor(numbers, dtype=torch.int64, device=self.device), tokens

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's scores for the text."""
        numbers, _ = data
        return super().inference(numbers, torch.as_tensor([0], device=self.device))

    def postprocess(self, data: Any) -> list[Any]:
        """Every class with its probability."""
        return map_class_to_label(torch.softmax(data, dim=1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: Any = 0) -> list[Any]:
        """The words and the importance of each token in the score of class `target`."""
        numbers, tokens = text_preprocess
        reference = token_reference().generate_reference(numbers.shape[0], device=self.device).squeeze(0)
        attributions = self.lig.attribute(
            numbers,
            reference,
            additional_forward_args=torch.tensor([0], device=self.device),
            return_convergence_delta=False,
            target=int(target),
        )
        importances = self.summarize_attributions(attributions)
        return [{"importances": importances.tolist(), "words": self.get_word_token(tokens)}]

    def _cleaned(self, text: str) -> str:
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        return self._remove_punctuation(self._remove_accented_characters(text))


def _text_of(payload: Any) -> str:
    if isinstance(payload, str):
        return payload
    if not isinstance(payload, bytes | bytearray):
        raise BadInput(f"the text came as a {type(payload).__name__}; send it as text or bytes")
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"the text is not UTF-8: {error}") from error
