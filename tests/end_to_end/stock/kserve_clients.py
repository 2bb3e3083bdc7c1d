"""KServe's inference clients, as they come from PyPI: `kserve_clients.py GRPC_HOST:PORT HTTP_URL`."""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

ARRAY = np.array([[1.5, 2.5], [3.5, 4.5]], np.float32)


def request(raw, datatype="FP32", array=ARRAY):
    tensor = InferInput("a", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=raw)
    return InferRequest(model_name="tensors", infer_inputs=[tensor], request_id="7")


async def main(grpc_address, url):
    await over_grpc(grpc_address)
    await over_rest(url)


async def over_grpc(address):
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("tensors")
        for raw in (True, False):
            response = await client.infer(request(raw))
            assert (response.id, response.model_name) == ("7", "tensors")
            np.testing.assert_array_equal(response.outputs[0].as_numpy(), ARRAY)
        half = ARRAY.astype(np.float16)
        response = await client.infer(request(True, "FP16", half))
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), half)
        typed = InferInput("t", [2], "INT64", data=[5, 6])
        response = await client.infer(InferRequest(model_name="tensors", infer_inputs=[typed]))
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), [5, 6])
        try:
            await client.infer(InferRequest(model_name="nobody", infer_inputs=[typed]))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
        else:
            raise AssertionError("no error")


async def over_rest(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "tensors")
    for raw in (True, False):
        response = await client.infer(url, request(raw), model_name="tensors")
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), ARRAY)
    try:
        await client.infer(url, request(False), model_name="nobody")
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 404
        assert "Model not found: nobody" in str(error)
    else:
        raise AssertionError("no error")
    await client.close()

    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await first.is_server_live(url)
    assert await first.is_model_ready(url, "tensors")
    answer = await first.infer(url, {"inputs": []}, model_name="tensors")
    assert answer["outputs"] == []
    await first.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    print("ok")
