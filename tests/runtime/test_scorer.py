import dataclasses
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from drexperts import runtime
from drexperts.runtime.errors import ImageError, InternalError, UserError
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.scorer import Scorer


class FakeSession:
    """Mean brightness, NaN for crops that are all white; records the batch sizes."""

    max_batch = 16
    concurrency = 1
    description = "fake"
    image_size: int | None = None

    def __init__(self):
        self.batches: list[int] = []
        self.inside = threading.Semaphore()

    def run(self, pixels):
        assert self.inside.acquire(blocking=False), "called by two threads at once"
        self.batches.append(len(pixels))
        score = pixels.mean(axis=(1, 2, 3), dtype=np.float32)
        score[score == 255] = np.nan
        self.inside.release()
        return {
            "score": score,
            "weights": np.repeat(score[:, None], 10, axis=1),
            "maps": np.zeros((len(pixels), 10, 4, 4), np.float32),
        }

    def close(self):
        pass


@pytest.fixture(scope="module")
def scorer(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture
def fake(scorer):
    return Scorer(scorer.manifest, scorer.engine, FakeSession(), batch=3)


@pytest.fixture(scope="module")
def photos(photo):
    sizes = [(64, 64), (32, 32), (90, 40), (40, 90), (200, 150), (10, 10), (33, 33)]
    return [photo(w, h, seed) for seed, (w, h) in enumerate(sizes)]


def test_score_is_the_mean_over_crops(scorer, photo):
    image = photo(64, 50)
    score = scorer.score(image)
    crops = crops_from_image(image, scorer.manifest.preprocessing)
    raw = crops.pixels.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(score.raw, raw, rtol=1e-6)
    assert score.value == pytest.approx(raw.mean(), rel=1e-6)
    assert score.std == pytest.approx(raw.std(), rel=1e-3)
    assert tuple(score.distortions) == scorer.manifest.distortions
    assert score.distortions["distortion 9"] == pytest.approx(raw.mean() * 10 / 55 / 255, rel=1e-5)
    assert score.error is None
    assert score.maps is None
    assert score.scale == scorer.manifest.scale
    assert score.source == "<RGB image 64x50>"


def test_maps_only_when_asked(scorer, photo):
    maps = scorer.score(photo(100, 40), maps=True).maps
    assert maps.values.dtype == np.float32
    assert maps.values.shape == (4, 10, 4, 4)
    assert maps.boxes.shape == (4, 4)
    assert maps.size == (100, 40)


def test_maps_of_a_bundle_without_maps(scorer, photo):
    manifest = dataclasses.replace(scorer.manifest, outputs=("score", "weights"))
    plain = Scorer(manifest, scorer.engine, scorer.session)
    assert plain.score(photo(40, 40)).value == scorer.score(photo(40, 40)).value
    for call in (plain.score, plain.score_stream):
        with pytest.raises(UserError, match="maps"):
            call([photo(40, 40)], maps=True)


def test_list_equals_single_scores_at_every_batch_size(scorer, photos):
    single = [scorer.score(image) for image in photos]
    for batch in (1, 2, 3, 7, 16):
        batched = Scorer(scorer.manifest, scorer.engine, scorer.session, batch=batch)
        assert batched.score(photos) == single
        assert batched.score(tuple(reversed(photos))) == single[::-1]
        assert batched.score([photos[0]] * 5) == [single[0]] * 5


def test_batches_are_filled_across_images(fake, photos):
    fake.score(photos[:3])  # 4 + 1 + 4 crops
    assert fake.session.batches == [3, 3, 3]


def test_one_thread_at_a_time_calls_the_engine(fake, photos):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fake.score(photos), range(8)))
    assert all(result == results[0] for result in results)


def test_as_many_threads_call_the_engine_as_it_allows(scorer, photos):
    class Meeting(FakeSession):
        """Returns only when two threads have called it."""

        concurrency = 2

        def __init__(self):
            self.barrier = threading.Barrier(2)

        def run(self, pixels):
            self.barrier.wait(10)
            return {
                "score": np.zeros(len(pixels), np.float32),
                "weights": np.zeros((len(pixels), 10), np.float32),
                "maps": np.zeros((len(pixels), 10, 4, 4), np.float32),
            }

    both = Scorer(scorer.manifest, scorer.engine, Meeting())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: both.score(photos[0]), range(4)))
    assert [result.value for result in results] == [0.0] * 4


