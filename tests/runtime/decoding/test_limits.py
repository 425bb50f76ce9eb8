import functools
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from support import png_files
from support.waiting import until

from drexperts.runtime.decoding.image import memory_for, stored_in
from drexperts.runtime.decoding.limits import DecodingLimits, Pool
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.preprocess import Preprocessing


@pytest.mark.parametrize("values", [{"max_pixels": 0}, {"memory": -1}, {"seconds": 1.5}])
def test_impossible_limits(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DecodingLimits(**values)


@pytest.mark.parametrize("type", [0, 2, 4, 6])
def test_an_image_of_as_many_pixels_as_are_allowed_fits_into_the_default_budget(type):
    small = png_files.png(np.zeros((1, 1, png_files.CHANNELS[type])), 8, type)
    header = small[12:16] + struct.pack(">II", 10_000, 10_000) + small[24:29]
    large = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    limits = DecodingLimits()
    spec = Preprocessing(384, 384, 768, 3)
    assert memory_for(stored_in(large, limits), spec) <= limits.for_pixels


def test_what_never_fits_is_refused_with_what_to_do():
    pool = Pool("decoding it")
    with pytest.raises(NotReadError, match=r"up to 2 MiB .* 1 MiB are allowed.*Limits.memory"):
        pool.check(2**20 + 1, 2**20)
    with pytest.raises(NotReadError), pool.reserved(11, 10):
        pytest.fail("held")


def started(pool, size, most, held, name, release):
    def run():
        with pool.reserved(size, most):
            held.append(name)
            release.wait()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def waits(pool, count):
    return len(pool._waiting) == count


def test_large_ones_go_one_at_a_time_and_first_come_first_served():
    pool, release = Pool("it"), {name: threading.Event() for name in "abcd"}
    held: list[str] = []
    threads = [started(pool, 6, 10, held, "a", release["a"])]
    until(lambda: held == ["a"])
    for count, (name, size) in enumerate({"b": 9, "c": 1, "d": 1}.items(), 1):
        threads.append(started(pool, size, 10, held, name, release[name]))
        until(functools.partial(waits, pool, count))
    assert held == ["a"]  # c would fit, but then b might wait for ever
    release["a"].set()
    until(lambda: sorted(held) == ["a", "b", "c"])  # 9 + 1
    assert held[1] == "b" or held[2] == "b"
    release["b"].set()
    until(lambda: len(held) == 4)
    for event in release.values():
        event.set()
    for thread in threads:
        thread.join()
    assert pool._held == 0


def test_bytes_come_back_after_an_error():
    pool = Pool("it")
    with pytest.raises(KeyError), pool.reserved(10, 10):
        raise KeyError
    with pool.reserved(10, 10):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_owes_nothing_for_its_parent():
    pool, release = Pool("it"), threading.Event()
    held: list[str] = []
    thread = started(pool, 10, 10, held, "a", release)
    until(lambda: held)
    child = os.fork()
    if child == 0:
        with pool.reserved(10, 10):
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    release.set()
    thread.join()
