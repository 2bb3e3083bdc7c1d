"""Which devices are found, by tools and files that stand in for real ones, and what makes them visible."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest
from harness.device_tools import NEW, OLD, gpu_rows, neuron_devices, write_neuron_ls, write_nvidia_smi, write_tool

from torchd_server.accelerators import tool
from torchd_server.accelerators.base import Found
from torchd_server.accelerators.cpu import Cpu, allowed_cores, numa_nodes
from torchd_server.accelerators.cuda import MEBIBYTE, Cuda
from torchd_server.accelerators.kinds import ACCELERATORS, search
from torchd_server.accelerators.mps import Mps
from torchd_server.accelerators.neuron import Neuron
from torchd_server.accelerators.rocm import Rocm
from torchd_server.accelerators.xpu import Xpu

SMI_LIST = """\
GPU 0: NVIDIA H200 (UUID: GPU-00000000-1111-2222-3333-444444444444)
  MIG 3g.71gb     Device  0: (UUID: MIG-aaaa-1)
  MIG 3g.71gb     Device  1: (UUID: MIG-bbbb-2)
GPU 1: NVIDIA H200 (UUID: GPU-00000001-1111-2222-3333-444444444444)
"""


def path(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def identities(found: Found) -> list[str]:
    return [device.identity for device in found.devices]


def gpus(tmp_path: Path, count: int = 4, **environment: str) -> Found:
    write_nvidia_smi(tmp_path / "tools", gpu_rows(count))
    return Cuda(tmp_path / "dev").discover(path(tmp_path / "tools") | environment)


def test_gpus_are_found_by_nvidia_smi(tmp_path: Path) -> None:
    node = tmp_path / "pci" / "0000:01:00.0"
    node.mkdir(parents=True)
    (node / "numa_node").write_text("1\n")
    write_nvidia_smi(tmp_path / "tools", gpu_rows(2))
    first, second = Cuda(tmp_path / "dev", tmp_path / "pci").discover(path(tmp_path / "tools")).devices
    assert (first.index, first.identity, first.name, first.numa_node) == (0, "0", "NVIDIA H200", None)
    assert (second.index, second.memory_bytes, second.numa_node) == (1, 143771 * MEBIBYTE, 1)


@pytest.mark.parametrize(
    ("wish", "seen"),
    [
        ("2,0", ["2", "0"]),
        (" 1 , 3", ["1", "3"]),
        ("0,9,1", ["0"]),  # CUDA stops at the first that is none
        ("1,-1,2", ["1"]),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        ("0,0", []),  # and shows nothing where one stands twice
        ("GPU-00000002", ["2"]),
        ("GPU-00000003-1111-2222-3333-444444444444,GPU-00000001", ["3", "1"]),
        ("GPU-0000000", []),  # of which one?
        ("GPU-9", []),
    ],
)
def test_the_daemons_own_cuda_visible_devices_narrows_them(tmp_path: Path, wish: str, seen: list[str]) -> None:
    found = gpus(tmp_path, CUDA_VISIBLE_DEVICES=wish)
    assert identities(found) == seen
    assert [device.index for device in found.devices] == list(range(len(seen)))
    if not seen:
        assert found.absence == f"CUDA_VISIBLE_DEVICES={wish!r} hides the GPUs of this machine, which has 4"


@pytest.mark.parametrize(
    ("wish", "seen"),
    [
        (None, ["MIG-aaaa-1", "MIG-bbbb-2", "1"]),
        ("1,0", ["1", "MIG-aaaa-1", "MIG-bbbb-2"]),
        ("MIG-bbbb-2", ["MIG-bbbb-2"]),
        ("MIG-b", ["MIG-bbbb-2"]),
        ("MIG-", []),
        ("MIG-cccc", []),
    ],
)
def test_mig_instances_stand_for_the_gpu_they_are_parts_of(tmp_path: Path, wish: str | None, seen: list[str]) -> None:
    write_nvidia_smi(tmp_path / "tools", gpu_rows(2, mig=[0]), SMI_LIST)
    environment = path(tmp_path / "tools") | ({} if wish is None else {"CUDA_VISIBLE_DEVICES": wish})
    found = Cuda(tmp_path / "dev").discover(environment)
    assert identities(found) == seen
    parts = [device for device in found.devices if device.identity.startswith("MIG")]
    assert {(part.name, part.memory_bytes) for part in parts} <= {("NVIDIA H200 MIG 3g.71gb", 71 << 30)}
    assert [device for device in found.devices if device.is_part] == parts


def test_a_gpu_in_mig_mode_without_an_instance_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NVIDIA's guide to MIG: CUDA runs nothing on it."""
    write_nvidia_smi(tmp_path / "tools", gpu_rows(2, mig=[0, 1]), SMI_LIST)
    assert identities(Cuda(tmp_path / "dev").discover(path(tmp_path / "tools"))) == ["MIG-aaaa-1", "MIG-bbbb-2"]
    assert "GPUs [1] are in MIG mode and have no instance" in caplog.text


