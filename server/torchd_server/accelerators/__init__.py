"""The devices of this machine, and which worker holds which."""
