"""Triton's gRPC client, as it comes from PyPI, against the Open Inference Protocol: `triton_grpc.py HOST:PORT`."""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-5, 5], np.int16),
    "INT32": np.array([[-1], [1]], np.int32),
    "INT64": np.array([2**62], np.int64),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([65535], np.uint16),
    "UINT32": np.array([2**32 - 1], np.uint32),
    "UINT64": np.array([2**64 - 1], np.uint64),
    "FP16": np.array([0.5, -2.0], np.float16),
    "FP32": np.random.default_rng(0).random((3, 4), np.float32),
    "FP64": np.array([0.1, np.inf, np.nan]),
    "BYTES": np.array([b"\xff\x00", b"text"], np.object_),
    "BF16": np.array([1.0, -0.5], np.float32),
}


def inputs(name):
    tensor = triton.InferInput(name.lower(), ARRAYS[name].shape, name)
    tensor.set_data_from_numpy(ARRAYS[name])
    return tensor


def main(address):
    with triton.InferenceServerClient(address) as client:
        describe(client)
        infer(client)
        typed(client)
        errors(client)
        stream(client)


def describe(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tensors")
    assert client.is_model_ready("tensors", "1.0")
    server = client.get_server_metadata()
    assert server.name == "torchd"
    assert "binary_tensor_data" in server.extensions
    model = client.get_model_metadata("tensors")
    assert (model.name, list(model.versions), model.platform) == ("tensors", ["1.0"], "pytorch")
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [("fp32", "FP32", [-1, 4])]
    assert [each.name for each in model.outputs] == ["fp32_out"]
    [row] = client.get_model_repository_index().models
    assert (row.name, row.version, row.state) == ("tensors", "1.0", "READY")


def infer(client):
    result = client.infer("tensors", [inputs(name) for name in ARRAYS], request_id="42")
    for name, array in ARRAYS.items():
        back = result.as_numpy(f"{name.lower()}_out")
        assert back.dtype == array.dtype, name
        if name == "BYTES":
            assert list(back) == [b"\xff\x00", b"text"]
        else:
            np.testing.assert_array_equal(back, array)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("42", "tensors", "1.0")
    assert response.parameters["batch"].bool_param
    assert len(response.raw_output_contents) == len(ARRAYS)

    wanted = [triton.InferRequestedOutput("int8_out"), triton.InferRequestedOutput("bool_out")]
    result = client.infer("tensors", [inputs("BOOL"), inputs("FP32"), inputs("INT8")], "1.0", outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["int8_out", "bool_out"]

    plain = client.infer("tensors", [inputs("INT8")], parameters={"do": "text"})
    assert list(plain.as_numpy("output-0")) == [b"just text"]
    seen = client.infer("tensors", [inputs("INT8")], parameters={"do": "seen"}, request_id="9")
    assert b"'data': [-128, 127]" in seen.as_numpy("seen")[1]


def typed(client):
    """The same elements in their typed fields, as other clients send them."""
    pb = triton.service_pb2
    request = pb.ModelInferRequest(model_name="tensors", id="typed")
    fields = {
        "BOOL": ("bool_contents", [True, False]),
        "INT8": ("int_contents", [-128, 127]),
        "INT16": ("int_contents", [-5]),
        "INT32": ("int_contents", [7]),
        "INT64": ("int64_contents", [2**62]),
        "UINT8": ("uint_contents", [255]),
        "UINT16": ("uint_contents", [65535]),
        "UINT32": ("uint_contents", [2**32 - 1]),
        "UINT64": ("uint64_contents", [2**64 - 1]),
        "FP32": ("fp32_contents", [0.5]),
        "FP64": ("fp64_contents", [0.1]),
        "BYTES": ("bytes_contents", [b"\xff"]),
    }
    for name, (field, values) in fields.items():
        tensor = request.inputs.add(name=name.lower(), datatype=name, shape=[len(values)])
        getattr(tensor.contents, field).extend(values)
    response = client._client_stub.ModelInfer(request)
    assert not response.raw_output_contents
    for output, (field, values) in zip(response.outputs, fields.values(), strict=True):
        assert list(getattr(output.contents, field)) == values, output.name


def errors(client):
    def code(*arguments, **named):
        try:
            client.infer(*arguments, **named)
        except InferenceServerException as error:
            return error.status().removeprefix("StatusCode.")
        raise AssertionError("no error")

    small = inputs("INT8")
    assert code("nobody", [small]) == "NOT_FOUND"
    assert code("tensors", [small], "9") == "NOT_FOUND"
    assert code("", [small]) == "INVALID_ARGUMENT"
    assert code("tensors", [small], outputs=[triton.InferRequestedOutput("other")]) == "INVALID_ARGUMENT"
    assert code("tensors", [triton.InferInput("a", [2], "INT8")]) == "INVALID_ARGUMENT"
    assert code("tensors", [small], parameters={"do": "fail"}) == "UNKNOWN"
    assert code("tensors", [small], parameters={"do": "stream"}) == "UNIMPLEMENTED"
    pb = triton.service_pb2
    for tensor in (
        {"name": "a", "datatype": "FP16", "shape": [1]},
        {"name": "a", "datatype": "INT4", "shape": [1]},
        {"name": "a", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}},
        {"name": "a", "datatype": "INT8", "shape": [-1], "contents": {"int_contents": [3]}},
    ):
        try:
            client._client_stub.ModelInfer(pb.ModelInferRequest(model_name="tensors", inputs=[tensor]))
        except triton._client.grpc.RpcError as error:
            assert error.code().name == "INVALID_ARGUMENT", error
        else:
            raise AssertionError(tensor)


def stream(client):
    came = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)))
    for number in range(20):
        client.async_stream_infer("tensors", [inputs("INT8")], request_id=str(number))
    client.async_stream_infer("tensors", [inputs("INT8")], request_id="bad", parameters={"do": "fail"})
    client.async_stream_infer("tensors", [inputs("INT8")], request_id="chunks", parameters={"do": "stream"})
    for number in range(20):
        result, error = came.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
    result, error = came.get(timeout=30)
    assert error is not None
    assert "handler does not like it" in error.message()
    chunks = [came.get(timeout=30) for _ in range(3)]
    assert [int(result.as_numpy("number")[0]) for result, _ in chunks] == [0, 1, 2]
    finals = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in chunks]
    assert finals == [False, False, True]
    client.stop_stream()


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
