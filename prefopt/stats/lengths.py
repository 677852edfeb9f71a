"""Win rates at equal length: how often would the variant win if its answers were as long as the opponent's?

    logit P(win) = theta_v + phi_v * tanh(d / s),     d = length of the variant's answer - the opponent's, tokens

with s the standard deviation of d over all variants, so that phi is on one scale. A judge's taste for length belongs
to the judge, so phi_v is drawn towards the phi that all variants share, by a normal prior of deviation 0.5. The
length-controlled win rate is the prediction at d = 0, 1 / (1 + exp(-theta_v)).

Source: the idea, tanh and the counterfactual are AlpacaEval 2's (Dubois et al. 2024, arXiv:2404.04475). It adds a
    difficulty of each of its 805 instructions, which other prompts do not have; ``alpacaeval_lc`` is that model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from prefopt.stats.bootstrap import two_way_bootstrap
from prefopt.stats.clusters import Array, Spread
from prefopt.stats.estimates import Estimate, interval_and_p

PHI_PRIOR_SD = 0.5
WEAK_PRIOR_SD = 10.0  # keeps theta and the shared phi finite when one side never loses
NEWTON_STEPS = 25


@dataclass(frozen=True)
class LengthControlled:
    """One variant's win rate at equal length.

    Attributes:
        win_rate: At d = 0, clustered like a raw win rate.
        phi: Log-odds for each unit of tanh(d / s); positive where the judge prefers longer answers.
        phi_low: Lower end of its interval.
        phi_high: Upper end.
        raw: Mean score without control.
        length_sd: s, tokens; the same for all variants fitted together.
        overlap: Smaller of the shares of cells with d >= 0 and d <= 0: near 0, the answer at d = 0 is extrapolated.
    """

    win_rate: Estimate
    phi: float
    phi_low: float
    phi_high: float
    raw: float
    length_sd: float
    overlap: float

    @property
    def extreme(self) -> bool:
        """Control moves the win rate by more than ten points, or rests on fewer than one cell in twenty at d = 0."""
        return abs(self.win_rate.value - self.raw) > 0.10 or self.overlap < 0.05


def length_controlled(
    score: ArrayLike,
    delta_length: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
) -> tuple[LengthControlled, ...]:
    """Length-controlled win rates of V variants against their opponent.

    Args:
        score: (V, S, N) share of wins in each (seed, prompt) cell, ties as 1/2; NaN where missing.
        delta_length: (V, S, N) mean length of the variant's answers minus the opponent's, tokens.
        confidence: Coverage of the intervals.
        resamples: Refits for each of the three bootstraps (seeds, prompts, cells).
        seed: Of the bootstrap.

    Raises:
        ValueError: If the shapes differ, or a score lies outside [0, 1].
    """
    score, delta = np.asarray(score, dtype=np.float64), np.asarray(delta_length, dtype=np.float64)
    if score.ndim != 3 or score.shape != delta.shape:
        raise ValueError(
            f"score and delta_length must both be (variants, seeds, prompts); got {score.shape}, {delta.shape}"
        )
    there = ~(np.isnan(score) | np.isnan(delta))
    if (score[there] < 0).any() or (score[there] > 1).any():
        raise ValueError("scores must lie in [0, 1]")
    deviation = float(delta[there].std(ddof=1)) if there.sum() > 1 else 0.0
    scale = deviation if deviation > 0 else 1.0
    x = np.where(there, np.tanh(np.where(there, delta, 0.0) / scale), 0.0)
    y = np.where(there, score, 0.5)
    pooled = _pooled_phi(y, x, there)
    out = []
    for v in range(len(y)):
        flat = (y[v].ravel(), x[v].ravel())
        fitted = _fit(*flat, there[v].ravel().astype(np.float64)[None], pooled)[0]

        def refit(weights: Array, flat: tuple[Array, Array] = flat, start: Array = fitted) -> Array:
            return _fit(*flat, weights.reshape(len(weights), -1), pooled, start=start, steps=2)

        spread = two_way_bootstrap(refit, there[v], resamples=resamples, seed=seed)
        d = delta[v][there[v]]
        out.append(
            LengthControlled(
                _as_estimate(float(fitted[0]), _one(spread, 0), there[v], confidence),
                *_phi_interval(float(fitted[1]), _one(spread, 1), confidence),
                float(score[v][there[v]].mean()),
                scale,
                float(min((d >= 0).mean(), (d <= 0).mean())),
            )
        )
    return tuple(out)


def _one(spread: Spread, k: int) -> Spread:
    """The spread of one statistic."""
    return Spread(*(part[k] for part in spread))


def _as_estimate(theta: float, spread: Spread, there: NDArray[np.bool_], confidence: float) -> Estimate:
    """The interval of a log-odds as that of a win rate."""
    value = float(special.expit(theta))
    slope = value * (1 - value)
    spread = spread._replace(variance=spread.variance * slope**2)
    low, high, p = interval_and_p(value, spread, null=0.5, confidence=confidence, scale="logit")
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        se=float(np.sqrt(spread.variance)),
        df=float(spread.df),
        p=float(p),
        null=0.5,
        confidence=confidence,
        seed_share=float(spread.seed_share),
        n_seeds=int(spread.n_seeds),
        n_prompts=int(spread.n_prompts),
        n=int(there.sum()),
        conditional=bool(spread.n_seeds == 1),
    )


def _phi_interval(phi: float, spread: Spread, confidence: float) -> tuple[float, float, float]:
    """phi and the ends of its interval."""
    reach = float(spread.critical(confidence) * np.sqrt(spread.variance))
    return phi, phi - reach, phi + reach


def _pooled_phi(y: Array, x: Array, there: Array) -> float:
    """The phi that all variants share, each with its own theta: Newton with an arrow-shaped Hessian."""
    y, x, w = (part.reshape(len(y), -1) for part in (y, x, there.astype(np.float64)))
    theta, phi = np.zeros(len(y)), 0.0
    weak = WEAK_PRIOR_SD**-2
    for _ in range(NEWTON_STEPS):
        p = special.expit(theta[:, None] + phi * x)
        error, curve = w * (y - p), w * p * (1 - p)
        g_theta, g_phi = error.sum(1) - weak * theta, (error * x).sum() - weak * phi
        # The Hessian is diagonal in the thetas, so these are eliminated first, and phi's equation is what is left.
        diagonal, cross = curve.sum(1) + weak, (curve * x).sum(1)
        corner = (curve * x * x).sum() + weak - (cross**2 / diagonal).sum()
        step_phi = (g_phi - (cross * g_theta / diagonal).sum()) / corner
        step = (g_theta - cross * step_phi) / diagonal
        theta, phi = theta + step, phi + float(step_phi)
        if max(np.abs(step).max(), abs(step_phi)) < 1e-10:
            break
    return phi


def _fit(
    y: Array, x: Array, weights: Array, pooled: float, *, start: Array | None = None, steps: int = NEWTON_STEPS
) -> Array:
    """(R, 2) theta and phi under each of (R, C) weights, by Newton's method.

    The bootstrap takes two steps from the full fit: the first is a matrix product for all resamples at once, and two
    leave an error far below the resampling's own (Davidson and MacKinnon 1999).
    """
    theta = np.full(len(weights), 0.0 if start is None else start[0])
    phi = np.full(len(weights), pooled if start is None else start[1])
    weak, tight = WEAK_PRIOR_SD**-2, PHI_PRIOR_SD**-2
    xx = x * x
    for step in range(steps):
        shared = step == 0  # all resamples start from one fit: its errors are computed once, and only summed anew
        p = (
            special.expit(theta[:1, None] + phi[:1, None] * x)
            if shared
            else special.expit(theta[:, None] + phi[:, None] * x)
        )
        error, curve = y - p, p * (1 - p)
        if shared:
            total = weights @ np.stack([error[0], error[0] * x, curve[0], curve[0] * x, curve[0] * xx], 1)
        else:
            error, curve = weights * error, weights * curve
            total = np.stack([error.sum(1), error @ x, curve.sum(1), curve @ x, curve @ xx], 1)
        g_theta = total[:, 0] - weak * theta
        g_phi = total[:, 1] - tight * (phi - pooled)
        h_tt, h_tp, h_pp = total[:, 2] + weak, total[:, 3], total[:, 4] + tight
        determinant = h_tt * h_pp - h_tp**2
        d_theta = (h_pp * g_theta - h_tp * g_phi) / determinant
        d_phi = (h_tt * g_phi - h_tp * g_theta) / determinant
        theta, phi = theta + d_theta, phi + d_phi
        if max(np.abs(d_theta).max(), np.abs(d_phi).max()) < 1e-10:
            break
    return np.stack([theta, phi], 1)


@dataclass(frozen=True)
class AlpacaEvalLC:
    """AlpacaEval 2's three coefficients and its figure, as a share."""

    theta: float
    phi: float
    psi: float
    win_rate: float


