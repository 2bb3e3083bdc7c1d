"""A handler that does what the request says, so that every fault is one request away: {"do": "segv", "id": ...}.

Standard library only. Each request that runs is appended to the ledger, whose path model-config.yaml holds, with one
write to an O_APPEND file. `gate` in a request is the address of a tests' Gate: the handler comes there and waits.
"""

import ctypes
import json
import logging
import os
import re
import signal
import socket
import stat
import sys
import time

logger = logging.getLogger(__name__)


class Zoo:
    """TorchServe's kind of handler: initialize once, then handle(data, context) for each batch."""

    def initialize(self, context):
        settings = context.model_yaml_config["handler"]
        self.version = context.manifest["model"]["modelVersion"]
        self.ledger = os.open(settings["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.note("load", "-")
        if settings.get("load_gate"):
            wait_at(settings["load_gate"], "load")
        if settings.get("load_error"):
            raise RuntimeError(settings["load_error"])
        if settings.get("load_exit") is not None:
            os._exit(settings["load_exit"])

    def note(self, word, request):
        """One line of the ledger: word id pid version time."""
        os.write(self.ledger, f"{word} {request} {os.getpid()} {self.version} {time.monotonic()}\n".encode())

    def handle(self, data, context):
        wishes = [wish_of(row) for row in data]
        for wish in wishes:
            self.note("run", wish["id"])
        answers = [DEEDS[wish.get("do", "echo")](self, wish, index, context) for index, wish in enumerate(wishes)]
        # A batch of one may answer what no batch should.
        return answers[0].value if isinstance(answers[0], Raw) else answers


class Raw:
    """What `handle` returns as it is, instead of a list with one answer for each request."""

    def __init__(self, value):
        self.value = value


def wish_of(row):
    """The request's JSON, whether the server has decoded it or not."""
    value = row.get("data") or row.get("body")
    return value if isinstance(value, dict) else json.loads(bytes(value) if not isinstance(value, str) else value)


def wait_at(address, name):
    """Comes to a tests' gate, says who is there, and stays until it is let through."""
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect(address)
        gate.sendall(f"{name} {os.getpid()}\n".encode())
        gate.recv(1)


def echo(zoo, wish, index, context):
    return {"id": wish["id"], "pid": os.getpid(), "version": zoo.version, "say": wish.get("say")}


def sleep(zoo, wish, index, context):
    time.sleep(wish["ms"] / 1000)
    return echo(zoo, wish, index, context)


def hold(zoo, wish, index, context):
    wait_at(wish["gate"], wish["id"])
    return echo(zoo, wish, index, context)


def until_cancelled(zoo, wish, index, context):
    """A handler that listens: it leaves as soon as nobody waits for it any more."""
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect(wish["gate"])
        gate.sendall(f"{wish['id']} {os.getpid()}\n".encode())
        while not context.is_cancelled(index):
            time.sleep(0.005)
        zoo.note("told", wish["id"])
    return echo(zoo, wish, index, context)


def stream(zoo, wish, index, context):
    from ts.handler_utils.utils import send_intermediate_predict_response  # the one thing here that is not stdlib

    for number in range(wish["chunks"]):
        chunk = [f"{wish['id']} {number};".encode() + b"x" * wish.get("size", 0)]
        send_intermediate_predict_response(chunk, context.request_ids, "Intermediate", 200, context)
        if wish.get("die_after") == number:
            os.kill(os.getpid(), signal.SIGKILL)
    return f"{wish['id']} end;"


def segv(zoo, wish, index, context):
    ctypes.string_at(0)


def abort(zoo, wish, index, context):
    os.abort()


def fpe(zoo, wish, index, context):
    os.kill(os.getpid(), signal.SIGFPE)


def sys_exit(zoo, wish, index, context):
    sys.exit(wish.get("code", 0))


def os_exit(zoo, wish, index, context):
    os._exit(wish.get("code", 0))


def throw(zoo, wish, index, context):
    raise ValueError(wish.get("say", "as you wish"))


def interrupt(zoo, wish, index, context):
    raise KeyboardInterrupt


def loop(zoo, wish, index, context):
    while True:
        pass


def loop_in_c(zoo, wish, index, context):
    """Holds the GIL: no thread of this process runs any more."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def out_of_memory(zoo, wish, index, context):
    raise MemoryError


def shout(zoo, wish, index, context):
    """Everything TorchServe's server would have taken for orders, and a line without an end."""
    print("[METRICS]Evil.Count:1|#Level:Host|#hostname:h,1", "[PID]1", "Torch worker started.", sep="\n")
    print("no end of line " * 2000, end="", flush=True)
    print("err " * 2000, file=sys.stderr, flush=True)
    logger.warning("a record %s", wish["id"])
    return echo(zoo, wish, index, context)


def bad_output(zoo, wish, index, context):
    return Raw({"none": None, "long": ["a", "b"], "number": 5, "empty": []}[wish.get("kind", "none")])


def not_serializable(zoo, wish, index, context):
    return {"what": object()}


def big(zoo, wish, index, context):
    return wish["id"].encode() + b"y" * wish["bytes"]


def fork(zoo, wish, index, context):
    """The child keeps every descriptor open and outlives its parent, if it is let."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    return echo(zoo, wish, index, context)


def worker_socket():
    """The descriptor the runtime talks to the daemon through."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                return int(name)
        except OSError:
            continue
    raise RuntimeError("no socket among the descriptors of this worker")


def half_frame(zoo, wish, index, context):
    os.write(worker_socket(), b"\x06\x00\x00\x00\x05\x00\x00\x00")
    os._exit(0)


def garbage(zoo, wish, index, context):
    os.write(worker_socket(), b"\xff" * 64)
    return echo(zoo, wish, index, context)


def close_descriptors(zoo, wish, index, context):
    os.closerange(3, 256)


def ignore_sigterm(zoo, wish, index, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return echo(zoo, wish, index, context)


def status(zoo, wish, index, context):
    context.set_response_status(code=wish["code"], phrase=wish.get("phrase", ""), idx=index)
    context.set_response_header(index, "x-zoo", wish["id"])
    return echo(zoo, wish, index, context)


DEEDS = {
    "echo": echo,
    "sleep": sleep,
    "hold": hold,
    "until_cancelled": until_cancelled,
    "stream": stream,
    "segv": segv,
    "abort": abort,
    "fpe": fpe,
    "exit": sys_exit,
    "_exit": os_exit,
    "raise": throw,
    "interrupt": interrupt,
    "loop": loop,
    "loop_in_c": loop_in_c,
    "oom": out_of_memory,
    "print": shout,
    "bad_output": bad_output,
    "not_serializable": not_serializable,
    "big": big,
    "fork": fork,
    "half_frame": half_frame,
    "garbage": garbage,
    "close_fds": close_descriptors,
    "ignore_sigterm": ignore_sigterm,
    "status": status,
}
