"""What a failed call asks of the process, once its clients have their answers and its objects are gone."""

from __future__ import annotations

from collections.abc import Iterable

from torchd_protos.frames import Failure
from torchd_workers.answers import Answer
from torchd_workers.channel import Channel
from torchd_workers.device_errors import free_memory

# The exit status of a process that cannot use its device any more.
DEVICE_LOST = 71


def ends_process(answers: Iterable[Answer]) -> bool:
    """Whether these are the last answers of this process: it must not be sent another batch."""
    return "DeviceLost" in _kinds(answers)


def recover(channel: Channel, answers: Iterable[Answer]) -> None:
    """Frees what a call without memory has left; leaves, so that another process comes up, if the device is lost.

    Call it where no exception is handled: its traceback would keep the handler's tensors alive.
    """
    kinds = _kinds(answers)
    if "OutOfMemory" in kinds:
        try:
            free_memory()
        except Exception as error:  # the driver answers so when the device is lost
            channel.leave(f"memory could not be freed: {type(error).__name__}: {error}", DEVICE_LOST)
    if "DeviceLost" in kinds:
        channel.leave("the device cannot be used by this process any more", DEVICE_LOST)


def _kinds(answers: Iterable[Answer]) -> set[str]:
    return {answer.kind for answer in answers if isinstance(answer, Failure)}
