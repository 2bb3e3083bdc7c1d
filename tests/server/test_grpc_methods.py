"""Layers are put around a method once, in their order; the door is asked about every call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc

from torchd_server.surfaces.grpc_methods import Handler, Layer, Methods


def service(name: str, *methods: str) -> grpc.GenericRpcHandler:
    async def behaviour(request: bytes, context: Any) -> bytes:
        return request

    handlers = {method: grpc.unary_unary_rpc_method_handler(behaviour) for method in methods}
    return grpc.method_handlers_generic_handler(name, handlers)


def call(method: str) -> Any:
    return SimpleNamespace(method=method, invocation_metadata=())


def test_each_layer_is_asked_once_and_the_first_is_outermost() -> None:
    asked: list[tuple[str, str]] = []

    def layer(name: str) -> Layer:
        def put(method: str, handler: Handler) -> Handler:
            asked.append((name, method))
            return handler

        return put

    methods = Methods([layer("outer"), layer("inner")])
    methods.add_generic_rpc_handlers([service("a.S", "M")])
    for _ in range(3):
        assert methods.service(call("/a.S/M")) is not None
    assert asked == [("inner", "/a.S/M"), ("outer", "/a.S/M")]


def test_methods_that_do_not_exist_are_not_kept() -> None:
    methods = Methods()
    methods.add_generic_rpc_handlers([service("a.S", "M"), service("b.S", "M")])
    assert methods.service(call("/b.S/M")) is not None
    assert methods.service(call("/c.S/M")) is None
    assert list(methods._ready) == ["/b.S/M"]


def test_the_door_is_asked_each_time_and_before_the_method_is_looked_up() -> None:
    refusal = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    answers: list[Handler | None] = [refusal, None, refusal]
    methods = Methods(door=lambda details: answers.pop(0))
    methods.add_generic_rpc_handlers([service("a.S", "M")])
    assert methods.service(call("/no.S/M")) is refusal
    assert methods.service(call("/a.S/M")) not in (None, refusal)
    assert methods.service(call("/a.S/M")) is refusal
