"""A bundle behind a URL.

Example:
    from drexperts.serve import ServeSettings, serve

    serve("bundle/", ServeSettings(port=8000))
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.serve.server import serve
    from drexperts.serve.settings import ServeSettings

__all__ = ["ServeSettings", "serve"]

__getattr__ = lazy_exports(__name__, {"ServeSettings": "settings", "serve": "server"})
