"""The benchmark of drift: real decoders and resizes, the sets of files, what is checked."""

import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from drexperts import runtime
from drexperts.bench.json_files import read_json
from drexperts.benchmarks import drift
from drexperts.benchmarks.drift import CONTROL, ENCODINGS, STORED, encoded, pictures_of
from drexperts.benchmarks.drift_readers import DECODERS, JPEG, PNG, decoders, resizes, upright
from drexperts.benchmarks.receipt_types.answers import agreement
from drexperts.benchmarks.receipt_types.drift_receipt import DriftReceipt, FileSet, Read, parts
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.image import _decoders
from drexperts.runtime.errors import UserError
from drexperts.runtime.preprocess import resized
from drexperts.runtime.progress import SILENT

# It is installed wherever PyTorch is; its successor would be one more library.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of")

# Those that interpolate chroma as Pillow's libjpeg-turbo does by default.
EXACT = ("simplejpeg", "torchvision", "OpenCV")


@pytest.fixture(scope="module")
def scorer(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def pictures(photo, encode):
    """Three to be made smaller, one larger, one as it is; one is a JPEG that lies on its side."""
    made = {
        f"{width}x{height}": encode(photo(width, height, width), "PNG")
        for width, height in ((200, 150), (160, 240), (24, 40), (48, 48))
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    return made | {"turned.jpg": encode(photo(120, 90), "JPEG", quality=80, exif=exif)}


@pytest.fixture(scope="module")
def found(scorer, pictures):
    return drift.drift(scorer, pictures, "random", "a test", SILENT)


@pytest.fixture
def decoder():
    """decoder(name), or a skip that says why it is not there."""

    def get(name):
        have, left_out = decoders()
        if name in left_out:
            pytest.skip(f"{name}: {left_out[name]}")
        return have[name]

    return get


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_the_picture_of_the_file(name, decoder, photo):
    other = decoder(name)
    assert other.version
    for kind in other.formats:
        for size in ((67, 41), (64, 48)):
            options = {} if kind == PNG else {"quality": 90, "subsampling": "4:2:0"}
            content = encoded(photo(*size), {"format": kind, **options})
            pixels = other.stored(content)
            assert pixels.shape == (size[1], size[0], 3)
            assert pixels.dtype == np.uint8
            steps, exchanged = (
                np.abs(np.asarray(decode(content), int) - each)
                for each in (pixels, pixels[:, :, ::-1])
            )
            assert steps.mean() < 0.2 * exchanged.mean(), "red comes first"
            assert steps.max() == 0 or kind == JPEG


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", EXACT)
def test_a_decoder_s_pixels_are_turned_as_the_runtime_turns_them(
    name, orientation, decoder, photo, encode
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photo(50, 30), "JPEG", quality=95, subsampling="4:4:4", exif=exif)
    image = upright(decoder(name).stored(content), content)
    expected = decode(content)
    assert image.size == expected.size
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 1


def test_fast_decoding_repeats_chroma(decoder, photo):
    content = encoded(photo(64, 64), {"format": JPEG, "quality": 90, "subsampling": "4:2:0"})
    slow, fast = (decoder(name).stored(content) for name in ("simplejpeg", "simplejpeg, fast"))
    assert np.abs(slow.astype(int) - fast).max() > 2


def test_what_is_not_installed_is_left_out_with_its_reason(monkeypatch):
    for module in ("simplejpeg", "cv2"):
        monkeypatch.setitem(sys.modules, module, None)
    have, left_out = decoders()
    assert "simplejpeg" not in have
    assert "simplejpeg" in left_out["simplejpeg"]
    assert "cv2" in left_out["OpenCV"]
    have_resizes, left_out = resizes()
    assert "cv2" in left_out["OpenCV"]
    assert not [name for name in have_resizes if name.startswith("OpenCV")]


def test_resizes_give_the_size_and_the_picture(photo):
    have, _ = resizes()
    image = photo(400, 300)
    content = encoded(image, {"format": JPEG, "quality": 95})
    image = decode(content)
    pixels = {}
    for name, resize in have.items():
        made = resize(content, image, (80, 60))
        assert made.size == (80, 60)
        pixels[name] = np.asarray(made, int)
    contract = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC), int)
    steps = {name: np.abs(contract - each).mean() for name, each in pixels.items()}
    assert min(steps.values()) > 0
    assert max(steps.values()) < 12
    assert steps["torch bicubic, antialias"] < 0.5 < steps["torch bicubic"]
    assert steps["torch bicubic"] > 2 * steps["Pillow Lanczos"]


