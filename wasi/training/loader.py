"""Batches of a data set, made ahead of time by threads, the same whatever the number of threads."""

import re
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from wasi.models.weights import check_numbers
from wasi.training.dataset import ImageError

# Random streams: (seed, epoch, 0) the order of the samples, (seed, epoch, 1) that of batches which were put together by
# length, and (seed, epoch, 2 + index) an image.
ORDER_STREAM, BATCH_STREAM, FIRST_IMAGE_STREAM = 0, 1, 2


class Loader:
    """Iterates over (images uint8 B x 3 x S x S, labels int64 B), one epoch an iteration.

    The order of the images depends on (seed, epoch) alone, and what `transform` draws on (seed, epoch, index
    of the image) alone: the number of threads, prefetching, the cache and an interruption never change the
    data.

    Each complete iteration ends with `epoch` one higher. After one that was left early the same epoch starts
    again from its first batch, unless `load_state_dict` set the place where to go on.

    Parameters
    ----------
    dataset : Dataset
    batch_size : images a batch, up to len(dataset); the last batch of an epoch may be smaller
    transform : Transform
    shuffle : whether every epoch has its own random order
    seed : non-negative integer
    drop_last : whether a smaller last batch is left out
    n_workers : threads that decode (Pillow does so without the interpreter lock); 0: the caller's thread does
    prefetch : batches that may be ready or in work before they are asked for; at least one a worker
    cache_bytes : keeps up to so many bytes of decoded (and, where no random crop is to come, resized) images
    skip_unreadable : leaves images that cannot be read out of their batches, which are smaller then, and names them in
        `dataset.problems`; where a batch has no other images, or without this, the ImageError of the first is raised where the
        batch would have come

    >>> from wasi.training.data import Loader, Transform, sign_digits
    >>> train = sign_digits()["train"]
    >>> images, labels = next(iter(Loader(train, 16, Transform(64, train=True), shuffle=True)))
    >>> images.shape, labels.shape
    ((16, 3, 64, 64), (16,))
    """

    def __init__(
        self,
        dataset,
        batch_size,
        transform,
        shuffle=False,
        seed=0,
        drop_last=False,
        n_workers=1,
        prefetch=2,
        cache_bytes=0,
        skip_unreadable=False,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("n_workers", n_workers, 0),
            ("prefetch", prefetch, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if batch_size > len(dataset):
            raise ValueError(
                f"batch_size: expected at most the {len(dataset)} samples of the set, got {batch_size}"
            )
        self.dataset, self.transform, self.batch_size = dataset, transform, batch_size
        self.shuffle, self.seed, self.drop_last, self.n_workers = shuffle, seed, drop_last, n_workers
        self.skip_unreadable = skip_unreadable
        self._ahead = max(prefetch, n_workers)
        self._cache = _Cache(cache_bytes)
        self._epoch, self._batch, self._resumes = 0, 0, False

    def __len__(self):
        """Batches an epoch."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    @property
    def epoch(self):
        """Number of the epoch that is under way, or that comes next."""
        return self._epoch

    @property
    def buffer_bytes(self):
        """The most that batches take: those ahead, the one handed out, the one before until it is let go."""
        batches = 2 + (self._ahead if self.n_workers else 0)
        return batches * self.batch_size * 3 * self.transform.img_size**2

    @property
    def cached_bytes(self):
        """What the cache holds now."""
        return self._cache.bytes

    def state_dict(self):
        """Where the iteration stands, in numbers: the next batch is the one after the last handed out."""
        return {"epoch": self._epoch, "batch": self._batch, **self._stream()}

    def load_state_dict(self, state):
        """Lets the next iteration go on where `state_dict` was called.

        Raises ValueError where that was a loader of another stream of batches.
        """
        for name, value in self._stream().items():
            if state.get(name, value) != value:  # the first versions did not say which transform
                raise ValueError(
                    f"{name}: the saved state is of a loader with {state[name]}, this one has {value}"
                )
        check_numbers("loader", state, ("epoch", "batch"))
        epoch, batch = state["epoch"], state["batch"]
        if batch > len(self):
            raise ValueError(
                f"batch: expected 0 to {len(self)} of an epoch from 0, got {batch} of epoch {epoch}"
            )
        if batch == len(self):
            epoch, batch = epoch + 1, 0
        self._epoch, self._batch, self._resumes = epoch, batch, True

    def set_epoch(self, epoch):
        """Lets the next iteration be that of `epoch`, from its first batch."""
        self._epoch, self._batch, self._resumes = epoch, 0, False

    def _stream(self):
        return {
            "seed": self.seed,
            "n_images": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "transform": re.sub(" at 0x[0-9a-f]+", "", repr(self.transform)),  # where a function lies says nothing
        }

    def __iter__(self):
        first = self._batch if self._resumes else 0
        self._batch, self._resumes = first, False
        batches = self._batches(self._epoch, first)
        try:
            for batch in batches:
                self._batch += 1
                yield batch
            self._epoch, self._batch = self._epoch + 1, 0
        finally:
            batches.close()

    def _batches(self, epoch, first):
        """Yields the batches of an epoch from number `first` on."""
        chunks = self._chunks(epoch)[first:]
        stop = threading.Event()
        if self.n_workers == 0:
            for chunk in chunks:
                yield self._make(chunk, epoch, stop)
            return
        pool = ThreadPoolExecutor(self.n_workers, "wasi-loader")
        try:
            pending = deque()
            for chunk in chunks:
                pending.append(pool.submit(self._make, chunk, epoch, stop))
                if len(pending) > self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _chunks(self, epoch):
        """The numbers of the images of each batch of an epoch."""
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch, ORDER_STREAM)).shuffle(order)
        return [order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]

    def _make(self, indices, epoch, stop):
        """One batch; None where `stop` was set meanwhile."""
        size = self.transform.img_size
        images = np.empty((len(indices), 3, size, size), np.uint8)
        kept, unreadable = [], None
        for index in indices.tolist():
            if stop.is_set():
                return None
            try:
                images[len(kept)] = self._image(index, epoch).transpose(2, 0, 1)
            except ImageError as error:
                unreadable = unreadable or error
                if not self.skip_unreadable:
                    raise
                continue
            except MemoryError:
                raise
            except Exception as error:
                raise RuntimeError(f"{self.dataset.name(index)}: {type(error).__name__}: {error}") from error
            kept.append(index)
        if not kept:
            raise unreadable
        return images[: len(kept)], self.dataset.labels[kept]

    def _image(self, index, epoch):
        prepared = self._cache.get(index)
        if prepared is None:
            prepared = self.transform.prepare(self.dataset.read(index, self.transform.min_side))
            self._cache.put(index, prepared)
        rng = np.random.default_rng((self.seed, epoch, FIRST_IMAGE_STREAM + index))
        return self.transform.finish(prepared, rng)


class _Cache:
    """Pillow images by number, as arrays, until they fill `limit` bytes."""

    def __init__(self, limit):
        self.bytes = 0
        self._limit = limit
        self._arrays = {}
        self._lock = threading.Lock()

    def get(self, index):
        array = self._arrays.get(index)
        return None if array is None else Image.fromarray(array)

    def put(self, index, image):
        n_bytes = image.width * image.height * 3
        with self._lock:
            if self.bytes + n_bytes > self._limit or index in self._arrays:
                return
            self.bytes += n_bytes
            self._arrays[index] = np.asarray(image)
