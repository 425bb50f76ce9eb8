"""A data set's images: their sizes, the cache, and the check before they are used."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Resize

from drexperts.data import images
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.images import GridSize, ImageStore, ReleasedSize, Stamp, check_images, sizing
from drexperts.data.recipes import RECIPES, preprocessing
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import DataError, InternalError, UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import crops_from_image

AS_IT_IS = ReleasedSize(16, None)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def dataset(tmp_path, photo):
    """Four images of 48x32, two in a folder of their own."""
    names = ("a.jpg", "b.png", "more/c.jpg", "more/d.png")
    (tmp_path / "set/more").mkdir(parents=True)
    for seed, name in enumerate(names):
        photo(48, 32, seed).save(tmp_path / "set" / name)
    samples = tuple(Sample(name, float(i), name) for i, name in enumerate(names))
    return Dataset("folder", tmp_path / "set", samples, ScoreScale(0, 10, True))


def quiet(done, total):
    pass


def check(store, skip_bad=False, tell=quiet):
    samples = store.dataset.samples
    return check_images(store, samples, skip_bad=skip_bad, workers=2, tell=tell)


def garble(path):
    """Other bytes, of the same length and time."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# Bringing to size


@pytest.mark.parametrize("size", [(1024, 768), (300, 200), (384, 384)])
@pytest.mark.parametrize("name", ["koniq10k", "livec", "bid"])
def test_grid_has_the_size_of_the_runtime(name, size, photo):
    spec = preprocessing(RECIPES[name], 96)
    image = photo(*size)
    pixels = np.asarray(sizing("grid", RECIPES[name], 96)(image))
    crops = crops_from_image(image, spec)
    assert pixels.shape == (crops.size[1], crops.size[0], 3)
    for crop, (left, top, right, bottom) in zip(crops.pixels, crops.boxes, strict=True):
        np.testing.assert_array_equal(pixels[top:bottom, left:right], crop.transpose(1, 2, 0))


def test_released_stretches_as_torchvision_does(photo):
    image = photo(1024, 768)
    brought = sizing("released", RECIPES["koniq10k"], 384)(image)
    assert brought.size == (384, 512)  # a portrait, from a landscape
    np.testing.assert_array_equal(brought, Resize((512, 384))(image))
    assert sizing("released", RECIPES["koniq10k"], 96)(image).size == (96, 128)


def test_released_keeps_an_image_that_holds_a_crop(photo):
    image = photo(500, 384)
    assert sizing("released", RECIPES["livec"], 384)(image) is image


@pytest.mark.parametrize(
    ("size", "brought"), [((100, 50), (192, 96)), ((50, 101), (96, 194)), ((95, 95), (96, 96))]
)
def test_released_enlarges_below_a_crop(size, brought, photo):
    assert sizing("released", RECIPES["livec"], 96)(photo(*size)).size == brought


@pytest.mark.parametrize("size", [(16, 300_000), (2000, 90)])
def test_released_refuses_an_image_that_is_too_long(size):
    with pytest.raises(DataError, match=r"\d+x\d+"):
        sizing("released", RECIPES["livec"], 96)(Image.new("RGB", size))


# The store


def test_pixels_are_upright_rgb(dataset, photo):
    path, exif = dataset.root / "a.jpg", Image.Exif()
    exif[0x0112] = 6  # the orientation: a quarter turn
    photo(48, 32).save(path, exif=exif)
    pixels = ImageStore(dataset, AS_IT_IS).pixels(dataset.samples[0])
    assert pixels.shape == (48, 32, 3)
    np.testing.assert_array_equal(pixels, decode(path))


@pytest.mark.parametrize("cached", [False, True])
def test_crops_lie_where_they_should(cached, dataset, tmp_path):
    store = ImageStore(dataset, AS_IT_IS, tmp_path / "cache" if cached else None)
    for sample in dataset.samples * 2:
        whole = store.pixels(sample)
        for place, left, top in (
            ((0.0, 0.0), 0, 0),
            ((0.9999, 0.9999), 28, 12),
            ((0.5, 0.0), 14, 0),
            ((0.0, 0.5), 0, 6),
        ):
            crop = store.crop(sample, 20, place)
            np.testing.assert_array_equal(crop, whole[top : top + 20, left : left + 20])


@pytest.mark.parametrize("cached", [False, True])
def test_a_crop_larger_than_the_image_is_a_bug(cached, dataset, tmp_path):
    store = ImageStore(dataset, AS_IT_IS, tmp_path if cached else None)
    with pytest.raises(InternalError, match=r"33 .* 48x32"):
        store.crop(dataset.samples[0], 33, (0.0, 0.0))


