"""What is left when everything that could be left out of a server is: the ceilings of scripts/bench."""
