"""A worker gives the pixels of this process; whatever happens to it costs one image."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFile
from support.encoded_images import SEEDS
from support.waiting import until

from drexperts.runtime.decoding import image, workers
from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.decoding.limits import PIXELS, DecodingLimits
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.errors import DecoderFailedError, ImageError, UserError
from drexperts.runtime.preprocess import Preprocessing

pytestmark = pytest.mark.slow

SPEC = Preprocessing(crop=16, short_side_min=16, short_side_max=32, crops_per_side=2)
LIMITS = DecodingLimits(seconds=5)
SAY = "worker.write(open(3, 'wb', 0, closefd=False), %s) or time.sleep(600)"


@pytest.fixture
def decoder():
    made = IsolatedDecoder(SPEC, LIMITS)
    yield made
    made.close()


@pytest.fixture
def good(photo, encode):
    return encode(photo(40, 30), "PNG")


@pytest.fixture
def bad(photo, encode):
    """A good file, too, on which sabotaged workers fail."""
    return encode(photo(13, 30), "PNG")


def sabotage(monkeypatch, fault):
    """Workers that do `fault`, an expression, in place of decoding an image 13 pixels wide."""
    code = (
        "from drexperts.runtime.decoding import worker; import os, signal, time; "
        "real = worker.pixels_of; "
        f"worker.pixels_of = lambda s: ({fault}) if s.width == 13 else real(s); "
    )
    monkeypatch.setattr(workers, "_CODE", workers._CODE.replace("; main(", f"; {code}main("))


def same(first, second):
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.size == second.size
    assert first.original == second.original
    assert first.boxes.dtype == second.boxes.dtype


def answer(decoder, source):
    try:
        return decoder.crops(source)
    except ImageError as error:
        return str(error)


def test_the_same_pixels_and_reasons_as_in_this_process(decoder, photo, tmp_path):
    local = LocalDecoder(SPEC, LIMITS)
    (tmp_path / "a.png").write_bytes(SEEDS[0])
    cut = [seed[: len(seed) // 2] for seed in SEEDS]
    others = [b"", b"junk", tmp_path / "a.png", str(tmp_path / "none.png"), tmp_path, 3]
    pixels = [photo(40, 30), np.asarray(photo(40, 30))]
    for source in (*SEEDS, *cut, *others, *pixels):
        expected, found = answer(local, source), answer(decoder, source)
        if isinstance(expected, str):
            assert found == expected
        else:
            same(found, expected)
            resized = np.asarray(decoder.resized(source))
            np.testing.assert_array_equal(resized, np.asarray(local.resized(source)))
    assert len(decoder._running) == 1  # nothing broke it


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed, as the system does when memory"),
        ("os._exit(3)", "ended with status 3"),
        ("os.write(3, b'x' * 99) and time.sleep(600)", "without sense"),
        (SAY % "{'size': [9**9, 16]}", "without sense"),
        (SAY % "{'size': [0, 16]}", "without sense"),
        (SAY % "{'size': 5}", "without sense"),
        ("time.sleep(600)", "takes too long.*DecodingLimits.seconds"),
        ("all(iter(int, 1)) or any(iter(int, 1))", "takes too long.*DecodingLimits.seconds"),
        ("bytearray(2**30)", "more memory than there is"),
    ],
)
def test_a_fault_costs_its_image_and_no_other(fault, reason, good, bad, monkeypatch):
    sabotage(monkeypatch, fault)
    monkeypatch.setattr(workers, "_PATIENCE", 10 if "iter" in fault else 5)
    decoder = IsolatedDecoder(SPEC, DecodingLimits(seconds=1))
    expected = LocalDecoder(SPEC).crops(good)
    for _ in range(1 if "iter" in fault or "sleep" in fault else 2):
        with pytest.raises(DecoderFailedError, match=f"<{len(bad)} bytes> as an image.*{reason}"):
            decoder.crops(bad)
        same(decoder.crops(good), expected)
    assert PIXELS._held == 0
    decoder.close()


def test_what_the_application_does_to_pillow_does_not_matter(decoder, good, monkeypatch):
    expected = LocalDecoder(SPEC).crops(good)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr(Image, "OPEN", {})
    same(decoder.crops(good), expected)
    with pytest.raises(ImageError, match="truncated"):
        decoder.crops(good[: len(good) // 2])


def test_threads_share_the_workers(decoder, good):
    expected = LocalDecoder(SPEC).crops(good)
    with ThreadPoolExecutor(8) as pool:
        for crops in pool.map(decoder.crops, [good] * 60):
            same(crops, expected)
    assert len(decoder._running) <= 2


def test_the_wait_for_other_images_is_not_an_images_time(decoder, good):
    with ThreadPoolExecutor(1) as pool:
        with PIXELS.reserved(LIMITS.for_pixels, LIMITS.for_pixels):
            waiting = pool.submit(decoder.crops, good)
            until(lambda: PIXELS._waiting)
            (worker,) = decoder._running
            assert not [t for t in threading.enumerate() if t.name == "drexperts-watch"]
        same(waiting.result(), LocalDecoder(SPEC).crops(good))
    assert decoder._running == {worker}


def test_limits_are_those_of_this_process(bad):
    for limits in (DecodingLimits(max_pixels=20), DecodingLimits(memory=3000)):
        isolated, local = IsolatedDecoder(SPEC, limits), LocalDecoder(SPEC, limits)
        assert answer(isolated, bad) == answer(local, bad)
        assert isinstance(answer(local, bad), str)
        isolated.close()


def test_close_ends_the_workers(decoder, good):
    decoder.crops(good)
    (worker,) = decoder._running
    decoder.close()
    decoder.close()
    assert worker.process.poll() is not None
    with pytest.raises(UserError, match="closed"):
        decoder.crops(good)


def test_close_ends_an_image_that_is_being_decoded(bad, monkeypatch):
    sabotage(monkeypatch, "time.sleep(600)")
    decoder = IsolatedDecoder(SPEC, DecodingLimits(seconds=600))
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(decoder.crops, bad)
        until(lambda: PIXELS._held)
        decoder.close()
        with pytest.raises(UserError, match="closed"):
            busy.result()
    assert not decoder._running


def test_a_forgotten_decoder_leaves_no_process(good):
    decoder = IsolatedDecoder(SPEC, LIMITS)
    decoder.crops(good)
    (worker,) = decoder._running
    process = worker.process
    del decoder, worker
    until(lambda: process.poll() is not None)


def test_pickling(decoder, good):
    decoder.crops(good)
    other = pickle.loads(pickle.dumps(decoder))
    assert (other.spec, other.limits, other.count) == (SPEC, LIMITS, 2)
    same(other.crops(good), decoder.crops(good))
    other.close()


def test_a_python_that_does_not_start(good, monkeypatch):
    none = ("/nowhere/python", "No such file")
    for executable, reason in (("/bin/false", "status 1"), ("", "no Python to start"), none):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(UserError, match=rf"{reason}.*isolated=False") as caught:
            IsolatedDecoder(SPEC, LIMITS).crops(good)
        assert not isinstance(caught.value, ImageError)  # it is no image's fault


def test_a_file_that_shrinks_while_it_is_read(decoder, good, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(good)
    with monkeypatch.context() as patch:
        patch.setattr(image, "_size", lambda stream: len(good) + 1)
        with pytest.raises(ImageError, match="changed while it was read"):
            decoder.crops(tmp_path / "a.png")
    same(decoder.crops(tmp_path / "a.png"), LocalDecoder(SPEC).crops(good))


def test_ctrl_c_is_for_the_parent(decoder, good):
    decoder.crops(good)
    (worker,) = decoder._running
    worker.process.send_signal(signal.SIGINT)
    decoder.crops(good)
    assert decoder._running == {worker}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_starts_its_own(decoder, good):
    expected = LocalDecoder(SPEC).crops(good)
    decoder.crops(good)
    (worker,) = decoder._running
    child = os.fork()
    if child == 0:
        same(decoder.crops(good), expected)
        (own,) = decoder._running
        os._exit(7 if own.process.pid != worker.process.pid else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    same(decoder.crops(good), expected)
    assert decoder._running == {worker}


def test_no_worker_outlives_a_killed_parent(tmp_path, good):
    (tmp_path / "a.png").write_bytes(good)
    code = (
        "import sys; from drexperts.runtime.decoding.workers import IsolatedDecoder\n"
        "from drexperts.runtime.preprocess import Preprocessing\n"
        "decoder = IsolatedDecoder(Preprocessing(16, 16, 32, 2)); decoder.crops(sys.argv[1])\n"
        "print(*(worker.process.pid for worker in decoder._running), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
