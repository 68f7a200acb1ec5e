"""Bradley–Terry: how strong models are, from who was preferred to whom.

Model: P(i preferred among the lanes S) = exp(θᵢ) / Σ_{j∈S} exp(θⱼ). For two lanes that is Bradley and Terry (1952), for
more Luce's choice rule (1959), its usual extension (Hunter, "MM algorithms for generalized Bradley–Terry models",
Annals of Statistics 32, 2004). A tie is an equal share of a win for every lane, half a win each of two, as Chatbot
Arena counts it (Chiang et al., arXiv:2403.04132).

Few votes, unanimous ones, and models never compared have no finite maximum of the likelihood. So every model also has
one win and one defeat against an imaginary opponent of strength 0, the logistic prior of Whelan, arXiv:1712.05311: it
keeps strengths finite, joins what no comparison joins, and its weight fades as votes come in.

Intervals: strengths are about normal around the maximum, with the inverse of the observed Fisher information (minus the
Hessian there, the prior's included) as covariance. Scores are relative to the mean of all, so the covariance is that of
the centred strengths."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from math import log

import numpy as np
import numpy.typing as npt

ELO = 400 / log(10)  # score points per unit of θ: 400 more are ten times the odds
MEAN_SCORE = 1000.0
Z_95 = 1.959964
PRIOR_GAMES = 1.0  # won, and as many lost, against the imaginary opponent
MAX_ITERATIONS = 100
TOLERANCE = 1e-9

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    contestants: tuple[str, ...]  # one a lane
    winner: int | None  # the lane; None for a tie


@dataclass(frozen=True)
class Standing:
    contestant: str
    score: float
    low: float  # the 95 % interval of the score
    high: float
    comparisons: int
    wins: int
    ties: int


@dataclass(frozen=True)
class Arena:
    """Standings from best to worst. `connected` is False when some models were never compared, not even by way of
    others: between them the scores say only how they did among their own."""

    standings: tuple[Standing, ...]
    votes: int
    connected: bool


@dataclass(frozen=True)
class Duel:
    """How one contestant did against another."""

    wins: int = 0
    defeats: int = 0
    ties: int = 0

    @property
    def votes(self) -> int:
        return self.wins + self.defeats + self.ties

    @property
    def share(self) -> float:
        """Of the wins, a tie being half of one. ZeroDivisionError before the first vote."""
        return (self.wins + self.ties / 2) / self.votes


def duels(outcomes: Mapping[Outcome, int]) -> dict[tuple[str, str], Duel]:
    """Everybody against everybody, by (one, the other). Who wins among several lanes beats each of the others."""
    met: Counter[tuple[str, str]] = Counter()
    beaten: Counter[tuple[str, str]] = Counter()
    for outcome, count in outcomes.items():
        names = set(outcome.contestants)
        winner = None if outcome.winner is None else outcome.contestants[outcome.winner]
        for one, other in permutations(names, 2):
            if winner is None or winner in (one, other):
                met[one, other] += count
                beaten[one, other] += count if one == winner else 0
    return {
        (one, other): Duel(beaten[one, other], beaten[other, one], count - beaten[one, other] - beaten[other, one])
        for (one, other), count in met.items()
    }


def rank(outcomes: Mapping[Outcome, int]) -> Arena:
    """Scores from how often each outcome was voted. Votes between lanes of one contestant say nothing and are
    left out."""
    counted = {outcome: count for outcome, count in outcomes.items() if len(set(outcome.contestants)) > 1}
    names = sorted({name for outcome in counted for name in outcome.contestants})
    if not names:
        return Arena((), 0, True)
    strengths, covariance = _fit(counted, {name: number for number, name in enumerate(names)})
    scores = MEAN_SCORE + ELO * strengths
    margins = Z_95 * ELO * np.sqrt(np.diag(covariance))
    comparisons, wins, ties = _tally(counted)
    standings = [
        Standing(name, score, score - margin, score + margin, comparisons[name], wins[name], ties[name])
        for name, score, margin in zip(names, scores.tolist(), margins.tolist(), strict=True)
    ]
    standings.sort(key=lambda standing: (-standing.score, standing.contestant))
    return Arena(tuple(standings), sum(counted.values()), _connected(counted))


def _fit(outcomes: Mapping[Outcome, int], index: Mapping[str, int]) -> tuple[_Array, _Array]:
    """Centred strengths (models,) and their covariance (models, models), by Newton's method: the log-likelihood is
    concave, and a step that does not raise it is halved."""
    lanes = [(np.array([index[name] for name in o.contestants]), _shares(o), count) for o, count in outcomes.items()]
    theta = np.zeros(len(index))
    value, gradient, information = _likelihood(theta, lanes)
    for _ in range(MAX_ITERATIONS):
        step = np.linalg.solve(information, gradient)
        if float(gradient @ step) < TOLERANCE:
            break
        while (higher := _likelihood(theta + step, lanes))[0] < value:
            step = step / 2
        theta = theta + step
        value, gradient, information = higher
    centre = np.eye(len(index)) - 1 / len(index)
    return centre @ theta, centre @ np.linalg.inv(information) @ centre


def _likelihood(theta: _Array, lanes: list[tuple[npt.NDArray[np.intp], _Array, int]]) -> tuple[float, _Array, _Array]:
    """Logarithm, gradient and information (minus the Hessian) of likelihood and prior at `theta`."""
    won = 1 / (1 + np.exp(-theta))  # against the imaginary opponent
    value = PRIOR_GAMES * float(np.sum(np.log(won) + np.log1p(-won)))
    gradient = PRIOR_GAMES * (1 - 2 * won)
    information = np.diag(2 * PRIOR_GAMES * won * (1 - won))
    for who, shares, count in lanes:
        exponent = theta[who] - theta[who].max()
        normaliser = np.log(np.exp(exponent).sum())
        value += count * float(shares @ (exponent - normaliser))
        p = np.exp(exponent - normaliser)
        # A contestant may have several lanes; their probabilities and shares add up.
        np.add.at(gradient, who, count * (shares - p))
        np.add.at(information, (who[:, None], who[None, :]), count * (np.diag(p) - np.outer(p, p)))
    return value, gradient, information


def _shares(outcome: Outcome) -> _Array:
    """Each lane's share of the win."""
    lanes = len(outcome.contestants)
    if outcome.winner is None:
        return np.full(lanes, 1 / lanes)
    shares = np.zeros(lanes)
    shares[outcome.winner] = 1
    return shares


def _tally(outcomes: Mapping[Outcome, int]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """(comparisons, wins, ties) by contestant."""
    comparisons: Counter[str] = Counter()
    wins: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    for outcome, count in outcomes.items():
        for name in set(outcome.contestants):
            comparisons[name] += count
            ties[name] += count if outcome.winner is None else 0
        if outcome.winner is not None:
            wins[outcome.contestants[outcome.winner]] += count
    return comparisons, wins, ties


def _connected(outcomes: Mapping[Outcome, int]) -> bool:
    """Whether a chain of comparisons leads from every contestant to every other."""
    groups: list[set[str]] = []
    for outcome in outcomes:
        joined = set(outcome.contestants).union(*(group for group in groups if group & set(outcome.contestants)))
        groups = [group for group in groups if not group & joined] + [joined]
    return len(groups) == 1
