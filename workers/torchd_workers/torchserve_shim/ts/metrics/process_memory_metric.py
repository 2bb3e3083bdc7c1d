"""TorchServe: ts/metrics/process_memory_metric.py."""

from torchd_workers.torchserve.process_memory import check_process_mem_usage, get_cpu_usage

__all__ = ["check_process_mem_usage", "get_cpu_usage"]
