"""Sends one step to a server and says what came back, as plain values. Both sides are asked through this file.

{"status", "reason", "headers": [[name, value]], "body"}                       REST
{"code", "details", "messages", "trailers"}                                    gRPC
{"lines"} | {"properties"} | {"exit", "output"}                                files, commands
{"answers": [{"status", "reason", "body"}]}                                    REST, together
{"no_answer": seconds} | {"broken": how}                                       neither answer nor error
"""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from torchserve import contracts, workbench
from torchserve.scenarios import Step

_BOUNDARY = "golden-boundary"


class Server:
    """Where a running server is: ports by name, the folder it works in, what it wrote to the console."""

    def __init__(
        self,
        folder: Path,
        ports: Mapping[str, int],
        environment: Mapping[str, str],
        files: str = "",
        console: Callable[[], str] = str,
    ) -> None:
        self.folder = folder
        self.console = console
        self.ports = ports
        self.environment = environment
        self.files = files
        # Who signed the server's certificate, where it has one.
        self.authority = workbench.authority(folder)

    def filled(self, text: str) -> str:
        """`text` with what stands in double braces put in."""
        return re.sub(r"\{\{([^}]+)\}\}", lambda match: self._word(match[1]), text)

    def _word(self, word: str) -> str:
        kind, _, name = word.partition(":")
        if kind == "port":
            return str(self.ports[name])
        if kind == "token":
            return self._token(name)
        return {"store": str(self.folder / "model_store"), "files": self.files, "folder": str(self.folder)}[kind]

    def _token(self, name: str) -> str:
        path = self.folder / "key_file.json"
        if not path.exists():
            return "no-key-file"
        return str(json.loads(path.read_text())[name]["key"])


def answer(step: Step, server: Server) -> dict[str, Any]:
    """What the server says to a step; repeated while `until` is not fulfilled, for the step's patience."""
    ends = time.monotonic() + step.patience
    while True:
        found = _together(step, server) if step.together > 1 else PROTOCOLS[step.protocol](step, server)
        if step.until is None or _is_fulfilled(step.until, found) or time.monotonic() > ends:
            return found
        time.sleep(0.2)  # the other side has no event to wait for


