"""The page on preprocessing has the layouts that are read, as the code lists them."""

import importlib.util
from pathlib import Path

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "layout_table.py"


def test_the_page_has_the_layouts_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("layout_table", HOOK)
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = hook.PAGE.read_text(encoding="utf-8")
    assert page == hook.filled(page), "run `python docs/hooks/layout_table.py`"
