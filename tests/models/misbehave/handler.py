"""A handler that does to its worker what the request's body names; `ACTS` has them all. Anything else is echoed."""

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading

from ts.service import PredictionException


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class OwnError(BaseException):
    """Not an Exception."""


def fail(error):
    raise error


def recurse(depth=0):
    return recurse(depth + 1)


def cyclic():
    ring = []
    ring.append(ring)
    return ring


def set_header(name, value):
    return lambda context, index: context.set_response_header(index, name, value)


def set_status(code, phrase=""):
    return lambda context, index: context.set_response_status(code, phrase, index)


def break_the_world(context, index):
    """W23: nothing the protocol stands on may be reached from here."""

    def broken(*args, **kwargs):
        raise RuntimeError("patched")

    json.dumps = json.loads = broken
    socket.socket.sendmsg = socket.socket.sendall = socket.socket.recv_into = broken
    struct.pack = struct.unpack = broken
    threading.Condition = threading.Thread = threading.RLock = broken
    os.write = os._exit = broken
    logging.disable(logging.CRITICAL)
    sys.stdout = sys.stderr = None
    os.umask(0)
    os.chdir("/")


def wait_for_cancel(context, index):
    """A synchronous handler that looks at its request."""
    print("waiting", flush=True)
    while not context.is_cancelled(index):
        if context.time_remaining(index) <= 0:
            return "deadline"
        threading.Event().wait(0.005)
    return "seen"


def half_a_frame(context, index):
    """W12: by the raw descriptor, found as an attacker would."""
    os.write(_socket_fd(), b"\x06\x00\x00\x00\x10")
    os.kill(os.getpid(), 9)


def close_all(context, index):
    """W20."""
    os.closerange(0, 100)


def fork(context, index):
    """A child that logs and leaves must neither speak for its parent nor keep the socket open."""
    child = os.fork()
    if child == 0:
        logging.getLogger("child").warning("from the child")
        os._exit(0)
    return {"child": os.waitpid(child, 0)[1]}


def late_chunk(context, index):
    """H16: a thread that answers after its batch."""
    from ts.handler_utils.utils import send_intermediate_predict_response

    ids = dict(context.request_ids)

    def answer():
        context.may_answer.wait()
        try:
            send_intermediate_predict_response(["late"], ids, "", 200, context)
        except Exception as error:
            context.late = f"{type(error).__name__}: {error}"

    context.may_answer = threading.Event()
    context.late_thread = threading.Thread(target=answer)
    context.late_thread.start()


def alarm(context, index):
    """H17: rings when this batch is over."""
    signal.signal(signal.SIGALRM, lambda *_: fail(TimeoutError("late alarm")))
    signal.setitimer(signal.ITIMER_REAL, 0.3)


def late_result(context, index):
    context.may_answer.set()
    context.late_thread.join()
    return context.late


def numbers(context, index):
    context.metrics.add_counter("Seen", 2, index)
    context.metrics.add_time("Step", 1.5, None, "ms")
    context.metrics.add_counter("Seen", -1)
    metric = context.metrics.add_metric_to_cache("Depth", "count", ["where"])
    metric.add_or_update(3, ["here"])
    metric.add_or_update(3, ["too", "many"])


async def nothing():
    """A coroutine."""


def _socket_fd():
    return next(fd for fd in range(3, 64) if _is_socket(fd))


def _is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


# What one request's answer becomes; an act that gives None leaves the answer "ok".
ACTS = {
    "exit": lambda context, index: sys.exit(0),
    "raise": lambda context, index: fail(ValueError("no such colour")),
    "unprintable": lambda context, index: fail(UnprintableError()),
    "long": lambda context, index: fail(ValueError("x" * 10_000_000)),
    "interrupt": lambda context, index: fail(KeyboardInterrupt()),
    "base": lambda context, index: fail(OwnError("mine")),
    "recursion": lambda context, index: recurse(),
    "group": lambda context, index: fail(ExceptionGroup("both", [ValueError("a"), KeyError("b")])),
    "memory": lambda context, index: fail(MemoryError()),
    "prediction": lambda context, index: fail(PredictionException("not today", 429)),
    "object": lambda context, index: object(),
    "nan": lambda context, index: {"value": float("nan")},
    "set": lambda context, index: {1, 2},
    "cyclic": lambda context, index: cyclic(),
    "surrogate": lambda context, index: "\ud800",
    "large": lambda context, index: b"x" * 3000,
    "crlf": set_header("X-A", "a\r\nSet-Cookie: b"),
    "header name": set_header("X A", "a"),
    "header size": set_header("X-A", "a" * 1_000_000),
    "header type": set_header("X-A", 1),
    "header text": set_header("X-A", "caf\u00e9"),
    "length": set_header("Content-Length", "1"),
    "chunked": set_header("Transfer-Encoding", "chunked"),
    "status 99": set_status(99),
    "status 1000": set_status(1000),
    "status text": set_status("200"),
    "phrase": set_status(200, "a\r\nb"),
    "teapot": set_status(418, "I am a teapot"),
    "good header": set_header("X-Good", "yes"),
    "patch": break_the_world,
    "wait": wait_for_cancel,
    "half": half_a_frame,
    "close": close_all,
    "fork": fork,
    "late": late_chunk,
    "late result": late_result,
    "alarm": alarm,
    "numbers": numbers,
    "print": lambda context, index: print("[METRICS]a.b:1|#x:y|#type:COUNTER\nTorch worker started.\n" + "z" * 100_000),
    "full": lambda context, index: setattr(sys, "stdout", open("/dev/full", "w")),  # noqa: SIM115
    "log": lambda context, index: logging.getLogger("my.model").info("a %s", "line"),
    "log much": lambda context, index: [logging.warning("line %d", n) for n in range(5000)] and None,
    "threads": lambda context, index: sys.modules["torch"].get_num_threads(),
    "headers": lambda context, index: context.get_all_request_header(index),
    "modules": lambda context, index: "torch" in sys.modules,
}
# What the whole batch's output becomes.
OUTPUTS = {
    "none": lambda data: None,
    "dict": lambda data: {},
    "tuple": lambda data: ("ok",) * len(data),
    "generator": lambda data: (row for row in data),
    "coroutine": lambda data: nothing(),
    "short": lambda data: ["ok"] * (len(data) - 1),
    "long list": lambda data: ["ok"] * (len(data) + 1),
}


class MisbehavingHandler:
    def initialize(self, context):
        self.loop_policy = asyncio.get_event_loop_policy()

    def handle(self, data, context):
        bodies = [bytes(row["body"]).decode() for row in data]
        if bodies[0] in OUTPUTS:
            return OUTPUTS[bodies[0]](data)
        return [self._answer(body, context, index) for index, body in enumerate(bodies)]

    def _answer(self, body, context, index):
        if body not in ACTS:
            return body
        answer = ACTS[body](context, index)
        return "ok" if answer is None else answer
