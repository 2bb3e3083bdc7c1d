"""Service envelopes: in a worker, for every request of a batch, with the shapes of TorchServe's answers."""

from __future__ import annotations

import json

import pytest

from torchd_protos.frames import Batch, Call, Failure, Header, Item, Loaded, Part, Reply
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.device import ComputeThreads
from torchd_workers.headers import Headers
from torchd_workers.loader import HandlerNotUsable, load_handler

pytest.importorskip("numpy")
from torchd_workers.handlers.envelopes.base import BaseEnvelope
from torchd_workers.handlers.envelopes.body import BodyEnvelope
from torchd_workers.handlers.envelopes.json import JSONEnvelope
from torchd_workers.handlers.envelopes.kserve import KServeEnvelope
from torchd_workers.handlers.envelopes.kservev2 import KServev2Envelope


def context_of(*headers):
    context = Context("m", "/nowhere", {"model": {"modelName": "m", "modelVersion": "2.0"}}, 8, None)
    processors = [RequestProcessor(Headers(pairs.items())) for pairs in headers]
    context.begin({index: f"r{index}" for index in range(len(headers))}, processors, [None] * len(headers))
    return context


def asked(envelope, handle, *bodies, headers=None):
    """What the envelope answers to a batch, and what the handler was called with."""
    calls = []

    def remember(data, context):
        calls.append(data)
        return handle(data, context)

    headers = headers or [{} for _ in bodies]
    return envelope(remember).handle([{"body": body} for body in bodies], context_of(*headers)), calls


def double(data, context):
    return [row * 2 for row in data]


def test_body_gives_the_bodies_alone():
    assert asked(BodyEnvelope, double, 1, 2) == ([2, 4], [[1, 2]])


def test_json_joins_the_instances_of_a_batch_and_parts_the_predictions():
    answers, calls = asked(JSONEnvelope, double, {"instances": [1]}, b'{"instances": [2, 3]}')
    assert answers == ['{"predictions": [2]}', '{"predictions": [4, 6]}']
    assert calls == [[1, 2, 3]]


def test_json_reads_base64_alone_and_in_a_field():
    answers, calls = asked(
        JSONEnvelope, lambda data, _: ["x"] * 2, {"instances": [{"b64": "YQ=="}, {"a": {"b64": "YQ=="}}]}
    )
    assert calls == [[b"a", {"a": b"a"}]]
    assert answers == ['{"predictions": ["x", "x"]}']


def test_kserve_answers_every_request_of_a_batch():
    """Section 13, 20: TorchServe reads the first only."""
    answers, calls = asked(KServeEnvelope, double, {"instances": [1]}, {"instances": [2, 3]})
    assert answers == [{"predictions": [2]}, {"predictions": [4, 6]}]
    assert calls == [[1, 2, 3]]


def test_kserve_leaves_the_form_of_one_requests_answer_to_the_handler():
    assert asked(KServeEnvelope, lambda data, _: ["all"], {"instances": [1, 2]})[0] == [{"predictions": ["all"]}]


def test_kserve_parts_explanations_from_predictions():
    def handle(data, context):
        return [context.get_request_header(0, "explain")] * len(data)

    headers = [{}, {"explain": "True"}, {}]
    answers, calls = asked(KServeEnvelope, handle, *[{"instances": [1]}] * 3, headers=headers)
    assert answers == [{"predictions": [None]}, {"explanations": ["True"]}, {"predictions": [None]}]
    assert calls == [[1]] * 3


