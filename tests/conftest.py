"""What every test stands on: tools that may be missing, hypothesis without luck, helpers of the harness."""

from __future__ import annotations

import pytest
from harness.commands import find_tool
from hypothesis import HealthCheck, settings

# The same examples on every run: a red build is red for everybody. A slow machine is not a failure.
settings.register_profile(
    "torchd", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("torchd")

_MISSING = "needs the tool"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked needs("tool") where the tool is not installed."""
    missing = [tool for mark in item.iter_markers("needs") for tool in mark.args if find_tool(tool) is None]
    if missing:
        pytest.skip(f"{_MISSING} {', '.join(missing)}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One last line that CI compares with 0, also where the tests ran in several processes."""
    skipped = sum(_MISSING in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    terminalreporter.write_line(f"tools missing: {skipped} tests skipped")
