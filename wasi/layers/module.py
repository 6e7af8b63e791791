"""What every layer is made of: parameters, a tree of modules, and what forward keeps for backward."""

import contextlib
import math

import numpy as np

from wasi import ops


def blank(shape):
    """Zeros of a parameter that is yet to be filled in: an array of one number, which cannot be written to."""
    return np.broadcast_to(np.float32(0), shape)


class Parameter:
    """A trainable array, its gradient, and how the optimiser may treat it.

    data: float32 array; a `blank` one is taken as it is. grad: an array of the same shape, or None until backward first adds
    to it.
    packed: what earlier micro-batches added, as bfloat16 bits (`pack_gradient`), or None.
    trainable: False freezes it (backward then skips its gradient). decay: False exempts it from weight decay.
    """

    __slots__ = ("data", "decay", "grad", "packed", "trainable")

    def __init__(self, data, decay=True):
        is_blank = isinstance(data, np.ndarray) and data.size > 1 and not any(data.strides)
        self.data = data if is_blank else np.ascontiguousarray(data, np.float32)
        self.grad = None
        self.packed = None
        self.trainable = True
        self.decay = decay

    def grad_buffer(self):
        """The array that backward adds this parameter's gradient to: zeros at first; None if it is frozen."""
        if not self.trainable:
            return None
        if self.grad is None:
            self.grad = np.zeros_like(self.data)
        return self.grad

    def pack_gradient(self):
        """Adds `grad` to the bfloat16 sum `packed` and lets go of it."""
        if self.packed is None:
            self.packed = ops.bf16_round(self.grad)
        else:
            ops.bf16_add_(self.packed, self.grad)
        self.grad = None

    def make_gradient(self, bits=32):
        """Makes the array that lasts from step to step, of zeros: `grad`, or for a matrix of which 16 bits are kept `packed`."""
        if bits == 16 and self.data.ndim == 2:
            self.packed = np.zeros(self.data.shape, np.uint16)
        else:
            self.grad_buffer()

    def full_gradient(self):
        """The gradient in float32: `grad` itself, or a copy of what was packed."""
        if self.packed is None:
            return self.grad
        if self.grad is not None:
            self.pack_gradient()
        return ops.bf16_expand(self.packed)

    def clear_gradient(self):
        """Sets the gradient to zero; buffers stay, packed or not."""
        for array in (self.grad, self.packed):
            if array is not None:
                array.fill(0)

    @property
    def changes(self):
        """Whether training changes it."""
        return self.trainable

    @property
    def gradient_bytes(self):
        """Bytes that the gradient takes now."""
        return sum(array.nbytes for array in (self.grad, self.packed) if array is not None)


class Buffer(Parameter):
    """An array that is saved and loaded with the parameters, and that nothing makes trainable: running statistics."""

    __slots__ = ()

    trainable = property(lambda self: False, lambda self, value: None)
    changes = True


