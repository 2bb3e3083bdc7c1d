"""Who can reach the daemon and what they may do there: refused where it is more than the posture allows, and said."""

from __future__ import annotations

from torchd_server.settings import API_NAMES, Address, ServerSettings, SettingInvalid

WAYS_OUT = (
    "a loopback address; for other machines {missing}, or --insecure-listen if whatever reaches this address may use it"
)


def exposure(settings: ServerSettings) -> list[str]:
    """What these settings leave open, a line each; raises SettingInvalid for what `torchd serve` does not open (E01).

    `torchserve` opens what TorchServe opened, and says so.
    """
    if settings.posture.name == "torchd":
        _check(settings)
    return [*_reachable(settings), *_allowed(settings)]


def is_served_by_tls(settings: ServerSettings, name: str) -> bool:
    """Whether one API speaks TLS."""
    address: Address = getattr(settings.listeners, name)
    return settings.grpc_tls if name.startswith("grpc_") else address.tls


def _check(settings: ServerSettings) -> None:
    if settings.tokens.enabled and not settings.tokens.lifetime_minutes > 0:
        raise SettingInvalid(
            "token_expiration_min",
            settings.tokens.lifetime_minutes,
            "a number above zero: no token would ever be good; --no-token-auth asks for none",
        )
    if settings.insecure_listen:
        return
    for name in _open_names(settings):
        tls = is_served_by_tls(settings, name)
        if settings.tokens.enabled and tls:
            continue
        needs = [] if tls else ["TLS (--tls-certificate and --tls-key)"]
        needs += [] if settings.tokens.enabled else ["tokens (--token-auth)"]
        address = str(getattr(settings.listeners, name))
        raise SettingInvalid(name, address, WAYS_OUT.format(missing=" and ".join(needs)))


def _open_names(settings: ServerSettings) -> list[str]:
    names = [name for name in API_NAMES if name != "metrics" or settings.listeners.metrics_enabled]
    return [name for name in names if not getattr(settings.listeners, name).is_loopback]


def _reachable(settings: ServerSettings) -> list[str]:
    found = []
    for name in _open_names(settings):
        address = getattr(settings.listeners, name)
        if not is_served_by_tls(settings, name):
            found.append(f"{name} listens on {address} without TLS: others on the way can read and change what is said")
    return found


def _allowed(settings: ServerSettings) -> list[str]:
    found = []
    if not settings.tokens.enabled:
        found.append("token authorization is off: whoever reaches a port may use it")
    elif not settings.tokens.lifetime_minutes > 0:
        found.append("token_expiration_min is not above zero: every token has expired from the start")
    if settings.posture.name == "torchd":
        return found
    if settings.model_api:
        found.append("the model API is on: who may register a model may run code as this user")
    if settings.allowed_urls == settings.posture.allowed_urls and settings.allowed_urls:
        found.append("allowed_urls has its default: models may be registered from any http(s) URL and any file")
    if settings.posture.worker_environment is None:
        found.append("workers see this process's whole environment; torchd serve passes an allow-list on")
    return found
