import dataclasses
import functools
import io
import json
import math
import multiprocessing
import os
import pickle
import queue
import re
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.waiting import until

from drexperts import runtime
from drexperts.runtime.errors import BundleError, ImageError, InternalError, UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.scorer import Scorer


class FakeSession:
    """Mean brightness, NaN for crops that are all white; records the batch sizes."""

    max_batch = 16
    concurrency = 1
    description = "fake"

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
    until(lambda: set(threading.enumerate()) <= before)


def test_closing_a_stream_does_not_wait_for_an_image(scorer, photos, encode, monkeypatch):
    quick, slow = (encode(photo, "PNG") for photo in photos[:2])
    started, go_on, crops = threading.Event(), threading.Event(), scorer.decoder.crops

    def waits(source):
        if source is slow:
            started.set()
            go_on.wait(10)
        return crops(source)

    monkeypatch.setattr(scorer.decoder, "crops", waits)
    stream = scorer.score_stream([quick] * 8 + [slow] * 9)
    next(stream)
    while not started.is_set():
        next(stream)
    stream.close()
    busy = [t for t in threading.enumerate() if t.name.startswith("drexperts-decode")]
    go_on.set()
    for thread in busy:
        thread.join()
    assert busy


def test_empty_inputs(scorer):
    assert scorer.score([]) == []
    assert list(scorer.score_stream(iter(()))) == []


def test_error_of_the_source_reaches_the_caller(scorer, photos):
    def sources():
        yield photos[0]
        raise OSError("listing failed")

    with pytest.raises(OSError, match="listing failed"):
        list(scorer.score_stream(sources()))


def test_keys_name_arrays_of_one_size(scorer, photo, tmp_path):
    arrays = [np.asarray(photo(40, 40, seed)) for seed in range(3)]
    plain = scorer.score(arrays)
    assert [score.source for score in plain] == ["<array uint8 40x40x3>"] * 3
    names = ["a", "shard-0/b.jpg", "a"]  # equal keys are the caller's affair
    expected = [dataclasses.replace(s, source=n) for s, n in zip(plain, names, strict=True)]
    pairs = list(zip(names, arrays, strict=True))
    assert scorer.score(pairs) == scorer.score(tuple(pairs)) == expected
    assert list(scorer.score_stream(iter(pairs))) == expected
    keyed = [(tmp_path / "x.png", arrays[0]), arrays[1], (np.str_("n"), arrays[2])]
    assert [score.source for score in scorer.score(keyed)] == [
        str(tmp_path / "x.png"),
        "<array uint8 40x40x3>",
        "n",
    ]


def test_the_fingerprint_of_a_keyed_source_is_the_sources(scorer, photo, encode):
    for source in (encode(photo(40, 40), "PNG"), photo(40, 40), np.asarray(photo(40, 40))):
        (score,) = scorer.score([("key", source)])
        assert score.fingerprint == scorer.fingerprint(source)


def test_a_tuple_alone_is_several_images(scorer, photo, encode, tmp_path):
    photo(40, 40).save(tmp_path / "key.png")
    scores = scorer.score((str(tmp_path / "key.png"), encode(photo(40, 40), "PNG")))
    assert [score.value for score in scores] == [scorer.score(photo(40, 40)).value] * 2


def test_rows_of_errors_carry_their_keys(scorer, tmp_path):
    bad = [("one", b"junk"), ("two", tmp_path / "none.jpg"), ("three", ("a", b"")), ("four", None)]
    bad += [("five", np.zeros((3, 3), np.float32)), ("six", [b""])]
    scores = scorer.score(bad)
    assert [score.source for score in scores] == ["one", "two", "three", "four", "five", "six"]
    assert all(score.error for score in scores)
    assert "none.jpg" in scores[1].error


