"""The model of scripts/bench_cost.py, a BERT that scores texts; its handler, and texts of many lengths."""
