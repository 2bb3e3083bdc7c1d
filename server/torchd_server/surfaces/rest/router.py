"""Which path is which endpoint: every endpoint says whom it lets in, and what no endpoint serves does not exist."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from torchd_server import errors
from torchd_server.surfaces.auth import Access, Guard, OpenDoor
from torchd_server.surfaces.rest.answers import NOT_ALLOWED, NOT_FOUND, error_answer, refusal
from torchd_server.surfaces.rest.http1 import Answer, Handle, HttpResponse, Pending
from torchd_server.surfaces.rest.http1_reader import HttpRequest, RequestHead

PARAMETERS_AT_MOST = 100
# What TorchServe means by "any method": OPTIONS asks for a description instead.
ANY = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE")

Variables = Mapping[str, str]
# A coroutine, as a rule; an answer at once, or one that tells when it is there, where a task would cost too much.
Action = Callable[[HttpRequest, Variables], Answer]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter, for the description: `type` is JSON schema's."""

    name: str
    type: str
    summary: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of a port. `template` has `{name}` for a segment, `{name=**}` for all that are left, also none.

    A segment may end in a word of its own (`{model_name}:predict`). `operation` names it in the description.
    """

    methods: tuple[str, ...]
    template: str
    access: Access
    action: Action
    operation: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    # Media types of a request body, for the description; empty for an endpoint that reads none.
    takes: tuple[str, ...] = ()
    # Media type of the answer; "" where the handler chooses.
    gives: str = "application/json"

    def __post_init__(self) -> None:
        """An endpoint without a say about who may call it cannot exist."""
        if not isinstance(self.access, Access):
            raise TypeError(f"endpoint {self.template} needs an Access, not {self.access!r}")
        if not self.methods or not self.template.startswith("/"):
            raise ValueError(f"endpoint {self.template!r} needs at least one method, and a path that begins with '/'")


def segments(path: str) -> list[str]:
    """The path's parts, decoded one by one; trailing empty ones do not count, as in TorchServe."""
    parts = path.split("/")[1:]
    while parts and not parts[-1]:
        parts.pop()
    return [unquote(part) if "%" in part else part for part in parts]


def query_of(request: HttpRequest) -> list[tuple[str, str]]:
    """The parameters of the query, in order; too many of them are BadRequest."""
    if not request.query:
        return []
    try:
        return parse_qsl(request.query, keep_blank_values=True, max_num_fields=PARAMETERS_AT_MOST)
    except ValueError as error:
        raise errors.BadRequest(f"the query has more than {PARAMETERS_AT_MOST} parameters") from error


class _Segment:
    """One part of a template: a word, or a variable with an optional word behind it."""

    __slots__ = ("name", "word")

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"\{(\w+)\}(.*)", text)
        self.name = match[1] if match else ""
        self.word = match[2] if match else text


class _Route:
    """A template taken apart once, and the endpoints that share it."""

    def __init__(self, template: str) -> None:
        parts = [part for part in template.split("/")[1:] if part]
        self.rest = parts.pop()[1:-4] if parts and parts[-1].endswith("=**}") else ""
        self.parts = [_Segment(part) for part in parts]
        self.by_method: dict[str, Endpoint] = {}
        # Words before words with a variable in front, those before plain variables, all before "the rest".
        self.rank = (bool(self.rest), [0 if not part.name else 1 if part.word else 2 for part in self.parts])

    def match(self, path: list[str]) -> dict[str, str] | None:
        """The path's variables; None where the path is another's. A variable is never empty."""
        length = len(self.parts)
        if len(path) != length and not (self.rest and len(path) > length):
            return None
        found = {}
        for part, have in zip(self.parts, path, strict=False):
            if not part.name:
                if part.word != have:
                    return None
            elif len(have) > len(part.word) and have.endswith(part.word):
                found[part.name] = have[: -len(part.word)] if part.word else have
            else:
                return None
        if self.rest:
            found[self.rest] = "/".join(path[length:])
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """What a head asks for: an endpoint, or the status of a refusal. The guard decides anew about each request."""

    access: Access
    shown: Sequence[str]
    endpoint: Endpoint | None = None
    variables: Variables = field(default_factory=dict)
    status: int = 0


class Router:
    """The endpoints of one port, found by path and method."""

    def __init__(self, guard: Guard | None = None) -> None:
        self.endpoints: list[Endpoint] = []
        self._guard: Guard = OpenDoor() if guard is None else guard
        self._routes: dict[str, _Route] = {}
        # By first segment, so that a prediction is compared with a few templates and not with all.
        self._by_word: dict[str, list[_Route]] = {}
        # What a path that is none asks for: the same as the first endpoint that asks for anything.
        self._default_access = Access.OPEN

    def add(self, endpoints: Iterable[Endpoint]) -> None:
        """Serves these too; where a path and method are taken, the first to come keeps them."""
        for endpoint in endpoints:
            route = self._routes.setdefault(endpoint.template, _Route(endpoint.template))
            free = [method for method in endpoint.methods if method not in route.by_method]
            route.by_method |= dict.fromkeys(free, endpoint)
            if free:
                self.endpoints.append(endpoint)
        wanted = (endpoint.access for endpoint in self.endpoints)
        self._default_access = next((access for access in wanted if access is not Access.OPEN), Access.OPEN)
        self._sort()

    def _sort(self) -> None:
        routes = sorted(self._routes.values(), key=lambda route: route.rank)
        words = {route.parts[0].word for route in routes if route.parts and not route.parts[0].name}
        self._by_word = {
            word: [route for route in routes if (route.parts and (route.parts[0].name or route.parts[0].word == word))]
            for word in words
        }
        self._by_word[""] = [route for route in routes if not route.parts or route.parts[0].name]

    def find(self, method: str, path: list[str]) -> tuple[Endpoint, dict[str, str]] | int:
        """The endpoint and the path's variables, or the status of a refusal: 404, or 405 for a known path."""
        known = False
        for route in self._by_word.get(path[0] if path else "", self._by_word[""]):
            variables = route.match(path)
            if variables is not None:
                endpoint = route.by_method.get(method)
                if endpoint is not None:
                    return endpoint, variables
                known = True
        return 405 if known else 404

    @property
    def handle(self) -> Handle:
        """From a request to its answer, whatever happens: the door of the REST surface."""
        return self._handle

    def _handle(self, request: HttpRequest) -> Answer:
        try:
            found: _Found | None = request.head.notes.get(self)
            if found is None:
                found = request.head.notes[self] = self._find(request.head)
            self._guard.check(found.access, found.shown)
            if found.endpoint is None:
                return refusal(found.status, NOT_FOUND if found.status == 404 else NOT_ALLOWED)
            answer = found.endpoint.action(request, found.variables)
        except Exception as error:
            return error_answer(error)
        return answer if isinstance(answer, (HttpResponse, Pending)) else _awaited(answer)

    def _find(self, head: RequestHead) -> _Found:
        shown = [value for name, value in head.headers if name.lower() == "authorization"]
        found = self.find(head.method, segments(head.path))
        if isinstance(found, int):
            return _Found(self._default_access, shown, status=found)  # strangers are not told what there is
        endpoint, variables = found
        return _Found(endpoint.access, shown, endpoint, variables)


async def _awaited(answer: Awaitable[HttpResponse]) -> HttpResponse:
    try:
        return await answer
    except Exception as error:
        return error_answer(error)
