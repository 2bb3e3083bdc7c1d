"""The parts of scripts/bench and of scripts/bench_gpu.py."""
