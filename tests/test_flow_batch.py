"""gradient_flow of many sequences: each is looked at alone, and what is said is of the median one."""

import io
import re

import numpy as np
import pytest

import bptt
import support


@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("last", [False, True])
def test_a_batch_pools_its_sequences(output, last):
    rng = np.random.default_rng(1)
    rnn = support.network(7, 3, 4, output=output)
    lengths = np.array([60, 2, 90, 33, 0])
    x, y = rng.standard_normal((90, 5, 3)), support.targets(rng, rnn, (5,) if last else (90, 5))
    initial, weights = rng.standard_normal((5, 7)), rng.random((90, 5))
    flow = bptt.gradient_flow(rnn, x, y, initial=initial, weights=weights, lengths=lengths, max_lag=20, k=2)
    assert set(flow.sequences) == {0, 2, 3}  # the others have no three steps
    spectra, slopes = [], []
    for b in (0, 2, 3):
        T, rows = lengths[b], flow.sequences == b
        stops = flow.stops[rows]
        assert stops[-1] == T and stops[0] >= 1 and len(stops) >= 8
        alone = bptt.forward(rnn, x[:T, b], initial[b])
        wanted = bptt.chain_norms(rnn, alone, stops=stops, max_lag=20)
        np.testing.assert_allclose(flow.norms[rows], wanted, atol=1e-11)  # states of a batch have other roundings
        y_b = y[b] if last else y[:T, b]
        wanted = bptt.contributions(rnn, alone, y_b, weights=weights[:T, b], stops=stops, max_lag=20)
        if last:
            wanted[:-1] = np.nan  # no error there
        np.testing.assert_allclose(flow.contributions[rows], wanted, atol=1e-11)
        spectra.append(bptt.lyapunov_spectrum(rnn, alone, k=2, warm_up=(T - 1) // 10))
        slopes.append(bptt.certificates(rnn, alone))
    counted = [spectrum.ends[-1] for spectrum in spectra]  # 54, 81 and 30: of the median one either half has less
    rates, errors = np.array([[s.exponents, s.standard_errors] for s in spectra]).swapaxes(0, 1)
    np.testing.assert_allclose(flow.by_sequence, rates)
    np.testing.assert_allclose(flow.exponents, np.median(rates, axis=0))
    many = np.sum(counted) ** 2 / np.sum(np.square(counted))
    scatter = np.median(np.abs(rates - np.median(rates, axis=0)), axis=0) * many**0.5 / (many - 0.8)
    noise = np.median(errors * np.sqrt(counted)[:, None], axis=0) / np.sqrt(np.sum(counted))
    np.testing.assert_allclose(flow.standard_errors, np.maximum(1.4826 * (np.pi / 2) ** 0.5 * scatter, noise))
    np.testing.assert_allclose(flow.certificates.most, np.max([c.most for c in slopes], axis=0))
    np.testing.assert_allclose(flow.certificates.least, np.min([c.least for c in slopes], axis=0))


def test_one_dead_sequence_is_not_the_batch():
    rnn = bptt.RNN(1.1 * np.eye(4), np.eye(4), activation="relu")
    x = np.ones((300, 10, 4))
    x[:, 3] = -1
    flow = bptt.gradient_flow(rnn, x)
    assert flow.verdict == "exploding"
    assert np.flatnonzero(np.isneginf(flow.by_sequence[:, 0])).tolist() == [3]
    np.testing.assert_allclose(flow.exponents, np.log(1.1))
    assert "-inf to +0.0953 in 10 sequences" in str(flow)
    dead = bptt.gradient_flow(rnn, -x[:, :3])
    assert dead.verdict == "vanishing" and np.isneginf(dead.by_sequence).all()
    assert np.isneginf(dead.exponents).all() and np.isnan(dead.standard_errors).all()


def test_stops_are_counted_from_each_sequences_end():
    rnn = bptt.RNN([[0.9, 100.0], [0.0, 0.9]], np.eye(2), activation="identity")
    x = np.random.default_rng(0).standard_normal((500, 3, 2))
    flow = bptt.gradient_flow(rnn, x, lengths=[400, 2, 300], stops=[-1, 250, 350], max_lag=400)
    assert flow.stops.tolist() == [250, 350, 400, 250, 300]
    assert flow.sequences.tolist() == [0, 0, 0, 2, 2]
    assert flow.norms.shape == (5, 400)
    assert flow.verdict == "transient growth, then decay"
    with pytest.raises(ValueError, match=r"stops must be steps in 1..T with T = 400, .*; got 500"):
        bptt.gradient_flow(rnn, x, lengths=[400, 2, 300], stops=[500])


def test_a_batch_is_judged_by_its_median_sequence():
    """Verdict, horizon, table and the axis of the figure, beside one sequence that is saturated."""
    rnn = bptt.RNN([[1.3]], [[1.0]], activation="leaky_relu")
    x = np.ones((100, 10, 1))
    x[:, 0] = -1
    flow = bptt.gradient_flow(rnn, x)
    assert flow.verdict == "exploding" and flow.horizon == 98
    np.testing.assert_allclose(flow.by_sequence[:, 0], np.log(1.3) + np.where(np.arange(10) == 0, np.log(0.01), 0))
    np.testing.assert_allclose(flow.exponents, np.log(1.3))
    assert flow.standard_errors[0] < 1e-12
    assert "-4.34 to +0.262 in 10 sequences" in str(flow)
    bottom, top = flow.plot().axes[0].get_ylim()
    assert -40 < bottom < -20 and 11 < top < 20  # decades, of a median up to 10^11 and a range from 10^-187 on


@pytest.mark.parametrize("alive", [1, 2, 4])
def test_of_a_batch_of_dead_sequences_the_median_is_dead(alive):
    rnn = bptt.RNN(1.3 * np.eye(2), np.eye(2), activation="relu")
    flow = bptt.gradient_flow(rnn, np.ones((100, 5, 2)) * np.where(np.arange(5) < alive, 1, -1)[:, None])
    assert (flow.verdict, flow.horizon) == (("exploding", 98) if alive == 4 else ("vanishing", 0))
    assert np.isfinite(flow.exponents).all() == (alive == 4)
    assert "-inf to +0.262 in 5 sequences" in str(flow)
    flow.plot().savefig(io.BytesIO(), dpi=30)


def test_what_sequences_differ_by_is_in_the_standard_error():
    """Exponents drawn from N(0, 0.3²), 20 at a time: the median lies within 2 of its errors of 0 in most draws."""
    rng = np.random.default_rng(0)
    within = 0
    for _ in range(40):
        rates = rng.normal(0, 0.3, 20)
        steps = np.exp(rates[:, None] + 0.01 * rng.standard_normal((20, 50)))
        flow = bptt.gradient_flow(jacobians=list(steps[:, :, None, None]))
        assert flow.exponents[0] == pytest.approx(np.median(rates), abs=0.02)
        assert 0.02 < flow.standard_errors[0] < 0.2
        within += abs(flow.exponents[0]) <= 2 * flow.standard_errors[0]
    assert 34 <= within < 40


@pytest.mark.parametrize("alive", [[1, 1, 0], [0, 0, 1]])
def test_a_sequence_without_a_stop_is_left_out(alive):
    rnn = bptt.RNN([[0.5]], [[1.0]], activation="relu")
    x = np.where(alive, 1.0, -5.0) * np.ones((12, 1))
    flow = bptt.gradient_flow(rnn, x[:, :, None], lengths=[12, 12, 4], stops=[10])
    assert flow.sequences.tolist() == [0, 1] and flow.by_sequence.shape == (2, 1)
    np.testing.assert_allclose(flow.exponents, np.log(0.5) if alive[0] else -np.inf)
    np.testing.assert_allclose(flow.certificates.most, alive[0])


def test_labels_of_short_sequences_do_not_lie_on_each_other():
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((300, 4, 3)), [300, 5, 3, 100]
    figure = bptt.gradient_flow(bptt.RNN.random(3, 8, 4), x, lengths=lengths).plot()
    terms = figure.axes[1]
    places = np.array(terms.get_yticks())
    assert (np.diff(np.sort(places)) >= (terms.get_ylim()[1] - terms.get_ylim()[0]) / 16).all()


def test_the_larger_of_two_sequences_has_the_label():
    figure = bptt.gradient_flow(jacobians=[np.full((T, 1, 1), 0.9) for T in (400, 3, 50)]).plot()
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["0", "2"]


def test_what_is_wrong_in_a_batch_is_named_by_its_sequence():
    y = np.zeros((10, 3), int)
    y[4, 2] = 9
    with pytest.raises(ValueError, match=re.escape("got 9 at step t = 5 of sequence b = 2")):
        bptt.gradient_flow(support.network(), np.zeros((10, 3, 3)), y)
