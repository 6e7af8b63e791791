import numpy as np
import pytest
from images import image_files, pixels, write_tar
from PIL import Image
from tables import assert_close

from wasi.training.augment import OPERATIONS, RandAugment, cutmix, mixup, soft_targets
from wasi.training.data import Loader, Transform, open_dataset

MIXTURES = [mixup, cutmix]


def batch(rng, dtype, n=9):
    """Images of one colour each, their number, and one-hot targets of their own class each."""
    images = np.broadcast_to(np.arange(n)[:, None, None, None] * 20, (n, 3, 12, 15)).astype(dtype)
    return images, soft_targets(np.arange(n), n)


def test_soft_targets():
    targets = soft_targets(np.array([2, 0]), 4, smoothing=0.2)
    assert targets.dtype == np.float32
    assert_close(targets, np.array([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))


@pytest.mark.parametrize("mix", MIXTURES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_targets_say_what_the_images_hold(rng, mix, dtype):
    images, targets = batch(rng, dtype)
    mixed, mixed_targets = mix(images, targets, np.random.default_rng(4), alpha=1.0)
    assert mixed.dtype == dtype and mixed_targets.dtype == np.float32 and mixed.shape == images.shape
    assert np.abs(mixed_targets.sum(1) - 1).max() < 1e-6
    assert ((mixed_targets > 0).sum(1) <= 2).all() and ((mixed_targets > 0).sum(1) == 2).any()
    want = mixed_targets @ (np.arange(9) * 20)
    assert np.abs(mixed.mean((1, 2, 3)) - want).max() <= (0.5 if dtype == np.uint8 and mix is mixup else 1e-4)


@pytest.mark.parametrize("mix", MIXTURES)
def test_mixtures_are_reproducible_and_pure(rng, mix):
    images = rng.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    targets = soft_targets(np.arange(6) % 3, 3)
    before = images.copy(), targets.copy()
    one, again, other = (mix(images, targets, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again))
    assert not np.array_equal(one[0], other[0])
    assert np.array_equal(images, before[0]) and np.array_equal(targets, before[1])


def test_mixup_rounds_and_float_agrees(rng):
    images = rng.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    targets = soft_targets(np.arange(6), 6)
    rounded, _ = mixup(images, targets, np.random.default_rng(1), alpha=2.0)
    exact, _ = mixup(images.astype(np.float32), targets, np.random.default_rng(1), alpha=2.0)
    assert np.abs(rounded - exact).max() <= 0.5


def test_cutmix_pastes_rectangles(rng):
    images, targets = batch(rng, np.uint8)
    mixed, mixed_targets = cutmix(images, targets, np.random.default_rng(0))
    for i, image in enumerate(mixed[:, 0]):
        rows, columns = np.nonzero(image != i * 20)
        if len(rows):
            inside = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (inside == inside[0, 0]).all() and inside.size == len(rows)
            assert mixed_targets[i, inside[0, 0] // 20] == pytest.approx(inside.size / image.size)


def test_bad_input_is_refused_by_name():
    images, targets = np.zeros((4, 3, 5, 5), np.float32), soft_targets(np.arange(4), 4)
    rng = np.random.default_rng(0)
    for mix in MIXTURES:
        with pytest.raises(TypeError, match="images: expected uint8 or float32 .* got float64"):
            mix(images.astype(float), targets, rng)
        with pytest.raises(TypeError, match="targets: expected float32 .* got int64"):
            mix(images, np.arange(4), rng)
        with pytest.raises(ValueError, match="targets: expected 4 rows, got 3"):
            mix(images, targets[:3], rng)
        with pytest.raises(ValueError, match="alpha: expected a number above 0, got 0"):
            mix(images, targets, rng, alpha=0)
    with pytest.raises(ValueError, match="labels: expected 0 to 2, got 0 to 3"):
        soft_targets(np.arange(4), 3)
    with pytest.raises(TypeError, match="labels: expected integers"):
        soft_targets(np.zeros(4), 3)
    with pytest.raises(ValueError, match="smoothing: expected a number from 0 to 1, got 2"):
        soft_targets(np.arange(4), 4, smoothing=2)
    for name, value in [("n_ops", -1), ("magnitude", 11), ("operations", ("blur",)), ("operations", ())]:
        with pytest.raises(ValueError, match=f"{name}: expected .*got"):
            RandAugment(**{name: value})


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(rng, name):
    image = Image.fromarray(pixels(rng, 24, 30) // 2 + 40)
    before = image.tobytes()
    weak, strong = (
        RandAugment(1, magnitude, (name,))(image, np.random.default_rng(1)) for magnitude in (0, 10)
    )
    for result in (weak, strong):
        assert result.mode == "RGB" and result.size == image.size
    difference = [
        np.abs(np.asarray(result, int) - np.asarray(image, int)).mean() for result in (weak, strong)
    ]
    if name in ("identity", "auto_contrast", "equalize"):
        assert difference[0] == difference[1] and (difference[0] > 0) == (name != "identity")
    else:
        assert difference[0] == 0 and difference[1] > 0.5
    assert image.tobytes() == before


def test_both_directions_are_drawn(rng):
    image = Image.new("RGB", (16, 16), (100, 100, 100))
    shades = {
        RandAugment(1, 5, ("brightness",))(image, np.random.default_rng(i)).getpixel((0, 0))[0]
        for i in range(20)
    }
    assert shades == {55, 145}


def test_augmented_batches_do_not_depend_on_threads_or_interruption(tmp_path, rng):
    dataset = open_dataset(write_tar(tmp_path / "a.tar", image_files(rng, splits=(), n=4)))

    def make(n_workers):
        return Loader(
            dataset, 4, Transform(16, train=True, augment=RandAugment()), shuffle=True, n_workers=n_workers
        )

    def batches(loader):
        for images, labels in loader:
            yield images.tobytes(), labels.tobytes()

    wanted = list(batches(make(0)))
    assert list(batches(make(2))) == wanted
    first, second = make(1), make(1)
    taken = next(batches(first))
    second.load_state_dict(first.state_dict())
    assert [taken, *batches(second)] == wanted
