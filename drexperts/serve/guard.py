"""Who may ask: the names of this server, and the tokens of its clients."""

import hmac
import ipaddress
import re
import stat
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from drexperts.runtime.errors import UserError
from drexperts.serve.failures import CLOSE, RequestError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A name or an address, whose port does not matter. Nothing else may be in it: programs differ in
# where they end the name in "known@other" or "known#other".
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s@/?#:\[\]\\]+)(:[0-9]*)?")
MOST_HEADERS = 32 * 2**10  # bytes
_LENGTHS = {b"content-length", b"transfer-encoding"}
_SHORTEST = 16  # characters of a token
# Probes have no token, and the page is the same for everybody.
_OPEN = ("/v2/health/live", "/v2/health/ready")


class Guard:
    """Checks the host and the token of requests.

    A page of another site can make a browser send requests to this server under a name of its own
    ("DNS rebinding"). So without tokens only known names and addresses are answered.

    tokens: any of them lets a request in; none lets in all
    hosts: names of this server; `*` is any, and none are those of this machine and addresses
    open_paths: paths that need no token, beside those of health
    """

    def __init__(
        self,
        tokens: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        open_paths: tuple[str, ...] = (),
    ) -> None:
        self._tokens = tuple(token.encode() for token in tokens)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open = frozenset(_OPEN + open_paths)

    def check(self, scope: Scope) -> None:
        """Raises RequestError for a request that is not allowed."""
        _check_head(scope)
        headers = Headers(scope=scope)
        if not self._knows(headers.get("host")):
            message = "this server is not known by this name: see its option --allow-host"
            raise RequestError(403, "host_not_allowed", message)
        if scope["path"] not in self._open:
            self.check_token(headers.get("authorization", ""))

    def check_token(self, header: str) -> None:
        """Raises RequestError for a header that has no token of this server, if it has any."""
        if not self._tokens:
            return
        scheme, _, token = header.partition(" ")
        given = token.strip().encode("latin-1", "replace")
        equal = [hmac.compare_digest(given, known) for known in self._tokens]
        if scheme.lower() != "bearer" or not any(equal):
            message = "send a valid token: Authorization: Bearer TOKEN"
            raise RequestError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    def _knows(self, header: str | None) -> bool:
        if "*" in self._hosts or (self._tokens and not self._hosts):
            return True
        parsed = _HOST.fullmatch((header or "").lower())
        if parsed is None:
            return False
        name = parsed[1].strip("[]")
        return name in self._hosts or name in _LOOPBACK or (not self._hosts and _is_address(name))


def _check_head(scope: Scope) -> None:
    """Raises RequestError for a head that is too large, or that a proxy may read in another way."""
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size + len(scope["path"]) + len(scope["query_string"]) > MOST_HEADERS:
        message = f"the path and the headers are larger than {MOST_HEADERS} bytes: send fewer"
        raise RequestError(431, "headers_too_large", message, CLOSE)
    if {name for name, _ in scope["headers"]} >= _LENGTHS:
        # Where one program believes the one and the next the other, a body hides a request.
        message = "send either Content-Length or Transfer-Encoding, not both"
        raise RequestError(400, "two_lengths", message, CLOSE)


def check_open(host: str, tokens: tuple[str, ...], no_token: bool) -> None:
    """Raises UserError for an address that others reach, without tokens."""
    if tokens and no_token:
        raise UserError("a token file and --no-token exclude each other: give one of them")
    if not (tokens or no_token or is_loopback(host)):
        raise UserError(
            f"on {host} anybody who reaches this machine could ask: give --token-file, or "
            "--no-token where something else lets nobody else in"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one per line; empty lines and those that begin with # are none.

    Raises UserError for a file that cannot be read or that others can, and for short tokens.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise UserError(f"the tokens in {str(path)!r} cannot be read: {cause}") from cause
    if mode & stat.S_IROTH:
        raise UserError(f"everybody can read the tokens in {str(path)!r}: `chmod o-r` it")
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not tokens or any(len(token) < _SHORTEST or " " in token for token in tokens):
        raise UserError(
            f"{str(path)!r} must hold one token per line, each of at least {_SHORTEST} characters "
            "without blanks, such as `openssl rand -hex 32` prints"
        )
    return tokens


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