def _is_fulfilled(until: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    count = json.dumps(found, ensure_ascii=False).count(until["text"])
    return count >= until.get("times", 1) if "exactly" not in until else count == until["exactly"]


def _together(step: Step, server: Server) -> dict[str, Any]:
    """The same request from so many clients at once, each a moment after the other; what they got, in no order."""

    def one(place: int) -> dict[str, Any]:
        time.sleep(place * 0.4)  # so that which of them comes first is no race
        found = _rest(step, server)
        return {name: found[name] for name in ("status", "reason", "body", "no_answer", "broken") if name in found}

    with ThreadPoolExecutor(step.together) as crowd:
        return {"answers": sorted(crowd.map(one, range(step.together)), key=json.dumps)}


def _rest(step: Step, server: Server) -> dict[str, Any]:
    if step.raw is not None:
        return _raw(step, server)
    connection = _connection(step, server)
    content, content_type = body_bytes(step.body, server)
    named = {name.lower() for name, _ in step.headers}
    try:
        connection.putrequest(step.method, server.filled(step.path), skip_accept_encoding=True)
        for name, value in step.headers:
            connection.putheader(name, server.filled(value))
        if content_type and "content-type" not in named:
            connection.putheader("Content-Type", content_type)
        if content is not None and "content-length" not in named:
            connection.putheader("Content-Length", str(len(content)))
        connection.endheaders(content)
        return _response(connection.getresponse(), step)
    except TimeoutError:
        return {"no_answer": True}
    except ConnectionRefusedError:
        return {"broken": "connection refused"}
    except (HTTPException, OSError) as error:
        return {"broken": type(error).__name__}
    finally:
        connection.close()


def _connection(step: Step, server: Server) -> HTTPConnection:
    port = server.ports[step.port]
    if not step.tls:
        return HTTPConnection("127.0.0.1", port, timeout=step.patience)
    context = ssl.create_default_context(cafile=server.authority)
    return HTTPSConnection("127.0.0.1", port, timeout=step.patience, context=context)


def _response(response: HTTPResponse, step: Step) -> dict[str, Any]:
    head = {
        "status": response.status,
        "reason": response.reason,
        "headers": [[name, value] for name, value in response.getheaders()],
    }
    content_type = response.getheader("content-type") or ""
    try:
        if step.pieces:
            return head | {"pieces": [piece.decode() for piece in _pieces(response)]}
        return head | {"body": readable(response.read(), content_type)}
    except (HTTPException, ConnectionError) as error:
        return head | {"broken": type(error).__name__}


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(1 << 20):
        yield piece


def _raw(step: Step, server: Server) -> dict[str, Any]:
    with socket.create_connection(("127.0.0.1", server.ports[step.port]), timeout=step.patience) as connection:
        connection.sendall(server.filled(step.raw or "").encode("latin-1"))
        try:
            response = HTTPResponse(connection)
            response.begin()
            return _response(response, step)
        except TimeoutError:
            return {"no_answer": True}
        except (HTTPException, OSError) as error:
            return {"broken": type(error).__name__}


def body_bytes(body: Mapping[str, Any] | None, server: Server) -> tuple[bytes | None, str]:
    """A step's body and the content type it has unless the step names one."""
    match body:
        case None:
            return None, ""
        case {"text": str(text)}:
            return server.filled(text).encode(), ""
        case {"json": value}:
            return json.dumps(value).encode(), "application/json"
        case {"base64": str(text)}:
            return base64.b64decode(text), ""
        case {"repeat": [str(text), int(times)]}:
            return text.encode() * times, ""
        case {"multipart": parts}:
            return b"".join(map(_part, parts)) + f"--{_BOUNDARY}--\r\n".encode(), _multipart_type()
    raise ValueError(f"a body is text, json, base64, repeat or multipart, not {body}")


def _multipart_type() -> str:
    return f"multipart/form-data; boundary={_BOUNDARY}"


def _part(part: Mapping[str, str]) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{part["name"]}"'
    head += f'; filename="{part["filename"]}"' if "filename" in part else ""
    head += f"\r\nContent-Type: {part['type']}" if "type" in part else ""
    return f"{head}\r\n\r\n{part['text']}\r\n".encode()


def readable(content: bytes, content_type: str = "") -> Any:
    """A body as a reader wants it: JSON with its layout, text, or base64."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except ValueError:
            return {"text": text}
        return {"json": value, "layout": _layout(text, value)}
    return {"text": text}


def _layout(text: str, value: Any) -> str:
    end = " and a line end" if text.endswith("\n") else ""
    return ("two spaces" if _is_indented(text, value) else "other") + end


def _is_indented(text: str, value: Any) -> bool:
    # Numbers and escapes are written in more than one way; what a reader sees is where the lines break.
    expected = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    found = text.rstrip("\n").split("\n")
    return [len(line) - len(line.lstrip()) for line in expected] == [len(line) - len(line.lstrip()) for line in found]


def _grpc(step: Step, server: Server) -> dict[str, Any]:
    rpc = contracts.find(step.rpc)
    pool = contracts.pool()
    port = server.ports[f"grpc_{step.port}"]
    messages = [
        json_format.ParseDict(json.loads(server.filled(json.dumps(one))), rpc.request(), descriptor_pool=pool)
        for one in step.messages
    ]
    metadata = [(name, server.filled(value)) for name, value in step.metadata]
    replies: list[Any] = []
    # A channel that shares nothing: a dead server's back-off must not reach the next step.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with _channel(step, server, f"127.0.0.1:{port}", options) as channel:
        try:
            call = _call(channel, rpc, messages, metadata, step.patience)
            for reply in call:
                replies.append(_message(reply, pool))
            code, details, trailers = call.code(), call.details(), call.trailing_metadata()
        except grpc.RpcError as error:
            code, details, trailers = error.code(), error.details(), error.trailing_metadata()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in (details or ""):
                return {"no_answer": True, "messages": replies}
            return {
                "code": code.name,
                "details": details,
                "messages": replies,
                "trailers": _trailers(trailers),
                "reasons": _reasons(error),
            }
    return {"code": code.name, "details": details, "messages": replies, "trailers": _trailers(trailers)}


def _channel(step: Step, server: Server, address: str, options: list[tuple[str, int]]) -> grpc.Channel:
    if not step.tls:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(server.authority.read_bytes())
    return grpc.secure_channel(address, credentials, options=options)


def _call(channel: grpc.Channel, rpc: contracts.Rpc, messages: list[Any], metadata: Any, patience: float) -> Any:
    codec = {"request_serializer": rpc.request.SerializeToString, "response_deserializer": rpc.reply.FromString}
    if rpc.streams_requests:
        return channel.stream_stream(rpc.path, **codec)(_lingering(messages), timeout=patience, metadata=metadata)
    # A unary answer is read like a stream of one: then both kinds are one loop.
    return channel.unary_stream(rpc.path, **codec)(messages[0], timeout=patience, metadata=metadata)


def _lingering(messages: list[Any]) -> Iterator[Any]:
    for message in messages:
        yield message
        time.sleep(0.5)  # TorchServe drops the answers still under way when the client's half is closed


def _message(reply: Any, pool: Any) -> Any:
    found = json_format.MessageToDict(reply, preserving_proto_field_name=True, descriptor_pool=pool)
    for name in ("msg", "health"):
        if name in found:
            found[name] = readable(found[name].encode())
    if "prediction" in found:
        found["prediction"] = readable(reply.prediction)
    return found


def _trailers(trailers: Any) -> list[str]:
    return sorted(name for name, _ in trailers or () if not name.startswith("grpc-"))


def _reasons(error: grpc.RpcError) -> list[str]:
    status = rpc_status.from_call(error)
    found = []
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            found.append(info.reason)
    return found


def _file(step: Step, server: Server) -> dict[str, Any]:
    texts = [path.read_text(errors="replace") for path in sorted(server.folder.glob(step.file))]
    if step.file == "console.log":
        texts = [server.console()]
    if not texts:
        return {"lines": None}
    lines = [line for text in texts for line in text.splitlines()]
    return {"lines": [line for line in lines if re.search(step.pattern, line)]}


def _properties(step: Step, server: Server) -> dict[str, Any]:
    paths = sorted(server.folder.glob(step.file))
    if not paths:
        return {"properties": None}
    found = {}
    for line in paths[-1].read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found[name] = re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], value)
    return {"properties": {name: readable(value.encode()) for name, value in sorted(found.items())}}


def _command(step: Step, server: Server) -> dict[str, Any]:
    done = subprocess.run(
        [server.filled(argument) for argument in step.arguments],
        cwd=server.folder,
        env=dict(server.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return {"exit": done.returncode, "output": done.stdout}


PROTOCOLS: dict[str, Callable[[Step, Server], dict[str, Any]]] = {
    "rest": _rest,
    "grpc": _grpc,
    "file": _file,
    "properties": _properties,
    "command": _command,
}
