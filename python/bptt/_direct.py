"""g_t = ∂(w_t E_t)/∂h_t at chosen steps of one sequence, in float64, σ' from h."""

from __future__ import annotations

from typing import Any

import numpy as np

from bptt import _arguments, _levels
from bptt._bundles import zero_rows
from bptt._factors import NetworkChain
from bptt._kernel import ACTIVATIONS, Array
from bptt._sweep import States
from bptt._upstream import Targets
from bptt.network import RNN
from bptt.results import Trajectory
from bptt.scaled import normalised


class Direct:
    """The named error of a network along a trajectory, its arguments checked."""

    def __init__(self, rnn: RNN, trajectory: Trajectory, chain: NetworkChain, y: Any, loss: Any, weights: Any) -> None:
        extent = _arguments.trajectory(rnn, trajectory)
        error = _arguments.named_loss(rnn, loss)
        targets, last = _arguments.targets(rnn, y, error, extent)
        assert targets is not None
        step_weights = None if weights is None else _arguments.weights(weights, extent)
        self._by_activation = rnn.readout == "activation"
        rnn = rnn.astype(np.float64)
        self._chain, self._columns = chain, trajectory._columns
        self._states = States(trajectory._a, trajectory._h)
        self._source = Targets(rnn, self._columns, extent.axes, error, targets, last, step_weights)
        # Of a network without σ the direct part is e_t W_O: D_t comes from h here.
        self._network = rnn._network(False)._replace(activation=ACTIVATIONS.index("identity"), readout=0)

    def parts(self, stops: Array) -> tuple[Array, Array]:
        """g_t = mantissas * 2**exponents, (S, n) and (S,), for steps in order; zeros at t = 0, where there is none."""
        n, grid = self._chain.n, self._columns.grid
        mantissas, exponents = np.zeros((len(stops), n)), np.zeros(len(stops), np.int64)
        beginnings = np.where(stops > 0, (stops - 1) // grid * grid, -1)
        for t0 in np.unique(beginnings[stops > 0]):
            there = np.flatnonzero(beginnings == t0)
            mantissas[there], exponents[there] = self._of_segment(int(t0), stops[there])
        return mantissas, exponents

    def _of_segment(self, t0: int, stops: Array) -> tuple[Array, Array]:
        segment = self._columns.segment(t0)
        pull = self._source.pull(segment, self._states.window(segment))
        g = zero_rows(len(stops), self._chain.n)
        if pull.y is not None:
            r = zero_rows(len(stops), self._chain.n)
            assert self._states.h is not None
            n = self._chain.n
            r[:, :n] = (self._states.a if self._by_activation else self._states.h)[stops, :n]
            own = stops - t0 - 1
            weights = None if pull.weights is None else pull.weights[own]
            errors = np.empty(len(stops))
            _levels.kernel().direct(self._network, pull.loss, r, None, pull.y[own], weights, errors, g, 1)
        g = g[:, : self._chain.n]
        if not (finite := np.isfinite(g).all(axis=1)).all():
            t = stops[int(np.argmin(finite))]
            raise FloatingPointError(f"the gradient of the error by the state at t = {t} is not finite")
        return self._chain.times_slopes(g, stops) if self._by_activation else normalised(g)
