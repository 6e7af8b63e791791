import threading
import time

import numpy as np
import pytest
from images import image_files, jpeg, pixels, write_folder, write_tar

from wasi.training.data import ImageError, Loader, Transform, open_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    files = image_files(np.random.default_rng(0), splits=(), n=7)
    return open_dataset(write_tar(tmp_path_factory.mktemp("loader") / "a.tar", files))


TRAIN = Transform(24, train=True)


def batches(loader, n_epochs=1):
    return [(images.tobytes(), labels.tolist()) for _ in range(n_epochs) for images, labels in loader]


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("wasi-loader")]


def test_batches(dataset):
    loader = Loader(dataset, 8, Transform(24))
    assert len(loader) == 3
    parts = list(loader)
    assert [images.shape for images, _ in parts] == [(8, 3, 24, 24), (8, 3, 24, 24), (5, 3, 24, 24)]
    assert all(images.dtype == np.uint8 and labels.dtype == np.int64 for images, labels in parts)
    assert np.array_equal(np.concatenate([labels for _, labels in parts]), dataset.labels)
    want = Transform(24)(dataset.read(9)).transpose(2, 0, 1)
    assert np.array_equal(parts[1][0][1], want)
    assert [len(labels) for _, labels in Loader(dataset, 8, TRAIN, drop_last=True)] == [8, 8]
    assert [len(labels) for _, labels in Loader(dataset, 21, TRAIN)] == [21]


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(dataset):
    wanted = batches(Loader(dataset, 4, TRAIN, shuffle=True, seed=5, n_workers=0), 2)
    assert wanted[:6] != wanted[6:]
    for options in (
        {"n_workers": 1},
        {"n_workers": 3, "prefetch": 1},
        {"n_workers": 2, "prefetch": 9},
        {"cache_bytes": 1 << 30},
        {"cache_bytes": 20_000},
    ):
        assert batches(Loader(dataset, 4, TRAIN, shuffle=True, seed=5, **options), 2) == wanted
    other = batches(Loader(dataset, 4, TRAIN, shuffle=True, seed=6), 2)
    assert all(a != b for a, b in zip(wanted, other))
    loader = Loader(dataset, 4, TRAIN, shuffle=True, seed=5)
    loader.set_epoch(1)
    assert batches(loader) == wanted[6:]


def test_augmentation_does_not_depend_on_the_batch(dataset):
    wide, narrow = (
        np.concatenate([images for images, _ in Loader(dataset, size, TRAIN)]) for size in (21, 2)
    )
    assert np.array_equal(wide, narrow)


