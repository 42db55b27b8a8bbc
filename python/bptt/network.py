"""The network: six weights, an activation, and what is called its state, its readout and its output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bptt import _validate
from bptt._kernel import ACTIVATIONS, FORMS, OUTPUTS, READOUTS, Array, Network
from bptt._memory import aligned, contiguous, read_only

if TYPE_CHECKING:
    import torch

    import bptt.torch

WEIGHTS = ("W_R", "W_I", "W_O", "b_R", "b_I", "b_O")
CHOICES = {"activation": ACTIVATIONS, "form": FORMS, "readout": READOUTS, "output": OUTPUTS}
INITS = ("orthogonal", "normal", "identity")
_FILE_FORMAT = "bptt.RNN 1"


@dataclass(frozen=True, eq=False, init=False, repr=False, slots=True)
class RNN:
    """A recurrent network, frozen.

    ::

        h_t = W_R a_{t-1} + W_I x_t + b_I + b_R        a_t = sigma(h_t)        t = 1 .. T
        z_t = W_O r_t + b_O                            o_t = softmax(z_t) or z_t

    (article eqs. 1, 2, G1, G2, R1, R2). The weights are read-only views of the arrays given: nothing is copied that is
    contiguous and of the right dtype, so a change made to your own array is seen at the next call.

    Parameters
    ----------
    W_R : array of shape (n, n)
        Recurrent weights. Their dtype, float32 or float64 (integers become float64), is the network's: all
        other arrays are cast to it.
    W_I : array of shape (n, p)
        Input weights.
    W_O : array of shape (m, n), optional
        Readout weights. Without them the network has states only, no outputs and no errors of its own.
    b_R, b_I : array of shape (n,), optional
        Biases of the state. They act together, so their gradients are equal; None is absent, not zero.
    b_O : array of shape (m,), optional
        Bias of the readout.
    activation : {"tanh", "identity", "logistic", "relu", "leaky_relu", "elu", "softplus", "softsign"}
        sigma. leaky_relu has slope 0.01, elu has alpha 1; relu'(0) = 0.
    form : {"activation", "preactivation"}
        What is called the state, and so what an initial value is: a_t (article eq. G1) or h_t (eq. 1).
    readout : {"activation", "preactivation"}
        r_t, what the readout reads: a_t (article eqs. G2, R2) or h_t (eq. 2).
    output : {"softmax", "linear"}
        o_t = softmax(z_t), or o_t = z_t.

    Attributes
    ----------
    W_R, W_I, W_O, b_R, b_I, b_O : array or None
    activation, form, readout, output : str
    n, p, m : int
        Hidden units, inputs, outputs (0 without a readout).
    dtype : dtype
    size : int
        Numbers in all the weights.

    Raises
    ------
    TypeError
        A weight is not an array of real numbers, or is float16, bool, complex or object.
    ValueError
        A weight has the wrong shape, or a name is not one of those above.

    Examples
    --------
    >>> import bptt
    >>> bptt.RNN([[0.5, 0.0], [0.1, 0.5]], [[1.0], [0.0]], activation="relu")
    RNN(W_R (2, 2), W_I (2, 1), float64, activation='relu', form='activation', readout='activation', output='softmax')
    """

    W_R: Array
    W_I: Array
    W_O: Array | None
    b_R: Array | None
    b_I: Array | None
    b_O: Array | None
    activation: str
    form: str
    readout: str
    output: str
    n: int = field(init=False)
    p: int = field(init=False)
    m: int = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    _for_numbers: Network = field(init=False)  # as a level takes it, for inputs that are numbers

    def __init__(
        self,
        W_R: npt.ArrayLike,
        W_I: npt.ArrayLike,
        W_O: npt.ArrayLike | None = None,
        b_R: npt.ArrayLike | None = None,
        b_I: npt.ArrayLike | None = None,
        b_O: npt.ArrayLike | None = None,
        *,
        activation: str = "tanh",
        form: str = "activation",
        readout: str = "activation",
        output: str = "softmax",
    ) -> None:
        recurrent = _validate.numbers("W_R", W_R)
        if recurrent.ndim != 2 or recurrent.shape[0] != recurrent.shape[1] or not recurrent.size:
            raise ValueError(f"W_R must have shape (n, n) with n >= 1; got {recurrent.shape}")
        n = len(recurrent)
        inputs = _validate.numbers("W_I", W_I)
        _validate.shape("W_I", inputs, "n, p", (n, None))
        weights = {"W_R": recurrent, "W_I": inputs}
        m = 0
        if W_O is not None:
            weights["W_O"] = _validate.numbers("W_O", W_O)
            _validate.shape("W_O", weights["W_O"], "m, n", (None, n))
            m = len(weights["W_O"])
            if not m:
                raise ValueError(f"W_O must have shape (m, n) with m >= 1; got {weights['W_O'].shape}")
        for name, bias, symbol, size in (("b_R", b_R, "n", n), ("b_I", b_I, "n", n), ("b_O", b_O, "m", m)):
            if bias is not None:
                weights[name] = _validate.numbers(name, bias)
                if not size:
                    raise ValueError("b_O is the bias of a readout: give W_O too")
                _validate.shape(name, weights[name], symbol, (size,))
        dtype = recurrent.dtype.newbyteorder("=") if recurrent.dtype.kind == "f" else np.dtype(np.float64)
        names = {"activation": activation, "form": form, "readout": readout, "output": output}
        codes = tuple(
            CHOICES[name].index(_validate.choice(name, value, CHOICES[name])) for name, value in names.items()
        )
        views = {name: read_only(contiguous(array, dtype)) for name, array in weights.items()}
        sizes = {"n": n, "p": inputs.shape[1], "m": m, "dtype": dtype}
        for name, value in {**dict.fromkeys(WEIGHTS), **views, **names, **sizes}.items():
            object.__setattr__(self, name, value)
        b = views.get("b_R") if b_I is None else views["b_I"] if b_R is None else views["b_R"] + views["b_I"]
        network = Network(views["W_R"], views["W_I"], views.get("W_O"), b, views.get("b_O"), *codes)
        object.__setattr__(self, "_for_numbers", network)

    @property
    def size(self) -> int:
        return sum(weight.size for weight in self._weights().values())

    def __repr__(self) -> str:
        weights = ", ".join(f"{name} {weight.shape}" for name, weight in self._weights().items())
        choices = ", ".join(f"{name}={getattr(self, name)!r}" for name in CHOICES)
        return f"RNN({weights}, {self.dtype}, {choices})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._weights(), self._choices())

    def replace(self, **changes: Any) -> RNN:
        """The network with some of its weights or choices replaced.

        Examples
        --------
        >>> import bptt
        >>> rnn = bptt.RNN.random(2, 3, 1)
        >>> rnn.replace(W_R=2 * rnn.W_R, activation="relu").activation
        'relu'
        """
        return RNN(**{**self._weights(), **self._choices(), **changes})

    def astype(self, dtype: npt.DTypeLike) -> RNN:
        """The network in float32 or float64.

        Examples
        --------
        >>> import bptt
        >>> bptt.RNN.random(2, 3, 1).astype("float32").dtype
        dtype('float32')
        """
        wanted = _validate.precision("dtype", dtype)
        return self.replace(**{name: contiguous(weight, wanted) for name, weight in self._weights().items()})

    def ravel(self) -> Array:
        """All weights as one vector, in the order W_R, W_I, W_O, b_R, b_I, b_O, rows first; absent ones take no place.

        Returns
        -------
        array of shape (size,)
            A copy.
        """
        return np.concatenate([weight.ravel() for weight in self._weights().values()])

    def unravel(self, vector: npt.ArrayLike) -> RNN:
        """The network of this architecture whose weights are the numbers of ``vector``: the inverse of `ravel`.

        Parameters
        ----------
        vector : array of shape (size,)
            Of the network's dtype, the weights are views of it; of another it is cast.

        Examples
        --------
        >>> import bptt
        >>> rnn = bptt.RNN.random(2, 3, 1)
        >>> bool((rnn.unravel(rnn.ravel()).W_R == rnn.W_R).all())
        True
        """
        flat = _validate.numbers("vector", vector)
        if flat.shape != (self.size,):
            raise ValueError(f"vector must have shape (size,) with size = {self.size}; got {flat.shape}")
        changes: dict[str, Array] = {}
        taken = 0
        for name, weight in self._weights().items():
            changes[name] = contiguous(flat[taken : taken + weight.size].reshape(weight.shape), self.dtype)
            taken += weight.size
        return self.replace(**changes)

    @classmethod
    def random(
        cls,
        n_inputs: int,
        n_hidden: int,
        n_outputs: int | None,
        *,
        init: str = "orthogonal",
        gain: float = 1.0,
        activation: str = "tanh",
        form: str = "activation",
        readout: str = "activation",
        output: str = "softmax",
        dtype: npt.DTypeLike = np.float64,
        rng: int | np.random.Generator | None = 0,
    ) -> RNN:
        """A network with random weights.

        W_I has independent entries N(0, 1/p), W_O N(0, 1/n) (LeCun 1998); b_R and b_O are zero, b_I is absent.

        Parameters
        ----------
        n_inputs, n_hidden, n_outputs : int
            p >= 0, n >= 1, m >= 1; ``n_outputs=None`` leaves the readout out.
        init : {"orthogonal", "normal", "identity"}
            W_R: ``gain`` times a random orthogonal matrix, uniform over all of them (Saxe 2014); independent entries
            N(0, gain**2 / n), whose spectral radius is about ``gain`` (Sompolinsky 1988); ``gain`` times I (Le 2015).
        gain : float
            Finite, >= 0.
        activation, form, readout, output : str
            As in `RNN`.
        dtype : float32 or float64
        rng : int, numpy.random.Generator or None
            A seed, a generator to draw from, or None for a new one every time.

        Examples
        --------
        >>> import bptt
        >>> bptt.RNN.random(3, 16, 10, gain=0.9, dtype="float32")  # doctest: +ELLIPSIS
        RNN(W_R (16, 16), W_I (16, 3), W_O (10, 16), b_R (16,), b_O (10,), float32, ...)
        """
        p = _validate.integer("n_inputs", n_inputs, 0)
        n = _validate.integer("n_hidden", n_hidden, 1)
        m = 0 if n_outputs is None else _validate.integer("n_outputs", n_outputs, 1)
        _validate.choice("init", init, INITS)
        gain = _validate.number("gain", gain, finite=True)
        wanted = _validate.precision("dtype", dtype)
        generator = _validate.generator("rng", rng)
        if init == "orthogonal":
            Q, R = np.linalg.qr(generator.standard_normal((n, n)))
            W_R = gain * Q * np.sign(np.diag(R))  # the signs make it uniform (Mezzadri 2007)
        elif init == "normal":
            W_R = gain / np.sqrt(n) * generator.standard_normal((n, n))
        else:
            W_R = gain * np.eye(n)
        W_I = generator.standard_normal((n, p)) / np.sqrt(max(p, 1))
        W_O = generator.standard_normal((m, n)) / np.sqrt(n) if m else None
        return cls(
            W_R.astype(wanted),
            W_I,
            W_O,
            b_R=np.zeros(n),
            b_O=np.zeros(m) if m else None,
            activation=activation,
            form=form,
            readout=readout,
            output=output,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        arrays: Mapping[str, Array] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the network as a safetensors file, its choices in the metadata.

        The file is written under a temporary name and renamed: an interrupted save leaves the old one.

        Parameters
        ----------
        path : path
        arrays, metadata : mapping, optional
            More to keep in the file, under names of their own. `load` leaves it alone.

        Raises
        ------
        OSError
            The file cannot be written.
        ValueError
            A name in ``arrays`` or ``metadata`` is one of the network's.

        Examples
        --------
        >>> import bptt, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> bptt.RNN.random(2, 3, 1).save(path)
        >>> bptt.RNN.load(path).n
        3
        """
        from safetensors.numpy import save

        from bptt._files import write_atomically

        own = {"format": _FILE_FORMAT, **self._choices()}
        for name, given, taken in (("arrays", arrays, WEIGHTS), ("metadata", metadata, tuple(own))):
            if common := set(given or ()) & set(taken):
                raise ValueError(f"{name} must not have the network's own names; got {', '.join(sorted(common))}")
        # safetensors writes the bytes that follow an array's first, whatever its strides
        more = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
        write_atomically(path, save({**self._weights(), **more}, {**own, **(metadata or {})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RNN:
        """Read a network that `save` wrote.

        Raises
        ------
        OSError
            There is no such file, or it cannot be read.
        ValueError
            The file is damaged, or something else wrote it.
        """
        from safetensors import SafetensorError, safe_open

        name = os.fspath(path)
        with Path(name).open("rb"):  # the usual OSError, which safetensors has not for every case
            pass
        try:
            with safe_open(name, framework="numpy") as file:
                metadata = file.metadata() or {}
                weights = {key: file.get_tensor(key) for key in set(file.keys()).intersection(WEIGHTS)}
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged or no safetensors file: {error}") from error
        if metadata.get("format") != _FILE_FORMAT:
            raise ValueError(
                f"{name} holds no network of this library: its metadata must have format = {_FILE_FORMAT!r}; "
                f"got {metadata.get('format')!r}"
            )
        try:
            return cls(**weights, **{choice: metadata[choice] for choice in CHOICES})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} holds a network that is not whole: {error}") from error

    def to_torch(self) -> tuple[bptt.torch.RNN, torch.nn.Linear | None]:
        """The network as modules of PyTorch, with copies of the weights; `bptt.from_torch` is the way back.

        Returns
        -------
        module : bptt.torch.RNN
            Its ``state_dict`` fits a `torch.nn.RNN` too.
        readout : torch.nn.Linear or None
            Gives z_t, which `torch.nn.functional.cross_entropy` takes; the softmax is not in it.

        Raises
        ------
        ModuleNotFoundError
            PyTorch is not installed.
        ValueError
            The form or what the readout reads is "preactivation", which modules of PyTorch have not.
        """
        from bptt.exchange import to_torch

        return to_torch(self)

    def _weights(self) -> dict[str, Array]:
        """The weights that are present, in the order of the signature."""
        named = {name: getattr(self, name) for name in WEIGHTS}
        return {name: weight for name, weight in named.items() if weight is not None}

    def _choices(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in CHOICES}

    def _network(self, tokens: bool) -> Network:
        """The network as a level takes it; for tokens with W_I by columns, which are then looked up."""
        if not tokens:
            return self._for_numbers
        W_I = aligned(self.p, self.n, self.dtype)
        W_I[:, : self.n] = self.W_I.T
        return self._for_numbers._replace(W_I=W_I)


def _rebuild(weights: dict[str, Array], choices: dict[str, str]) -> RNN:
    return RNN(**weights, **choices)  # type: ignore[arg-type]
