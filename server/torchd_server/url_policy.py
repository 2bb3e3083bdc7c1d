"""Which URLs an archive may come from: one parser, one list of patterns, and the addresses a host may stand for.

What is checked here is what is connected to: the URL is written anew from its parsed parts, and each address a name
resolves to passes `check_address` before anybody connects to that very address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from torchd_server import errors
from torchd_server.settings import NAME

WEB = {"http": 80, "https": 443}
# Read through fsspec, by the credentials its drivers find; the host of such a URL is a bucket or an organisation.
BUCKETS = ("s3", "gs", "hf")
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*")
_SHOWN = 200
# Beyond the ranges that the ipaddress module knows: the metadata services of clouds (AWS over IPv6, Alibaba, Oracle).
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Remote:
    """A URL that may be fetched, in parts. `target` is what an HTTP request line asks for; `path` is decoded."""

    url: str
    scheme: str
    host: str
    port: int
    target: str
    path: str
    # Whether a pattern names this very host: then it may be of any address.
    is_named: bool

    @property
    def file_name(self) -> str:
        """The name its archive gets in the store: the last part of the path. Raises BadRequest for a strange one."""
        name = self.path.rpartition("/")[2]
        if not NAME.fullmatch(name):
            raise errors.BadRequest(
                f"{shown(self.url)} does not end in a file name of letters, digits, '.', '_' and '-'; rename the file"
            )
        return name


class UrlPolicy:
    """The operator's list. Patterns are regular expressions that a URL has to match in full, in any case."""

    def __init__(self, patterns: Sequence[str], *, private_hosts: bool = False) -> None:
        self._patterns = [(re.compile(pattern, re.IGNORECASE), _literal_host(pattern)) for pattern in patterns]
        self._private_hosts = private_hosts

    def check(self, url: str) -> Remote:
        """The URL in parts if it may be fetched; raises UrlNotAllowed, or BadRequest for what is no URL."""
        remote = _parse(url)
        hosts = [host for pattern, host in self._patterns if pattern.fullmatch(remote.url)]
        if not hosts:
            raise errors.UrlNotAllowed(f"Given URL {shown(url)} does not match any allowed URL(s)")
        return remote if remote.host not in hosts else _named(remote)

    def check_address(self, remote: Remote, address: str) -> None:
        """Raises UrlNotAllowed where `remote` must not be fetched from this IP address."""
        if remote.is_named:
            return
        found = _plain(ipaddress.ip_address(address))
        is_never = found.is_link_local or found.is_multicast or found.is_unspecified or found in _METADATA
        if is_never or not (found.is_global or self._private_hosts):
            raise errors.UrlNotAllowed(
                f"Given URL {shown(remote.url)} does not match any allowed URL(s): its host is not a public one; "
                "an entry of allowed_urls that names the host itself allows it"
            )


def shown(url: str) -> str:
    """A foreign URL as it may stand in a message."""
    printable = url if url.isprintable() else ascii(url)
    return printable if len(printable) <= _SHOWN else printable[:_SHOWN] + "..."


def _parse(url: str) -> Remote:
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise errors.BadRequest(f"{shown(url)} is not a URL: it has a blank, a backslash or a character beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise errors.BadRequest(f"{shown(url)} is not a URL: {error}") from error
    if parts.fragment or "#" in url or parts.username is not None or parts.password is not None:
        raise errors.BadRequest(f"{shown(url)} has a user or a fragment; write it without")
    # Encoded dots and slashes are decoded by some servers and not by others: refused, once decoded and twice.
    path = unquote(parts.path)
    if any(".." in re.split(r"[/;\\]", text) for text in (path, unquote(path))) or "\0" in path or "\\" in path:
        raise errors.UrlNotAllowed(f"Relative path is not allowed in url: {shown(url)}")
    scheme = parts.scheme
    if scheme == "file":
        if host not in ("", "localhost") or port is not None or parts.query or not path.startswith("/"):
            raise errors.BadRequest(f"{shown(url)} is not a file of this machine; write file:///path/of/archive.mar")
        return Remote(f"file://{path}", scheme, "", 0, path, path, False)
    if scheme not in WEB and scheme not in BUCKETS:
        raise errors.UrlNotAllowed(
            f"Given URL {shown(url)} does not match any allowed URL(s): "
            f"what is read are http, https, file, {', '.join(BUCKETS)}"
        )
    if scheme in BUCKETS and "::" in url:  # fsspec would read what follows as another URL, of any scheme
        raise errors.BadRequest(f"{shown(url)} is not a URL: it has '::' in it")
    host = _host(url, host) if scheme in WEB else host
    if not host or (scheme in BUCKETS and port is not None):
        raise errors.BadRequest(f"{shown(url)} names no host")
    authority = f"[{host}]" if ":" in host else host
    if port is not None and port != WEB.get(scheme):
        authority = f"{authority}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    clean = f"{scheme}://{authority}{target}"
    return Remote(clean, scheme, host, port or WEB.get(scheme, 0), target, path, False)


def _host(url: str, host: str) -> str:
    """A DNS name or an IP address in its one usual form: 127.1, 0x7f.1 and 2130706433 are nobody's names."""
    host = host.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(host.split("%")[0])) if "%" not in host else ""
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    if not _HOST.fullmatch(host) or last.isdigit() or last.startswith("0x"):
        raise errors.BadRequest(f"{shown(url)}: {host[:100]!a} is neither a host name nor an IP address")
    return host


def _plain(address: _Ip) -> _Ip:
    """What an IPv6 address that only wraps an IPv4 one comes to."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    wrapped = address.ipv4_mapped or address.sixtofour
    if wrapped is None and int(address) > 1 and any(address in network for network in _TRANSLATED):
        wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return wrapped or address


def _literal_host(pattern: str) -> str:
    """The host a pattern spells out; what is no host matches none."""
    _, found, rest = pattern.replace("\\", "").lower().partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0] if found else ""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def _named(remote: Remote) -> Remote:
    return Remote(remote.url, remote.scheme, remote.host, remote.port, remote.target, remote.path, True)
