"""The parts of a residual network, smallest first: batch norm, pooling, block. Images lie channels last, (B, H, W, C).

A convolution is a linear layer with a window (`wasi.layers.linear`). In units of one array of a block's output a block keeps, by
default: its input 1 (2 or 4 where it halves the grid), and each norm's input 1. What comes after a norm and its relu is computed
again from these, and the relu after the sum keeps a bit a number. `ActivationPolicy` names what else can be traded.
"""

import numpy as np

from wasi import ops
from wasi.layers.flops import Flops
from wasi.layers.module import Buffer, Module, Parameter
from wasi.layers.transformer import ActivationPolicy, pack_saved, unpack_saved

_DEFAULT = ActivationPolicy()


class BatchNorm(Module):
    """y = (x - mean) * rstd * weight + bias for each channel, then a sum with r and a relu where wanted.

    In training mean and variance are those of the batch (of a micro-batch, where batches are walked in these), and running ones
    follow them: r <- (1 - momentum) r + momentum s, the variance without bias. In evaluation they are the running ones. A norm
    whose weight is frozen is in evaluation always.
    """

    def __init__(self, n_channels, eps=1e-5, momentum=0.1):
        self.weight = Parameter(np.ones(n_channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(n_channels, np.float32), decay=False)
        self.running_mean = Buffer(np.zeros(n_channels, np.float32))
        self.running_var = Buffer(np.ones(n_channels, np.float32))
        self.eps = eps
        self.momentum = momentum

    def forward(self, x, train=False, r=None, relu=False, keep=True, follow=True, out=None):
        """x (..., C), r alike or None -> y (..., C), in the place of `out` if given.

        keep: whether train readies backward. follow: whether the running statistics move in training.
        """
        mean, rstd, of_batch = self._statistics(x, train, follow)
        summed = train and keep and relu and r is not None
        y, mask = ops.batch_norm(x, mean, rstd, self.weight.data, self.bias.data, r, relu, summed, out)
        if train and keep:
            self._saved = (x, mean, rstd, mask, relu and r is None, of_batch)
        return y

    def prepare(self, x, relu=False):
        """Readies backward as forward(x, train=True, relu=relu, follow=False) does, without computing the output."""
        mean, rstd, of_batch = self._statistics(x, True, False)
        self._saved = (x, mean, rstd, None, relu, of_batch)

    def _statistics(self, x, train, follow):
        """(mean, reciprocal deviation, whether they are those of x)."""
        of_batch = train and self.weight.trainable
        if of_batch:
            mean, var = ops.batch_norm_statistics(x)
            if follow:
                self._follow(mean, var, x.size // len(mean))
        else:
            mean, var = self.running_mean.data, self.running_var.data
        return mean, (1 / np.sqrt(var + self.eps)).astype(np.float32), of_batch

    def _follow(self, mean, var, n):
        if n < 2:
            raise ValueError("batch norm: expected more than one number a channel in training: larger batches, micro-batches "
                             "or images")
        for running, new in ((self.running_mean, mean), (self.running_var, var * np.float32(n / (n - 1)))):
            running.data = np.float32(1 - self.momentum) * running.data + np.float32(self.momentum) * new

    def output_again(self):
        """The output of the last forward(train=True) without r, computed anew from what was kept."""
        x, mean, rstd, _, relu, _ = self._saved
        return ops.batch_norm(x, mean, rstd, self.weight.data, self.bias.data, relu=relu)[0]

    def backward(self, dy, out=None):
        """dy -> dx, in the place of `out` if given. Where a relu followed a sum with r, dy becomes the gradient of r."""
        x, mean, rstd, mask, relu, of_batch = self._take_saved()
        if mask is not None:
            ops.mask_gradient(dy, mask, out=dy)
        return ops.batch_norm_backward(dy, x, mean, rstd, self.weight.data, self.bias.data, self.weight.grad_buffer(),
                                       self.bias.grad_buffer(), relu, of_batch, out)


def uses_batch_statistics(model):
    """Whether samples of a batch, or of a micro-batch, change each other's gradients: by a batch norm that is trained."""
    return any(isinstance(module, BatchNorm) and module.weight.trainable for _, module in model.named_modules())


class MaxPool(Module):
    """The largest number of each window and channel; keeps which, a byte a number."""

    def __init__(self, window):
        self.window = window

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, Ho, Wo, C)."""
        y, tap = ops.max_pool(x, self.window)
        if train:
            self._saved = (tap, x.shape[1:3])
        return y

    def backward(self, dy):
        """dy (B, Ho, Wo, C) -> dx (B, H, W, C)."""
        tap, size = self._take_saved()
        return ops.max_pool_backward(dy, tap, size, self.window)


class MeanPool(Module):
    """The mean over an image's lines and columns."""

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, C)."""
        if train:
            self._saved = (x.shape,)
        return x.mean((1, 2))

    def backward(self, dy):
        """dy (B, C) -> dx (B, H, W, C)."""
        (shape,) = self._take_saved()
        dx = np.empty(shape, np.float32)
        dx[:] = (dy / np.float32(shape[1] * shape[2]))[:, None, None]
        return dx


def pack_images(module, bits):
    """Keeps the images (B, H, W, C) among what a module kept in so many bits; `unpack_saved` undoes it."""
    for grid in {a.shape[:-1] for a in module._saved or () if isinstance(a, np.ndarray) and a.ndim == 4}:
        module._saved = pack_saved(module._saved, grid, bits)


class BasicBlock(Module):
    """relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), the shortcut x itself or norm(conv(x)).

    conv1, conv2: linears with windows; bn1, bn2: BatchNorms; downsample: [conv, norm] or None.
    """

    def __init__(self, conv1, bn1, conv2, bn2, downsample=None, policy=_DEFAULT):
        self.conv1 = conv1
        self.bn1 = bn1
        self.conv2 = conv2
        self.bn2 = bn2
        self.downsample = downsample
        self.policy = policy

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, Ho, Wo, O)."""
        if not train:
            return self._run(x, train, keep=False)
        if self.policy.recompute:
            y = self._run(x, train, keep=False)
            self._saved = (x,)
        else:
            y = self._run(x, train)
            self._saved = (x if self._input_is_needed() else None,)
        self._pack()
        return y

    def _run(self, x, train, keep=True, follow=True):
        """keep: ready backward; follow: let running statistics follow."""
        def place(array):
            return None if keep else array  # nobody needs the norm's input then

        h = self.conv1.forward(x, train and keep, keep_input=False)
        h = self.bn1.forward(h, train, relu=True, keep=keep, follow=follow, out=place(h))
        h = self.conv2.forward(h, train and keep, keep_input=False)
        if self.downsample is None:
            return self.bn2.forward(h, train, x, True, keep, follow, place(h))
        conv, norm = self.downsample
        s = conv.forward(x, train and keep, keep_input=False)
        s = norm.forward(s, train, keep=keep, follow=follow, out=place(s))
        return self.bn2.forward(h, train, s, True, keep, follow, s)

    def _input_is_needed(self):
        return self.conv1.needs_input or (self.downsample is not None and self.downsample[0].needs_input)

    def backward(self, dy):
        """dy (B, Ho, Wo, O), which is overwritten -> dx (B, H, W, C)."""
        self._unpack()
        (x,) = self._take_saved()
        if self.policy.recompute:
            self._run(x, True, follow=False)
        d = self.bn2.backward(dy)
        d = self.conv2.backward(d, self.bn1.output_again() if self.conv2.needs_input else None)
        d = self.bn1.backward(d, out=d)
        d = self.conv1.backward(d, x if self.conv1.needs_input else None)
        if self.downsample is not None:
            conv, norm = self.downsample
            dy = conv.backward(norm.backward(dy, out=dy), x if conv.needs_input else None)
        return ops.add(d, dy, out=d)

    def _pack(self):
        for _, module in self.named_modules() if self.policy.saved_bits else ():
            pack_images(module, self.policy.saved_bits)

    def _unpack(self):
        for _, module in self.named_modules() if self.policy.saved_bits else ():
            module._saved = unpack_saved(module._saved)

    def flops(self, shape, rule="sgd"):
        """The Flops of one training step on an input of that shape (B, H, W, C); rule: of the optimiser."""
        total = self.conv1.flops(shape, rule) + self.conv2.flops(self.conv1.output_shape(shape), rule)
        if self.downsample is not None:
            total += self.downsample[0].flops(shape, rule)
        return total + Flops(0, total.forward) if self.policy.recompute else total
