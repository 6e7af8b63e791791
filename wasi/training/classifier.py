"""Training as a scikit-learn estimator: fit, predict, predict_proba, score. Needs no scikit-learn."""

import inspect
import math
import sys
import warnings

import numpy as np
from PIL import Image

from wasi.models import create_model
from wasi.models.images import probabilities
from wasi.models.methods import MethodOptions, apply_method, default_freeze
from wasi.models.swin import SWIN_CONFIGS
from wasi.models.vit import CONFIGS
from wasi.training.config import EarlyStopping, TrainConfig
from wasi.training.loop import train
from wasi.training.step import balanced_class_weights

N_CALIBRATION = 4  # batches that factors of pretrained weights start from, as for the command
ORDER_STREAM, SPLIT_STREAM = 2, 3  # random streams are (seed, number of the stream, epoch); 1 is that of mixtures


class NotFittedError(ValueError, AttributeError):
    """What a classifier raises before `fit`; scikit-learn's own, where that is loaded."""


class WasiClassifier:
    """A vision transformer, trained by a method of this package, that keeps to scikit-learn's conventions.

    X: images (n, h, w, c) or (n, h, w) with 1 or 3 channels; or rows (n, features), which are images of `image_shape` laid out
    row by row or, without it, features of any kind that fill the smallest square that holds them. uint8 images are taken as
    pixels; numbers of other types are standardised by the training set's mean and deviation of each channel (of each feature, of
    rows without image_shape).

    Parameters
    ----------
    model, model_options: architecture of `wasi.list_models()`, and fields of its configuration to replace, such as {"depth": 2}
    weights: safetensors file of published weights to start from; None: random ones
    image_shape: (h, w) or (h, w, c) of rows, channels last
    img_size: pixels a side that images are resized to; None: the architecture's with weights, else as large as the images
    method, method_options: of `wasi.models.methods.METHODS`, and fields of MethodOptions; wsi, for one, takes {"rank": 16}
    epochs, batch_size, optimizer, lr, weight_decay: of the training
    class_weight: None, "balanced", or {class: weight}
    early_stopping: epochs without a better validation loss after which training ends with the best model; None: all epochs
    validation_fraction: of the samples, held out where early_stopping is given
    train_options: further fields of TrainConfig: {"ema": 0.99, "mixup": 0.2, "n_warmup": 50, "callbacks": [...]}, ...
    random_state: seed, numpy.random.RandomState, or None for another one each time
    verbose: 0: silent, else with a progress bar

    Attributes: classes_, n_features_in_, feature_names_in_ (of a data frame), model_ (the wasi model), history_ (a dict an
    epoch).

    >>> X = np.random.default_rng(0).normal(size=(40, 4))
    >>> y = np.where(X[:, 0] > 0, "right", "left")
    >>> small = {"embed_dim": 16, "depth": 1, "num_heads": 1}
    >>> WasiClassifier(model_options=small, epochs=20, random_state=0).fit(X, y).predict([[3, 0, 0, 0], [-3, 0, 0, 0]]).tolist()
    ['right', 'left']
    """

    _estimator_type = "classifier"

    def __init__(self, model="vit_micro_patch4_32", *, model_options=None, weights=None, image_shape=None, img_size=None,
                 method="dense", method_options=None, epochs=30, batch_size=32, optimizer="adamw", lr=0.003, weight_decay=0.05,
                 class_weight=None, early_stopping=None, validation_fraction=0.1, train_options=None, random_state=None,
                 verbose=0):
        self.model = model
        self.model_options = model_options
        self.weights = weights
        self.image_shape = image_shape
        self.img_size = img_size
        self.method = method
        self.method_options = method_options
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.train_options = train_options
        self.random_state = random_state
        self.verbose = verbose

    # --- what scikit-learn asks of every estimator -------------------------------------------------------------------------

    def get_params(self, deep=True):
        """{name: value} of what the constructor took."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **params):
        """Changes what the constructor took; returns self. Raises ValueError for an unknown name."""
        unknown = [name for name in params if name not in _parameters()]
        if unknown:
            raise ValueError(f"Invalid parameter {unknown[0]!r} for estimator {self}. Valid parameters are: {_parameters()!r}.")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self):
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self):
        return hasattr(self, "model_")

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
                    input_tags=InputTags(three_d_array=True))

    # --- training ----------------------------------------------------------------------------------------------------------

    def fit(self, X, y):
        """Trains a new model on samples X and their labels y (n,), of any type that can be sorted; returns self.

        Ctrl-C ends it early, with a warning. Raises TypeError or ValueError naming what does not fit.
        """
        names = _feature_names(X)
        X, y = _array(X), _labels(y)
        _check_lengths(X, y)
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        seed = self._seed()
        self.classes_, targets = np.unique(y, return_inverse=True)
        self.n_features_in_ = math.prod(X.shape[1:])
        self.__dict__.pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names
        self._input = _Input(X, self.image_shape, self.img_size, self.model, self.model_options or {}, self.weights)
        model = create_model(self.model, len(self.classes_), self._input.img_size, self.weights, seed,
                             **(self.model_options or {}))
        images = self._input(X)
        train_rows, val_rows = self._split(len(X), seed)
        loader = ArrayLoader(images, targets, train_rows, self.batch_size, seed)
        freeze = default_freeze(self.method, self.weights is not None)
        options = MethodOptions(**{"seed": seed, "freeze": freeze, **(self.method_options or {})})
        first = [batch for _, batch in zip(range(N_CALIBRATION), loader)]
        apply_method(model, self.method, options, first if self.weights or self.method.startswith("svd-llm") else None,
                     verbose=False)
        settings = dict(self.train_options or {})
        callbacks = settings.pop("callbacks", ())
        config = TrainConfig(**{
            "epochs": self.epochs, "optimizer": self.optimizer, "lr": self.lr, "weight_decay": self.weight_decay, "seed": seed,
            "momentum": 0.9 if self.optimizer == "sgd" else 0.0, "class_weights": self._class_weights(targets),
            "early_stopping": None if self.early_stopping is None else EarlyStopping(self.early_stopping), "monitor": "val_loss",
            **settings})
        result = train(model, loader, ArrayLoader(images, targets, val_rows, self.batch_size), config,
                       progress=bool(self.verbose), callbacks=callbacks)
        if result.interrupted:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        self.model_, self.history_ = model, result.epochs
        return self

    def _seed(self):
        if self.random_state is None:
            return int(np.random.SeedSequence().generate_state(1)[0])
        if isinstance(self.random_state, np.random.RandomState):
            return int(self.random_state.randint(2**31))
        return int(self.random_state)

    def _split(self, n, seed):
        """Rows to train on and rows to validate on: a batch of the former where nothing is held out."""
        if self.early_stopping is None:
            return np.arange(n), np.arange(min(n, self.batch_size))
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a share between 0 and 1, got {self.validation_fraction}")
        n_val = max(1, round(self.validation_fraction * n))
        if n_val >= n:
            raise ValueError(f"validation_fraction: {self.validation_fraction} of {n} samples leaves none to train on")
        order = np.random.default_rng((seed, SPLIT_STREAM)).permutation(n)
        return np.sort(order[n_val:]), np.sort(order[:n_val])

    def _class_weights(self, targets):
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, str):
            if self.class_weight != "balanced":
                raise ValueError(f"class_weight: expected None, 'balanced' or a dict, got {self.class_weight!r}")
            return tuple(balanced_class_weights(targets, len(self.classes_)).tolist())
        return tuple(float(self.class_weight.get(c, 1.0)) for c in self.classes_.tolist())

    # --- use ---------------------------------------------------------------------------------------------------------------

    def predict_proba(self, X):
        """Probabilities (n, classes) float64, columns in the order of classes_; rows sum to 1."""
        return probabilities(self._logits(X))

    def predict(self, X):
        """The most probable class of each sample (n,)."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(1)]

    def score(self, X, y, sample_weight=None):
        """The share of samples that are predicted right, weighted where weights are given. Raises as `fit`."""
        found, y = self.predict(X), _labels(y)
        _check_lengths(found, y)
        return float(np.average(found == y, weights=sample_weight))

    def _logits(self, X):
        if not hasattr(self, "model_"):
            raise _not_fitted(f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments "
                              "before using this estimator.")
        self._check_names(X)
        X = _array(X)
        if math.prod(X.shape[1:]) != self.n_features_in_:
            raise ValueError(f"X has {math.prod(X.shape[1:])} features, but {type(self).__name__} is expecting "
                             f"{self.n_features_in_} features as input")
        images = self._input(X)
        parts = range(0, len(images), self.batch_size)
        return np.concatenate([self.model_.forward(images[i : i + self.batch_size]) for i in parts])

    def _check_names(self, X):
        names, fitted = _feature_names(X), getattr(self, "feature_names_in_", None)
        name = type(self).__name__
        if names is None and fitted is not None:
            warnings.warn(f"X does not have valid feature names, but {name} was fitted with feature names", stacklevel=4)
        elif fitted is None and names is not None:
            warnings.warn(f"X has feature names, but {name} was fitted without feature names", stacklevel=4)
        elif fitted is not None and list(names) != list(fitted):
            unseen, missing = sorted(set(names) - set(fitted)), sorted(set(fitted) - set(names))
            text = "The feature names should match those that were passed during fit.\n"
            text += "".join(f"Feature names {what}:\n" + "".join(f"- {n}\n" for n in some) for what, some in (
                ("unseen at fit time", unseen), ("seen at fit time, yet now missing", missing)) if some)
            moved = "" if unseen or missing else "Feature names must be in the same order as they were in fit.\n"
            raise ValueError(text + moved)