def test_functions_fetch_images_in_the_threads_that_decode(scorer, photo, encode):
    threads = set()

    def fetch(image):
        threads.add(threading.current_thread().name)
        if image is None:
            raise ImageError("the network is down")
        return encode(image, "PNG")

    images = [photo(40, 36, seed) for seed in range(3)]
    items = [(str(i), functools.partial(fetch, image)) for i, image in enumerate([*images, None])]
    *good, bad = scorer.score_stream(items)
    assert [score.value for score in good] == [scorer.score(encode(i, "PNG")).value for i in images]
    assert {score.fingerprint for score in good} == {scorer.fingerprint()}
    assert (bad.source, bad.error) == ("3", "the network is down")
    assert all(name.startswith("drexperts-decode") for name in threads)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "empty"),
        (7, "this int, as with str"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (math.nan, "float"),
        ("\ud800", r"'\\ud800' holds"),
    ],
)
def test_what_is_no_key_is_a_row_with_an_error(scorer, photo, encode, key, said):
    good = encode(photo(40, 40), "PNG")
    bad, other = scorer.score([(key, good), ("good", good)])
    assert re.search(said, bad.error)
    assert bad.source == "<tuple>"
    assert other.error is None


@pytest.mark.parametrize("item", [(), ("alone",), ("a", b"", b"more")])
def test_a_tuple_among_sources_is_a_pair(scorer, photo, item):
    bad, good = scorer.score([item, photo(40, 40)])
    assert f"(key, source), not {len(item)}" in bad.error
    assert good.error is None


@pytest.mark.parametrize(
    "key", ["two\nlines", "\x1b[31m", "nul\0", os.fsdecode(b"\xff"), " ", "照"]
)
def test_any_other_key_is_kept_as_it_is(scorer, photo, key):
    (score,) = scorer.score([(key, photo(40, 40))])
    assert score.source == key
    assert json.loads(json.dumps(score.as_row()))["source"] == key


class Blocked(Exception):  # noqa: N818 - not an error
    """A source was asked for what is not there yet: a real one would wait now."""


def feed(given):
    """Gives the sources that are there, and would then wait."""
    while given:
        yield given.popleft()
    raise Blocked


def until_blocked(stream):
    """What a stream gives before it asks its source for what is not there."""
    scores = []
    with pytest.raises(Blocked):
        scores.extend(stream)  # keeps what came before the exception
    return scores


@pytest.mark.parametrize("isolated", [False, True])
def test_all_rows_are_out_before_a_source_is_waited_for(toy_bundle, photos, encode, isolated):
    files = [b"junk", *(encode(photo, "PNG") for photo in photos)]
    given: deque[bytes] = deque()
    with runtime.load(toy_bundle, threads=1, isolated=isolated) as scorer:
        expected = [score.value for score in scorer.score(files)]
        for flush in (True, lambda: not given):
            given.extend(files)
            scores = until_blocked(scorer.score_stream(feed(given), flush=flush))
            assert [score.value for score in scores] == pytest.approx(expected, nan_ok=True)


def test_a_queue_is_scored_as_it_fills(scorer, photos, encode):
    """The guide's example: `flush=queue.empty`. Each image is put in when the last has its row."""
    arrived: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
    seen = []
    arrived.put(("0", encode(photos[0], "PNG")))
    for score in scorer.score_stream(iter(arrived.get, None), flush=arrived.empty):
        seen.append(score.source)
        more = len(seen) < 4
        arrived.put((str(len(seen)), encode(photos[len(seen)], "PNG")) if more else None)
    assert seen == ["0", "1", "2", "3"]


def test_ctrl_c_in_a_source_that_waits_loses_no_row(scorer, photos):
    def source():
        yield photos[0]
        raise KeyboardInterrupt

    before, scores = set(threading.enumerate()), []
    with pytest.raises(KeyboardInterrupt):
        scores.extend(scorer.score_stream(source(), flush=True))
    assert scores == [scorer.score(photos[0])]
    until(lambda: set(threading.enumerate()) <= before)


def test_without_a_flush_rows_wait_for_their_batch(fake, photos):
    assert until_blocked(fake.score_stream(feed(deque(photos[1:2])))) == []


