"""Hostile bytes give an image or ImageError, a manifest or BundleError, and nothing else."""

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.encoded_images import SEEDS

from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.errors import BundleError, DecoderFailedError, ImageError
from drexperts.runtime.manifest import Manifest, digest, read_manifest
from drexperts.runtime.preprocess import Preprocessing
from drexperts.ui.bundles import about_bundle, configuration, engine_table
from drexperts.ui.tables import proof_table

# Truncated files and broken documents are also in the fast tests of both modules.
pytestmark = pytest.mark.slow

# A small bound keeps forged sizes quick. A worker that takes more memory or time fails the test.
LIMITS = DecodingLimits(max_pixels=1_000_000, memory=64 * 2**20, seconds=2)
SPEC = Preprocessing(crop=16, short_side_min=16, short_side_max=32, crops_per_side=2)


def fuzz(examples):
    return settings(max_examples=examples, suppress_health_check=list(HealthCheck))


@st.composite
def mutated(draw):
    """A seed with overwritten bytes, and a piece cut out or repeated, or the end cut off."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 8))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 16, len(content))))
    how = draw(st.sampled_from(("keep", "keep", "cut", "repeat", "truncate")))
    if how == "cut":
        del content[start:end]
    elif how == "repeat":
        content[start:start] = content[start:end] * 3
    elif how == "truncate":
        del content[start:]
    return bytes(content)


@pytest.fixture(scope="module")
def decoder():
    made = IsolatedDecoder(SPEC, LIMITS)
    yield made
    made.close()


def check_decode(decoder, content):
    try:
        crops = decoder.crops(content)
    except DecoderFailedError as error:
        pytest.fail(str(error))
    except ImageError:
        return
    assert 1 <= len(crops.pixels) <= 4
    assert crops.pixels.shape[1:] == (3, 16, 16)


@fuzz(1200)
@given(mutated())
def test_mutated_images(decoder, content):
    check_decode(decoder, content)


@fuzz(300)
@given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=200))
def test_random_bytes_behind_a_magic_number(decoder, magic, content):
    check_decode(decoder, magic + content)


def check_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    refusal = ""
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        refusal = str(error)
    assert refusal.isprintable()
    if refusal:
        return
    assert isinstance(manifest, Manifest)
    assert str(manifest).isprintable()
    assert digest(manifest).startswith("sha256:")
    stream = io.StringIO()
    console = Console(file=stream, width=200, markup=False)
    console.print(about_bundle(folder, manifest, {"encoder": "a ViT"}, digest(manifest)))
    console.print(configuration(manifest, manifest.config))
    for engine in manifest.engines:
        console.print(engine_table(engine, "intact", 1, None), proof_table(engine))
    assert stream.getvalue().replace("\n", "").isprintable()


def json_values():
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(exclude_categories=()), max_size=8)
        | st.sampled_from([10**400, -1, 2**63, 1e300, 0, 1, "../x", "model.onnx"])
        | st.sampled_from(["fp32", "int8", "onnx", "tensorrt", "torch", "8.9", "\x1b[31m", "a\nb"])
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzz(300)
@given(json_values(), st.booleans())
def test_random_documents(folder, value, with_schema):
    if with_schema and isinstance(value, dict):
        value = value | {"schema": 1}
    check_manifest(folder, json.dumps(value).encode())


@fuzz(200)
@given(st.data())
def test_mutated_manifest_bytes(folder, toy_bundle, data):
    content = bytearray((toy_bundle / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_manifest(folder, bytes(content))


def places(document, path=()):
    """The path of every value inside a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@fuzz(500)
@given(st.data())
def test_manifest_with_a_value_replaced(folder, toy_bundle, data):
    document = json.loads((toy_bundle / "manifest.json").read_text())
    *parents, last = data.draw(st.sampled_from(list(places(document))))
    target = document
    for key in parents:
        target = target[key]
    target[last] = data.draw(json_values())
    check_manifest(folder, json.dumps(document).encode())
