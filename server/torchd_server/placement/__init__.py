"""How a worker process comes to be, and how it ends."""
