"""`python -m torchd_server` is `torchd`."""

from torchd_server.cli import main

if __name__ == "__main__":
    main()
