"""A page of docs/ as a reader types it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.commands import environment, install_commands
from harness.daemon import free_ports

PORTS = ("grpc-inference", "grpc-management", "inference", "management", "metrics")
_END = "== end of a block\n"


def typed(page: Path, folder: Path, timeout: float, setup: str = "", without: Iterable[str] = ()) -> list[str]:
    """What each `bash` block of the page prints, all typed into one shell in `folder`; what follows the last, too.

    Only the ports are the test's, and `setup`, typed first. `without` names variables that the shell does not have.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ports = dict(zip(PORTS, free_ports(5), strict=True))
    flags = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    program = f"set -eo pipefail\n{setup}trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    program += "".join(f"{block}\necho; echo '{_END.strip()}'\n" for block in blocks)
    assert program.count("torchd serve ") == 1
    program = program.replace("torchd serve ", f"torchd serve {flags} ").replace(":8081/", f":{ports['management']}/")
    (folder / "scratch").mkdir()
    variables = environment(install_commands(folder / "bin"), folder / "scratch")
    variables |= {"XDG_RUNTIME_DIR": str(folder)}
    for name in without:
        del variables[name]
    log = folder / "terminal.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", "-c", program], cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, timeout=timeout
        )
    daemon_log = folder / "torchd.log"
    assert ended.returncode == 0, log.read_text() + (daemon_log.read_text() if daemon_log.is_file() else "")
    return log.read_text().split(_END)
