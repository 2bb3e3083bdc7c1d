"""gRPC stubs as a user gets them: plain grpc_tools on the .proto files, into a folder of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.rpc import status_pb2

from harness.commands import ROOT

PROTOS = ROOT / "protos"
TORCHSERVE_PROTOS = Path(__file__).parent / "torchserve"


def generate_stubs(protos: Path, out: Path) -> Path:
    """Runs TorchServe's documented command on `protos`; returns `out`, which then holds `inference_pb2_grpc` etc."""
    out.mkdir(parents=True, exist_ok=True)
    googleapis = Path(status_pb2.__file__).parents[2]
    command = ["-m", "grpc_tools.protoc", f"-I{protos}", f"-I{googleapis}", f"--python_out={out}"]
    command += [f"--grpc_python_out={out}", "inference.proto", "management.proto"]
    subprocess.run([sys.executable, *command], cwd=protos, check=True, timeout=60)
    return out
