"""TextIteratorStreamerBatch: the texts of a batch that transformers' generate writes, a piece of each at a time."""

from __future__ import annotations

from typing import Any, Self

from transformers.generation.streamers import BaseStreamer, TextIteratorStreamer


class TextIteratorStreamerBatch(BaseStreamer):
    """One streamer per text. Iterating gives [{"text": piece}, ...], one for each text, until all have ended."""

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        self.batch_size = batch_size
        self.streamers = [
            TextIteratorStreamer(tokenizer, skip_prompt, timeout, **decode_kwargs) for _ in range(batch_size)
        ]

    def put(self, value: Any) -> None:
        """Takes the next token of every text; generate calls it."""
        if value.shape[0] != self.batch_size:
            raise ValueError(f"the streamer is made for {self.batch_size} texts and was given {value.shape[0]}")
        for index, streamer in enumerate(self.streamers):
            streamer.put(value[index : index + 1])  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Ends every text; generate calls it."""
        for streamer in self.streamers:
            streamer.end()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[dict[str, str]]:
        # The end of one is the end of all: generate writes a token for each of them, or for none.
        return [{"text": next(streamer)} for streamer in self.streamers]
