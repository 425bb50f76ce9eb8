"""Small pictures inside a page."""

from pathlib import Path

from PIL import Image

from drexperts.ui.pictures import thumbnail


def test_a_picture_is_small_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    Image.effect_noise((2000, 1500), 80).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    small = thumbnail(tmp_path / "large.png")
    assert small is not None
    assert len(small) < 50_000
    assert thumbnail(tmp_path / "broken.png") is None
