"""A module among modules: what PyTorch's users do with one besides calling it."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pytest

from support_torch import arguments, assert_same, pair, results, torch

# isort: split
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import bptt.torch

pytestmark = pytest.mark.peers


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded])
def test_copies_are_the_same_and_stand_alone(way):
    _, mine = pair(3, 9, 2, "relu", dropout=0.2, bidirectional=True)
    mine.eval()
    x, hx = arguments(mine)
    other, before = way(mine), results(mine, x, hx)
    assert_same(results(other, x, hx), before, tolerance=0)
    assert repr(other) == repr(mine)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    assert_same(results(mine, x, hx), before, tolerance=0)
    assert not torch.equal(results(other, x, hx)["output"], before["output"])


def test_state_dict_through_a_file(tmp_path):
    theirs, mine = pair(3, 9)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    other = bptt.torch.RNN(3, 9)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x, hx = arguments(mine)
    assert_same(results(other, x, hx), results(mine, x, hx), tolerance=0)


def test_without_gradients():
    _, mine = pair(3, 9)
    x, hx = arguments(mine)
    wanted, _ = mine(x, hx)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            output, h_n = mine(x, hx)
        assert not output.requires_grad and not h_n.requires_grad
        assert torch.equal(output, wanted)
    with torch.inference_mode():
        assert mine(x, hx)[0].is_inference()


def test_frozen_weights():
    _, mine = pair(3, 9)
    mine.requires_grad_(False)
    mine.weight_ih_l0.requires_grad_(True)
    x, _ = arguments(mine)
    mine(x)[0].sum().backward()
    assert [name for name, weight in mine.named_parameters() if weight.grad is not None] == ["weight_ih_l0"]


def train(module, steps=30):
    """To remember the sign of the first input, with clipped gradients."""
    torch.manual_seed(0)
    readout = torch.nn.Linear(module.hidden_size, 1)
    weights = [*module.parameters(), *readout.parameters()]
    optimiser, losses = torch.optim.Adam(weights, lr=0.02), []
    for _ in range(steps):
        x = torch.randn(4, 32, 3)
        loss = torch.nn.functional.soft_margin_loss(readout(module(x)[0][-1])[:, 0], x[0, :, 0].sign())
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimiser.step()
        losses.append((loss.item(), norm.item()))
    return torch.tensor(losses)


def test_training_is_the_same_step_by_step():
    theirs, mine = pair(3, 16)
    losses, wanted = train(mine), train(theirs)
    assert wanted[-5:, 0].mean() < wanted[:5, 0].mean()
    # Rounding differences grow along the way; a wrong gradient would part the two in the second step.
    assert torch.allclose(losses, wanted, rtol=1e-3)


def test_autocast_is_refused():
    mine, x = bptt.torch.RNN(3, 5), torch.randn(7, 2, 3)
    with torch.autocast("cpu"):
        with pytest.raises(RuntimeError, match=r"torch\.autocast\('cpu', enabled=False\)"):
            mine(x)
        with torch.autocast("cpu", enabled=False):
            output, _ = mine(x.float())
    assert output.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    mine = bptt.torch.RNN(3, 5).to(dtype)
    with pytest.raises(TypeError, match=r"float32 or float64; got torch\.b?float16.*\.float\(\)"):
        mine(torch.randn(7, 2, 3, dtype=dtype))
    assert mine.float()(torch.randn(7, 2, 3))[0].shape == (7, 2, 5)


def test_other_devices_are_refused():
    """Tensors that say they are on another device: there is none in most machines that run the tests."""
    x = FakeTensor(FakeTensorMode(), torch.empty(7, 2, 3, device="meta"), torch.device("cuda"))
    with pytest.raises(RuntimeError, match=r"runs on the CPU; got a tensor on cuda.*\.cpu\(\).*torch\.nn\.RNN"):
        bptt.torch.RNN(3, 5)(x)


WORKERS = """
    import os, sys, tempfile
    import torch
    import bptt.torch

    class Features(torch.utils.data.Dataset):
        # Each item is made by a recurrent network, in whatever process it is asked for.
        def __init__(self):
            torch.manual_seed(0)
            self.module, self.x = bptt.torch.RNN(4, 64), torch.randn(6, 200, 4)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            with torch.no_grad():
                return self.module(self.x[i])[0]

    def rank(rank, file):
        torch.distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(bptt.torch.RNN(4, 16, 2, bidirectional=True))
        x = torch.randn(20, 8, 4)
        output, h_n = model(x[:, 4 * rank : 4 * rank + 4])
        (output.square().mean() + h_n.square().mean()).backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters()])

        torch.manual_seed(0)
        alone = bptt.torch.RNN(4, 16, 2, bidirectional=True)
        x = torch.randn(20, 8, 4)
        output, h_n = alone(x)
        (output.square().mean() + h_n.square().mean()).backward()
        wanted = torch.cat([weight.grad.flatten() for weight in alone.parameters()])
        torch.testing.assert_close(gradients, wanted)
        torch.distributed.destroy_process_group()

    if __name__ == "__main__":
        torch.set_num_threads(2)
        features = Features()
        wanted = torch.stack([features[i] for i in range(len(features))])
        loader = torch.utils.data.DataLoader(features, 2, num_workers=2, multiprocessing_context="fork", timeout=100)
        assert torch.equal(torch.cat(list(loader)), wanted)
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(rank, (os.path.join(folder, "meeting"),), nprocs=2)
        print("done")
"""


def test_worker_processes_and_distributed_training(tmp_path):
    """DataLoader's workers, forked after threads have run, and DistributedDataParallel on two processes."""
    path = tmp_path / "main.py"
    path.write_text(textwrap.dedent(WORKERS))
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "done"
