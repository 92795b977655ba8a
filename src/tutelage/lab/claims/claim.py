"""A claim as data: what is said, what is done here, which arms are run, what they are predicted to show, and what would matter."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.lab.claims.settings import Settings
from tutelage.lab.claims.statistics import Expectation


@dataclass(frozen=True)
class Arm:
    """One configuration, run with every seed; arms of equal settings are the same runs, in whatever claims they stand."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Prediction:
    """What a claim says of a figure: `treated` less `control`, as `expectation` has it, by at least `margin` where it is to differ.

    Units: `margin` is in those of the measure, shares and relative rises as fractions. `relative` takes the difference of logarithms,
    and `margin` is then of those: 0.1 is about ten per cent.
    """

    treated: str
    control: str
    measure: str
    expectation: Expectation
    margin: float
    relative: bool = False


@dataclass(frozen=True)
class Plot:
    """What is drawn of every arm: one measure after another as bars, or one across and one up as points."""

    measures: tuple[str, ...]
    is_scatter: bool = False


@dataclass(frozen=True)
class Claim:
    """One claim of the field, and the experiment. `source` is where the claim comes from."""

    name: str
    claim: str
    done: str
    source: str
    arms: tuple[Arm, ...]
    predictions: tuple[Prediction, ...]
    plot: Plot

    def __post_init__(self) -> None:
        """Raise ValueError for a prediction about an arm that is not run."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two arms have one name: {names}")
        asked = {name for prediction in self.predictions for name in (prediction.treated, prediction.control)}
        if unknown := asked - set(names):
            raise ValueError(f"{self.name}: no arm is called {sorted(unknown)}")