def test_a_function_decides_before_each_source_whether_to_flush(fake, photos):
    answers = iter([False, True, False, False])
    scores = list(fake.score_stream(photos[1:2] * 4, flush=lambda: next(answers)))
    assert fake.session.batches == [2, 2]  # one crop each
    assert scores == [fake.score(photos[1])] * 4


def test_a_flush_of_each_source_is_one_at_a_time(fake, photos):
    given = deque(photos)
    stream = fake.score_stream(feed(given), flush=True)
    for i, photo in enumerate(photos, 1):
        assert next(stream) == fake.score(photo)
        assert len(given) == len(photos) - i


def test_an_error_of_the_flush_reaches_the_caller(scorer, photos):
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        list(scorer.score_stream(photos, flush=lambda: 1 // 0))
    until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("flush", [False, True])
def test_progress_counts_what_is_scored(scorer, photos, flush):
    steps: list[tuple[object, ...]] = []
    sources = [photos[0], b"junk", photos[1]]

    def note(*step):
        steps.append(step)

    def taken():
        before, steps[:] = list(steps), []
        return before

    scorer.score(sources, progress=note)
    assert taken() == [("scoring", 1, 3), ("scoring", 2, 3), ("scoring", 3, 3)]
    stream = scorer.score_stream(iter(sources), progress=note, flush=flush)
    assert taken() == []
    assert next(stream).error is None
    assert taken() == [("scoring", 1, None)]
    assert len(list(stream)) == 2
    assert taken() == [("scoring", 2, None), ("scoring", 3, None)]
    scorer.score(photos[0], progress=note)
    assert taken() == [("scoring", 1, 1)]
    scorer.score([], progress=note)
    assert taken() == []


def test_an_error_of_the_progress_ends_the_stream(scorer, photos):
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        scorer.score(photos, progress=lambda *step: 1 // 0)
    until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("isolated", [False, True])
def test_an_image_that_was_enlarged_says_so(toy_bundle, photo, encode, tmp_path, isolated):
    spec = runtime.read_manifest(toy_bundle).preprocessing
    least = spec.short_side_min
    sizes = [(least, least), (least - 1, 500), (10, 10), (900, least // 4), (1, 1), (least, 2000)]
    expected = [None, least / (least - 1), least / 10, 4.0, float(least), None]
    images = [photo(*size) for size in sizes]
    with runtime.load(toy_bundle, threads=1, isolated=isolated) as scorer:
        for sources in (images, [encode(image, "PNG") for image in images]):
            scores = scorer.score(sources)
            assert [score.enlarged for score in scores] == expected
            assert [score.as_row()["enlarged"] for score in scores] == expected
        assert scorer.score([b"junk"])[0].enlarged is None


def test_an_image_on_its_side_is_measured_upright(scorer, photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    photo(64, 16).save(stream, "JPEG", exif=exif)
    assert scorer.score(stream.getvalue()).enlarged == 2.0


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


@pytest.mark.parametrize(
    ("name", "shape"), [("score", (3, 1)), ("weights", (3, 9)), ("maps", (3, 10, 4, 5))]
)
def test_output_of_another_shape_is_the_bundles(fake, photos, name, shape, monkeypatch):
    """A graph with free sizes is known to have other ones only when it runs."""
    run = fake.session.run
    monkeypatch.setattr(
        fake.session, "run", lambda pixels: run(pixels) | {name: np.zeros(shape, np.float32)}
    )
    with pytest.raises(BundleError, match=re.escape(str(shape))):
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
    meaning = {"scale", "distortions", "outputs"}
    assert parts == meaning | {"engine", "preprocessing", "decoder", "resampler", "session"}


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": ScoreScale(0.0, 100.0, higher_is_better=True)},
        {"scale": ScoreScale(0.0, 255.0, higher_is_better=False)},
        {"distortions": tuple(f"distortion {i}" for i in reversed(range(10)))},
        {"outputs": ("score", "weights")},
    ],
)
def test_fingerprint_follows_what_the_numbers_mean(scorer, changes):
    manifest = dataclasses.replace(scorer.manifest, **changes)
    other = Scorer(manifest, scorer.engine, scorer.session)
    assert other.fingerprint() != scorer.fingerprint()


def test_files_and_bytes_share_the_fingerprint_that_needs_no_image(scorer, photo, encode, tmp_path):
    photo(40, 40).save(tmp_path / "a.png")
    found = scorer.score([tmp_path / "a.png", encode(photo(40, 40), "JPEG"), b"broken"])
    assert {score.fingerprint for score in found} == {scorer.fingerprint()}
    assert scorer.fingerprint(photo(40, 40)) != scorer.fingerprint()


# The caller's own objects


@pytest.fixture
def lazy(tmp_path, photo):
    photo(90, 70).save(tmp_path / "lazy.png")
    return lambda: Image.open(tmp_path / "lazy.png")


def test_one_lazy_image_many_times(scorer, lazy):
    expected = scorer.score(lazy()).value
    assert {score.value for score in scorer.score([lazy()] * 20)} == {expected}


@pytest.mark.slow
def test_one_lazy_image_in_many_threads(scorer, tmp_path):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (900, 700, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(tmp_path / "large.png", exif=exif)
    expected = scorer.score(Image.open(tmp_path / "large.png")).value
    for _ in range(10):
        shared, barrier = Image.open(tmp_path / "large.png"), threading.Barrier(8)

        def score(image, barrier=barrier):
            barrier.wait()
            return scorer.score(image).value

        with ThreadPoolExecutor(8) as pool:
            values = {future.result() for future in [pool.submit(score, shared) for _ in range(8)]}
        assert values == {expected}


def test_objects_may_be_closed_or_changed_once_the_next_is_asked_for(scorer, lazy, photo):
    def images():
        for _ in range(8):
            with lazy() as image:
                yield image
            image.close()

    def frames():
        frame = np.empty((40, 50, 3), np.uint8)
        for seed in range(8):
            frame[:] = np.asarray(photo(50, 40, seed))
            yield frame

    expected = scorer.score(lazy()).value
    assert {score.value for score in scorer.score_stream(images())} == {expected}
    values = [score.value for score in scorer.score_stream(frames())]
    assert values == [scorer.score(photo(50, 40, seed)).value for seed in range(8)]


def test_a_closed_image_says_so(scorer, lazy):
    with lazy() as left:
        pass
    closed = lazy()
    closed.close()
    for image in (left, closed):
        with pytest.raises(ImageError, match="closed before its pixels were read: call its load"):
            scorer.score(image)


# Closing


def test_a_closed_scorer_refuses(toy_bundle, photo):
    for isolated in (False, True):
        scorer = runtime.load(toy_bundle, threads=1, isolated=isolated)
        stream = scorer.score_stream(iter([photo(40, 40)]))
        scorer.close()
        scorer.close()
        assert "CPU" in scorer.session.description
        for call in (
            lambda scorer=scorer: scorer.score(photo(40, 40)),
            lambda scorer=scorer: scorer.score([photo(40, 40)]),
            lambda stream=stream: next(stream),
            lambda scorer=scorer: pickle.dumps(scorer),
        ):
            with pytest.raises(UserError, match="closed: load the bundle again"):
                call()


def test_close_waits_for_the_call_that_runs(scorer, photo):
    class Slow(FakeSession):
        def __init__(self):
            super().__init__()
            self.entered, self.leave, self.closed = threading.Event(), threading.Event(), False

        def run(self, pixels):
            self.entered.set()
            assert self.leave.wait(60)
            assert not self.closed
            return super().run(pixels)

        def close(self):
            self.closed = True

    slow = Slow()
    one = Scorer(scorer.manifest, scorer.engine, slow)
    with ThreadPoolExecutor(3) as pool:
        scored = pool.submit(one.score, photo(40, 40))
        assert slow.entered.wait(60)
        closings = [pool.submit(one.close) for _ in range(2)]
        slow.leave.set()
        assert scored.result().value > 0
        for closing in closings:
            closing.result()
    assert slow.closed


# Other processes


def test_a_pickled_scorer_opens_its_bundle_again(toy_bundle, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(toy_bundle.parent)
    first = runtime.load(toy_bundle.name, threads=1, batch=3, isolated=True)
    content = pickle.dumps(first)
    monkeypatch.chdir(tmp_path)
    second = pickle.loads(content)
    assert second.batch == 3
    assert second.decoder.isolated
    assert second.session is not first.session
    assert second.fingerprint() == first.fingerprint()
    assert second.score(photo(70, 50)) == first.score(photo(70, 50))


def test_a_scorer_of_other_software_is_not_unpickled(scorer, monkeypatch):
    content = pickle.dumps(scorer)
    monkeypatch.setattr("drexperts.runtime.scorer.resampler_version", lambda: "Pillow 0")
    with pytest.raises(UserError, match="load the bundle here"):
        pickle.loads(content)


def test_a_scorer_of_a_session_cannot_be_pickled(fake):
    with pytest.raises(UserError, match=r"runtime\.load"):
        pickle.dumps(fake)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_score_the_same(scorer, photo, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    pixels = [np.asarray(photo(50, 40, seed)) for seed in range(3)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(scorer.score, pixels) == scorer.score(pixels)


FORK = """
import os, sys, time
import numpy as np
from drexperts import runtime
pixels = np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3)
scorer = runtime.load(sys.argv[1], threads=int(sys.argv[2]) or None, isolated=True)
expected = scorer.score(pixels)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        assert scorer.score(pixels) == expected
        assert scorer.score([sys.argv[3]])[0].error is None
        if sys.argv[4] == "close":
            scorer.close()
        sys.exit(7)
    children.append(child)
assert scorer.score(pixels) == expected
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("threads", ["0", "1", "4"])
@pytest.mark.parametrize("end", ["exit", "close"])
def test_forked_children_score_and_end(toy_bundle, photo, tmp_path, threads, end):
    photo(50, 40).save(tmp_path / "a.png")
    command = [sys.executable, "-c", FORK, toy_bundle, threads, tmp_path / "a.png", end]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout == "[7, 7]\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_that_cannot_be_followed_is_refused(scorer, fake, photo):
    gpu = dataclasses.replace(scorer.engine, backend="onnx-cuda")
    on_gpu = Scorer(scorer.manifest, gpu, FakeSession(), reopen=FakeSession)
    child = os.fork()
    if child == 0:
        reasons = []
        for one in (fake, on_gpu):
            try:
                one.score(photo(40, 40))
            except UserError as error:
                reasons.append(str(error))
        fits = len(reasons) == 2 and "before the process forked" in reasons[0]
        os._exit(7 if fits and "cannot use the GPU" in reasons[1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


LOADER = """
import sys
from torch.utils.data import DataLoader, Dataset
from drexperts import runtime

class Scores(Dataset):
    def __init__(self, scorer, paths):
        self.scorer, self.paths = scorer, paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return self.scorer.score(self.paths[index]).value

if __name__ == "__main__":
    bundle, method, *paths = sys.argv[1:]
    with runtime.load(bundle, threads=1) as scorer:
        loader = DataLoader(Scores(scorer, paths), num_workers=2, multiprocessing_context=method)
        assert [batch.item() for batch in loader] == [score.value for score in scorer.score(paths)]
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_data_loader_of_torch_scores(toy_bundle, photo, tmp_path, method):
    pytest.importorskip("torch")
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    (tmp_path / "loader.py").write_text(LOADER)
    for seed in range(4):
        photo(50, 40, seed).save(tmp_path / f"{seed}.png")
    paths = sorted(tmp_path.glob("*.png"))
    result = subprocess.run(
        [sys.executable, tmp_path / "loader.py", toy_bundle, method, *paths],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.stdout == "done\n", result.stderr
