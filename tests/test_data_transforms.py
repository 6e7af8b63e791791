import numpy as np
import pytest
from images import pixels
from PIL import Image
from tables import assert_close

from wasi.training.data import IMAGENET_MEAN, IMAGENET_STD, Transform, normalise


def ramp(height, width):
    """A picture whose red is the column and whose green is the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


@pytest.mark.parametrize("crop", ["auto", "resized", "pad", "squash"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(40, 48), (300, 200), (64, 64), (1, 9)])
def test_result_is_square_and_reproducible(rng, crop, train, shape):
    image = pixels(rng, *shape)
    transform = Transform(64, train, crop=crop)
    results = [
        transform(picture, np.random.default_rng(1)) for picture in (image, Image.fromarray(image), image)
    ]
    assert results[0].shape == (64, 64, 3) and results[0].dtype == np.uint8
    assert all(np.array_equal(result, results[0]) for result in results)


def test_eval_crops_the_centre():
    image = ramp(160, 240)
    seen = Transform(140)(image)  # 140 / 0.875 = 160: not resized
    assert np.array_equal(seen, image[10:150, 50:190])
    assert np.array_equal(Transform(160, crop="pad")(image), image[:, 40:200])
    squashed = Transform(80, crop="squash")(image)
    assert np.array_equal(
        squashed, np.asarray(Image.fromarray(image).resize((80, 80), Image.Resampling.BICUBIC))
    )
    resized = np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BICUBIC, reducing_gap=3.0))
    assert np.array_equal(Transform(56)(image), resized[4:60, 20:76])


def test_auto_shows_small_images_whole():
    image = ramp(32, 32)
    assert np.array_equal(Transform(32)(image), image)
    assert np.array_equal(Transform(112)(image), Transform(112, crop="pad")(image))
    assert np.array_equal(Transform(28)(image), Transform(28, crop="resized")(image))


def test_random_shift_and_flip():
    image = ramp(32, 40)
    transform = Transform(32, train=True, crop="pad", pad=0.125, flip=0.5)
    corners, mirrored = set(), 0
    for i in range(400):
        seen = transform(image, np.random.default_rng(i)).astype(int)
        steps = seen[16, 17, 0] - seen[16, 16, 0]
        mirrored += steps == -1
        if steps == -1:
            seen = seen[:, ::-1]
        x, y = seen[16, 16, 0] - 16, seen[16, 16, 1] - 16
        corners.add((x, y))
        want = np.pad(image, ((4, 4), (4, 4), (0, 0)))[y + 4 : y + 36, x + 4 : x + 36]
        assert np.array_equal(seen, want)
    assert {x for x, _ in corners} == set(range(-4, 13)) and {y for _, y in corners} == set(range(-4, 5))
    assert 150 < mirrored < 250


def test_random_crop_keeps_to_its_ranges():
    image = np.repeat(np.repeat(ramp(120, 160), 2, 0), 2, 1)  # 240 x 320, colours count pixel pairs
    transform = Transform(80, train=True, crop="resized", scale=(0.3, 0.5), ratio=(0.8, 1.25), flip=0)
    areas, ratios = [], []
    for i in range(200):
        seen = transform(image, np.random.default_rng(i)).astype(float)
        width = 2 * (seen[40, 60, 0] - seen[40, 20, 0]) * 80 / 40
        height = 2 * (seen[60, 40, 1] - seen[20, 40, 1]) * 80 / 40
        areas.append(width * height / (240 * 320))
        ratios.append(width / height)
    assert 0.28 < min(areas) < 0.33 and 0.47 < max(areas) < 0.53
    assert 0.75 < min(ratios) < 0.85 and 1.17 < max(ratios) < 1.32


def test_crop_of_an_image_that_no_ratio_fits():
    image = ramp(4, 200)
    seen = Transform(8, train=True, crop="resized", scale=(1, 1), flip=0)(image, np.random.default_rng(0))
    assert abs(int(seen[..., 0].mean()) - 100) <= 1  # the centre


@pytest.mark.parametrize("train", [False, True])
def test_prepare_and_finish_are_the_whole(rng, train):
    for shape in ((40, 48), (300, 200)):
        image, transform = pixels(rng, *shape), Transform(64, train)
        prepared = transform.prepare(image)
        whole = transform(image, np.random.default_rng(2))
        assert np.array_equal(transform.finish(prepared, np.random.default_rng(2)), whole)


def test_min_side_leaves_enough_for_the_narrowest_crop():
    assert Transform(112).min_side == 128
    assert Transform(100, train=True, scale=(0.25, 1), ratio=(1, 1)).min_side == 200
    side = Transform(100, train=True, scale=(0.25, 1), ratio=(0.5, 1)).min_side
    assert side**2 * 0.25 * 0.5 >= 100**2


def test_augment_comes_last(rng):
    transform = Transform(16, train=True, augment=lambda image, rng: Image.new("RGB", image.size, (1, 2, 3)))
    assert (transform(pixels(rng), rng) == [1, 2, 3]).all()


def test_normalise(rng):
    images = rng.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (IMAGENET_MEAN, IMAGENET_STD))
    seen = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
    assert_close(seen, (images / 255 - mean) / std)
    out = np.empty_like(seen)
    assert normalise(images, IMAGENET_MEAN, IMAGENET_STD, out=out) is out and np.array_equal(out, seen)


def test_bad_input_is_refused_by_name():
    for name, value in [
        ("img_size", 0),
        ("crop", "middle"),
        ("crop_pct", 0),
        ("scale", (0.5, 0.4)),
        ("ratio", (0, 1)),
        ("pad", -1),
        ("flip", 2),
        ("std", (1, 1, 0)),
        ("mean", (1,)),
    ]:
        with pytest.raises(ValueError, match=rf"{name}.*: expected .*got"):
            Transform(**{"img_size": 8, name: value})
    with pytest.raises(ValueError, match="rng: expected a numpy.random.Generator"):
        Transform(8, train=True)(ramp(9, 9))
    with pytest.raises(TypeError, match="images: expected uint8, got float64"):
        normalise(np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"images: expected a shape \(..., 3, H, W\), got \(2, 2, 3\)"):
        normalise(np.zeros((2, 2, 3), np.uint8))
