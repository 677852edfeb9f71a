"""Behaviour in the small: worlds of a few responses where the right answer is known in closed form.

A policy is a softmax over K responses of one token each, so that sums and means over tokens agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import exp, log

import pytest
import torch
from torch import Tensor

from prefopt import Loss, PairLogps, make_loss


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()
ORDER = [(0, 1), (1, 2), (0, 2)]  # a > b > c, every pair once
CYCLE = [(0, 1), (1, 2), (2, 0)]


def pairs_of(policy: Tensor, reference: Tensor, pairs: list[tuple[int, int]], *, length: int = 1) -> PairLogps:
    won, lost = (torch.tensor(side) for side in zip(*pairs, strict=True))
    lengths = torch.full((len(pairs),), length)
    return PairLogps(policy[won], policy[lost], lengths, lengths, reference[won], reference[lost])


def minimise(objective: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The logits that minimise a smooth objective, from zero, by L-BFGS in float64."""
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(logits)
        value.backward()
        return value

    solver.step(closure)
    return logits.detach()


def trained(loss: Loss, pairs: list[tuple[int, int]], *, steps: int = 400, rate: float = 0.05) -> Tensor:
    """Log-probabilities of the three-armed bandit after Adam from the uniform policy."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        loss(pairs_of(logits.log_softmax(0), UNIFORM, pairs)).mean().backward()
        adam.step()
    return logits.detach().log_softmax(0)


@pytest.mark.parametrize("name", ["ipo", "ipo_sum"])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_keeps_a_finite_gap_on_a_total_order(name: str, tau: float) -> None:
    loss = make_loss(name, tau=tau)
    policy = minimise(lambda x: loss(pairs_of(x.log_softmax(0), UNIFORM, ORDER)).mean(), 3).log_softmax(0)
    assert (policy[0] - policy[1]).item() == pytest.approx(1 / (3 * tau), rel=1e-6)
    assert (policy[1] - policy[2]).item() == pytest.approx(1 / (3 * tau), rel=1e-6)


def test_ipo_on_the_paper_s_own_optimiser() -> None:
    policy = trained(make_loss("ipo_sum", tau=0.1), ORDER, steps=900, rate=0.02)
    assert policy.exp().tolist() == pytest.approx([0.964, 0.035, 0.001], abs=2e-3)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_is_uniform_on_a_cycle(tau: float) -> None:
    # The optimum is where it starts; start elsewhere.
    loss = make_loss("ipo", tau=tau)
    start = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    policy = minimise(lambda x: loss(pairs_of((x + start).log_softmax(0), UNIFORM, CYCLE)).mean(), 3) + start
    assert policy.softmax(0).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize(("tau", "gap"), [(0.1, 5.0), (0.5, 1.0), (1.0, 0.5)])
def test_ipo_on_a_single_pair(tau: float, gap: float) -> None:
    loss = make_loss("ipo", tau=tau)
    policy = minimise(lambda x: loss(pairs_of(x.log_softmax(0), UNIFORM, [(0, 1)])).mean(), 3)
    assert (policy[0] - policy[1]).item() == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_dpo_goes_to_a_vertex_whatever_beta(beta: float) -> None:
    early = trained(make_loss("dpo", beta=beta), ORDER, steps=200, rate=0.1)
    late = trained(make_loss("dpo", beta=beta), ORDER, steps=400, rate=0.1)
    assert late[0].exp() > 0.99
    assert late[0] - late[1] > early[0] - early[1] + 0.5, "the gap grows without end"


def expected(loss: Loss, win: float, margin: Tensor) -> Tensor:
    """() the mean loss at log-ratio gap ``margin`` where the first of two responses wins with probability ``win``."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    forward = PairLogps(margin[None], zero, one, one, zero, zero)
    backward = PairLogps(zero, margin[None], one, one, zero, zero)
    return (win * loss(forward) + (1 - win) * loss(backward)).sum()


def optimum(label: str, win: float) -> float:
    """beta * D at the minimum of the expected loss."""
    loss = make_loss(label)
    return loss.beta * minimise(lambda x: expected(loss, win, x[0]), 1).item()  # type: ignore[attr-defined, no-any-return]


CLEAN = 0.8
NOISY = 0.8 * 0.8 + 0.2 * 0.2  # a fifth of the labels flipped


