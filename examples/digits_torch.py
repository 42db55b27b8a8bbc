"""One line swapped: handwritten digits pixel by pixel, read by `torch.nn.RNN` and by `bptt.torch.RNN`.

Each of scikit-learn's images of 8 x 8 pixels is a sequence of 64 numbers; the last state says which digit it was. Both
modules begin with the same weights and see the same batches. In float64, for rounding grows along a training: by a
factor of ten or more in each epoch here, and float32 would show it before the last.

    pip install "bptt[torch,sklearn]"
    python examples/digits_torch.py [digits_torch.png]
"""

import sys
import time

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import bptt.torch

HIDDEN, EPOCHS, BATCH, RATE, TRAINING = 64, 10, 16, 1e-3, 1500


def digits():
    """Pixels in -1..1, of shape (64, 1797, 1), and what they show, of shape (1797,), in an order of our own."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0)).numpy()
    return torch.tensor(pixels[order].T[..., None] / 8 - 1), torch.tensor(classes[order])


class Reader(torch.nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.readout = torch.nn.Linear(HIDDEN, 10)

    def forward(self, x):
        _, h_n = self.recurrent(x)
        return self.readout(h_n[-1])


def train(recurrent_class, x, y):
    """A reader, the mean loss of each epoch, and when it ended, in seconds."""
    torch.manual_seed(1)
    reader = Reader(recurrent_class(1, HIDDEN))
    torch.nn.init.orthogonal_(reader.recurrent.weight_hh_l0)
    optimiser = torch.optim.Adam(reader.parameters(), lr=RATE)
    losses, ends, begun = [], [], time.perf_counter()
    for _ in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(y)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(reader(x[:, batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimiser.step()
            total += loss.item() * len(batch)
        losses.append(total / len(y))
        ends.append(time.perf_counter() - begun)
    return reader, losses, ends


def draw(curves):
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for (name, (losses, ends)), color, width in zip(curves.items(), ("0.7", "tab:blue"), (7, 2)):
        by_epoch.plot(range(1, EPOCHS + 1), losses, color=color, linewidth=width, label=name)
        by_time.plot(ends, losses, color=color, linewidth=width, label=f"{name}, {ends[-1]:.1f} s")
    by_epoch.set(xlabel="epoch", ylabel="cross-entropy", title="The same curve ...", ylim=(0, None))
    by_time.set(xlabel="seconds", title="... in another time", xlim=(0, None))
    for axes in (by_epoch, by_time):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(path="digits_torch.png"):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # a step of 16 sequences is too little work for more
    x, y = digits()
    curves = {}
    for recurrent_class in (torch.nn.RNN, bptt.torch.RNN):
        reader, losses, ends = train(recurrent_class, x[:, :TRAINING], y[:TRAINING])
        with torch.no_grad():
            right = (reader(x[:, TRAINING:]).argmax(-1) == y[TRAINING:]).double().mean().item()
        name = "torch.nn.RNN" if recurrent_class is torch.nn.RNN else "bptt.torch.RNN"
        curves[name] = losses, ends
        print(f"{name:14}  {ends[-1]:5.1f} s, last loss {losses[-1]:.6f}, {right:.1%} of the others read right")
    difference = max(abs(a - b) for a, b in zip(*(losses for losses, _ in curves.values())))
    print(f"largest difference of the two curves: {difference:.1e}")
    draw(curves).savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
