"""How often the rule of ``[decided]`` finds an effect, by its size: ``python benchmarks/verdict.py``.

Differences between runs with the same seed are drawn from a normal distribution whose mean is the true effect, in standard deviations
of these differences, for two primary comparisons of five seeds, as in suites/evidence.toml. The rule is the suite's own,
:mod:`lutbench.report.decided`.
"""

import numpy as np

from lutbench.report.decided import LEVEL, Outcome, holm, p_over_seeds, verdict

SEEDS, PRIMARY, DRAWS = 5, 2, 20_000
EFFECTS = (0.0, 1.0, 1.5, 2.0, 3.0)
CORRELATIONS = (0.0, 0.8)


def share(named: str, effect: float, correlation: float) -> float:
    """Return the share of draws with this verdict, if both comparisons have this ``effect`` and this ``correlation``."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(DRAWS, SEEDS, 1))
    own = rng.normal(size=(DRAWS, SEEDS, PRIMARY))
    drawn = effect + correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    return sum(verdict(_outcomes(differences)) == named for differences in drawn) / DRAWS


def _outcomes(differences: np.ndarray) -> list[Outcome]:
    """Return the outcome of every comparison, of differences (seeds, comparisons)."""
    corrected = holm([p_over_seeds(column.tolist()) or 0.0 for column in differences.T])
    means = differences.mean(axis=0)
    return [
        "open" if p >= LEVEL else "for" if mean > 0 else "against" for p, mean in zip(corrected, means, strict=True)
    ]


def main() -> None:
    """Print the table of docs/evidence.md."""
    columns = [f"{told}, correlation {r:g}" for told in ("support", "contradiction") for r in CORRELATIONS]
    print(f"| size of the effect | {' | '.join(columns)} |\n| ---: |{' ---: |' * len(columns)}")
    for effect in EFFECTS:
        found = [share("support", effect, r) for r in CORRELATIONS]
        found += [share("contradiction", -effect, r) for r in CORRELATIONS]
        print(f"| {effect:g} | {' | '.join(f'{100 * one:.0f} %' for one in found)} |")


if __name__ == "__main__":
    main()
