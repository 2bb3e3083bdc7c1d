"""Weights of workers on the CPU stay in their file: its pages are everybody's, and nothing else is different."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from torchd_workers.handlers.mapped_weights import load_mapped  # noqa: E402

WIDE = 512


class Layers(torch.nn.Module):
    """Two layers that share a weight, one more in a list of its own, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDE, WIDE)
        self.second = torch.nn.Linear(WIDE, WIDE)
        self.second.weight = self.first.weight
        self.third = torch.nn.Linear(WIDE, WIDE)
        self.kept = [self.third.weight]
        self.register_buffer("scale", torch.ones(WIDE))


@pytest.fixture(params=["weights.safetensors", "weights.pt"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / str(request.param)
    weights = {name: weight.clone() for name, weight in Layers().state_dict().items()}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def read(path: Path) -> dict[str, Any]:
    """As BaseHandler reads it."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, mmap=True, weights_only=True)


def areas(path: Path) -> Iterator[tuple[range, dict[str, int]]]:
    """Where this process has mapped the file, and the kernel's counts of kB there."""
    for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        if str(path) in area:
            first, last = area.split(maxsplit=1)[0].split("-")
            counts = {name: int(count) for name, count in re.findall(r"^(\w+): +(\d+) kB", area, re.MULTILINE)}
            yield range(int(first, 16), int(last, 16)), counts


def test_weights_lie_in_the_file_and_no_page_is_this_processs_own(file: Path) -> None:
    model = Layers()
    load_mapped(model, read(file))
    found = list(areas(file))
    for tensor in (*model.parameters(), *model.buffers()):
        assert any(tensor.data_ptr() in area for area, _ in found)
    assert all(weight.detach().any() for weight in model.parameters()), "reading is no writing"
    assert sum(counts["Anonymous"] for _, counts in areas(file)) == 0
    assert sum(counts["Rss"] for _, counts in areas(file)) * 1024 >= 2 * WIDE * WIDE * 4


def test_everything_is_as_load_state_dict_leaves_it(file: Path) -> None:
    plain, mapped = Layers(), Layers()
    weight = mapped.third.weight
    plain.load_state_dict(read(file))
    load_mapped(mapped, read(file))
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), mapped.parameters(), strict=True))
    assert mapped.second.weight is mapped.first.weight
    assert mapped.third.weight is weight is mapped.kept[0]
    assert weight.requires_grad


def test_a_model_of_another_type_keeps_it(file: Path) -> None:
    model = Layers().double()
    load_mapped(model, read(file))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}
    assert torch.equal(model.third.weight.float(), read(file)["third.weight"])


def test_it_is_as_strict(file: Path) -> None:
    weights = read(file)
    del weights["third.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "third.bias"'):
        load_mapped(Layers(), weights)


def test_who_writes_has_a_copy_of_that_page(file: Path) -> None:
    model = Layers()
    load_mapped(model, read(file))
    with torch.no_grad():
        model.scale.add_(1)
    assert model.scale[0] == 2
    assert read(file)["scale"][0] == 1
