"""`torchserve` with a model that has metrics of its own, and the traffic that moves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.commands import ROOT
from harness.daemon import Daemon
from harness.surfaces import GrpcSurface, RestSurface
from torchd_archiver.packing import PackRequest, pack

MODEL = ROOT / "tests/models/custom_metrics/handler.py"
METRICS_YAML = ROOT / "tests/server/golden_metrics/metrics.yaml"


@contextmanager
def torchserve(
    folder: Path, *keys: str, environment: dict[str, str] | None = None, make: type[Daemon] = Daemon
) -> Iterator[Daemon]:
    """TorchServe with the model `mm` on one worker, and these lines in config.properties."""
    store = folder / "store"
    store.mkdir()
    pack(PackRequest("mm", handler=str(MODEL), version="1.0", export_path=store))
    daemon = make(folder, store=store, models=["mm=mm.mar"], command="torchserve")
    daemon.environment |= environment or {}
    config = folder / "config.properties"
    config.write_text(config.read_text() + "\n".join(["default_workers_per_model=1", *keys, ""]))
    with daemon:
        yield daemon


def page(daemon: Daemon, query: str = "") -> str:
    with RestSurface(daemon) as rest:
        answer = rest.request("GET", f"/metrics{query}", port="metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return answer.body.decode()


def walk(daemon: Daemon) -> None:
    """One prediction over each surface, and what goes wrong over REST."""
    with RestSurface(daemon) as rest, GrpcSurface(daemon) as grpc_surface:
        assert rest.predict("mm", b'{"a": 1}').json() == {"ok": 1}
        assert grpc_surface.predict("mm", b"x").json() == {"ok": 1}
        assert rest.request("GET", '/predictions/nope?secret="x').status == 404
        assert rest.request("POST", "/models", port="management").status == 405
        refused = grpc_surface.predict("nope", b"x").error
        assert refused is not None
        assert refused.code == "NOT_FOUND"
