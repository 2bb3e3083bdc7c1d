"""`torchd tune`: finds the setting with the most throughput under a latency bound, on a real daemon."""
