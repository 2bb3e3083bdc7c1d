"""The process that runs one model: it speaks frames with the daemon and calls the handler. Standard library only."""
