"""A grpc.aio server that looks at nothing: `python -m benchmarks.bare.grpc_server PORT ok|echo`."""

from __future__ import annotations

import sys

import grpc
import uvloop

# A PredictionResponse that says `ok`.
OK = b"\n\x02ok"


class _Answers(grpc.GenericRpcHandler):
    def __init__(self, is_echo: bool) -> None:
        async def answer(request: bytes, context: object) -> bytes:
            return request if is_echo else OK

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer, None, None)

    def service(self, handler_call_details: object) -> grpc.RpcMethodHandler[bytes, bytes]:
        return self._handler


async def _serve(port: int, is_echo: bool) -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    server.add_generic_rpc_handlers((_Answers(is_echo),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2] == "echo"))