def test_without_the_tool_gpus_are_found_by_their_files(tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    assert Cuda(dev).discover({"PATH": ""}) == Found(absence=f"nvidia-smi is not on PATH and there is no {dev}/nvidia0")
    for name in ("nvidia3", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (dev / name).touch()
    assert identities(Cuda(dev).discover({"PATH": ""})) == ["0", "1"]  # a container sees those it was given
    assert identities(Cuda(dev).discover({"PATH": "", "CUDA_VISIBLE_DEVICES": "1"})) == ["1"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 60", "does not answer"),
        ("sleep 60 & exit 0", "does not answer"),  # what it left behind holds its output open
        ("exec >&-; sleep 60", "does not end"),
        ("exit 9", "left with status 9"),
        ("echo who knows", "prints what is no row of"),
        ("echo 'x, GPU-1, A, 1, 00000000:01:00.0, Disabled'", "prints what is no row of"),
        ("yes", "prints more than"),
        ("printf '\\377\\376'", "prints what is no row of"),
    ],
)
def test_a_tool_that_hangs_or_prints_nonsense_costs_seconds_and_no_more(
    tmp_path: Path, script: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """G03: nobody is killed, nobody waits for ever, the files still tell."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    write_tool(tmp_path / "tools", "nvidia-smi", script)
    began = time.monotonic()
    found = Cuda(tmp_path / "dev", tool_seconds=0.5).discover(path(tmp_path / "tools"))
    assert time.monotonic() - began < 10
    assert identities(found) == ["0"]
    assert why in caplog.text


def test_a_tool_that_is_no_program_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(tool.ToolFailed, match="cannot be run"):
        tool.ask([str(tmp_path / "none")], {})


def test_cuda_counts_by_the_bus_as_nvidia_smi_does(tmp_path: Path) -> None:
    found = gpus(tmp_path).devices
    assert Cuda().environment(found[1:3]) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"}
    assert Cuda().environment(())["CUDA_VISIBLE_DEVICES"] == ""


def neuron(tmp_path: Path, document: object = None, form: str = OLD, **environment: str) -> Found:
    write_neuron_ls(tmp_path / "tools", neuron_devices(12) if document is None else document, form)
    kind = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="")
    return kind.discover(path(tmp_path / "tools") | environment)


@pytest.mark.parametrize("form", [OLD, NEW])
def test_neuron_cores_are_found_by_a_neuron_ls_that_knows_one_form(tmp_path: Path, form: str) -> None:
    found = neuron(tmp_path, form=form)
    assert identities(found) == [str(core) for core in range(24)]
    assert {device.memory_bytes for device in found.devices} == {16 << 30}
    # Later versions of the tool tell more.
    more = neuron_devices(2, 4, instance_type="trn2.48xlarge", numa_node="1", neuroncore_ids=None)
    more[0]["neuroncore_ids"], more[1]["neuroncore_ids"] = [0, 1, 2, 3], [4, 5, 6, 7]
    core = neuron(tmp_path, more, form).devices[5]
    assert (core.index, core.identity, core.name, core.numa_node) == (5, "5", "NeuronCore of trn2.48xlarge", 1)


@pytest.mark.parametrize("name", ["neuron_devices", "devices", "any"])
def test_what_holds_for_the_machine_may_stand_once(tmp_path: Path, name: str) -> None:
    """Neuron 2.34 adds fields at the top; no page says what the list of devices is called there."""
    once = {"instance_type": "inf2.24xlarge", "ultraserver": {"id": ""}, "tags": ["a"]}
    found = neuron(tmp_path, once | {name: neuron_devices(6)}, NEW)
    assert identities(found) == [str(core) for core in range(12)]
    assert {device.name for device in found.devices} == {"NeuronCore of inf2.24xlarge"}
    if name != "any":
        assert neuron(tmp_path, once | {name: []}, NEW).absence == "neuron-ls finds no device"


@pytest.mark.parametrize(
    ("told", "wish", "cores"),
    [
        # As trn2.48xlarge prints it: logical cores, in pairs.
        ({"nc_count": 4, "logical_neuroncore_config": 2, "neuroncore_ids": [4, 5, 6, 7]}, "", [4, 5, 6, 7]),
        ({"nc_count": 4, "logical_neuroncore_config": 2, "neuroncore_ids": [4, 5, 6, 7]}, "2", [4, 5, 6, 7]),
        # The workers will be configured otherwise than the tool was.
        ({"nc_count": 4, "logical_neuroncore_config": 2, "neuroncore_ids": [4, 5, 6, 7]}, "1", list(range(8, 16))),
        ({"nc_count": 8, "logical_neuroncore_config": 1, "neuroncore_ids": list(range(8, 16))}, "2", [4, 5, 6, 7]),
        # Tools of the first Trainium2 counted eight, and named none.
        ({"nc_count": 8}, "", [0, 1, 2, 3]),
        ({"nc_count": 8, "logical_neuroncore_config": 1}, "", list(range(8))),
        ({"nc_count": 8}, "1", list(range(8))),
        ({"nc_count": 8}, "nonsense", [0, 1, 2, 3]),
        ({"nc_count": 2, "neuroncore_ids": [0, 1]}, "1", [0, 1]),
    ],
)
def test_cores_are_counted_as_the_runtime_will(
    tmp_path: Path, told: dict[str, object], wish: str, cores: list[int]
) -> None:
    """NEURON_LOGICAL_NC_CONFIG: how many cores of Trainium2 are one to a process."""
    document = [{**neuron_devices(1)[0], **told}]
    found = neuron(tmp_path, document, NEURON_LOGICAL_NC_CONFIG=wish)
    assert identities(found) == [str(core) for core in cores]
    assert found.devices[0].memory_bytes == 34359738368 // len(cores)


def test_a_neuron_ls_that_hangs_is_asked_once(tmp_path: Path) -> None:
    """G03: what it costs the start is the tool's time, not twice that."""
    write_tool(tmp_path / "tools", "neuron-ls", f"echo asked >>{tmp_path}/asked; sleep 60")
    kind = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="", tool_seconds=0.5)
    found = kind.discover(path(tmp_path / "tools"))
    assert found.absence.startswith("neuron-ls --output-format json does not answer and there is no ")
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_neuron_ls_that_knows_neither_form_says_so(tmp_path: Path) -> None:
    write_tool(tmp_path / "tools", "neuron-ls", "exit 1")
    found = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="").discover(path(tmp_path / "tools"))
    assert found.absence.startswith("neuron-ls --output-format json left with status 1, -j left with status 1 and ")


