"""The server's routes over HTTP, and its page."""
