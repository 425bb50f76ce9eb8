"""A bundle behind a URL: HTTP, gRPC, metrics, and a page.

Example:
    from drexperts.serve import ServeSettings, serve

    serve("bundle/", ServeSettings(port=8000))
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.serve.server import Server as Server
    from drexperts.serve.server import serve as serve
    from drexperts.serve.settings import ServeSettings as ServeSettings

_HOMES = {"Server": "server", "serve": "server", "ServeSettings": "settings"}
__all__ = ["ServeSettings", "Server", "serve"]  # noqa: F822 - found by __getattr__
__getattr__ = lazy_exports(__name__, _HOMES)