@pytest.mark.parametrize("n_workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 4, 6])
def test_resumes_in_the_middle_of_an_epoch(dataset, n_workers, taken):
    def make():
        return Loader(dataset, 4, TRAIN, shuffle=True, seed=5, n_workers=n_workers)

    wanted = batches(make(), 3)
    first, seen = make(), []
    seen += batches(first)
    iterator = iter(first)
    for _ in range(taken):
        images, labels = next(iterator)
        seen.append((images.tobytes(), labels.tolist()))
    state = first.state_dict()
    iterator.close()
    assert state == {
        "epoch": 1,
        "batch": taken,
        "seed": 5,
        "transform": repr(TRAIN),
        "n_images": 21,
        "batch_size": 4,
        "shuffle": True,
        "drop_last": False,
    }
    second = make()
    second.load_state_dict(state)
    while second.epoch < 3:
        seen += batches(second)
    assert seen == wanted


def test_leaving_early_starts_the_epoch_again(dataset):
    loader = Loader(dataset, 4, TRAIN, shuffle=True)
    wanted = batches(Loader(dataset, 4, TRAIN, shuffle=True))
    next(iter(loader))
    assert loader.epoch == 0
    assert batches(loader) == wanted
    assert loader.epoch == 1


def test_states_of_another_loader_are_refused(dataset):
    loader = Loader(dataset, 4, TRAIN, shuffle=True)
    state = loader.state_dict()
    for name, value in [
        ("seed", 3),
        ("n_images", 20),
        ("batch_size", 5),
        ("shuffle", False),
        ("drop_last", True),
    ]:
        with pytest.raises(
            ValueError, match=f"{name}: the saved state is of a loader with {value}, this one has"
        ):
            loader.load_state_dict({**state, name: value})
    with pytest.raises(ValueError, match="batch: expected 0 to 6 of an epoch from 0, got 7 of epoch 0"):
        loader.load_state_dict({**state, "batch": 7})


class Counting:
    """A transform that counts its images, and fails at one of them."""

    img_size, min_side = 24, None

    def __init__(self, fail_at=None):
        self.n, self.fail_at = 0, fail_at

    def prepare(self, image):
        self.n += 1
        if self.n == self.fail_at:
            raise KeyError("no such thing")
        return Transform(24).prepare(image)

    def finish(self, image, rng):
        return np.asarray(image)


def test_reads_ahead_but_not_further_than_asked(dataset):
    transform = Counting()
    iterator = iter(Loader(dataset, 2, transform, prefetch=3))
    next(iterator)
    deadline = time.monotonic() + 5
    while transform.n < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert transform.n == 8  # the batch that was handed out, and three more
    iterator.close()


def test_cache_is_bounded_and_saves_reading(dataset):
    one = 24 * 29 * 3  # 40 x 48 pixels, shorter side resized to 24
    transform = Transform(24, train=True, crop="pad")
    loader = Loader(dataset, 4, transform, shuffle=True, cache_bytes=10 * one + 5)
    assert loader.cached_bytes == 0
    batches(loader, 2)
    assert loader.cached_bytes == 10 * one
    counting = Counting()
    batches(Loader(dataset, 4, counting, cache_bytes=1 << 30), 3)
    assert counting.n == 21
    assert loader.buffer_bytes == 4 * 4 * 3 * 24 * 24


@pytest.mark.parametrize("n_workers", [1, 3])
def test_threads_end_with_the_iteration(dataset, n_workers):
    before = loader_threads()
    loader = Loader(dataset, 4, TRAIN, n_workers=n_workers)
    for _ in loader:
        assert len(loader_threads()) > len(before)
        break
    assert loader_threads() == before
    batches(loader)
    assert loader_threads() == before
    with pytest.raises(KeyboardInterrupt):
        for _ in loader:
            raise KeyboardInterrupt
    assert loader_threads() == before


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_an_error_names_the_image(tmp_path, rng, dataset, n_workers):
    before = loader_threads()
    good = jpeg(pixels(rng))
    files = {"a/0.jpg": good, "a/1.jpg": good[:-300], "b/0.jpg": good, "b/1.jpg": good}
    damaged = open_dataset(write_folder(tmp_path / "set", files))
    with pytest.raises(ImageError, match="^a/1.jpg: image file is truncated"):
        batches(Loader(damaged, 2, TRAIN, n_workers=n_workers))
    assert [problem.name for problem in damaged.problems] == ["a/1.jpg"]
    assert len(batches(Loader(damaged.checked(), 2, TRAIN, n_workers=n_workers))) == 2
    left = Loader(damaged, 2, TRAIN, n_workers=n_workers, skip_unreadable=True)
    assert len(left) == 2 and [(len(images), labels.tolist()) for images, labels in left] == [(1, [0]), (2, [1, 1])]
    with pytest.raises(ImageError, match="^a/1.jpg"):
        batches(Loader(damaged.take([1]), 1, TRAIN, n_workers=n_workers, skip_unreadable=True))
    loader = Loader(dataset, 4, Counting(fail_at=10), n_workers=n_workers and 1)
    seen = []
    with pytest.raises(RuntimeError, match="^dog/02.png: KeyError: 'no such thing'"):
        for _, labels in loader:
            seen.append(labels)
    assert len(seen) == 2  # the batches before it came
    assert loader_threads() == before


def test_bad_input_is_refused_by_name(dataset):
    with pytest.raises(ValueError, match="batch_size: expected at most the 21 samples of the set, got 22"):
        Loader(dataset, 22, TRAIN)
    for name, value in [
        ("batch_size", 0),
        ("seed", -1),
        ("n_workers", -1),
        ("prefetch", 0),
        ("cache_bytes", -1),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected at least [01], got {value}"):
            Loader(**{"dataset": dataset, "batch_size": 2, "transform": TRAIN, name: value})