class ArrayLoader:
    """Batches (images, labels) of arrays that are in memory; with a seed in a new random order each epoch."""

    def __init__(self, images, labels, rows, batch_size, seed=None):
        self._images, self._labels, self._rows = images, labels, rows
        self._batch_size, self._seed = min(batch_size, len(rows)), seed
        self._epoch = 0

    def __len__(self):
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self):
        order, self._epoch = self._rows, self._epoch + 1
        if self._seed is not None:
            order = np.random.default_rng((self._seed, ORDER_STREAM, self._epoch)).permutation(order)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            yield np.ascontiguousarray(self._images[rows]), self._labels[rows]


class _Input:
    """From what users give to what the model takes, learnt from the training set: (n, 3, S, S) uint8 or float32."""

    def __init__(self, X, image_shape, img_size, model, model_options, weights):
        self._flat = X.ndim == 2 and image_shape is None
        self._shape = self._image_shape(X, image_shape)
        self._pixels = X.dtype == np.uint8 and not self._flat
        if not self._pixels:
            axis = 0 if self._flat else (0, 1, 2)
            values = X.astype(np.float64) if self._flat else X.reshape(-1, *self._shape).astype(np.float64)
            self._mean, deviation = values.mean(axis), values.std(axis)
            self._std = np.where(deviation > 0, deviation, 1.0)
        self.img_size = self._size(img_size, model, model_options, weights)

    @staticmethod
    def _image_shape(X, image_shape):
        if X.ndim == 2 and image_shape is None:
            side = math.isqrt(X.shape[1] - 1) + 1
            return side, side, 1
        shape = X.shape[1:] if X.ndim > 2 else tuple(image_shape)
        shape = (*shape, 1) if len(shape) == 2 else shape
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(f"image_shape: expected (h, w) or (h, w, c) with 1 or 3 channels, got {shape}")
        if math.prod(shape) != math.prod(X.shape[1:]):
            raise ValueError(f"image_shape: expected one of {math.prod(X.shape[1:])} numbers, got {shape}")
        return shape

    def _size(self, img_size, model, options, weights):
        side = max(self._shape[:2])
        if img_size is not None:
            if self._flat and img_size < side:
                raise ValueError(f"img_size: expected at least {side} for so many features, got {img_size}")
            return img_size
        if weights is not None or model in SWIN_CONFIGS:
            return None
        patch = options.get("patch_size") or (CONFIGS[model].patch_size if model in CONFIGS else 1)
        return -(-side // patch) * patch

    def __call__(self, X):
        if self._pixels != (X.dtype == np.uint8 and not self._flat):
            wanted = "uint8 pixels" if self._pixels else "numbers that are not uint8"
            raise TypeError(f"X: expected {wanted}, as in fit, got {X.dtype}")
        if self._flat:
            values = np.zeros((len(X), math.prod(self._shape)), np.float32)
            values[:, : X.shape[1]] = (X - self._mean) / self._std
            images = values.reshape(-1, *self._shape)
        else:
            images = X.reshape(-1, *self._shape)
            images = images if self._pixels else ((images - self._mean) / self._std).astype(np.float32)
        images = np.broadcast_to(np.moveaxis(images, 3, 1), (len(X), 3, *self._shape[:2]))
        S = self.img_size
        if S is None or images.shape[2:] == (S, S):
            return np.ascontiguousarray(images)
        if self._flat:
            grown = np.zeros((len(X), 3, S, S), np.float32)
            grown[:, :, : images.shape[2], : images.shape[3]] = images
            return grown
        return np.stack([[_resize(channel, S) for channel in image] for image in images])


def _resize(channel, size):
    """A channel (h, w) uint8 or float32 as (size, size), bicubically."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((size, size), Image.Resampling.BICUBIC))


def _parameters():
    return [name for name in inspect.signature(WasiClassifier.__init__).parameters if name != "self"]


def _not_fitted(text):
    """scikit-learn's exception where it is loaded, so that its users can catch it."""
    loaded = sys.modules.get("sklearn.exceptions")
    return (loaded.NotFittedError if loaded else NotFittedError)(text)


def _feature_names(X):
    """The column names of a data frame, or None."""
    columns = getattr(X, "columns", None)
    if columns is None:
        return None
    names = np.asarray(columns, dtype=object)
    return names if len(names) and all(isinstance(name, str) for name in names) else None


def _array(X):
    """X as an array of samples. Raises TypeError or ValueError for what is none."""
    if hasattr(X, "toarray"):
        raise TypeError("X: expected a dense array, got a sparse one; sparse input is not supported")
    if not isinstance(X, np.ndarray):
        X = np.asarray(X)
    if X.dtype.kind in "cSUV":
        raise ValueError(f"X: expected real numbers, got {X.dtype}: Complex data not supported" if X.dtype.kind == "c" else
                         f"X: expected numbers, got {X.dtype}")
    if X.dtype.kind == "O":
        X = X.astype(np.float64)
    if X.ndim < 2:
        raise ValueError(f"X: expected (n, features) or images (n, h, w, c), got shape {X.shape}. Reshape your data: "
                         "X.reshape(-1, 1) if it has a single feature, X.reshape(1, -1) if it is a single sample")
    if X.ndim > 4:
        raise ValueError(f"X: expected at most 4 dimensions, got shape {X.shape}")
    if len(X) == 0:
        raise ValueError(f"X: expected samples, got shape {X.shape} (0 sample(s)) while a minimum of 1 is required.")
    if math.prod(X.shape[1:]) == 0:
        raise ValueError(f"X: expected features: 0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
    if X.dtype.kind == "f" and not np.isfinite(X).all():
        raise ValueError("X: expected finite numbers, got NaN or infinity (inf)")
    return X


def _labels(y):
    if y is None:
        raise ValueError("WasiClassifier requires y to be passed, but the target y is None")
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        warnings.warn("A column-vector y was passed when a 1d array was expected", _column_warning(), stacklevel=3)
        y = y.ravel()
    if y.ndim != 1:
        raise ValueError(f"y: expected labels of shape (n,), got {y.shape}")
    if y.dtype.kind == "c":
        raise ValueError("y: expected labels, got Complex data not supported")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError("y: expected labels, got Input y contains NaN or infinity (inf)")
        if (y != np.floor(y)).any():
            raise ValueError("y: expected class labels, got Unknown label type: continuous")
    return y


def _check_lengths(X, y):
    if len(X) != len(y):
        raise ValueError(f"y: expected {len(X)} labels, one for each sample of X, got {len(y)} (inconsistent lengths)")


def _column_warning():
    loaded = sys.modules.get("sklearn.exceptions")
    return loaded.DataConversionWarning if loaded else UserWarning
