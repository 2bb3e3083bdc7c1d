"""What failing memory and failing devices are called, and what becomes of the process; torch's own types on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from torchd_protos.frames import Failure, Replies, Reply
from torchd_workers.aftermath import DEVICE_LOST
from torchd_workers.device_errors import free_memory, is_device_lost, is_out_of_memory

torch = pytest.importorskip("torch")


def accelerator_error(code: int | None = None) -> RuntimeError:
    error: RuntimeError = torch.AcceleratorError("CUDA error")
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


def host_refusal() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    return raised.value


class Cuda:
    """torch.cuda of a process that has used a GPU."""

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer = answer
        self.freed = 0

    def is_initialized(self) -> bool:
        return True

    def synchronize(self) -> None:
        if self.answer is not None:
            raise self.answer

    def empty_cache(self) -> None:
        self.freed += 1


def last_answer(worker):
    """Of the one request that runs."""
    return worker.until(Reply, Failure)


def use(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    """Puts a torch with this `cuda` in the place of the real one, which has none here."""
    fake = SimpleNamespace(OutOfMemoryError=torch.OutOfMemoryError, AcceleratorError=torch.AcceleratorError, cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", fake)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no"),
        torch.cuda.OutOfMemoryError("no"),
        host_refusal(),
        accelerator_error(2),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_these_are_out_of_memory(error: BaseException) -> None:
    """G01; the last is what making a context on a full GPU raises: torch's allocator is not in between."""
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


class Talker(RuntimeError):
    """A handler's own, whose text is nobody's business."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        Talker("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError(b"DefaultCPUAllocator: "),
        RuntimeError(),
        accelerator_error(710),
        accelerator_error(),
        ValueError("out of memory"),
    ],
    ids=repr,
)
def test_these_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_without_torch_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert is_out_of_memory(MemoryError())
    assert not is_device_lost(RuntimeError("no"))
    free_memory()
    assert "torch" not in sys.modules


def test_the_driver_says_whether_a_device_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """G02: a library's RuntimeError may come of a lost device, and torch's AcceleratorError of a wrong argument."""
    use(monkeypatch, Cuda(answer=accelerator_error(710)))
    assert is_device_lost(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert is_device_lost(accelerator_error(710))
    assert not is_device_lost(ValueError("the client's"))
    use(monkeypatch, Cuda())
    assert not is_device_lost(accelerator_error(1))
    assert not is_device_lost(RuntimeError("shapes do not fit"))


def test_where_no_driver_can_be_asked_the_type_says_it() -> None:
    assert is_device_lost(accelerator_error(710))
    assert not is_device_lost(RuntimeError("shapes do not fit"))


def test_memory_is_freed_only_where_a_device_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    use(monkeypatch, cuda)
    free_memory()
    assert cuda.freed == 1
    cuda.is_initialized = lambda: False  # type: ignore[method-assign]
    free_memory()
    assert cuda.freed == 1


@pytest.mark.parametrize("loop", ["", "step"])
@pytest.mark.parametrize("act", [b"device memory", b"driver memory", b"host memory", b"python memory"])
def test_a_worker_without_memory_says_so_and_goes_on(loaded, act, loop) -> None:
    """G01, W09."""
    worker = loaded("sick_device", loop=loop)
    worker.send_batch(b"driver")
    last_answer(worker)
    worker.send_batch(act, first=2)
    assert last_answer(worker).kind == "OutOfMemory"
    worker.send_batch(b"freed", first=3)
    assert last_answer(worker).body == b"1"


def test_what_the_failed_call_held_is_gone_before_its_memory_is_freed(start, tmp_path) -> None:
    """Otherwise the traceback would keep the tensors alive, and emptying the cache would give nothing back."""
    (tmp_path / "handler.py").write_text(HOLDING)
    worker = start(tmp_path)
    worker.load()
    assert worker.ask(b"fail").kind == "OutOfMemory"
    assert worker.ask(b"").body == b"gone"


HOLDING = """
import weakref

import torch

seen = []


def empty_cache():
    seen.append("gone" if held() is None else "still held")


held = None
torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None
torch.cuda.empty_cache = empty_cache


def handle(data, context):
    global held
    if data is None:
        return None
    if not seen:
        tensor = torch.zeros(3)
        held = weakref.ref(tensor)
        raise torch.OutOfMemoryError("no")
    return [seen[0]]
"""


@pytest.mark.parametrize("loop", ["", "step", "async"])
def test_a_worker_whose_device_is_lost_answers_and_leaves(loaded, loop) -> None:
    """G02."""
    worker = loaded("sick_device", loop=loop)
    worker.send_batch(b"assert")
    failure = last_answer(worker)
    assert failure.kind == "DeviceLost"
    assert "device-side assert" in failure.message
    assert loop or not worker.until(Replies).end_of_step, "another batch would be lost with it"
    status, _, err = worker.end()
    assert status == DEVICE_LOST
    assert "the device cannot be used by this process any more" in err


def test_a_library_error_over_a_sound_device_is_the_handlers_own(loaded) -> None:
    worker = loaded("sick_device")
    worker.ask(b"driver")
    assert worker.ask(b"library").kind == "HandlerFailed"
    worker.ask(b"lose")
    worker.send_batch(b"library")
    assert last_answer(worker).kind == "DeviceLost"
    assert worker.end()[0] == DEVICE_LOST


def test_a_whole_batch_hears_of_the_lost_device(loaded) -> None:
    worker = loaded("sick_device")
    worker.send_batch(b"assert", b"two", b"three")
    assert [last_answer(worker).kind for _ in range(3)] == ["DeviceLost"] * 3
    assert worker.end()[0] == DEVICE_LOST


def test_a_load_without_memory_is_typed(start, tmp_path) -> None:
    """G01: at load."""
    worker = start("sick_device")
    settings = f'{{"handler": {{"failing_loads": [0], "counter": "{tmp_path / "load"}"}}}}'
    refusal = worker.load(config_json=settings)
    assert (refusal.kind, refusal.message.split(".")[0]) == ("OutOfMemory", "OutOfMemoryError: CUDA out of memory")