def test_a_table_in_the_place_of_json_is_not_taken_for_it(tmp_path: Path) -> None:
    """A tool that overlooks options it does not know."""
    listed = json.dumps(neuron_devices(1))
    write_tool(tmp_path / "tools", "neuron-ls", f"[ \"$1\" = -j ] && echo '{listed}' || echo '+---+'")
    found = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="").discover(path(tmp_path / "tools"))
    assert identities(found) == ["0", "1"]


@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "4-6"}, ["4", "5", "6"]),
        ({"NEURON_RT_VISIBLE_CORES": "0, 2,22-23"}, ["0", "2", "22", "23"]),
        ({"NEURON_RT_VISIBLE_CORES": "23-30"}, ["23"]),
        ({"NEURON_RT_NUM_CORES": "2"}, ["0", "1"]),
        ({"NEURON_RT_NUM_CORES": "2", "NEURON_RT_VISIBLE_CORES": "7"}, ["7"]),
        ({"NEURON_RT_NUM_CORES": "0"}, [str(core) for core in range(24)]),
    ],
)
def test_the_daemons_own_neuron_variables_narrow_them(
    tmp_path: Path, variables: dict[str, str], seen: list[str]
) -> None:
    assert identities(neuron(tmp_path, **variables)) == seen


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"NEURON_RT_VISIBLE_CORES": "all"}, "'all' cannot be read; write a range, 0-3, or a list, 0,2"),
        ({"NEURON_RT_VISIBLE_CORES": "99"}, "names none of the 24 NeuronCores"),
        ({"NEURON_RT_NUM_CORES": "-1"}, "'-1' is no number of cores"),
    ],
)
def test_variables_that_cannot_be_read_show_nothing_and_say_why(
    tmp_path: Path, variables: dict[str, str], why: str
) -> None:
    found = neuron(tmp_path, **variables)
    assert not found.devices
    assert why in found.absence