@pytest.mark.parametrize(
    ("label", "win", "margin"),
    [
        ("dpo[beta=1.0]", CLEAN, log(4)),  # 1.386
        ("rdpo[beta=1.0,label_smoothing=0.2]", NOISY, log(4)),
        ("dpo[beta=1.0]", NOISY, log(0.68 / 0.32)),  # 0.754
        ("cdpo[beta=1.0,label_smoothing=0.2]", NOISY, log(0.608 / 0.392)),  # 0.439: shrunk twice
        ("exo[beta=1.0,label_smoothing=0.1]", 1.0, log(9)),
    ],
)
def test_optimal_margin_under_label_noise(label: str, win: float, margin: float) -> None:
    assert optimum(label, win) == pytest.approx(margin, abs=1e-5)


def test_rounded_values_of_the_noise_table() -> None:
    assert [round(log(4), 3), round(log(0.68 / 0.32), 3), round(log(0.608 / 0.392), 3)] == [1.386, 0.754, 0.439]


@pytest.mark.parametrize("flips", [0.1, 0.2, 0.4])
def test_rdpo_over_the_flips_is_dpo(flips: float) -> None:
    robust, clean = make_loss("rdpo", label_smoothing=flips), make_loss("dpo")
    for margin in torch.linspace(-50, 50, 21, dtype=torch.float64):
        assert abs(expected(robust, 1 - flips, margin) - expected(clean, 1.0, margin)).item() < 1e-12


def slope(loss: Loss, margin: float) -> float:
    at = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(expected(loss, 1.0, at), at)
    return gradient.item()


@pytest.mark.parametrize("e", [0.1, 0.2, 0.4])
def test_cdpo_stops_where_it_should(e: float) -> None:
    loss = make_loss("cdpo", label_smoothing=e)
    stop = log((1 - e) / e) / 0.1
    assert abs(slope(loss, stop)) < 1e-15
    assert slope(loss, stop - 1) < 0 < slope(loss, stop + 1)


def test_rdpo_falls_for_ever() -> None:
    assert slope(make_loss("rdpo", label_smoothing=0.2), 1e3) == pytest.approx(-0.1 * 0.2 / 0.6)


def test_apo_zero_and_focalpo_give_up_on_hopeless_pairs_and_dpo_does_not() -> None:
    assert abs(slope(make_loss("apo_zero"), -500.0)) < 1e-15
    assert slope(make_loss("focalpo"), -500.0) > 0
    assert slope(make_loss("dpo"), -500.0) == pytest.approx(-0.1)


def test_r_dpo_lowers_the_weight_of_a_longer_winner() -> None:
    # 100 tokens longer at 0.01 a token: sigmoid(-1) = 0.269 where DPO has 0.5; the wrong sign would give 0.731.
    chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    given = PairLogps(chosen, zero, torch.tensor([150]), torch.tensor([50]), zero, zero)
    make_loss("r_dpo", beta=1.0, alpha=0.01)(given).sum().backward()
    assert -chosen.grad.item() == pytest.approx(0.2689, abs=1e-4)  # type: ignore[union-attr]


def test_r_dpo_takes_the_length_bias_out_of_the_policy() -> None:
    # The longer response, by 10 tokens, wins 7 of 10; a policy that tilts by theta nats a token.
    def tilt(label: str) -> float:
        loss = make_loss(label)
        zero = torch.zeros(1, dtype=torch.float64)
        long, short = torch.tensor([20]), torch.tensor([10])

        def objective(x: Tensor) -> Tensor:
            won = PairLogps(20 * x, 10 * x, long, short, zero, zero)
            lost = PairLogps(10 * x, 20 * x, short, long, zero, zero)
            return (0.7 * loss(won) + 0.3 * loss(lost)).sum()

        return minimise(objective, 1).item()

    dpo = tilt("dpo[beta=1.0]")
    assert dpo == pytest.approx(log(7 / 3) / 10, rel=1e-5)
    assert tilt("r_dpo[beta=1.0,alpha=0.05]") == pytest.approx(dpo - 0.05, rel=1e-4)