def test_a_store_travels_to_another_process(dataset, tmp_path):
    store = ImageStore(dataset, sizing("grid", RECIPES["bid"], 24), tmp_path / "cache")
    check(store)
    other = pickle.loads(pickle.dumps(store))
    garble(dataset.root / "a.jpg")
    sample = dataset.samples[0]
    np.testing.assert_array_equal(other.pixels(sample), store.pixels(sample))


# The cache


@pytest.mark.parametrize("bring", [AS_IT_IS, GridSize(preprocessing(RECIPES["koniq10k"], 24))])
def test_the_cache_changes_nothing_and_is_used(bring, dataset, tmp_path):
    plain = [ImageStore(dataset, bring).pixels(sample) for sample in dataset.samples]
    for _ in range(2):
        store = ImageStore(dataset, bring, tmp_path / "cache")
        for sample, pixels in zip(dataset.samples, plain, strict=True):
            np.testing.assert_array_equal(store.pixels(sample), pixels)
            garble(dataset.path(sample))  # a cached image is not read again
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_changed_file_and_another_size_are_cached_anew(dataset, tmp_path, photo):
    cache, sample = tmp_path / "cache", dataset.samples[0]
    ImageStore(dataset, AS_IT_IS, cache).pixels(sample)
    photo(64, 32, 9).save(dataset.path(sample))
    assert ImageStore(dataset, AS_IT_IS, cache).pixels(sample).shape == (32, 64, 3)
    assert ImageStore(dataset, ReleasedSize(40, None), cache).pixels(sample).shape == (40, 80, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:40],
        lambda content: b"",
        lambda content: b"x" * len(content),
        lambda content: content.replace(b"|u1", b"|i1"),
        lambda content: content.replace(b"(32, 48, 3)", b"(48, 32, 3, ")[: len(content)],
        lambda content: content.replace(b"(32, 48, 3)", b"(16, 96, 3)".replace(b"3", b"1")),
        lambda content: pickle.dumps("a pickle"),
    ],
)
def test_a_damaged_entry_is_made_again(damage, dataset, tmp_path):
    store, sample = ImageStore(dataset, AS_IT_IS, tmp_path / "cache"), dataset.samples[1]
    pixels = store.pixels(sample)
    (entry,) = (tmp_path / "cache").iterdir()
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    np.testing.assert_array_equal(store.pixels(sample), pixels)
    assert entry.read_bytes() == content


