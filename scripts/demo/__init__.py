"""What scripts/quickstart packs, starts and measures."""
