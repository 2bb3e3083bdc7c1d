"""Both clients against a real server: what they send, what they give back, when they end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from clients.fake_server import OPTIONS, SECONDS, FakeServer, status
from grpc_health.v1.health_pb2 import HealthCheckResponse

from torchd_clients import AsyncClient, Client
from torchd_clients.errors import DeadlineExceeded, HandlerFailed, ModelNotFound, Unavailable
from torchd_protos.management_pb2 import ModelDescription

Connect = Callable[..., Any]


def test_a_bare_value_is_the_part_that_handlers_look_for_first(client: Client) -> None:
    assert client.predict("echo", b"\x00\xff") == b"data=\x00\xff"


def test_parts_keep_their_names_and_text_becomes_utf_8(client: Client) -> None:
    assert client.predict("echo", {"first": "é", "second": b"2"}) == "first=é&second=2".encode()


def test_a_request_names_its_version_or_none(client: Client, server: FakeServer) -> None:
    client.predict("echo", b"", version="2.0")
    client.predict("echo", b"")
    assert [call.request.model_version for call in server.received] == ["2.0", ""]


def test_every_call_has_a_deadline_even_if_none_was_asked_for(client: Client, server: FakeServer) -> None:
    client.predict("echo", b"")
    client.predict("echo", b"", timeout=10)
    client.register("bert.mar")
    default, own, register = (call.remaining for call in server.received)
    assert [round(seconds, -1) for seconds in (default, own, register)] == [60, 10, 300]  # gRPC rounds them up a little


def test_metadata_of_the_client_and_of_the_call_travel_together(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address, metadata={"Authorization": "Bearer abc"})
    client.predict("echo", b"", metadata=[("x-request-id", "17"), ("trace-bin", b"\x00\x01")])
    sent = server.received[0].metadata
    assert (sent["authorization"], sent["x-request-id"], sent["trace-bin"]) == ("Bearer abc", "17", b"\x00\x01")


def test_one_connection_serves_every_call_to_an_address(client: Client, server: FakeServer) -> None:
    """Field row 43: a channel made for each call is four times slower."""
    client.predict("echo", b"")
    client.describe("bert")
    client.ping()
    assert len({call.peer for call in server.received}) == 1


def test_threads_share_one_client(server: FakeServer) -> None:
    with Client(server.address, server.address, channel_options=OPTIONS) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.predict("echo", str(n)), range(20)))
    assert answers == [b"data=%d" % n for n in range(20)]
    assert len({call.peer for call in server.received}) == 1


def test_a_message_over_grpc_s_own_four_megabytes_passes(server: FakeServer, connect: Connect) -> None:
    """Field row 44, on the side of the client: an answer of 4 MiB and more is accepted."""
    part = b"x" * (3 * 2**20)
    client = connect(server.address)
    with pytest.raises(Exception, match="larger than max"):  # the fake keeps gRPC's default
        client.predict("echo", {"a": part, "b": part})
    server.models["large"] = [ModelDescription(model_name="large", customized_metadata="x" * (5 * 2**20))]
    assert len(client.describe("large")[0].customized_metadata) == 5 * 2**20


def test_a_stream_gives_its_chunks_in_order(client: Client) -> None:
    assert list(client.stream("echo", b"")) == [b"first", b"second"]


def test_closing_a_stream_cancels_the_call(client: Client, server: FakeServer) -> None:
    chunks = client.stream("endless", b"")
    assert next(chunks) == b"first"
    assert not server.left.is_set()
    chunks.close()
    assert server.left.wait(SECONDS)


def test_a_stream_that_fails_gives_what_came_before(client: Client) -> None:
    chunks = client.stream("breaks", b"")
    assert next(chunks) == b"first"
    with pytest.raises(HandlerFailed, match="Prediction failed"):
        next(chunks)


def test_a_status_inside_an_answer_is_an_error_too(client: Client, server: FakeServer) -> None:
    server.status_in_answer = status(grpc.StatusCode.UNKNOWN, "HANDLER_ERROR", "step 3 failed")
    with pytest.raises(HandlerFailed, match="step 3 failed") as caught:
        client.predict("echo", b"")
    assert caught.value.reason == "HANDLER_ERROR"


def test_a_deadline_ends_the_call_on_both_sides(client: Client, server: FakeServer) -> None:
    with pytest.raises(DeadlineExceeded, match=rf"no answer from {server.address} within 0.2 s"):
        client.predict("slow", b"", timeout=0.2)
    assert server.left.wait(SECONDS)


def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    async def cancel_once_received() -> None:
        async with AsyncClient(server.address, server.address, channel_options=OPTIONS) as client:
            stream = client.stream("endless", b"")
            assert await anext(stream) == b"first"
            second = asyncio.ensure_future(anext(stream))
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert await asyncio.to_thread(server.left.wait, SECONDS)

    asyncio.run(cancel_once_received())


def test_register_sends_what_was_given_and_leaves_out_the_rest(client: Client, server: FakeServer) -> None:
    change = client.register("bert.mar", model_name="b", initial_workers=2, batch_size=4, startup_timeout=9)
    assert (change.model_name, change.ready_workers, change.done) == ("b", 2, True)
    sent = {field.name: value for field, value in server.received[0].request.ListFields()}
    assert sent == {
        "url": "bert.mar",
        "model_name": "b",
        "initial_workers": 2,
        "batch_size": 4,
        "startup_timeout": 9,
        "synchronous": True,
    }


def test_scaling_to_zero_says_zero_and_not_nothing(client: Client, server: FakeServer) -> None:
    client.scale("bert", 0)
    request = server.received[0].request
    assert request.HasField("min_worker")
    assert request.min_worker == 0


def test_scale_passes_bounds_and_version(client: Client, server: FakeServer) -> None:
    change = client.scale("bert", 1, 3, version="2.0", synchronous=False)
    assert (change.model_version, change.done) == ("2.0", False)
    assert server.received[0].request.max_worker == 3


def test_list_follows_the_pages_to_the_last(client: Client, server: FakeServer) -> None:
    server.models = {name: [ModelDescription(model_name=name)] for name in "abcde"}
    assert [summary.model_name for summary in client.list()] == list("abcde")
    assert [call.request.next_page_token for call in server.received] == [0, 2, 4]


def test_describe_gives_typed_versions(client: Client, server: FakeServer) -> None:
    assert [model.model_version for model in client.describe("bert", "all")] == ["1.0"]
    assert server.received[0].request.model_version == "all"


def test_set_default_and_unregister_give_the_version_they_changed(client: Client) -> None:
    assert client.set_default("bert", "2.0").model_version == "2.0"
    assert client.unregister("bert", "1.0").model_version == "1.0"


def test_ping_gives_the_word_of_the_document(client: Client, server: FakeServer) -> None:
    assert client.ping() == "Healthy"
    server.health = "Unhealthy"
    assert client.ping() == "Unhealthy"


@pytest.mark.parametrize(("model", "version", "service"), [("bert", None, "bert"), ("bert", "2.0", "bert/2.0")])
def test_wait_ready_comes_back_when_the_model_turns_ready(
    client: Client, server: FakeServer, model: str, version: str | None, service: str
) -> None:
    events = []

    def turn_ready() -> None:
        server.watched.wait(SECONDS)
        events.append("ready")
        server.set(service, HealthCheckResponse.SERVING)

    with ThreadPoolExecutor(1) as pool:
        turned = pool.submit(turn_ready)
        client.wait_ready(model, version=version, timeout=SECONDS)
        assert events == ["ready"]
        turned.result()


def test_wait_ready_waits_for_a_daemon_that_is_still_to_start(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody, ThreadPoolExecutor(1) as pool:
        port = nobody.getsockname()[1]
        client = connect(f"127.0.0.1:{port}")
        waiting = pool.submit(client.wait_ready, timeout=SECONDS)
        nobody.accept()[0].close()  # the client has tried
        nobody.close()
        server = FakeServer(port)
        waiting.result(SECONDS)
        server.stop()


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (HealthCheckResponse.NOT_SERVING, "model 'bert' at .* was not ready within 0.2 s"),
        (None, "model 'bert' was not registered at .* within 0.2 s"),
    ],
)
def test_wait_ready_says_what_it_waited_for(client: Client, server: FakeServer, health: int | None, said: str) -> None:
    if health is not None:
        server.set("bert", health)
    with pytest.raises(DeadlineExceeded, match=said):
        client.wait_ready("bert", timeout=0.2)


def test_wait_ready_says_that_no_daemon_came(connect: Connect, free_address: str) -> None:
    with pytest.raises(DeadlineExceeded, match=rf"no daemon answered at {free_address} within 0.2 s.*torchd serve"):
        connect(free_address).wait_ready(timeout=0.2)


def test_without_a_daemon_the_error_names_the_address_and_the_way_out(connect: Connect, free_address: str) -> None:
    with pytest.raises(Unavailable, match=rf"no daemon answers at {free_address}; .*torchd serve") as caught:
        connect(free_address).predict("bert", b"")
    assert type(caught.value) is Unavailable
    assert caught.value.address == free_address


def test_a_proxy_in_the_environment_is_not_asked_for_loopback(
    server: FakeServer, connect: Connect, free_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{free_address}")
    assert connect(server.address).predict("echo", b"1") == b"data=1"


def test_a_client_goes_on_after_an_error(client: Client, server: FakeServer) -> None:
    server.failure = status(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "Model not found: echo")
    with pytest.raises(ModelNotFound):
        client.predict("echo", b"")
    server.failure = None
    assert client.predict("echo", b"1") == b"data=1"


def test_closing_a_client_ends_the_calls_of_other_threads(server: FakeServer) -> None:
    client = Client(server.address, server.address, channel_options=OPTIONS)
    received = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for _ in client.stream("endless", b""):
                received.set()
        except Exception as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert received.wait(SECONDS)
    client.close()
    reader.join(SECONDS)
    assert [type(error).__name__ for error in failed] == ["Cancelled"]


def test_importing_the_package_or_its_commands_imports_no_grpc() -> None:
    check = (
        "import sys, torchd_clients, torchd_clients.cli; print(sorted({'grpc', 'rich', 'google'} & set(sys.modules)))"
    )
    path = repr([entry for entry in sys.path if entry])
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path}; {check}"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