def test_unreadable_image_alone_raises(scorer, tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg"):
        scorer.score(tmp_path / "none.jpg")


def test_unreadable_images_do_not_affect_the_others(scorer, photos, tmp_path):
    sources = [b"", photos[0], b"junk", tmp_path / "none.png", photos[4], 7, photos[1]]
    scores = scorer.score(sources)
    good = [i for i, score in enumerate(scores) if score.error is None]
    assert good == [1, 4, 6]
    for i in good:
        assert scores[i] == scorer.score(sources[i])
    assert "empty" in scores[0].error
    assert math.isnan(scores[0].value)
    assert scores[0].raw == ()
    assert scores[0].distortions == {}


def test_stream_keeps_the_order_in_bounded_memory(scorer, photo):
    drawn = []

    def sources():
        for seed in range(60):
            drawn.append(seed)
            yield b"bad" if seed % 7 == 3 else photo(32 + seed, 40, seed)

    stream = scorer.score_stream(sources())
    for seed, score in enumerate(stream):
        assert len(drawn) - seed < 20
        if seed % 7 == 3:
            assert score.error is not None
        else:
            assert score == scorer.score(photo(32 + seed, 40, seed))
    assert seed == 59


def test_a_stream_may_be_closed_early(scorer, photos, encode):
    before = set(threading.enumerate())  # another test's failure may keep its stream alive
    files = [encode(photo, "PNG") for photo in photos]
    stream = scorer.score_stream(files * 100)
    assert next(stream) == scorer.score(files[0])
    assert {t.name[:16] for t in set(threading.enumerate()) - before} == {"drexperts-decode"}
    stream.close()
    assert not [t for t in threading.enumerate() if t not in before]


def test_empty_inputs(scorer):
    assert scorer.score([]) == []
    assert list(scorer.score_stream(iter(()))) == []


def test_error_of_the_source_reaches_the_caller(scorer, photos):
    def sources():
        yield photos[0]
        raise OSError("listing failed")

    with pytest.raises(OSError, match="listing failed"):
        list(scorer.score_stream(sources()))


def test_a_non_finite_output_affects_only_its_image(fake, photos):
    white = np.full((64, 64, 3), 255, np.uint8)
    scores = fake.score([photos[0], white, photos[1]])
    assert "the engine returned a non-finite score" in scores[1].error
    assert scores[0] == fake.score(photos[0])
    assert scores[2] == fake.score(photos[1])
    with pytest.raises(InternalError, match="non-finite"):
        fake.score(white)


@pytest.mark.parametrize("name", ["score", "weights", "maps"])
def test_missing_output_is_our_bug(fake, photos, name, monkeypatch):
    run = fake.session.run
    monkeypatch.setattr(
        fake.session, "run", lambda pixels: {k: v for k, v in run(pixels).items() if k != name}
    )
    with pytest.raises(InternalError, match=f"output '{name}'"):
        fake.score(photos)


def test_output_of_another_shape_is_our_bug(fake, photos, monkeypatch):
    run = fake.session.run
    monkeypatch.setattr(
        fake.session, "run", lambda pixels: run(pixels) | {"score": np.zeros((3, 1), np.float32)}
    )
    with pytest.raises(InternalError, match=r"\(3, 1\)"):
        fake.score(photos)


def test_rows_are_json(scorer, photo):
    good, bad = scorer.score([photo(40, 40), b""], maps=True)
    row = json.loads(json.dumps(good.as_row(), allow_nan=False))
    assert row["value"] == good.value
    assert row["raw"] == list(good.raw)
    assert row["scale"] == {"low": 0.0, "high": 255.0, "higher_is_better": True}
    assert "maps" not in row
    row = json.loads(json.dumps(bad.as_row(), allow_nan=False))
    assert row["value"] is None
    assert row["std"] is None
    assert "empty" in row["error"]


def test_fingerprint_follows_everything_that_makes_a_score(scorer, fake, photo, encode):
    image = photo(40, 40)
    base = scorer.score(image).fingerprint
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert scorer.score(photo(50, 50, 1)).fingerprint == base
    assert scorer.score(encode(image, "PNG")).fingerprint != base  # decoded by us
    assert fake.score(image).fingerprint != base  # another session
    spec = dataclasses.replace(scorer.manifest.preprocessing, crops_per_side=1)
    manifest = dataclasses.replace(scorer.manifest, preprocessing=spec)
    assert Scorer(manifest, scorer.engine, scorer.session).score(image).fingerprint != base
    engine = dataclasses.replace(scorer.engine, sha256="0" * 64)
    assert Scorer(scorer.manifest, engine, scorer.session).score(image).fingerprint != base
    parts = set(scorer.fingerprint_parts(image))
    assert parts == {"engine", "preprocessing", "decoder", "resampler", "session"}


def test_files_and_bytes_share_the_fingerprint_that_needs_no_image(scorer, photo, encode, tmp_path):
    photo(40, 40).save(tmp_path / "a.png")
    found = scorer.score([tmp_path / "a.png", encode(photo(40, 40), "JPEG"), b"broken"])
    assert {score.fingerprint for score in found} == {scorer.fingerprint()}
    assert scorer.fingerprint(photo(40, 40)) != scorer.fingerprint()
