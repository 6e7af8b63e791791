"""Ctrl-C during a run: a flag, so that an update ends whole, or an end at once to what can be left and done again."""

import contextlib
import signal
import threading

from wasi.layers.linear import LinearBase
from wasi.layers.module import Buffer


class Abandoned(BaseException):
    """Ctrl-C came while what runs can be left and done again."""


class Interrupt:
    """Turns Ctrl-C into a flag, so that an update ends whole and the run is saved. Main thread only.

    Within `abandonable()` it raises Abandoned at once. A second Ctrl-C is a KeyboardInterrupt.
    """

    def __enter__(self):
        self.asked = self._raises = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error):
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._raises:
            raise Abandoned

    def check(self):
        """Raises Abandoned where Ctrl-C has come."""
        if self.asked:
            raise Abandoned

    @contextlib.contextmanager
    def abandonable(self, on=True):
        """Lets Ctrl-C end the block by Abandoned."""
        self._raises = on
        try:
            yield
        finally:
            self._raises = False


@contextlib.contextmanager
def as_before(model):
    """Gives compressed activations their subspaces and norms their running statistics back where the block is abandoned."""
    compressions = [m.compression for _, m in model.named_modules() if isinstance(m, LinearBase) and m.compression is not None]
    before = [[a.copy() for a in c.state()] for c in compressions]
    buffers = [(p, p.data.copy()) for _, p in model.named_parameters() if isinstance(p, Buffer)]
    try:
        yield
    except Abandoned:
        for compression, arrays in zip(compressions, before):
            compression.set_state(arrays)
        for buffer, data in buffers:
            buffer.data = data
        raise
