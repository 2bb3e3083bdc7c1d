"""The daemon's edge: its tokens, its certificate, and the addresses it is bound to, put together from the settings."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from torchd_server.metrics import Metrics
from torchd_server.run_directory import RunDirectory
from torchd_server.settings import API_NAMES, Address, ServerSettings, SettingInvalid
from torchd_server.surfaces.auth import Access, Guard, OpenDoor, TokenGuard
from torchd_server.surfaces.auth_grpc import TokenDoor
from torchd_server.surfaces.rest import unix_socket
from torchd_server.surfaces.rest.gate import Gate, only_https
from torchd_server.surfaces.rest.http1 import Handle, HttpServer
from torchd_server.surfaces.rest.tokens import TokenRenewal
from torchd_server.surfaces.token_file import KeyFileInvalid, TokenFile, key_file_of, seconds_since_boot

if TYPE_CHECKING:
    from torchd_server.surfaces.tls import Certificate, TlsFiles

logger = logging.getLogger(__name__)
CERTIFICATE_FILE = "certificate.pem"
# Answered without a token on every gRPC port (E03); they tell nothing but whether something serves.
OPEN_SERVICES = frozenset({health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME})
# Timers of the event loop hold no more; to rotate early does no harm.
LONGEST_TIMER_SECONDS = 20 * 86_400.0


class AddressInUse(RuntimeError):
    """Somebody listens there already."""


class Edge:
    """Made before the servers, which ask it for guard, gate and door; it binds them; `close` undoes `open`."""

    def __init__(
        self, settings: ServerSettings, run_directory: RunDirectory, metrics: Metrics, guard: Guard | None = None
    ) -> None:
        """`guard` decides instead of the tokens, which do not exist then."""
        self._settings = settings
        self._run_directory = run_directory
        self._metrics = metrics
        self._tokens: TokenFile | None = None
        self.guard: Guard = OpenDoor() if guard is None else guard
        self.renewal: TokenRenewal | None = None
        self._tls = self._tls_files()
        self._rotation: asyncio.TimerHandle | None = None
        self._unix: list[tuple[Path, os.stat_result]] = []
        self._told: dict[str, str] = {}
        if settings.tokens.enabled and guard is None:
            self._make_guard()

    def _make_guard(self) -> None:
        settings = self._settings
        is_torchserve = settings.posture.name == "torchserve"
        # TorchServe's clients renew by `/token`; ours read the file, which always holds a token with time left.
        self._tokens = TokenFile(
            key_file_of(settings), settings.tokens.lifetime_minutes, not is_torchserve, seconds_since_boot
        )
        self.guard = TokenGuard(self._tokens.keys, seconds_since_boot, is_torchserve)
        self.renewal = TokenRenewal(self._tokens, is_torchserve)

    def _tls_files(self) -> TlsFiles | None:
        addresses: list[Address] = [getattr(self._settings.listeners, name) for name in API_NAMES]
        if not self._settings.grpc_tls and not any(address.tls for address in addresses):
            return None
        from torchd_server.surfaces.tls import TlsFiles  # cryptography: not for a daemon without TLS

        hosts = tuple(dict.fromkeys(address.host for address in addresses if address.host not in ("0.0.0.0", "::", "")))
        loop = asyncio.get_running_loop()

        def changed(certificate: Certificate | None) -> None:
            # gRPC asks for the pair from threads of its own.
            loop.call_soon_threadsafe(self._certificate_changed, certificate)

        return TlsFiles(self._settings.tls, hosts, changed)

    # What the servers are built with.

    def gate(self, name: str, handle: Handle) -> Gate:
        """What stands in front of a REST port's routes."""
        address: Address = getattr(self._settings.listeners, name)
        is_secure = self._settings.posture.name == "torchd"
        checks_host = is_secure and address.is_loopback and address.unix is None
        return Gate(handle, self._settings.cors, checks_host=checks_host, checks_origin=is_secure)

    def door(self, access: Access) -> TokenDoor | None:
        """Who is asked about each call of a gRPC port; nobody where everybody may come in."""
        return None if isinstance(self.guard, OpenDoor) else TokenDoor(self.guard, access, OPEN_SERVICES)

    # Binding.

    def bind_grpc(self, server: grpc.aio.Server, name: str) -> str:
        """Binds a gRPC server where the settings say; returns the address."""
        address: Address = getattr(self._settings.listeners, name)
        # Asked for first with a plain socket: gRPC would print its own account of a taken port.
        try:
            with socket.create_server((address.host, address.port), family=_family(address)):
                pass
            if self._settings.grpc_tls and self._tls is not None:
                port = server.add_secure_port(str(address), self._tls.grpc_credentials())
            else:
                port = server.add_insecure_port(str(address))
        except (OSError, RuntimeError) as error:
            raise _in_use(name, address) from error
        return str(Address(address.host, port))

    async def bind_rest(self, server: HttpServer, name: str) -> str:
        """Binds a REST server where the settings say; returns its URL."""
        address: Address = getattr(self._settings.listeners, name)
        context = self._tls.context if address.tls and self._tls is not None else None
        try:
            if address.unix is not None:
                listening = unix_socket.bind(address.unix)
                self._unix.append((address.unix, address.unix.lstat()))
                await server.listen(listening)
                return str(address)
            if context is None:
                return f"http://{Address(address.host, await server.start(address.host, address.port))}"
            listening = socket.create_server((address.host, address.port), family=_family(address))
            await server.listen(listening, context, self.gate(name, only_https).handle)
            return f"https://{Address(address.host, listening.getsockname()[1])}"
        except OSError as error:
            raise _in_use(name, address) from error

    # The life of keys and certificate.

    def open(self) -> None:
        """Writes the keys down; raises SettingInvalid where that cannot be."""
        if self._tokens is not None:
            try:
                self._tokens.write()
            except OSError as error:
                path = str(self._tokens.path)
                raise SettingInvalid("key file", path, f"a place that can be written ({error.strerror})") from error
            self._rotate_later()

    def announce(self, bound: Mapping[str, str]) -> None:
        """Tells this user's clients where the daemon listens, where its tokens are, and which certificate it shows."""
        self._told = dict(bound)
        if self._tokens is not None:
            self._told["key_file"] = str(self._tokens.path)
        if self._tls is not None:
            self._tell_certificate(self._tls.certificate)
        self._run_directory.announce(self._told)

    def reload(self) -> None:
        """SIGHUP: the keys and the certificate are read again."""
        if self._tokens is not None:
            try:
                self._tokens.reload()
                logger.info("the keys were read from %s", self._tokens.path)
            except KeyFileInvalid as error:
                logger.error("the keys stay as they are: %s", error)
        if self._tls is not None:
            self._tls.reload()

    def close(self) -> None:
        """Removes what was written and bound here."""
        if self._rotation is not None:
            self._rotation.cancel()
        if self._tokens is not None:
            self._tokens.remove()
        for path, bound in self._unix:
            unix_socket.remove(path, bound)
        (self._run_directory.path / CERTIFICATE_FILE).unlink(missing_ok=True)

    def _rotate_later(self) -> None:
        if self._tokens is not None and (seconds := self._tokens.rotation_seconds) is not None:
            later = min(seconds, LONGEST_TIMER_SECONDS)
            self._rotation = asyncio.get_running_loop().call_later(later, self._rotate)

    def _rotate(self) -> None:
        if self._tokens is not None:
            self._tokens.rotate()
        self._rotate_later()

    def _certificate_changed(self, certificate: Certificate | None) -> None:
        self._metrics.tls_reloads.labels("refused" if certificate is None else "taken").inc()
        if certificate is not None and self._told:
            self._tell_certificate(certificate)
            self._run_directory.announce(self._told)

    def _tell_certificate(self, certificate: Certificate) -> None:
        """For the clients of this user: by it they know the daemon, whoever signed it."""
        path = self._run_directory.path / CERTIFICATE_FILE
        staging = path.with_suffix(".new")
        staging.write_bytes(certificate.chain)
        staging.replace(path)
        self._told |= {"certificate": str(path), "tls_name": certificate.name}
        if self._settings.grpc_tls:
            self._told["grpc_tls"] = "yes"


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _in_use(name: str, address: Address) -> AddressInUse:
    if address.unix is not None:
        return AddressInUse(f"cannot listen on {address}: it is not a socket of this user's that nobody uses any more")
    flag = f"--{name.replace('_', '-')}-port"
    return AddressInUse(
        f"cannot listen on {address}: another program does; stop it, or choose another port "
        f"({flag} of torchd serve, or the address in config.properties)"
    )
