"""`python -m ts.llm_launcher`: a folder with a language model's configuration, and a server for it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import pause
from typing import Any

import yaml

from torchd_workers.handlers.optional_libraries import library
from torchd_workers.torchserve.launcher import start, stop


def parser() -> argparse.ArgumentParser:
    """TorchServe's flags."""
    parser = argparse.ArgumentParser(prog="python -m ts.llm_launcher", description=__doc__)
    add = parser.add_argument
    add("--model_name", default="model", help="the name clients call")
    add("--model_store", default="model_store", help="where the folder goes")
    add("--model_id", default="meta-llama/Meta-Llama-3.1-8B-Instruct", help="on the Hugging Face hub, or a folder")
    add("--disable_token_auth", action="store_true", help="let everybody in")
    add("--vllm_engine.max_num_seqs", type=int, default=256, help="sequences that run together")
    add("--vllm_engine.max_model_len", type=int, default=None, help="tokens of context")
    add("--vllm_engine.download_dir", default=None, help="where weights are kept")
    add("--startup_timeout", type=int, default=1200, help="seconds the model may take to load")
    add("--engine", choices=["vllm"], default="vllm", help="what runs the model")
    add("--dtype", default="bfloat16", help="the type of its numbers")
    return parser


def get_model_config(args: argparse.Namespace, model_snapshot_path: str | None = None) -> dict[str, Any]:
    """The model-config.yaml for these flags."""
    if args.engine != "vllm":
        raise NotImplementedError(f"torchd starts no models with the engine {args.engine!r}; it may be 'vllm'")
    torch = library("torch", "ts.llm_launcher", "torch")
    gpus = max(1, torch.cuda.device_count())
    download_dir = getattr(args, "vllm_engine.download_dir")
    return {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 1200,
        "startupTimeout": args.startup_timeout,
        "deviceType": "gpu",
        "asyncCommunication": True,
        "parallelLevel": gpus,
        "handler": {
            "model_path": args.model_id,
            "vllm_engine_config": {
                "max_num_seqs": getattr(args, "vllm_engine.max_num_seqs"),
                "max_model_len": getattr(args, "vllm_engine.max_model_len"),
                "download_dir": str(Path(download_dir).resolve()) if download_dir else None,
                "tensor_parallel_size": gpus,
            },
        },
    }


@contextmanager
def create_mar_file(args: argparse.Namespace, model_snapshot_path: str | None = None) -> Iterator[str]:
    """The model's folder in the store, while it is needed."""
    archiver = library("model_archiver", "ts.llm_launcher", "torchd-ts")
    folder = Path(args.model_store) / args.model_name
    config = Path(args.model_store) / "model-config.yaml"
    config.write_text(yaml.safe_dump(get_model_config(args, model_snapshot_path)))
    try:
        archiver.ModelArchiver.generate_model_archive(
            archiver.ModelArchiverConfig(
                model_name=args.model_name,
                version="1.0",
                handler=f"{args.engine}_handler",
                export_path=args.model_store,
                force=True,
                config_file=str(config),
                archive_format="no-archive",
            )
        )
    finally:
        config.unlink()
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder)


def main(args: argparse.Namespace) -> None:
    """Serves the model until it is interrupted."""
    Path(args.model_store).mkdir(parents=True, exist_ok=True)
    with create_mar_file(args):
        try:
            start(
                model_store=args.model_store,
                no_config_snapshots=True,
                models=args.model_name,
                disable_token=args.disable_token_auth,
            )
            pause()
        except KeyboardInterrupt:
            pass
        finally:
            stop(wait=False)
