"""Plug-ins: installed Python packages that bring endpoints, a guard or a rule of batching; only those named are loaded.

A package declares entry points in these groups, and the operator names them with `--plugins` (or `plugins` in
config.properties). Nothing is loaded because it happens to be installed.

    torchd.endpoints   (Served) -> {"inference" | "management" | "metrics": [Endpoint, ...]}
    torchd.auth        (ServerSettings) -> Guard, which then decides instead of the tokens; at most one
    torchd.batching    (delay in seconds) -> BatchWait; `batch_wait` (batchWait) may then have the entry point's name
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torchd_server import errors
from torchd_server.batching.waits import WAITS, BatchWait
from torchd_server.inference import Inference
from torchd_server.management import Management
from torchd_server.settings import BATCH_WAITS, ServerSettings, SettingInvalid
from torchd_server.surfaces.auth import Access, Guard
from torchd_server.surfaces.rest.router import Endpoint

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)
ENDPOINTS, AUTH, BATCHING = "torchd.endpoints", "torchd.auth", "torchd.batching"
PORTS = ("inference", "management", "metrics")


@dataclass(frozen=True, slots=True)
class Served:
    """What a plug-in's endpoints may use: the same use cases as every surface."""

    inference: Inference
    management: Management


EndpointsPlugin = Callable[[Served], Mapping[str, Sequence[Endpoint]]]
AuthPlugin = Callable[[ServerSettings], Guard]
BatchingPlugin = Callable[[float], BatchWait]


@dataclass(frozen=True, slots=True)
class Plugins:
    """The plug-ins of one daemon."""

    endpoints: Mapping[str, EndpointsPlugin] = field(default_factory=dict)
    auth: AuthPlugin | None = None
    auth_name: str = ""
    batching: Mapping[str, BatchingPlugin] = field(default_factory=dict)

    def endpoints_of(self, served: Served) -> dict[str, list[Endpoint]]:
        """What they add to each port."""
        found: dict[str, list[Endpoint]] = {name: [] for name in PORTS}
        for name, plugin in self.endpoints.items():
            try:
                added = plugin(served)
            except Exception as error:  # foreign code, which may raise anything: an Endpoint without Access, too
                raise SettingInvalid("plugins", name, f"a plug-in that gives its endpoints ({error})") from error
            for port, endpoints in added.items():
                if port not in found:
                    raise SettingInvalid("plugins", name, f"endpoints for {', '.join(PORTS)}, not for {port!r}")
                for endpoint in endpoints:
                    if not isinstance(endpoint, Endpoint):
                        raise SettingInvalid("plugins", name, f"a list of Endpoint, not of {type(endpoint).__name__}")
                    found[port].append(endpoint)
        return found

    def guard(self, settings: ServerSettings) -> Guard | None:
        """What decides who may call; None where no plug-in does. Raises SettingInvalid for one that gives no guard."""
        if self.auth is None:
            return None
        guard = self.auth(settings)
        if not callable(getattr(guard, "check", None)):
            raise SettingInvalid("plugins", self.auth_name, f"a plug-in that gives a Guard, not {type(guard).__name__}")
        return _ForeignGuard(guard)

    def install(self) -> None:
        """Lets models name their rules of batching."""
        for name, rule in self.batching.items():
            if name not in WAITS:
                BATCH_WAITS.append(name)
                WAITS[name] = rule


def load(names: Sequence[str]) -> Plugins:
    """Imports the plug-ins of these names; SettingInvalid for one that is not installed or cannot be imported."""
    if not names:
        return Plugins()
    from importlib.metadata import entry_points  # slow to import, and most daemons name no plug-in

    groups: dict[str, dict[str, Any]] = {ENDPOINTS: {}, AUTH: {}, BATCHING: {}}
    for name in dict.fromkeys(names):
        found = [point for group in groups for point in entry_points(group=group, name=name)]
        if not found:
            installed = sorted({point.name for group in groups for point in entry_points(group=group)})
            raise SettingInvalid("plugins", name, f"an installed plug-in: {', '.join(installed) or 'there is none'}")
        for point in found:
            groups[point.group][name] = _imported(point)
            logger.info("plug-in %s: %s of %s", name, point.group, point.value)
    endpoints, auths, batching = groups.values()
    taken = [name for name in batching if name in BATCH_WAITS and WAITS.get(name) is not batching[name]]
    if taken:
        raise SettingInvalid("plugins", taken[0], f"a batching rule with another name than {', '.join(BATCH_WAITS)}")
    if len(auths) > 1:
        raise SettingInvalid("plugins", " ".join(auths), "one plug-in that decides who may call")
    return Plugins(endpoints, next(iter(auths.values()), None), next(iter(auths), ""), batching)


class _ForeignGuard:
    """A plug-in's guard, which lets a call in by returning None and in no other way: one that was written `async`, that
    answers False instead of raising, or that fails would otherwise have let everybody in."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def check(self, access: Access, authorization: Sequence[str]) -> None:
        """Raises what the plug-in raises, and Unauthorized for whatever else it does but return None."""
        check: Callable[[Access, Sequence[str]], object] = self._guard.check
        try:
            said = check(access, authorization)
        except errors.TorchdError:
            raise
        except Exception as error:  # foreign code
            logger.exception("the plug-in that decides who may call failed; the call was refused")
            raise errors.Unauthorized(_REFUSED) from error
        if said is not None:
            if inspect.iscoroutine(said):
                said.close()
            logger.error(
                "check() of the plug-in that decides who may call gave %.100r; it must raise or give None", said
            )
            raise errors.Unauthorized(_REFUSED)


_REFUSED = "this server's plug-in for authorization could not decide; its log says why"


def _imported(point: EntryPoint) -> Any:
    try:
        plugin = point.load()
    except Exception as error:  # importing runs foreign code
        logger.exception("plug-in %s cannot be imported", point.name)
        raise SettingInvalid("plugins", point.name, f"a plug-in that can be imported ({error})") from error
    if not callable(plugin):
        raise SettingInvalid("plugins", point.name, f"something to call at {point.value}")
    return plugin
