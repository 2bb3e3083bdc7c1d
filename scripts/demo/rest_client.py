"""A REST client of the demonstration model: the standard library and the daemon's token, as a person's own would be."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from demo.paraphrase.pack import MODEL_NAME
from demo.paraphrase.pairs import AnswerWrong, Pair, read_answer
from torchd_clients import KeyFile

REQUEST_SECONDS = 60.0


class RestClient:
    """One persistent connection to the model's prediction URL."""

    def __init__(self, inference: str, tokens: KeyFile) -> None:
        """Holds the connection, which is opened by the first request; `inference` is the daemon's inference URL."""
        self._tokens = tokens
        self._connection = http.client.HTTPConnection(urlsplit(inference).netloc, timeout=REQUEST_SECONDS)

    def ask(self, pair: Pair) -> list[str]:
        """The model's answer to one pair."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._tokens('inference')}"}
        self._connection.request("POST", f"/predictions/{MODEL_NAME}", pair.body(), headers)
        reply = self._connection.getresponse()
        body = reply.read()
        if reply.status != http.client.OK:
            raise AnswerWrong(f"REST answered {reply.status}: {body.decode(errors='replace')}")
        return read_answer(body)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