@pytest.mark.parametrize(
    "document",
    [
        "nothing",
        {"a": 1},
        [1],
        [{"neuron_device": 0}],
        [{"neuron_device": "0", "nc_count": 2}],
        [{"nc_count": -1}],
        [{"neuron_device": 0, "nc_count": 2, "neuroncore_ids": [1, 1]}],
    ],
)
@pytest.mark.parametrize("form", [OLD, NEW])
def test_nonsense_of_neuron_ls_is_no_device(tmp_path: Path, document: object, form: str) -> None:
    found = neuron(tmp_path, document, form)
    assert not found.devices
    assert f"{form} prints what it should not" in found.absence


@pytest.mark.parametrize(
    ("product", "devices", "cores"),
    [
        ("", 1, 2),
        ("inf2.24xlarge\n", 6, 12),
        ("trn1.32xlarge", 16, 32),
        ("inf1.xlarge", 1, 4),
        ("trn2.48xlarge", 2, 8),
        ("trn3.x", 1, 4),
    ],
)
def test_without_the_tool_each_device_file_is_so_many_cores(
    tmp_path: Path, product: str, devices: int, cores: int
) -> None:
    (tmp_path / "dev").mkdir()
    for number in range(devices):
        (tmp_path / "dev" / f"neuron{number}").touch()
    (tmp_path / "product").write_text(product)
    found = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="").discover({"PATH": ""})
    assert len(found.devices) == cores
    assert found.devices[0].name == ("NeuronCore of " + product.strip() if product else "NeuronCore")


def test_an_instance_without_its_driver_is_told_what_it_has(tmp_path: Path) -> None:
    kind = Neuron(tmp_path / "dev", tmp_path / "product", elsewhere="")
    nothing = f"neuron-ls is not on PATH and there is no {tmp_path}/dev/neuron0"
    assert kind.discover({"PATH": ""}).absence == nothing
    (tmp_path / "product").write_text("inf2.48xlarge\n")
    driver = "inf2.48xlarge has 24 NeuronCores, which need the Neuron driver to be seen"
    assert kind.discover({"PATH": ""}).absence == f"{nothing}: {driver}"


