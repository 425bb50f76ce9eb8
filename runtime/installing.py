"""How to install an extra that is missing, from where drexperts itself was installed.

drexperts is on no package index, so `pip install "drexperts[cpu]"` would find nothing, or somebody
else's package. Installers record where a package came from (PEP 610): that wheel, checkout or
repository is named again, with the extra.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "drexperts"
# Such as `torch>=2.11; extra == "train"`.
_OPTIONAL = re.compile(r"""([^;]+?)\s*;.*\bextra == ["']([\w.-]+)["']""")


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, for this interpreter.

    Where the wheel or the checkout is gone, it names the packages that the extra stands for.
    """
    wanted = _from_origin(_record("direct_url.json"), extra)
    return f"{_installer()} {' '.join(wanted or map(_quoted, _packages(extra)))}"


def _record(name: str) -> str:
    """A file that the installer wrote about drexperts; empty if there is none."""
    from importlib import metadata  # takes a while, and hints are rare

    # A checkout in the search path may have metadata as well, but nobody installed those.
    texts = (found.read_text(name) for found in metadata.distributions(name=_NAME))
    return next(filter(None, texts), "").strip()


def _from_origin(record: str, extra: str) -> list[str]:
    """What to give to an installer: nothing if the origin is a path that does not exist."""
    origin: dict[str, Any] = json.loads(record) if record else {}
    url = origin.get("url", "")
    if not url:  # from an index, which then has it
        return [_quoted(f"{_NAME}[{extra}]")]
    if not url.startswith("file:"):
        version = origin.get("vcs_info", {})
        at = f"@{version['commit_id']}" if "commit_id" in version else ""
        kind = f"{version['vcs']}+" if "vcs" in version else ""
        return [_quoted(f"{_NAME}[{extra}] @ {kind}{url}{at}")]
    path = Path(url2pathname(urlsplit(url).path))
    editable = ["-e"] if origin.get("dir_info", {}).get("editable") else []
    return [*editable, _quoted(f"{path}[{extra}]")] if path.exists() else []


def _packages(extra: str) -> Iterator[str]:
    """The requirements of an extra, those of the extras that it includes among them."""
    from importlib import metadata

    for text in metadata.requires(_NAME) or []:
        match = _OPTIONAL.fullmatch(text)
        if match is None or match[2] != extra:
            continue
        included = re.fullmatch(rf"{_NAME}\[(.+)\]", match[1])
        yield from _packages(included[1]) if included else [match[1]]


def _installer() -> str:
    """The program that installed drexperts, with this interpreter if it would take another."""
    if _record("INSTALLER") == "uv":
        active = os.environ.get("VIRTUAL_ENV") == sys.prefix
        return "uv pip install" + f" --python {shlex.quote(sys.executable)}" * (not active)
    pip = shutil.which("pip")
    active = pip is not None and Path(pip).parent == Path(sys.executable).parent
    return "pip install" if active else f"{shlex.quote(sys.executable)} -m pip install"


def _quoted(text: str) -> str:
    """A text in double quotes, which shells of Unix and Windows obey, or as a shell needs it."""
    return f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
