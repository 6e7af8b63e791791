"""The oracle itself: published weights load strictly, classify as they should, and fine-tune as documented."""

import tarfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch, the oracle: pip install torch==2.13.0")

from PIL import Image
from torch_finetune import constant, train, warmup_cosine, write_batches
from torch_models import create_model, load_weights, preprocess, resize_pos_embed

pytestmark = pytest.mark.torch

# ImageNet's classes of what CIFAR-10 calls ...
MEANING = {
    "airplane": {404, 812, 895, 908},  # airliner, space shuttle, warplane, wing
    "dog": set(range(151, 269)),
    "ship": {403, 472, 484, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914},  # carrier to yawl
    "truck": {555, 569, 675, 717, 734, 864, 867},  # fire engine to trailer truck
}
WEIGHTS = "vit_tiny_patch16_224.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Problems of this size only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def top1(model, images):
    with torch.no_grad():
        return model(preprocess(images)).argmax(1).tolist()


def resized(image, size=224):
    return np.asarray(image.convert("RGB").resize((size, size), Image.BICUBIC)).transpose(2, 0, 1)


def test_photograph_is_recognised(shared_data):
    matplotlib = pytest.importorskip("matplotlib")
    photo = Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
    model = load_weights(create_model("vit_tiny_patch16_224"), shared_data(WEIGHTS))
    assert top1(model, resized(photo)[None]) == [652]  # military uniform


def test_small_images_are_recognised(shared_data):
    model = load_weights(create_model("vit_tiny_patch16_224"), shared_data(WEIGHTS))
    images = {name: [] for name in MEANING}
    with tarfile.open(shared_data("cifar10_jpg.tar.gz"), "r|gz") as archive:
        for member in archive:
            kind = member.name.split("/")[1] if member.name.endswith(".jpg") else None
            if kind in images and len(images[kind]) < 6:
                images[kind].append(resized(Image.open(archive.extractfile(member))))
            if all(len(some) == 6 for some in images.values()):
                break
    hits = [guess in MEANING[kind] for kind in images for guess in top1(model, np.stack(images[kind]))]
    assert np.mean(hits) > 0.35  # of 1000 classes, from 32x32 pixels; the classes named here are 14 % of all


@pytest.mark.parametrize("img_size", [112, 160])
def test_other_image_sizes(shared_data, img_size):
    model = load_weights(create_model("vit_tiny_patch16_224", img_size), shared_data(WEIGHTS))
    assert model(torch.zeros(2, 3, img_size, img_size)).shape == (2, 1000)
    assert model.pos_embed.shape == (1, (img_size // 16) ** 2 + 1, 192)


def test_position_table_keeps_the_class_token_and_constants():
    table = torch.cat([torch.full((1, 1, 5), 7.0), torch.arange(5.0).expand(1, 196, 5)], 1)
    small = resize_pos_embed(table, 50)
    assert torch.equal(small[:, 0], table[:, 0])
    assert torch.allclose(small[:, 1:], torch.arange(5.0).expand(1, 49, 5), atol=1e-5)
    assert resize_pos_embed(table, 197) is table


def test_weights_must_fit():
    model = create_model("vit_tiny_patch16_224", 32, 10)
    weights = dict(model.state_dict())
    load_weights(model, weights)
    with pytest.raises(RuntimeError, match="Missing key.*norm.weight"):
        load_weights(model, {name: value for name, value in weights.items() if name != "norm.weight"})
    with pytest.raises(RuntimeError, match="Unexpected key.*extra"):
        load_weights(model, weights | {"extra": weights["norm.weight"]})
    with pytest.raises(ValueError, match="name: expected vit_"):
        create_model("vit_huge_patch14_224")
    with pytest.raises(ValueError, match="img_size: expected a multiple of 16, got 30"):
        create_model("vit_tiny_patch16_224", 30)


def test_schedules():
    rates = [warmup_cosine(t, 0.4, 4, 12) for t in range(12)]
    assert rates[:5] == [0.1, 0.2, pytest.approx(0.3), 0.4, 0.4]
    assert rates[8] == pytest.approx(0.2) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[11] == pytest.approx(0.4 * 0.5 * (1 + np.cos(np.pi * 7 / 8)))
    assert [constant(t, 0.4, 2, 5) for t in range(5)] == [0.2, 0.4, 0.4, 0.4, 0.4]


def small_run(rng, tmp_path):
    images, labels = rng.integers(0, 256, (10, 3, 32, 32), np.uint8), rng.integers(0, 3, 10)
    write_batches(tmp_path / "batches.npz", images, labels, batch=4, num_classes=3)
    with np.load(tmp_path / "batches.npz") as file:
        batches = dict(file)
    torch.manual_seed(0)
    return dict(create_model("vit_tiny_patch16_224", 32).state_dict()), batches


def test_batches_hold_the_data_and_the_head(rng, tmp_path):
    _, batches = small_run(rng, tmp_path)
    assert batches["images"].shape == (2, 4, 3, 32, 32) and batches["labels"].shape == (2, 4)
    assert np.array_equal(batches["head_weight"],
                          np.random.default_rng(0).normal(0, 0.02, (3, 192)).astype(np.float32))
    assert not batches["head_bias"].any()


def test_training_follows_the_documented_update(rng, tmp_path):
    weights, batches = small_run(rng, tmp_path)
    lr, momentum, decay, clip, warmup, steps = 0.1, 0.9, 0.01, 0.5, 1, 3
    losses = train(weights, batches, 3, 32, lr, momentum, decay, clip, warmup_cosine, steps, warmup, dtype=torch.float64)

    model = create_model("vit_tiny_patch16_224", 32, 3)
    load_weights(model, weights, head=(batches["head_weight"], batches["head_bias"])).double()
    parameters, want = list(model.parameters()), []
    v = [torch.zeros_like(p) for p in parameters]
    for t in range(steps):
        x, labels = preprocess(batches["images"][t % 2]).double(), torch.as_tensor(batches["labels"][t % 2])
        loss = -model(x).log_softmax(1)[range(4), labels].mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = sum(g.square().sum() for g in gradients).sqrt()
        with torch.no_grad():
            for p, g, u in zip(parameters, gradients, v):
                u.mul_(momentum).add_(g * min(1, clip / (norm + 1e-6)) + decay * p)
                p -= [0.1, 0.1, 0.05][t] * u
        want.append(loss.item())
    assert losses == pytest.approx(want, rel=1e-10)
    with pytest.raises(ValueError, match=r"batches: expected \(num_classes, img_size\) \(5, 32\), got \(3, 32\)"):
        train(weights, batches, 5, 32, lr)
