"""Addresses to listen on."""

import socket

from drexperts.runtime.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        # Its connections have it from here: asyncio does not know that these sockets are TCP's, and
        # the body of an answer would wait up to 40 ms until the client acknowledges its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as cause:
        raise UserError(
            f"{host}:{port} cannot be listened on: {cause.strerror or cause}; "
            "choose another port, or end the program that has it"
        ) from cause


def address(host: str, port: int) -> str:
    """Both as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
