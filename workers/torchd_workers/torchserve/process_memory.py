"""How much memory processes use."""

from __future__ import annotations

import logging
from typing import TextIO

import psutil

logger = logging.getLogger(__name__)


def get_cpu_usage(pid: str | int) -> int:
    """The resident bytes of a process; 0 where there is none."""
    try:
        return int(psutil.Process(int(pid)).memory_info().rss)
    except psutil.Error:
        logger.error("no process %s to measure", pid, exc_info=True)
        return 0


def check_process_mem_usage(stdin: TextIO) -> None:
    """Logs `pid:bytes` for each process of a line of pids with commas between them."""
    for pid in filter(None, stdin.readline().strip().split(",")):
        logger.info("%s:%d", pid, get_cpu_usage(pid))