class GamedRows(NamedTuple):
    """Rows of two baselines that were told to be brief and to be wordy: G known effects of length.

    Attributes:
        preference: (G,) as that of a model's rows.
        tanh: (G,) their tanh term.
        difficulty: (G,) AlpacaEval's difficulty of their instructions.
        weight: Of one such row against a model's row.
    """

    preference: ArrayLike
    tanh: ArrayLike
    difficulty: ArrayLike
    weight: float = 0.1


def alpacaeval_lc(
    preference: ArrayLike,
    baseline_length: ArrayLike,
    model_length: ArrayLike,
    difficulty: ArrayLike,
    *,
    gamed: GamedRows,
    inverse_penalty: float = 4.93,
) -> AlpacaEvalLC:
    """AlpacaEval 2's length-controlled win rate, from its annotations, for comparison with its leaderboard.

    logit P(model wins) = theta * 1[row is the model's] + phi * tanh(d / sd(d)) + psi * difficulty, without an
    intercept, where d is the baseline's length minus the model's in characters; soft labels; L1 penalty. The gamed
    rows enter with small weight and hold phi in place.

    Args:
        preference: (N,) probability that the model wins, 0 to 1.
        baseline_length: (N,) characters.
        model_length: (N,) characters.
        difficulty: (N,) AlpacaEval's difficulty of each instruction.
        gamed: Rows in which length alone differs.
        inverse_penalty: Weight of the log-likelihood against the L1 norm. Upstream picks one of ten values for each
            model by cross-validation, nearly always 2.78 or 21.5, whose scores differ in the sixth decimal and whose
            figures differ by 0.05 to 0.1 point. The default lies halfway, within 0.05 point of either.

    Source:
        Dubois et al. 2024, arXiv:2404.04475, Section 3; tatsu-lab/alpaca_eval, metrics/glm_winrate.py.
    """
    delta = np.asarray(baseline_length, dtype=np.float64) - np.asarray(model_length, dtype=np.float64)
    spread = delta.std(ddof=1)
    tanh = np.tanh(delta / spread) if spread > 0 else np.zeros(len(delta))
    difficulty, n, extra = np.asarray(difficulty, dtype=np.float64), len(delta), np.asarray(gamed.tanh)
    x = np.stack(
        [
            np.concatenate([np.ones(n), np.zeros(len(extra))]),
            np.concatenate([tanh, extra]),
            np.concatenate([difficulty, np.asarray(gamed.difficulty, dtype=np.float64)]),
        ],
        axis=1,
    )
    y = np.concatenate([np.asarray(preference, dtype=np.float64), np.asarray(gamed.preference, dtype=np.float64)])
    weight = inverse_penalty * np.concatenate([np.ones(n), np.full(len(extra), gamed.weight)])

    def objective(halves: Array) -> tuple[float, Array]:
        z = x @ (halves[:3] - halves[3:])
        value = (weight * (np.logaddexp(0, z) - y * z)).sum() + halves.sum()
        gradient = x.T @ (weight * (special.expit(z) - y))
        return float(value), np.concatenate([gradient + 1, 1 - gradient])

    # Positive and negative parts apart: the L1 norm is then linear, and the problem smooth with bounds.
    optimum = optimize.minimize(
        objective,
        np.zeros(6),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * 6,
        options={"ftol": 1e-14, "gtol": 1e-7, "maxiter": 2000},
    )
    theta, phi, psi = (float(v) for v in optimum.x[:3] - optimum.x[3:])
    return AlpacaEvalLC(theta, phi, psi, float(special.expit(theta + psi * difficulty).mean()))
