"""The scikit-learn estimator: its conventions, its inputs, its errors."""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest

import wasi
from wasi import WasiClassifier

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 1, "patch_size": 2}
# Checks that do not apply, and why: none. Skipped by scikit-learn itself: what needs array API libraries or pandas.
DO_NOT_APPLY = {}


@pytest.fixture(autouse=True)
def one_thread():
    before = wasi.get_num_threads()
    wasi.set_num_threads(1)
    yield
    wasi.set_num_threads(before)


def tiny(**changes):
    return WasiClassifier(**{"model_options": TINY, "epochs": 15, "batch_size": 16, "lr": 0.01, "random_state": 0, **changes})


@pytest.fixture
def squares(rng):
    """60 grey images of 10 x 10 pixels: a bright square at the left or at the right."""
    y = np.arange(60) % 2
    X = rng.integers(0, 60, (60, 10, 10, 1), np.uint8)
    for image, label in zip(X, y):
        image[3:7, 1 + 5 * label : 4 + 5 * label] += 120
    return X, np.array(["left", "right"])[y]


def test_scikit_learns_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="needs scikit-learn: pip install scikit-learn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is no subclass of BaseEstimator, and what the checks provoke
        results = checks.check_estimator(tiny(), expected_failed_checks=DO_NOT_APPLY, on_fail=None, on_skip=None)
    assert [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"] == []
    assert sum(r["status"] == "passed" for r in results) > 45
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= {
        "check_array_api_input", "check_classifier_data_not_an_array", "check_dataframe_column_names_consistency",
        "check_n_features_in_after_fitting", "check_f_contiguous_array_estimator"}


def test_it_works_in_scikit_learns_tools(squares):
    selection = pytest.importorskip("sklearn.model_selection", reason="needs scikit-learn: pip install scikit-learn")
    X, y = squares
    search = selection.GridSearchCV(tiny(epochs=3), {"method": ["dense", "wsi"]}, cv=2).fit(X.reshape(60, -1) / 255, y)
    assert search.best_params_["method"] in ("dense", "wsi") and search.predict(X[:3].reshape(3, -1) / 255).shape == (3,)


def test_scikit_learn_is_not_imported():
    code = "import sys, numpy, wasi; wasi.WasiClassifier(epochs=1).fit(numpy.eye(4), [0, 1] * 2); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("method, method_options", [("dense", None), ("wsi", {"rank": 8, "targets": ("all",)}),
                                                    ("svd-llm", {"rank": 8})])
def test_images_of_every_form_are_learnt(squares, method, method_options):
    X, y = squares
    for images, options in ((X, {}), (X[..., 0], {}), (np.repeat(X, 3, 3) / 255, {}),
                            (X.reshape(60, -1), {"image_shape": (10, 10)}), (X.astype(np.float32), {"img_size": 8})):
        classifier = tiny(method=method, method_options=method_options, **options).fit(images, y)
        assert classifier.score(images, y) == 1.0
        assert classifier.classes_.tolist() == ["left", "right"] and classifier.n_features_in_ == images[0].size
    p = classifier.predict_proba(images)
    assert p.shape == (60, 2) and p.dtype == np.float64 and np.abs(p.sum(1) - 1).max() < 1e-12
    assert (classifier.classes_[p.argmax(1)] == classifier.predict(images)).all()


def test_early_stopping_class_weights_and_other_options(squares):
    X, y = squares
    epochs = []

    class Counter(wasi.training.loop.Callback):
        def on_epoch_end(self, run, record):
            epochs.append(record["epoch"])

    classifier = tiny(epochs=100, early_stopping=8, validation_fraction=0.2, class_weight={"left": 2.0},
                      train_options={"ema": 0.5, "mixup": 0.1, "callbacks": [Counter()]}).fit(X, y)
    assert len(classifier.history_) == len(epochs) < 100 and classifier.score(X, y) > 0.9
    assert tiny(class_weight="balanced").fit(X[:40], y[:40]).score(X, y) > 0.9


