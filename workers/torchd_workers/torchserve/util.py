"""The small functions of `ts.utils`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from warnings import warn

import yaml


def get_yaml_config(yaml_file_path: str) -> Any:
    """What a YAML file says."""
    return yaml.safe_load(Path(yaml_file_path).read_text())


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that warns at each call that the function has another name since `version`."""

    def deprecator(func: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            warn(f"{func.__name__} is deprecated in {version} and moved to {replacement}", klass, stacklevel=2)
            return func(*args, **kwargs)

        return wrapper

    return deprecator


def timeit(func: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that prints how long a call took, on the clock and of the processor."""

    @wraps(func)
    def measured(*args: Any, **kwargs: Any) -> Any:
        started, started_cpu = time.perf_counter(), time.process_time()
        result = func(*args, **kwargs)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
        print(f"{func.__name__} took {seconds:.4f} s, {cpu_seconds:.4f} s of CPU time")
        return result

    return measured


def download_model(
    model_id: str = "meta-llama/Meta-Llama-3.1-8B-Instruct",
    revision: str = "main",
    model_path: str = ".cache",
    use_auth_token: bool | str = True,
) -> str:
    """Fetches a model's weights, tokenizer and configuration from the Hugging Face hub; gives their folder."""
    from huggingface_hub import snapshot_download  # optional: transformers brings it

    patterns = ["*.json", "*.pt", "*.bin", "*.txt", "*.model", "*.pth", "*.safetensors", "original/*"]
    return str(
        snapshot_download(
            repo_id=model_id,
            revision=revision,
            allow_patterns=patterns,
            cache_dir=model_path,
            token=use_auth_token,
        )
    )