def tensor(name, data, datatype="FP32", shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def test_kservev2_answers_every_request_of_a_batch_with_its_own_id():
    """Section 13, 20: TorchServe reads the first only."""
    bodies = [{"id": "mine", "inputs": [tensor("a", [1.0, 2.0])]}, {"inputs": [tensor("b", [3.0])]}]
    answers, calls = asked(KServev2Envelope, lambda data, _: [row["data"] for row in data], *bodies)
    assert len(calls) == 1
    common = {"model_name": "m", "model_version": "2.0"}
    outputs = [
        {"name": "a", "datatype": "FP64", "data": [1.0, 2.0], "shape": [2]},
        {"name": "b", "datatype": "FP64", "data": [3.0], "shape": [1]},
    ]
    assert answers == [
        {"id": "mine", **common, "outputs": outputs[:1]},
        {"id": "r1", **common, "outputs": outputs[1:]},
    ]


def test_kservev2_gives_numbers_in_their_shape_and_bytes_as_they_came():
    body = {
        "inputs": [
            tensor("n", [1, 2, 3, 4], "INT64", [2, 2]),
            tensor("one", ["text"], "BYTES"),
            tensor("two", ["a", "b"], "BYTES"),
        ]
    }
    (answer,), (rows,) = asked(KServev2Envelope, lambda data, _: [1, "x", [True, False]], json.dumps(body).encode())
    assert [row["data"] for row in rows] == [[[1, 2], [3, 4]], "text", ["a", "b"]]
    assert [(output["name"], output["datatype"], output["data"]) for output in answer["outputs"]] == [
        ("n", "INT64", [1]),
        ("one", "BYTES", ["x"]),
        ("two", "BOOL", [True, False]),
    ]


def test_kservev2_calls_once_for_each_request_of_several_inputs():
    """A handler of two inputs may answer with one output; whose it is must stay clear."""
    bodies = [{"inputs": [tensor("a", [n]), tensor("b", [n])]} for n in (1.0, 2.0)]

    def add(data, context):
        context.set_response_status(201 + int(data[0]["data"][0]), idx=0)
        return [data[0]["data"][0] + data[1]["data"][0]]

    context = context_of({}, {})
    answers = KServev2Envelope(add).handle([{"body": body} for body in bodies], context)
    assert [answer["outputs"][0]["data"] for answer in answers] == [[2.0], [4.0]]
    assert [context.get_response_status(row)[0] for row in (0, 1)] == [202, 203]


def test_kservev2_has_no_more_outputs_than_inputs():
    """Section 0, row 11."""
    with pytest.raises(ValueError, match="the handler returned 2 for the inputs a; one output for each"):
        asked(KServev2Envelope, lambda data, _: [1, 2], {"inputs": [tensor("a", [1.0])]})


@pytest.mark.parametrize(
    ("envelope", "body", "message"),
    [
        (JSONEnvelope, b"{", "the request's body is no JSON"),
        (JSONEnvelope, {"instances": 3}, "must be an object with a list 'instances'"),
        (JSONEnvelope, {"instances": [{"b64": "x"}]}, "no base64 in it"),
        (KServeEnvelope, {"inputs": []}, "must be an object with a list 'instances'"),
        (KServev2Envelope, [1], "must be an object with a list 'inputs'"),
        (KServev2Envelope, {"inputs": [{"name": "a"}]}, "an input of the request lacks 'data'"),
        (KServev2Envelope, {"inputs": [tensor("a", [1, 2], "INT8", [3])]}, "does not fit together"),
        (KServev2Envelope, {"inputs": [tensor("a", [1, [2]], "INT8")]}, "does not fit together"),
    ],
)
def test_what_does_not_fit_the_format_is_the_clients_mistake(envelope, body, message):
    with pytest.raises(Exception, match=message) as caught:
        asked(envelope, double, body)
    assert caught.value.error_code == 400


def test_an_envelope_of_ones_own_overrides_two_methods():
    with pytest.raises(NotImplementedError, match="BaseEnvelope does not override parse_input"):
        asked(BaseEnvelope, double, 1)


HANDLER = """
def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"described": True}]
    return [{"seen": row} for row in data]
"""


def test_a_worker_opens_the_envelope_that_the_model_is_registered_with(tmp_path):
    """The name comes with Load; the entry point is wrapped after it was initialized."""
    (tmp_path / "enveloped.py").write_text(HANDLER)
    context = Context("m", str(tmp_path), {"model": {}}, 1, None)
    handler = load_handler("enveloped.py", context, ComputeThreads(0), "kserve")
    context.begin({0: "r"}, [RequestProcessor({})], [])
    assert handler([{"body": b'{"instances": [1]}'}]) == [{"predictions": [{"seen": 1}]}]
    context.begin({0: "r"}, [RequestProcessor({"describe": "True"})], [])
    assert handler([{}]) == [{"described": True}]


def test_a_mistake_behind_an_envelope_is_nobody_elses(start, tmp_path):
    """Two inputs of one request and a request of none: as many rows as requests, and yet no row is the other's."""
    pytest.importorskip("torch")
    source = "import torch\n\n\nclass M(torch.nn.Module):\n    def forward(self, x):\n        return x * 2\n"
    (tmp_path / "model.py").write_text(source)
    worker = start(tmp_path)
    manifest = json.dumps({"model": {"modelName": "m", "modelFile": "model.py"}})
    assert worker.load("densenet_handler", manifest_json=manifest, service_envelope="kserve") == Loaded()
    first, second = worker.run(b'{"instances": ["no", "tensor"]}', b'{"instances": []}')
    assert isinstance(first, Failure)
    assert isinstance(second, Failure)
    assert first.status == second.status == 400


@pytest.mark.parametrize(
    ("source", "envelope", "message"),
    [
        (HANDLER, "soap", "service_envelope 'soap' is unknown; it may be body, json, kserve, kservev2"),
    ],
)
def test_an_envelope_that_cannot_be_is_told_while_loading(tmp_path, source, envelope, message):
    name = f"enveloped_{envelope}"
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(HandlerNotUsable, match=message):
        load_handler(name, Context("m", str(tmp_path), None, 1, None), ComputeThreads(0), envelope)


ASYNC_HANDLER = """\
import asyncio


class Handler:
    def initialize(self, context):
        self.waiting = []

    async def handle(self, data, context):
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append(mine)
        if len(self.waiting) == 2:  # both requests are on their way at once
            for other in self.waiting:
                other.set_result(None)
        await mine
        return [row["data"] if isinstance(row, dict) else row for row in data]
"""


@pytest.mark.parametrize(
    ("envelope", "bodies", "found"),
    [
        ("body", [b'"a"', b'"b"'], ["a", "b"]),
        ("json", [b'{"instances": [1]}', b'{"instances": [2, 3]}'], [{"predictions": [1]}, {"predictions": [2, 3]}]),
        ("kserve", [b'{"instances": [1]}', b'{"instances": [2, 3]}'], [{"predictions": [1]}, {"predictions": [2, 3]}]),
    ],
)
def test_an_async_handler_has_its_envelope_for_each_request_of_its_own(start, tmp_path, envelope, bodies, found):
    """P05: what an envelope remembers of one request never reaches another that runs beside it."""
    (tmp_path / "handler.py").write_text(ASYNC_HANDLER)
    worker = start(tmp_path)
    assert worker.load(loop="async", service_envelope=envelope) == Loaded()
    worker.send_batch(*bodies)
    answers = sorted((worker.until(Reply) for _ in bodies), key=lambda reply: reply.request)
    assert [json.loads(bytes(answer.body)) for answer in answers] == found


def test_an_async_handler_answers_in_the_open_inference_protocol(start, tmp_path):
    (tmp_path / "handler.py").write_text(ASYNC_HANDLER)
    worker = start(tmp_path)
    assert worker.load(loop="async", service_envelope="kservev2") == Loaded()
    one, two = [tensor("a", [1.0])], [tensor("a", [2.0]), tensor("b", [3.0])]
    worker.send_batch(*(json.dumps({"inputs": inputs}).encode() for inputs in (one, two)))
    answers = sorted((worker.until(Reply) for _ in range(2)), key=lambda reply: reply.request)
    outputs = [[output["data"] for output in json.loads(bytes(answer.body))["outputs"]] for answer in answers]
    assert outputs == [[[1.0]], [[2.0], [3.0]]]


def test_a_request_reaches_the_handler_through_the_envelope_of_load(start, tmp_path):
    (tmp_path / "handler.py").write_text(HANDLER)
    worker = start(tmp_path)
    assert worker.load(service_envelope="kservev2") == Loaded()
    body = json.dumps({"id": "7", "inputs": [tensor("a", [1.0])]}).encode()
    call = Call(request_id="r1", headers=[Header("x", "y")], parts=[Part("body", body=body)])
    worker.send(Batch(1, [Item(1, 60_000, call)]))
    (answer,) = worker.answers()
    assert not isinstance(answer, Failure)
    assert json.loads(bytes(answer.body))["id"] == "7"