def test_many_at_once_leave_one_entry(dataset, tmp_path):
    sample = dataset.samples[0]
    expected = ImageStore(dataset, AS_IT_IS).pixels(sample)
    stores = [ImageStore(dataset, AS_IT_IS, tmp_path / "cache") for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda store: store.pixels(sample), stores):
            np.testing.assert_array_equal(pixels, expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_created(dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cache"):
        ImageStore(dataset, AS_IT_IS, tmp_path / "file")


FULL = """
import pickle, resource, sys
from drexperts.data.images import check_images
from drexperts.runtime.errors import UserError

store = pickle.loads(sys.stdin.buffer.read())
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
tell = lambda done, total: None
try:
    check_images(store, store.dataset.samples, skip_bad=True, workers=2, tell=tell)
except UserError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_says_so_and_leaves_nothing(dataset, tmp_path):
    store = ImageStore(dataset, AS_IT_IS, tmp_path / "cache")
    command = [sys.executable, "-c", FULL]
    done = subprocess.run(command, input=pickle.dumps(store), capture_output=True, check=False)
    assert done.stdout.startswith(b"UserError"), done.stderr
    assert b"--cache" in done.stdout
    assert list((tmp_path / "cache").iterdir()) == []


# The check


def spoil(path, how):
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "folder":
        path.mkdir()
    elif how == "1x1":
        Image.new("RGB", (1, 1)).save(path)
    elif how == "truncated":
        Image.effect_noise((48, 32), 50).save(path)
        path.write_bytes(path.read_bytes()[:-300])
    elif how == "text":
        path.write_text("<html>404 not found</html>")


BAD = ("missing", "empty", "folder", "1x1", "truncated", "text")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("how", BAD)
def test_a_bad_image_stops_the_run_or_is_left_out(how, cached, dataset, tmp_path):
    spoil(dataset.root / "more/c.jpg", how)
    for _ in range(2):
        store = ImageStore(dataset, AS_IT_IS, tmp_path / "cache" if cached else None)
        with pytest.raises(DataError, match=r"1 of 4 .*--skip-bad.*more/c\.jpg"):
            check(store)
        good, reasons = check(store, skip_bad=True)
        assert [sample.name for sample in good] == ["a.jpg", "b.png", "more/d.png"]
        (reason,) = reasons
        assert "more/c.jpg" in reason


def test_sixteen_pixels_are_enough(dataset, photo):
    photo(16, 40).save(dataset.root / "a.jpg")
    photo(15, 40).save(dataset.root / "b.png")
    good, (reason,) = check(ImageStore(dataset, AS_IT_IS), skip_bad=True)
    assert [sample.name for sample in good] == ["a.jpg", "more/c.jpg", "more/d.png"]
    assert "b.png is 15x40" in reason


def test_the_first_bad_ones_are_named_and_all_are_counted(dataset):
    names = [f"{i}.jpg" for i in range(7)]
    samples = [*dataset.samples, *(Sample(name, 0.0, name) for name in names)]
    with pytest.raises(DataError, match="7 of 11") as error:
        check_images(ImageStore(dataset, AS_IT_IS), samples, skip_bad=False, workers=1, tell=quiet)
    assert [name in str(error.value) for name in names] == [True] * 5 + [False] * 2
    assert " 2 more" in str(error.value)


def test_no_good_image_at_all(dataset):
    for sample in dataset.samples:
        spoil(dataset.path(sample), "text")
    with pytest.raises(DataError, match="4 of 4"):
        check(ImageStore(dataset, AS_IT_IS), skip_bad=True)


def test_the_check_tells_and_fills_the_cache(dataset, tmp_path):
    told = []
    store = ImageStore(dataset, AS_IT_IS, tmp_path / "cache")
    good, reasons = check(store, tell=lambda *progress: told.append(progress))
    assert (good, reasons) == (list(dataset.samples), ())
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_file_changed_after_the_check_is_not_used(dataset, photo):
    store, sample = ImageStore(dataset, AS_IT_IS), dataset.samples[0]
    check(store)
    store.pixels(sample)
    photo(64, 64).save(dataset.path(sample))
    with pytest.raises(DataError, match=r"a\.jpg"):
        store.pixels(sample)
    dataset.path(sample).unlink()
    with pytest.raises(DataError, match=r"a\.jpg: No such file"):
        store.pixels(sample)


def test_a_file_without_permission_is_bad(dataset, monkeypatch):
    def forbidden(path, mode):
        if path.name == "a.jpg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, mode)

    check(ImageStore(dataset, AS_IT_IS))
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)  # root may read anything
        with pytest.raises(DataError, match=r"1 of 4 .*a\.jpg: Permission denied"):
            check(ImageStore(dataset, AS_IT_IS))


def test_ending_early_cancels_what_has_not_begun(dataset, monkeypatch):
    begun, left = [], threading.Event()

    def slow(store, sample, known):
        begun.append(sample)
        if len(begun) > 1:
            left.wait()
        return Stamp(0, 0)

    def leave(note, *_):
        left.set()

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageStore, "check", slow)
    monkeypatch.setattr(images._Note, "__exit__", leave)
    with pytest.raises(KeyboardInterrupt):
        check_images(
            ImageStore(dataset, AS_IT_IS),
            dataset.samples * 25,
            skip_bad=False,
            workers=2,
            tell=stop,
        )
    assert len(begun) <= 3  # the first, and what two threads were at


def test_a_good_image_is_not_decoded_again_until_it_changes(dataset):
    check(ImageStore(dataset, AS_IT_IS))
    garble(dataset.root / "a.jpg")
    assert check(ImageStore(dataset, AS_IT_IS)) == (list(dataset.samples), ())
    os.utime(dataset.root / "a.jpg", ns=(0, 0))
    with pytest.raises(DataError, match=r"1 of 4 .*a\.jpg"):
        check(ImageStore(dataset, AS_IT_IS))


@pytest.mark.parametrize(
    "content",
    ["", "[", "[]", "[" * 99999, '{"images": {}}', None],
    ids=["empty", "cut", "list", "deep", "unmade", "shape"],
)
def test_a_damaged_note_is_ignored_and_mended(content, dataset, home):
    check(ImageStore(dataset, AS_IT_IS))
    (note,) = (home / "drexperts/images-checked").iterdir()
    written = note.read_text()
    note.write_text(written.replace("[", "[[").replace("]", "]]") if content is None else content)
    garble(dataset.root / "a.jpg")
    with pytest.raises(DataError, match=r"1 of 4 .*a\.jpg"):
        check(ImageStore(dataset, AS_IT_IS))
    assert "more/c.jpg" in note.read_text()


def test_an_unwritable_home_is_not_an_error(dataset, home):
    home.touch()
    assert len(check(ImageStore(dataset, AS_IT_IS))[0]) == 4


def test_an_interrupted_check_keeps_its_note(dataset, home):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(ImageStore(dataset, AS_IT_IS), tell=interrupt)
    garble(dataset.root / "a.jpg")
    garble(dataset.root / "more/d.png")
    with pytest.raises(DataError, match=r"1 of 4 .*d\.png"):
        check(ImageStore(dataset, AS_IT_IS))
