"""Who runs next, with whom, and how long a batch waits for company."""
