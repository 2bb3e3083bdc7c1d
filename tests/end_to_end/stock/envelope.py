"""Triton's clients against handlers behind the envelope kservev2: `envelope.py GRPC_HOST:PORT HTTP_HOST:PORT`."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

ROW = np.array([[1.5, 2.0, 3.0]], np.float32)


def tensor(made, array, datatype="FP32"):
    made = made("x", array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def same_for_both(client, made):
    result = client.infer("doubling", [tensor(made, ROW)], request_id="42")
    back = result.as_numpy("x")
    assert back.dtype == np.float32, back.dtype
    assert back.tolist() == [3.0, 4.0, 6.0]  # flat: the envelope's, as TorchServe's
    two = [tensor(made, ROW), made("y", [2], "FP32")]
    two[1].set_data_from_numpy(np.array([7.0, 8.0], np.float32))
    result = client.infer("doubling", two)
    assert result.as_numpy("x").tolist() == [3.0, 4.0, 6.0]
    assert result.as_numpy("y").tolist() == [14.0, 16.0]
    text = client.infer("echo", [tensor(made, np.array([b"hey", b"you"], np.object_), "BYTES")])
    assert list(text.as_numpy("x")) == [b"hey", b"you"]
    # A default handler answers in Python's floats, of 64 bits.
    scores = client.infer("linear", [tensor(made, ROW)]).as_numpy("x")
    assert (scores.dtype, scores.tolist()) == (np.float64, [6.5])
    try:
        client.infer("linear", [tensor(made, np.array([b"hey"], np.object_), "BYTES")])
    except InferenceServerException as error:
        assert "JSON" in error.message(), error
    else:
        raise AssertionError("text went through a linear layer")


def batched(client):
    """Requests that share a call of the handler; Triton's HTTP client may not be used by threads."""
    with ThreadPoolExecutor(8) as pool:
        asked = [np.full((1, 3), number, np.float32) for number in range(16)]
        inputs = [[tensor(triton_grpc.InferInput, row)] for row in asked]
        found = [pool.submit(client.infer, "doubling", each, request_id=str(at)) for at, each in enumerate(inputs)]
        for at, each in enumerate(found):
            assert each.result().get_response().id == str(at)
            assert each.result().as_numpy("x").tolist() == [2.0 * at] * 3


def typed(client):
    """Elements in their typed field, which come back in theirs."""
    pb = triton_grpc.service_pb2
    request = pb.ModelInferRequest(model_name="doubling", id="typed")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([1.5, 2.0, 3.0])
    response = client._client_stub.ModelInfer(request)
    assert (response.id, response.outputs[0].datatype) == ("typed", "FP32")
    assert list(response.outputs[0].contents.fp32_contents) == [3.0, 4.0, 6.0]


def main(grpc_address, http_address):
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        same_for_both(client, triton_grpc.InferInput)
        assert (
            client.infer("doubling", [tensor(triton_grpc.InferInput, ROW)], request_id="42").get_response().id == "42"
        )
        typed(client)
        batched(client)
    client = triton_http.InferenceServerClient(http_address)
    try:
        same_for_both(client, triton_http.InferInput)
    finally:
        client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("ok")