def test_draft_decodes_fewer_pixels_of_a_turned_jpeg(photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(photo(400, 240), "JPEG", quality=95, exif=exif)
    draft = resizes()[0]["Pillow bicubic, draft"]
    made = draft(content, decode(content), (48, 80))
    plain = decode(content).resize((48, 80), Image.Resampling.BICUBIC)
    steps = np.abs(np.asarray(made, int) - np.asarray(plain, int))
    assert 0 < steps.mean() < 4


def test_sets_hold_the_files_they_name(found, pictures):
    assert [each.name for each in found.sets] == [
        STORED,
        *ENCODINGS,
        "made smaller",
        "made larger",
    ]
    counts = [1, *[5] * len(ENCODINGS), 3, 1]
    for each, count in zip(found.sets, counts, strict=True):
        assert len(each.scores) == count
        for read in each.others.values():
            assert len(read.scores) == len(read.pixel_max) == len(read.pixel_mean) == count
    assert found.pictures == tuple(pictures)


def set_of(found, name):
    (only,) = (each for each in found.sets if each.name == name)
    return only


def test_encodings_are_different_files(found):
    """The same pictures in another quality have other scores."""
    assert len({set_of(found, name).scores for name in ENCODINGS}) == len(ENCODINGS)


def test_scores_are_the_runtime_s_of_the_encoded_file(found, scorer, pictures):
    for name in (CONTROL, "JPEG q40 4:2:0"):
        contents = [encoded(decode(content), ENCODINGS[name]) for content in pictures.values()]
        expected = tuple(score.value for score in scorer.score(contents))
        assert set_of(found, name).scores == expected
    assert set_of(found, STORED).scores == (scorer.score(pictures["turned.jpg"]).value,)


def test_nothing_drifts_without_loss(found):
    control = set_of(found, CONTROL)
    for read in control.others.values():
        assert read.is_identical
        assert read.scores == control.scores


def test_resizes_drift_and_the_samples_say_how_far(found, scorer, pictures):
    box = set_of(found, "made smaller").others["Pillow box"]
    spec = scorer.manifest.preprocessing
    content = encoded(decode(pictures["200x150"]), drift.TO_RESIZE)
    contract = resized(decode(content), spec)
    image = decode(content).resize(contract.size, Image.Resampling.BOX)
    assert box.scores[0] == scorer.score(image).value
    steps = np.abs(np.asarray(contract, int) - np.asarray(image, int))
    assert box.pixel_max[0] == steps.max()
    assert box.pixel_mean[0] == pytest.approx(steps.mean())


def test_agreement_of_a_few_scores():
    found = agreement([10.0, 20.0, 30.0, 40.0], [10.0, 31.0, 29.0, 40.0], span=100.0)
    assert found.score_max == pytest.approx(0.11)
    assert (found.order_flips, found.pairs) == (1, 6)
    assert found.srcc == pytest.approx(0.8)
    assert found.srcc_interval is None


def test_the_tables(found):
    """Sets with the runtime's own pixels share a row, others have figures."""
    same = Read((50.0, 60.0, 90.0), (0, 0, 0), (0.0, 0.0, 0.0))
    other = Read((50.0, 62.0, 89.0), (17, 3, 3), (1.0, 1.2, 1.1))
    sets = [
        FileSet(f"JPEG q{quality}", (50.0, 60.0, 90.0), True, {"OpenCV": same, "fast": other})
        for quality in (95, 75)
    ]
    receipt = dataclasses.replace(found, sets=tuple(sets), pictures=("a", "b", "c"), span=100.0)
    shown = markdown(parts(receipt))
    assert "3 pictures, scores from 50 to 90, half of them below 60; preset `" in shown
    assert "| OpenCV | JPEG q95, JPEG q75 | the same |" in shown
    assert "| fast | JPEG q75 | 17, 1.10 | 2 | 1 | 2 | 1.0000 | 0 of 3 |" in shown


def test_the_runtime_is_as_it_should_be(found):
    assert found.failures == []


def test_a_score_that_differs_for_the_same_pixels_is_a_failure(scorer, pictures):
    class Two(runtime.Scorer):
        """Another score for pixels than for files."""

        def score(self, source, *, maps=False, progress=None):
            result = super().score(source, maps=maps, progress=progress)
            if isinstance(source, Image.Image):
                object.__setattr__(result, "value", result.value + 1e-9)
            return result

    two = Two(scorer.manifest, scorer.engine, scorer.session)
    few = {"48x48": pictures["48x48"]}
    failures = drift.drift(two, few, "random", "a test", SILENT).failures
    assert len(failures) == len(ENCODINGS)


def test_a_picture_that_a_decoder_cannot_read(scorer, decoder, pictures):
    simplejpeg = decoder("simplejpeg")
    readers = {"simplejpeg": lambda content, _: upright(simplejpeg.stored(content), content)}
    files = [pictures["turned.jpg"], pictures["48x48"]]  # the second is a PNG
    with pytest.raises(UserError, match="some, picture 2: simplejpeg"):
        drift.compared(
            drift.PixelScorer(scorer), "some", files, lambda image: image, readers, SILENT
        )


def test_pictures_of_a_folder(tmp_path, photo, encode):
    (tmp_path / "b.jpg").write_bytes(encode(photo(40, 30), "JPEG"))
    (tmp_path / "a.png").write_bytes(encode(photo(40, 30), "PNG"))
    assert list(pictures_of([str(tmp_path)])) == ["a.png", "b.jpg"]
    (tmp_path / "c.png").write_bytes(encode(photo(400, 20), "PNG"))
    with pytest.raises(UserError, match=r"c\.png"):
        pictures_of([str(tmp_path)])


def test_files_of_one_name_in_two_folders_are_two_pictures(tmp_path, photo, encode):
    for folder in ("one", "other/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encode(photo(40, 30), "PNG"))
    given = [str(tmp_path / "one"), str(tmp_path / "other")]
    assert list(pictures_of(given)) == ["one/a.png", "other/deep/a.png"]
    assert list(pictures_of(given[:1])) == ["a.png"]


def test_a_broken_photograph_is_a_mistake_and_is_named(toy_bundle, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    given = [str(toy_bundle), "--weights", "random", "--images", str(tmp_path)]
    assert drift.main(given) == 2
    assert "broken.jpg" in capsys.readouterr().err


def test_a_missing_bundle_is_a_mistake_and_is_named(tmp_path, capsys):
    assert drift.main([str(tmp_path / "none"), "--weights", "random"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_receipt_that_cannot_be_written_is_refused_first(toy_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "drift", lambda *_: pytest.fail("it measured"))
    receipt = tmp_path / "none" / "drift.json"
    with pytest.raises(SystemExit) as ended:
        drift.main([str(toy_bundle), "--weights", "random", "--receipt", str(receipt)])
    assert ended.value.code == 2


def test_the_command(toy_bundle, tmp_path, photo, encode, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(encode(photo(120, 90), "JPEG"))
    (folder / "two.png").write_bytes(encode(photo(90, 120, 1), "PNG"))
    path = tmp_path / "drift.json"
    given = [str(toy_bundle), "--weights", "random", "--images", str(folder)]
    assert drift.main([*given, "--receipt", str(path)]) == 0
    receipt = read_json(path, DriftReceipt)
    assert receipt.weights == "random"
    assert str(tmp_path) not in path.read_text()
    assert capsys.readouterr().out.startswith(markdown(parts(receipt)))


def test_a_fingerprint_is_of_the_runtime_s_decoder_or_of_foreign_pixels(
    scorer, photo, encode, tmp_path
):
    """However pixels were decoded elsewhere, they are never taken for the runtime's own."""
    content = encode(photo(64, 64), "JPEG")
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    pixels = decode(content)
    own = {scorer.score(source).fingerprint for source in (content, path, str(path))}
    foreign = {scorer.score(source).fingerprint for source in (pixels, np.asarray(pixels))}
    with Image.open(io.BytesIO(content)) as lazy:
        foreign.add(scorer.score(lazy).fingerprint)
    assert len(own) == len(foreign) == 1
    assert own.isdisjoint(foreign)
    assert scorer.score(content).value == scorer.score(pixels).value


@pytest.mark.parametrize("library", ["pil", "libjpeg_turbo"])
def test_a_fingerprint_changes_with_the_decoder_s_libraries(library, scorer, monkeypatch):
    before = scorer.fingerprint(b"")
    assert features.version("pil") in scorer.fingerprint_parts(b"")["decoder"]
    assert features.version("libjpeg_turbo") in scorer.fingerprint_parts(b"")["decoder"]
    version = features.version
    newer = {library: "999.0"}
    monkeypatch.setattr(features, "version", lambda name: newer.get(name) or version(name))
    _decoders.cache_clear()
    try:
        assert "999.0" in scorer.fingerprint_parts(b"")["decoder"]
        assert scorer.fingerprint(b"") != before
    finally:
        _decoders.cache_clear()