@pytest.mark.parametrize(
    ("cores", "said"),
    [([3], ("3", "1")), ([4, 5, 6, 7], ("4-7", "4")), ([0, 2], ("0,2", "2")), ([1, 0], ("1,0", "2"))],
)
def test_the_runtime_is_told_a_range_or_a_list(tmp_path: Path, cores: list[int], said: tuple[str, str]) -> None:
    found = neuron(tmp_path).devices
    told = Neuron().environment([found[core] for core in cores])
    assert (told["NEURON_RT_VISIBLE_CORES"], told["NEURON_RT_NUM_CORES"]) == said


def test_amds_gpus_are_the_nodes_with_compute_units(tmp_path: Path) -> None:
    for number, units in enumerate((0, 304, 304)):
        node = tmp_path / str(number)
        node.mkdir()
        (node / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\n")
        (node / "name").write_text("gfx942\n")
    assert [(device.identity, device.name) for device in Rocm(tmp_path).discover({}).devices] == [
        ("0", "AMD gfx942"),
        ("1", "AMD gfx942"),
    ]
    assert identities(Rocm(tmp_path).discover({"HIP_VISIBLE_DEVICES": "1"})) == ["1"]
    assert identities(Rocm(tmp_path).discover({"ROCR_VISIBLE_DEVICES": "1"})) == ["0"]
    assert Rocm(tmp_path).discover({"HIP_VISIBLE_DEVICES": ""}).absence.endswith("hides the 2 GPUs")
    assert Rocm().environment(Rocm(tmp_path).discover({}).devices) == {"HIP_VISIBLE_DEVICES": "0,1"}


def test_intels_compute_cards_count_where_handlers_use_them(tmp_path: Path) -> None:
    for number, kind in enumerate(("0x030000", "0x038000")):
        card = tmp_path / f"renderD{128 + number}" / "device"
        card.mkdir(parents=True)
        (card / "vendor").write_text("0x8086\n")
        (card / "class").write_text(f"{kind}\n")
    assert "TS_IPEX_GPU_ENABLE is not true" in Xpu(tmp_path).discover({}).absence
    found = Xpu(tmp_path).discover({"TS_IPEX_GPU_ENABLE": "true"}).devices
    assert Xpu().environment(found) == {"ZE_AFFINITY_MASK": "0"}
    assert not Xpu(tmp_path / "none").discover({}).devices


def test_apples_gpu_is_known_by_its_processor() -> None:
    assert len(Mps("Darwin", "arm64").discover({}).devices) == 1
    assert "Metal" in Mps("Linux", "x86_64").discover({}).absence
    assert Mps().environment(()) == {}


def test_cores_are_those_this_process_may_use_node_by_node(tmp_path: Path) -> None:
    (tmp_path / "node1").mkdir()
    (tmp_path / "node0").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("0-1,4\n")
    (tmp_path / "node0" / "cpulist").write_text("2,3\n")
    assert numa_nodes(tmp_path) == {0: 1, 1: 1, 4: 1, 2: 0, 3: 0}
    found = Cpu(tmp_path / "none", tmp_path).discover({}).devices
    assert {int(device.identity) for device in found} == allowed_cores()
    assert [device.numa_node or 0 for device in found] == sorted(device.numa_node or 0 for device in found)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert len(Cpu(tmp_path, tmp_path).discover({}).devices) == 1  # a quota of one core
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})  # as a cpuset would
        assert identities(Cpu(tmp_path / "none", tmp_path).discover({})) == [str(max(allowed))]
    finally:
        os.sched_setaffinity(0, allowed)


def test_every_kind_is_there_or_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = search({"PATH": str(tmp_path)})
    assert set(found) == set(ACCELERATORS)
    assert all(bool(result.devices) != bool(result.absence) for result in found.values())
    assert found["cpu"].devices


def test_number_of_gpu_takes_the_first_of_them(tmp_path: Path) -> None:
    write_nvidia_smi(tmp_path, gpu_rows(8))
    assert identities(search(path(tmp_path), 3)["cuda"]) == ["0", "1", "2"]
    none = search(path(tmp_path), 0)
    assert none["cuda"] == Found(absence="number_of_gpu is 0, and this machine has 8")
    assert "those of cuda" in none["rocm"].absence
