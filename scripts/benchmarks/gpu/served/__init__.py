"""What the archives of scripts/bench_gpu.py hold; sizes.json beside each model says how large it is."""
