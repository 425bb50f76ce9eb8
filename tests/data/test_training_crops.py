"""Training crops: their order, their places, and that nothing but the seed changes them."""

import multiprocessing
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from support.waiting import PATIENCE

from drexperts.data import training_crops as loading
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.images import ImageStore, ReleasedSize
from drexperts.data.training_crops import TrainingBatches, divisible_batch, epoch_order, random_crop
from drexperts.runtime.errors import ConfigError, DataError
from drexperts.runtime.manifest import ScoreScale

SIZE = 16
COUNT = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve images of 40x24: red is the column, green the row, blue ten times the number."""
    root = tmp_path_factory.mktemp("set")
    rows, columns = np.indices((24, 40))
    for i in range(COUNT):
        planes = (columns, rows, np.full_like(rows, 10 * i))
        Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).save(root / f"{i:02}.png")
    samples = tuple(Sample(f"{i:02}.png", i / 2, "") for i in range(COUNT))
    return Dataset("folder", root, samples, ScoreScale(0, 10, True))


@pytest.fixture
def copied(dataset, tmp_path):
    """The same images, to be changed."""
    for sample in dataset.samples:
        (tmp_path / sample.name).write_bytes(dataset.path(sample).read_bytes())
    return Dataset("folder", tmp_path, dataset.samples, dataset.scale)


def batches(dataset, **options):
    settings = {"crops": 3, "size": SIZE, "batch": 8, "seed": 5} | options
    store = ImageStore(dataset, ReleasedSize(SIZE, None))
    return TrainingBatches(store, dataset.samples, **settings)


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.names == b.names


def rows(step):
    """The crops of a step, whatever their order."""
    return Counter(
        (image.numpy().tobytes(), float(label), name)
        for batch in step
        for image, label, name in zip(batch.images, batch.labels, batch.names, strict=True)
    )


# The order


def test_each_image_comes_as_often_as_asked():
    order = epoch_order(10, 4, 8, seed=1, epoch=2)
    assert order.shape == (5, 8)
    assert Counter(order.ravel().tolist()) == dict.fromkeys(range(10), 4)


def test_the_incomplete_end_is_dropped():
    order = epoch_order(10, 3, 8, seed=1, epoch=2)
    assert order.shape == (3, 8)
    assert max(Counter(order.ravel().tolist()).values()) == 3


def test_orders_come_from_seed_and_epoch():
    orders = {
        epoch_order(20, 1, 20, seed, epoch).tobytes() for seed in (0, 1) for epoch in range(5)
    }
    assert len(orders) == 10
    np.testing.assert_array_equal(epoch_order(20, 1, 20, 1, 4), epoch_order(20, 1, 20, 1, 4))


def test_dividing_a_batch():
    assert divisible_batch(100, 64, world=4, accumulate=2) == 64
    assert divisible_batch(63, 64, world=4, accumulate=2) == 56
    assert divisible_batch(64, 64, world=1, accumulate=1) == 64
    for batch, world, accumulate in ((64, 3, 1), (64, 4, 3), (0, 1, 1), (8, 1, 0), (2, 4, 1)):
        with pytest.raises(ConfigError, match="--batch"):
            divisible_batch(100, batch, world, accumulate)
    with pytest.raises(ConfigError, match="7 crops"):
        divisible_batch(7, 64, world=4, accumulate=2)


# Crops


@pytest.mark.slow
def test_crops_come_from_everywhere_and_both_mirrorings_occur(dataset):
    store, sample = ImageStore(dataset, ReleasedSize(SIZE, None)), dataset.samples[3]
    places: Counter[tuple[int, int]] = Counter()
    mirrored: Counter[tuple[bool, bool]] = Counter()
    for position in range(2000):
        crop = random_crop(store, sample, SIZE, 0, 0, position).astype(int)
        across, down = crop[0, -1, 0] - crop[0, 0, 0], crop[-1, 0, 1] - crop[0, 0, 1]
        assert {abs(across), abs(down)} == {SIZE - 1}
        assert (crop[:, :, 2] == 30).all()
        places[int(crop[..., 0].min()), int(crop[..., 1].min())] += 1
        mirrored[bool(across < 0), bool(down < 0)] += 1
    assert len(places) == 25 * 9  # every position there is
    assert len(mirrored) == 4
    assert all(400 < count < 600 for count in mirrored.values())


def test_crops_of_an_image_differ_and_those_of_epochs_too(dataset):
    store, sample = ImageStore(dataset, ReleasedSize(SIZE, None)), dataset.samples[0]
    crops = {
        random_crop(store, sample, SIZE, seed, epoch, position).tobytes()
        for seed in range(2)
        for epoch in range(2)
        for position in range(4)
    }
    assert len(crops) == 16


# Batches


def test_a_batch_has_crops_labels_and_names(dataset):
    made = batches(dataset)
    assert (made.batch, made.steps) == (8, 4)
    epoch = list(made.epoch(0))
    assert len(epoch) == 4
    for batch in epoch:
        assert batch.images.shape == (8, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.labels.dtype == torch.float32
        blue = batch.images[:, 2, 0, 0].tolist()
        assert batch.names == [f"{value // 10:02}.png" for value in blue]
        assert batch.labels.tolist() == [value / 20 for value in blue]


def test_fewer_crops_than_a_batch_make_one_step(dataset):
    made = batches(dataset, batch=640, world=5)
    assert (made.batch, made.steps) == (35, 1)
    assert [len(batch.names) for batch in made.epoch(0)] == [7]


def test_workers_change_nothing_and_live_on(dataset):
    before = set(multiprocessing.active_children())
    alone, helped = batches(dataset), batches(dataset, workers=2)
    state = torch.get_rng_state()
    same(list(alone.epoch(0)), list(helped.epoch(0)))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    next(helped.epoch(1))  # and abandoned
    same(list(alone.epoch(2, first_step=1)), list(helped.epoch(2, first_step=1)))
    assert set(multiprocessing.active_children()) - before == workers
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 2)])
def test_processes_and_micro_batches_change_nothing(world, accumulate, dataset):
    alone = list(batches(dataset).epoch(3))
    shares = [
        list(batches(dataset, rank=rank, world=world, accumulate=accumulate).epoch(3))
        for rank in range(world)
    ]
    assert [len(share) for share in shares] == [4 * accumulate] * world
    for step, whole in enumerate(alone):
        part = slice(step * accumulate, (step + 1) * accumulate)
        gathered = [batch for share in shares for batch in share[part]]
        assert len({len(batch.names) for batch in gathered}) == 1
        assert rows(gathered) == rows([whole])


@pytest.mark.parametrize("first_step", [0, 1, 3, 4])
def test_a_resumed_epoch_is_the_tail(first_step, dataset):
    made = batches(dataset, accumulate=2)
    whole = list(made.epoch(1))
    same(list(made.epoch(1, first_step)), whole[2 * first_step :])


def test_skipped_images_are_not_read(copied):
    made = batches(copied, crops=1, batch=4)
    skipped, *rest = made.epoch(0)
    for name in skipped.names:
        (copied.root / name).unlink()
    same(list(made.epoch(0, first_step=1)), rest)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_lost_on_the_way_is_named(workers, copied):
    made = batches(copied, workers=workers)
    (copied.root / "07.png").unlink()
    # One line: no worker's traceback is in it.
    with pytest.raises(DataError, match=r"^[^\n]+07\.png[^\n]+$"):
        list(made.epoch(0))


@pytest.mark.slow
def test_signals_do_not_end_the_workers(dataset, capfd, monkeypatch):
    def start_late(worker):
        time.sleep(worker)
        prepare(worker)

    prepare = loading._leave_signals_to_the_main_process
    monkeypatch.setattr(loading, "_leave_signals_to_the_main_process", start_late)
    before = set(multiprocessing.active_children())
    made = batches(dataset, workers=2)
    epoch = made.epoch(0)
    received = [next(epoch)]  # from the first worker: the second is only starting
    # From a process that is not theirs, as a scheduler's are.
    for process in set(multiprocessing.active_children()) - before:
        subprocess.run(["kill", "-INT", str(process.pid)], check=True)
        subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    received += epoch
    same(received + list(made.epoch(1)), [*batches(dataset).epoch(0), *batches(dataset).epoch(1)])
    assert capfd.readouterr().err == ""


def test_the_main_process_can_end_a_worker(dataset):
    before = set(multiprocessing.active_children())
    made = batches(dataset, workers=1)
    next(made.epoch(0))
    (process,) = set(multiprocessing.active_children()) - before
    process.terminate()
    process.join(PATIENCE)
    assert process.exitcode == 0


# In a process of its own: PyTorch raises a worker's death wherever the main thread happens to be.
DYING = """
import contextlib
import multiprocessing
import signal
import sys
from pathlib import Path

from drexperts.data import training_crops as loading
from drexperts.runtime.errors import DataError
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.images import ImageStore, ReleasedSize
from drexperts.data.training_crops import TrainingBatches, workers_explained
from drexperts.runtime.manifest import ScoreScale

root = Path(sys.argv[1])
samples = tuple(Sample(path.name, 0.0, "") for path in sorted(root.iterdir()))
dataset = Dataset("folder", root, samples, ScoreScale(0, 10, True))
store = ImageStore(dataset, ReleasedSize(16, None))
made = TrainingBatches(store, samples, crops=300, size=16, batch=8, seed=5, workers=1)
try:
    with workers_explained():
        epoch = made.epoch(0)
        next(epoch)
        (process,) = multiprocessing.active_children()
        process.kill()
        list(epoch)
except DataError as error:
    # PyTorch's handler may raise once more, in the midst of printing.
    with contextlib.suppress(RuntimeError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_of_its_own(dataset):
    command = [sys.executable, "-P", "-c", DYING, str(dataset.root)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.stdout.startswith("DataError"), ended.stderr
    assert "--workers" in ended.stdout