class Module:
    """A layer or a model: its Parameter and Module attributes (and lists of Modules) form a named tree.

    `forward(x, train)` with train=True keeps in `_saved` what `backward(dy)` needs; backward hands it back, so between steps
    a module holds nothing but its parameters. With train=False nothing is kept and forward may run in several
    threads at once.
    """

    _saved = None

    def named_modules(self, prefix=""):
        """Yields (dotted name, module), this module first, in definition order."""
        yield prefix, self
        for name, value in vars(self).items():
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, child in children:
                if isinstance(child, Module):
                    own = name if index is None else f"{name}.{index}"
                    yield from child.named_modules(f"{prefix}.{own}" if prefix else own)

    def named_parameters(self):
        """Yields (dotted name, Parameter) over the whole tree."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield (f"{prefix}.{name}" if prefix else name), value

    def get_module(self, name):
        """The module of that dotted name."""
        module = self
        for part in name.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        return module

    def set_module(self, name, new):
        """Replaces the module of that dotted name; the new one adopts what belongs to the place."""
        new.adopt(self.get_module(name))
        parent, _, last = name.rpartition(".")
        holder = self.get_module(parent) if parent else self
        if last.isdigit():
            holder[int(last)] = new
        else:
            setattr(holder, last, new)

    def adopt(self, old):
        """Takes over from a module that it replaces what goes with the place rather than with the weights."""

    @contextlib.contextmanager
    def replaced(self, stand_ins):
        """A context within which other modules stand in: {dotted name: module}. The model's own are put back at its end."""
        own = {name: self.get_module(name) for name in stand_ins}
        try:
            for name, module in stand_ins.items():
                self.set_module(name, module)
            yield
        finally:
            for name, module in own.items():
                self.set_module(name, module)

    def zero_grad(self):
        """Sets every gradient that exists to zero."""
        for _, p in self.named_parameters():
            p.clear_gradient()

    def _take_saved(self):
        """What forward kept; the module lets go of it."""
        saved, self._saved = self._saved, None
        if saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward: nothing was kept; run forward(x, train=True) first")
        return saved

    def drop_saved(self):
        """Lets go of what forward kept, here and in the children, where backward is not to come."""
        for _, module in self.named_modules():
            module._saved = None

    @property
    def saved_bytes(self):
        """Bytes that this module itself (its children not counted) keeps between forward and backward."""
        return sum(a.nbytes for a in arrays_in(self._saved))

    @property
    def total_saved_bytes(self):
        """Bytes that this module and its children keep between forward and backward; what several share counts once."""
        return sum(self.saved_bytes_by_module().values())

    def saved_bytes_by_module(self):
        """{dotted name: bytes} of `total_saved_bytes`; what several share counts with the first that keeps most of it."""
        owners = {}
        for name, module in self.named_modules():
            for array in arrays_in(module._saved):
                address = array.__array_interface__["data"][0]
                if array.nbytes > owners.get(address, (0, ""))[0]:
                    owners[address] = array.nbytes, name
        sizes = {}
        for n_bytes, name in owners.values():
            sizes[name] = sizes.get(name, 0) + n_bytes
        return sizes

    def after_step(self):
        """Called by the optimiser when it has updated the parameters."""

    @property
    def fixed_bytes(self):
        """Bytes that this module itself always holds besides parameters: quantised weights, followed factors."""
        return 0

    def weights_by_module(self):
        """A dict for each module here that holds weights: name, kind (its class), shape, rank (None without factors), bits (of
        frozen weights that are not float32, else None), parameters and trained (numbers), trained_bytes and frozen_bytes
        (quantised weights and followed factors are frozen)."""
        rows = []
        for name, module in self.named_modules():
            own = [v for v in vars(module).values() if isinstance(v, Parameter)]
            if not own and not module.fixed_bytes:
                continue
            shape = ((module.out_features, module.in_features) if hasattr(module, "out_features")
                     else own[0].data.shape if own else ())
            trained = sum(p.data.size for p in own if p.trainable)
            frozen = sum(p.data.nbytes for p in own if not p.trainable) + module.fixed_bytes
            packed, bits = getattr(module, "quantized", None), None
            if packed is not None:
                bits = packed.bits
            elif isinstance(getattr(module, "bits", None), np.ndarray):
                packed, bits = module.bits, 16  # bfloat16
            parameters = sum(p.data.size for p in own) + (0 if packed is None else math.prod(packed.shape))
            rows.append({"name": name, "kind": type(module).__name__, "shape": list(shape), "rank": getattr(module, "rank", None),
                         "bits": bits, "parameters": parameters, "trained": trained, "trained_bytes": 4 * trained,
                         "frozen_bytes": frozen})
        return rows

    def summary(self):
        """The layers that hold weights as a table: shape, rank, bits of frozen weights, numbers, bytes trained and frozen.

        >>> from wasi.layers import Linear
        >>> print(Linear(np.zeros((2, 3)), np.zeros(2)).summary())
        layer                         kind                         shape  rank bits  parameters      trained      bytes     frozen
        (itself)                      Linear                       2 x 3     -    -           8            8         32          0
        total                                                                                 8            8         32          0
        """
        rows = self.weights_by_module()
        lines = [f"{'layer':<30}{'kind':<18}{'shape':>16}{'rank':>6}{'bits':>5}{'parameters':>12}{'trained':>13}{'bytes':>11}"
                 f"{'frozen':>11}"]
        for row in rows:
            shape = " x ".join(map(str, row["shape"]))
            lines.append(f"{row['name'] or '(itself)':<30}{row['kind']:<18}{shape:>16}{row['rank'] or '-':>6}"
                         f"{row['bits'] or '-':>5}{row['parameters']:>12,}{row['trained']:>13,}{row['trained_bytes']:>11,}"
                         f"{row['frozen_bytes']:>11,}")
        totals = [sum(row[key] for row in rows) for key in ("parameters", "trained", "trained_bytes", "frozen_bytes")]
        return "\n".join([*lines, f"{'total':<75}{totals[0]:>12,}{totals[1]:>13,}{totals[2]:>11,}{totals[3]:>11,}"])

    def print_trainable_parameters(self):
        """Prints how many numbers are trained, out of how many, their bytes, and those of the frozen rest.

        >>> from wasi.layers import Linear
        >>> Linear(np.zeros((2, 3)), np.zeros(2)).print_trainable_parameters()
        trained: 8 of 8 parameters (100.0 %), 32 bytes; frozen: 0 bytes
        """
        rows = self.weights_by_module()
        trained, total, n_bytes, frozen = (sum(row[key] for row in rows)
                                           for key in ("trained", "parameters", "trained_bytes", "frozen_bytes"))
        share = 100 * trained / total if total else 0.0
        print(f"trained: {trained:,} of {total:,} parameters ({share:.1f} %), {n_bytes:,} bytes; frozen: {frozen:,} bytes")


def n_frozen(modules):
    """How many of the modules, from the first on, have no parameter that is trained."""
    trained = (any(p.trainable for _, p in module.named_parameters()) for module in modules)
    return next((i for i, any_trained in enumerate(trained) if any_trained), len(modules))


def arrays_in(value):
    """Yields the NumPy arrays in nested tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)
    elif isinstance(value, dict):
        yield from arrays_in(tuple(value.values()))
