"""The REST shim: HTTP/1.1 on httptools, in the daemon's own event loop."""
