"""Which settings are tried: only those that make sense on the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_clients.tune.errors import SpaceInvalid
from torchd_clients.tune.slo import Slo, read_slo
from torchd_clients.tune.space import Machine, Setting, Space, as_json, from_json, space_of

TWO_CORES = Machine(2, has_bfloat16=True)


def test_the_seeds_begin_with_the_default_and_hold_the_usual_recipes() -> None:
    space = space_of(Setting(), TWO_CORES)
    seeds = space.seeds()
    assert seeds[0] == Setting()
    assert Setting(workers=2, batch_size=8) in seeds
    assert Setting(workers=2, batch_size=8, dtype="bfloat16") in seeds
    assert len(seeds) <= 10


def test_neighbours_differ_in_one_dimension_and_by_one_step() -> None:
    space = space_of(Setting(), TWO_CORES)
    here = Setting(workers=2, batch_size=8, batch_delay=20)
    found = space.neighbours(here)
    assert {one.batch_size for one in found} == {4, 8, 16}
    assert {one.batch_delay for one in found} == {5, 20, 100}
    assert Setting(workers=2, batch_size=8, batch_delay=20, dtype="bfloat16") in found
    assert Setting(workers=2, batch_size=8, batch_delay=20, compile="default") in found
    assert here not in found


def test_no_more_threads_than_cores() -> None:
    space = space_of(Setting(), Machine(8))
    assert not space.is_sensible(Setting(workers=4, threads=4))
    assert space.is_sensible(Setting(workers=4, threads=2))
    assert not space.is_sensible(Setting(workers=16))


def test_what_the_archive_has_by_itself_is_always_sensible() -> None:
    own = Setting(workers=6, threads=4)
    space = space_of(own, TWO_CORES)
    assert space.is_sensible(own)
    assert own in space.seeds()


def test_a_delay_is_no_matter_for_a_batch_of_one() -> None:
    space = space_of(Setting(batch_size=4), TWO_CORES)
    assert space.canonical(Setting(batch_delay=5)) == space.canonical(Setting(batch_delay=20))
    assert {one.batch_delay for one in space.neighbours(Setting(workers=2))} == {100}


def test_a_share_of_the_cores_is_not_tried_again_by_its_number() -> None:
    space = space_of(Setting(), TWO_CORES)
    assert space.canonical(Setting(workers=2, threads=1)) == Setting(workers=2)
    assert space.canonical(Setting(workers=1, threads=1)) == Setting(workers=1, threads=1)


def test_workers_that_do_not_fit_into_memory_are_not_tried() -> None:
    space = replace(space_of(Setting(), Machine(8)), most_workers=3)
    assert {one.workers for one in space.seeds()} <= {1, 2}


def test_a_processor_that_only_emulates_bfloat16_is_not_asked_for_it() -> None:
    assert space_of(Setting(), Machine(2)).values["dtype"] == ("",)


def test_int8_is_tried_only_where_it_is_named() -> None:
    assert space_of(Setting(), TWO_CORES).values["quantize"] == ("",)
    assert space_of(Setting(), TWO_CORES, ["quantize=int8"]).values["quantize"] == ("", "int8_dynamic")
    assert space_of(Setting(), TWO_CORES, allowed=["int8"]).values["quantize"] == ("", "int8_dynamic")


def test_a_machine_with_gpus_has_the_processor_and_half_precision_to_offer() -> None:
    space = space_of(Setting(), Machine(16, gpus=1))
    assert space.values["device"] == ("", "cpu")
    assert "float16" in space.values["dtype"]
    assert any(one.workers == 2 for one in space.seeds())


def test_dimensions_are_read_as_they_are_written() -> None:
    space = space_of(Setting(), TWO_CORES, ["workers=1,2 batch_size=1,4", "dtype=own,bfloat16"])
    assert space.values["workers"] == (1, 2)
    assert space.values["batch_size"] == (1, 4)
    assert space.values["dtype"] == ("", "bfloat16")


@pytest.mark.parametrize("given", ["workers", "cats=3", "workers=0", "workers=two", "dtype=float8", "device=tpu"])
def test_a_dimension_that_is_none_is_refused_by_name(given: str) -> None:
    with pytest.raises(SpaceInvalid, match=given.partition("=")[0]):
        space_of(Setting(), TWO_CORES, [given])


@pytest.mark.parametrize(
    ("text", "slo"), [("p99=100ms", Slo(99, 100)), ("p99.9=1.5s", Slo(99.9, 1500)), ("p50 = 20 ms", Slo(50, 20))]
)
def test_bounds_are_read(text: str, slo: Slo) -> None:
    assert read_slo(text) == slo


@pytest.mark.parametrize("text", ["p99", "99=100ms", "p99=100", "p99=0ms", "p100=1s", ""])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(SpaceInvalid, match="--slo"):
        read_slo(text)


settings = st.builds(
    Setting,
    workers=st.sampled_from([1, 2, 3, 4, 8]),
    threads=st.sampled_from([0, 1, 2, 4, 8]),
    batch_size=st.sampled_from([1, 2, 8]),
    batch_delay=st.sampled_from([5, 20, 100]),
    dtype=st.sampled_from(["", "bfloat16"]),
)
spaces = st.builds(space_of, settings, st.builds(Machine, st.integers(1, 16), st.integers(0, 2), st.booleans()))


@given(spaces, settings)
def test_everything_tried_is_sensible_and_written_in_one_way(space: Space, here: Setting) -> None:
    for one in (*space.seeds(), *space.neighbours(here)):
        assert space.is_sensible(one)
        assert space.canonical(one) == one
        assert from_json(as_json(one)) == one
