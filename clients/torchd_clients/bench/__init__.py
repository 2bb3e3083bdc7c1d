"""`torchd bench`: a load generator, what it measured, and its reports."""
