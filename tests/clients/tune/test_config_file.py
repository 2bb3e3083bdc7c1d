"""The archive's own model-config.yaml, with the tuned keys changed and the rest left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchd_clients.tune.config_file import edited, merged, read_config, setting_of
from torchd_clients.tune.errors import ConfigInvalid
from torchd_clients.tune.space import Setting

OWN = """\
# Ours, with care.
batchSize: 4  # as the team agreed
responseTimeout: 30

handler:
  labels: [a, b]   # the order matters
# The last word.
optimize:
  pin_memory: false
"""


def test_comments_and_other_keys_stay() -> None:
    config = read_config(OWN)
    wanted = merged(config, setting_of(config), Setting(workers=2, batch_size=8, dtype="bfloat16"))
    assert edited(OWN, wanted) == (
        """\
# Ours, with care.
batchSize: 8  # as the team agreed
responseTimeout: 30

handler:
  labels: [a, b]   # the order matters
# The last word.
optimize:
  pin_memory: false
  dtype: bfloat16
minWorkers: 2
maxWorkers: 2
"""
    )


def test_what_is_not_changed_is_not_touched() -> None:
    config = read_config(OWN)
    assert edited(OWN, merged(config, setting_of(config), setting_of(config))) == OWN


def test_an_archive_without_a_file_gets_only_the_tuned_keys() -> None:
    wanted = merged({}, Setting(), Setting(workers=2, dtype="bfloat16"))
    assert read_config(edited("", wanted)) == {"minWorkers": 2, "maxWorkers": 2, "optimize": {"dtype": "bfloat16"}}


def test_a_choice_that_is_taken_back_leaves_no_key() -> None:
    text = "optimize: {dtype: bfloat16}\nworkerThreads: 2\n"
    config = read_config(text)
    assert edited(text, merged(config, setting_of(config), Setting())).strip() == ""


def test_the_archives_own_setting_is_read_with_the_daemons_defaults() -> None:
    config = read_config("minWorkers: 3\noptimize: {dtype: float16, compile: true}\n")
    assert setting_of(config) == Setting(workers=3, dtype="float16", compile="default")
    assert setting_of({}) == Setting(workers=1, threads=0, batch_size=1, batch_delay=100)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "optimize: fast\n"])
def test_a_file_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"model-config\.yaml"):
        setting_of(read_config(text))


keys = st.sampled_from(["batchSize", "maxBatchDelay", "handler", "labels", "workerThreads", "minWorkers", "note"])
scalars = st.one_of(st.integers(1, 99), st.text("ab #:'\"\n-", max_size=12), st.booleans(), st.none())
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text("ab", min_size=1), scalars))
documents = st.dictionaries(keys, values, max_size=6)


@given(documents, documents, st.booleans())
def test_the_text_always_says_what_is_wanted(before: dict[str, Any], wanted: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(before, sort_keys=False, default_flow_style=flow)
    assert read_config(edited(text, wanted)) == wanted


def test_a_delay_of_nothing_is_a_delay() -> None:
    config = read_config("maxBatchDelay: 0\n")
    assert setting_of(config).batch_delay == 0
    assert merged({}, Setting(), Setting(batch_delay=0)) == {"maxBatchDelay": 0}
