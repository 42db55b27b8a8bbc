"""A batch as tensors hold it, met by the kernel as columns (`bptt._kernel`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bptt._columns import Segment, present, segment_steps
from bptt._kernel import Array, row_length


class Batch:
    """One way through time, or back, over a padded batch (T, B, ...) or the data (C, ...) of a packed one.

    The data of a packed batch are the kernel's columns as they are; a padded one has B of them at each step.

    Attributes
    ----------
    size : int
        B.
    rows : int
        Rows of the states from t = 0 on: B + C.
    segments : list of Segment
    finals : integer array of shape (B,)
        The row of each sequence's last step.
    """

    def __init__(self, x: Tensor, batch_sizes: Tensor | None, n: int, reverse: bool) -> None:
        if batch_sizes is None:
            time, self.size = x.shape[:2]
            self._axes: tuple[int, ...] = time, self.size
            sizes = np.full(time, self.size)
        else:
            time, self.size = len(batch_sizes), int(batch_sizes[0])
            self._axes = (len(x),)
            sizes = batch_sizes.numpy()
        counts = np.concatenate(([self.size], sizes, [0]))  # columns at t = 0 .. T + 1
        starts = np.concatenate(([0], np.cumsum(counts)))  # the row at which they begin
        self.rows, self._n = int(starts[-1]), n
        size = present(self.size, self.rows - self.size, time)
        grid = segment_steps(n, x.shape[-1], 0, max(size, 1), numbers(x).dtype)
        self.segments: list[Segment] = []
        for t0 in range(0, time if self.size else 0, grid):
            t1 = min(t0 + grid, time)
            self.segments.append(Segment(t0, t1, counts[t0 : t1 + 2], *starts[[t0, t0 + 1, t1 + 1]].tolist()))
        ranks = np.arange(self.size)
        lengths = np.searchsorted(-sizes, -ranks)
        self.finals = starts[lengths] + ranks

        # What of a tensor's first axis is met when; None: one after another.
        self._order: Array | None = None
        if reverse and batch_sizes is None:
            self._order = np.arange(time)[::-1]
        elif reverse:
            first = starts[1:-2] - self.size
            steps = np.repeat(np.arange(time), sizes)
            ranks = np.arange(len(steps)) - first[steps]
            self._order = first[lengths[ranks] - 1 - steps] + ranks  # a sequence turned round keeps its columns

    def read(self, tensor: Tensor, start: int, stop: int) -> Array:
        """What a tensor holds for the columns of rows ``start`` to ``stop``, in the order met: a view if it can be."""
        entry = self.size if len(self._axes) == 2 else 1  # columns in one entry of the first axis
        entries: Any = slice(start // entry - self.size // entry, stop // entry - self.size // entry)
        if self._order is not None:
            entries = self._order[entries]
        columns: Array = numbers(tensor)[entries].reshape(stop - start, tensor.shape[-1])
        return columns

    def tensor(self, rows: Array, first: int, width: int) -> Tensor:
        """The first ``width`` numbers of the row of each column, rows ``first`` on in the order met, as a tensor."""
        if self._order is not None:
            rows, first = rows[first:].reshape(len(self._order), -1)[self._order].reshape(-1, rows.shape[1]), 0
        whole, length = torch.from_numpy(rows), rows.shape[1]
        strides = (self.size * length, length, 1)[-len(self._axes) - 1 :]
        # A tensor of its own: a view could not be written over even where no gradient is wanted.
        return whole.new_empty(0).set_(whole.untyped_storage(), first * length, (*self._axes, width), strides)

    def in_place(self, states: Tensor, initial: Tensor) -> Array | None:
        """The rows of the states from t = 0 on, if they lie around the tensor as `tensor` made it from them."""
        length, itemsize = row_length(self._n, states.itemsize), states.itemsize
        strides = (self.size * length, length, 1)[-states.dim() :]
        start = states.storage_offset() - self.size * length
        held = states.untyped_storage().nbytes() // itemsize - start
        if self._order is not None or states.stride() != strides or start < 0 or held < self.rows * length:
            return None
        rows = numbers(states.as_strided((self.rows, length), (length, 1), start))
        return rows if np.array_equal(rows[: self.size, : self._n], numbers(initial)) else None


def numbers(tensor: Tensor) -> Array:
    """The numbers of a tensor, shared with it."""
    array: Array = tensor.detach().numpy()
    return array
