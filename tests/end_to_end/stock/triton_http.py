"""Triton's HTTP client, as it comes from PyPI, against the Open Inference Protocol: `triton_http.py HOST:PORT`."""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ARRAY = np.random.default_rng(0).random((3, 4), np.float32)
TEXTS = np.array([b"\xff\x00", b"text"], np.object_)


def tensor(name, array, datatype, binary=True):
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def main(address):
    client = triton.InferenceServerClient(address)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tensors")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["name"] == "torchd"
        model = client.get_model_metadata("tensors", "1.0")
        assert model["inputs"] == [{"name": "fp32", "datatype": "FP32", "shape": [-1, 4]}]
        [row] = client.get_model_repository_index()
        assert (row["name"], row["state"]) == ("tensors", "READY")

        for binary in (True, False):
            for version in ("", "1.0"):
                result = client.infer("tensors", [tensor("a", ARRAY, "FP32", binary)], version, request_id="1")
                np.testing.assert_array_equal(result.as_numpy("a_out"), ARRAY)
        mixed = [tensor("a", ARRAY, "FP32"), tensor("b", np.array([1, 2]), "INT64", False), tensor("c", TEXTS, "BYTES")]
        result = client.infer("tensors", mixed, request_id="42")
        response = result.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("42", "tensors", "1.0")
        np.testing.assert_array_equal(result.as_numpy("b_out"), [1, 2])
        assert list(result.as_numpy("c_out")) == [b"\xff\x00", b"text"]
        half = np.array([0.5, 2.0], np.float16)
        result = client.infer("tensors", [tensor("h", half, "FP16")])
        np.testing.assert_array_equal(result.as_numpy("h_out"), half)

        wanted = [triton.InferRequestedOutput("b_out", binary_data=False)]
        result = client.infer("tensors", mixed, outputs=wanted)
        assert [output["name"] for output in result.get_response()["outputs"]] == ["b_out"]
        assert result.get_response()["outputs"][0]["data"] == [1, 2]

        for arguments, status, words in (
            (("nobody", mixed), "404", "Model not found: nobody"),
            (("tensors", mixed, "9"), "404", "does not exist"),
        ):
            try:
                client.infer(*arguments)
            except InferenceServerException as error:
                assert error.status() == status, error
                assert words in error.message(), error
            else:
                raise AssertionError(arguments)
    finally:
        client.close()


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
