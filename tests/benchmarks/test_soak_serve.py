"""The soak keeps its promises over some seconds, and finds a broken one."""

import dataclasses

import pytest

from drexperts.benchmarks import soak_serve

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(photo, tmp_path):
    for seed in range(3):
        photo(90, 60, seed).save(tmp_path / f"{seed}.png")
    return str(tmp_path)


def test_a_server_keeps_its_promises(toy_bundle, photos, capsys) -> None:
    given = [str(toy_bundle), photos, "--overload", "1.5", "--soak", "3"]
    assert soak_serve.main(given) == 0, capsys.readouterr().out


def test_a_wrong_score_is_found(toy_bundle, photos, monkeypatch) -> None:
    known = soak_serve.Known.of(toy_bundle, photos, 1)
    wrong = dataclasses.replace(known, values=[value + 1 for value in known.values])
    monkeypatch.setattr(soak_serve.Known, "of", lambda *_: wrong)
    given = [str(toy_bundle), photos, "--overload", "0.2", "--soak", "0.2"]
    assert soak_serve.main(given) == 1