@pytest.mark.filterwarnings("ignore::prefopt.OffScaleWarning")
def test_simpo_off_the_scale_never_saturates() -> None:
    def weight(label: str, margin: float) -> float:
        return -slope(make_loss(label), margin) / make_loss(label).beta  # type: ignore[attr-defined, no-any-return]

    off = [weight("simpo[beta=0.1,gamma_beta_ratio=5.0]", m) for m in (0.0, 0.2, 1.0)]
    assert off == pytest.approx([0.62, 0.62, 0.60], abs=5e-3)
    on = [weight("simpo[beta=10.0,gamma_beta_ratio=0.3]", m) for m in (0.0, 0.2, 1.0)]
    assert on == pytest.approx([0.953, 0.731, 0.001], abs=5e-4)


REWARD = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, -1.0, 1.5, 0.0, 1.0, -0.5], dtype=torch.float64).log_softmax(0)


def tilted(beta: float) -> Tensor:
    """log pi*, pi* = pi_ref exp(r / beta) / Z."""
    return (REFERENCE + REWARD / beta).log_softmax(0)


def fitted(loss: Loss, wins: Tensor) -> Tensor:
    """Log-probabilities of the policy fitted to a table of wins, (K, K), row over column."""
    size = len(wins)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    weights = torch.stack([wins[i, j] for i, j in pairs])

    def objective(x: Tensor) -> Tensor:
        return (weights * loss(pairs_of((REFERENCE + x).log_softmax(0), REFERENCE, pairs))).sum() / weights.sum()

    return (REFERENCE + minimise(objective, size)).log_softmax(0)


def divergence(p: Tensor, q: Tensor) -> float:
    return (p.exp() * (p - q)).sum().item()


BRADLEY_TERRY = torch.sigmoid(REWARD[:, None] - REWARD[None, :])


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 5.0])
def test_dpo_on_bradley_terry_pairs_is_the_tilted_reference(beta: float) -> None:
    assert divergence(tilted(beta), fitted(make_loss("dpo", beta=beta), BRADLEY_TERRY)) < 1e-9


def test_ipo_on_bradley_terry_pairs_is_something_else() -> None:
    assert divergence(tilted(0.5), fitted(make_loss("ipo_sum", tau=0.5), BRADLEY_TERRY)) > 0.05


def test_dpo_approaches_the_optimum_as_pairs_are_added() -> None:
    generator = torch.Generator().manual_seed(0)

    def from_samples(count: int) -> float:
        first, second = torch.randint(6, (2, count), generator=generator)
        won = torch.rand(count, generator=generator, dtype=torch.float64) < BRADLEY_TERRY[first, second]
        wins = torch.zeros(6, 6, dtype=torch.float64)
        wins.index_put_(
            (torch.where(won, first, second), torch.where(won, second, first)), torch.tensor(1.0).double(), True
        )
        return divergence(tilted(1.0), fitted(make_loss("dpo", beta=1.0), wins))

    few, some, many = (from_samples(count) for count in (300, 10_000, 300_000))
    assert few > some > many
    assert many < 1e-3


def test_likelihood_of_the_chosen_under_a_shared_direction() -> None:
    """One parameter raises chosen over rejected, and a third response over both: DPO lowers the chosen too."""
    features = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)

    def drift(label: str) -> float:
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([theta], lr=0.02)
        for _ in range(200):
            adam.zero_grad()
            make_loss(label)(pairs_of((features * theta).log_softmax(0), UNIFORM, [(0, 1)])).mean().backward()
            adam.step()
        return ((features * theta.detach()).log_softmax(0) - UNIFORM)[0].item()

    assert drift("dpo[beta=0.5]") < -2
    for label in ("nca[beta=0.5]", "dpop", "rpo", "sft"):
        assert drift(label) > -1, label
    assert drift("sft") >= 0


def test_slopes_of_the_gpo_links_at_the_start() -> None:
    for link, at_zero in (("exponential", -0.1), ("squared_hinge", -0.2), ("savage", -0.1 * 2 * 0.5 * 0.25)):
        assert slope(make_loss("gpo", link=link), 0.0) == pytest.approx(at_zero)


def test_chipo_punishes_a_rejected_response_that_has_grown() -> None:
    # At h = 3 for the rejected, u + log u = e^3 + 3 where DPO sees 3.
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    grown = PairLogps(zero, zero + 3, one, one, zero, zero)
    margin = make_loss("chipo").rewards(grown).margin.item()
    assert margin == pytest.approx(0.1 * (1 - exp(3) - 3))