@pytest.mark.parametrize("options, stays", [({}, True), ({"freeze": ()}, False)])
def test_qwasi_leaves_the_stem_of_published_weights_as_it_is(squares, tmp_path, options, stays):
    X, y = squares
    published = wasi.create_model("vit_micro_patch4_32", num_classes=2, **TINY, img_size=10)
    wasi.export(published, tmp_path / "weights.safetensors", "timm")
    classifier = tiny(method="qwasi", method_options={"rank": 4, **options}, weights=tmp_path / "weights.safetensors",
                      img_size=10, epochs=1).fit(X, y)
    assert np.array_equal(classifier.model_.pos_embed.data, published.pos_embed.data) == stays


def test_parameters_are_kept_as_they_came_and_fits_repeat(squares):
    X, y = squares
    classifier = tiny(epochs=2)
    assert repr(classifier).startswith("WasiClassifier(model_options=") and "epochs=2" in repr(classifier)
    params = classifier.get_params()
    again = WasiClassifier(**params).fit(X, y)
    assert np.array_equal(again.predict_proba(X), classifier.fit(X, y).predict_proba(X))
    assert classifier.get_params() == params and copy.deepcopy(classifier).score(X, y) == classifier.score(X, y)
    assert not np.array_equal(classifier.set_params(random_state=1).fit(X, y).predict_proba(X), again.predict_proba(X))


def test_bad_input_is_refused_by_name(squares):
    X, y = squares
    with pytest.raises(ValueError, match="Invalid parameter 'speed' for estimator"):
        tiny().set_params(speed=1)
    with pytest.raises((ValueError, AttributeError), match="not fitted yet"):
        tiny().predict(X)
    for options, samples, labels, message in [
            ({}, X, y[:5], "y: expected 60 labels"), ({}, X[:, :, :, None], y, "X: expected at most 4 dimensions"),
            ({}, np.repeat(X, 2, 3), y, r"image_shape: expected .* with 1 or 3 channels"),
            ({"image_shape": (9, 9)}, X.reshape(60, -1), y, "image_shape: expected one of 100 numbers"),
            ({"batch_size": 0}, X, y, "batch_size: expected at least 1"), ({"model": "vit_giant"}, X, y, "name: expected one of"),
            ({"img_size": 4}, X.reshape(60, -1), y, "img_size: expected at least 10 for so many features"),
            ({"img_size": 11}, X, y, "img_size: expected a multiple of the patch size"),
            ({"class_weight": "fair"}, X, y, "class_weight: expected None, 'balanced' or a dict"),
            ({"early_stopping": 1, "validation_fraction": 1.0}, X, y, "validation_fraction: expected a share between 0 and 1"),
            ({"early_stopping": 1, "validation_fraction": 0.99}, X[:3], y[:3], "validation_fraction: .* leaves none"),
            ({"train_options": {"ema": 2}}, X, y, "ema: expected a decay"), ({"method": "magic"}, X, y, "method: expected one"),
            ({}, X, None, "requires y to be passed"), ({}, X, np.linspace(0, 1, 60), "Unknown label type")]:
        with pytest.raises((TypeError, ValueError), match=message):
            tiny(**options).fit(samples, labels)
    with pytest.raises(ValueError, match="patience: expected at least 1 epoch, got 0"):
        tiny(early_stopping=0).fit(X, y)
    fitted = tiny(epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="y: expected 60 labels, one for each sample of X, got 1"):
        fitted.score(X, y[:1])
    with pytest.warns(UserWarning, match="A column-vector y was passed"):
        assert fitted.score(X, np.asarray(y)[:, None]) == fitted.score(X, y)
    with pytest.raises(TypeError, match="X: expected uint8 pixels, as in fit, got float64"):
        fitted.predict(X / 255)
    with pytest.raises(ValueError, match="X has 81 features, but WasiClassifier is expecting 100 features as input"):
        fitted.predict(X[:, :9, :9])
