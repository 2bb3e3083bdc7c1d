"""ModelService: the base class of handlers in the days of MXNet Model Server, which old archives derive from."""

from __future__ import annotations

import json
import logging
import os
import time
from ast import literal_eval
from typing import Any

logger = logging.getLogger(__name__)


class ModelService:
    """Reads the archive's signature file and gives `inference` the input that it names."""

    def __init__(self, model_name: str, model_dir: str, manifest: Any, gpu: int | None = None) -> None:
        self.ctx: Any = None
        self._context: Any = None
        self._signature: Any = None

    def initialize(self, context: Any) -> None:
        """Reads the signature that the manifest names."""
        self._context = context
        name = context.manifest["Model"]["Signature"]
        path = os.path.join(context.system_properties["model_dir"], name)
        if not os.path.isfile(path):
            raise ValueError(f"the archive has no signature file {name}")
        with open(path, encoding="utf-8") as file:
            self._signature = json.load(file)

    def inference(self, data: Any) -> Any:
        """The answer to one request; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} does not override inference")

    def ping(self) -> Any:
        """A word of health; to be overridden."""
        return None

    def signature(self) -> Any:
        """What the signature file says."""
        return self._signature

    def handle(self, data: Any, context: Any) -> list[Any]:
        """Answers the first request of a batch, from the part that the signature names, or "body", or "data"."""
        names = (self._signature["inputs"][0]["data_name"], "body", "data")
        value = next((data[0][name] for name in names if data[0].get(name) is not None), None)
        if self._signature["input_type"] == "application/json" and isinstance(value, bytes | bytearray):
            value = literal_eval(value.decode())  # its clients write Python's literals as well as JSON's
        answers = self.inference([value])
        return answers if isinstance(answers, list) else [answers]


class SingleNodeService(ModelService):
    """Splits inference into three steps, to be overridden, and logs their times."""

    def inference(self, data: Any) -> Any:
        """The three steps."""
        for step in (self._preprocess, self._inference, self._postprocess):
            started = time.perf_counter()
            data = step(data)
            logger.info("%s time: %.2f", step.__name__.strip("_"), (time.perf_counter() - started) * 1000)
        return data

    def _preprocess(self, data: Any) -> Any:
        return data

    def _inference(self, data: Any) -> Any:
        return data

    def _postprocess(self, data: Any) -> Any:
        return data
