"""What the runs say of the claims: every arm's figures, every prediction with its interval and verdict, as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tutelage.lab.claims.claim import Arm, Claim, Prediction
from tutelage.lab.claims.measures import MEASURES
from tutelage.lab.claims.settings import Scale, Settings
from tutelage.lab.claims.statistics import Interval, interval_of, verdict_of, verdict_of_all
from tutelage.lab.claims.store import RunStore

Figures = Mapping[int, Mapping[str, float | None]]
"""What was measured of one arm: by seed, then by measure."""


def results(
    claims: Sequence[Claim], store: RunStore, scale: Scale, num_seeds: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `claims.json`. A claim of which an arm was never run is left out.

    `about` says when, on what machine and with which options of the command the runs were made.
    """
    judged = (_judged(claim, store, scale, num_seeds) for claim in claims)
    options = about["options"]
    return {
        **about,
        "seeds": num_seeds,
        "lessons": scale.of(Settings(), 0).lessons,
        "asked": scale.asked,
        "measures": {key: vars(measure) for key, measure in MEASURES.items()},
        "claims": [{**one, "command": f"tutelage claims {one['name']} {options}"} for one in judged if one is not None],
    }


def _judged(claim: Claim, store: RunStore, scale: Scale, num_seeds: int) -> dict[str, Any] | None:
    found = {arm.name: _figures(arm, store, scale, num_seeds) for arm in claim.arms}
    if not all(found.values()):
        return None
    predictions = [_of_prediction(prediction, found) for prediction in claim.predictions]
    return {
        "name": claim.name,
        "claim": claim.claim,
        "done": claim.done,
        "source": claim.source,
        "verdict": verdict_of_all(prediction["verdict"] for prediction in predictions),
        "arms": [_of_arm(arm, found[arm.name]) for arm in claim.arms],
        "predictions": predictions,
        "plot": vars(claim.plot),
    }


def _figures(arm: Arm, store: RunStore, scale: Scale, num_seeds: int) -> Figures:
    kept = ((seed, store.find(scale.of(arm.settings, seed))) for seed in range(num_seeds))
    return {seed: found["measures"] for seed, found in kept if found is not None}


def _of_arm(arm: Arm, found: Figures) -> dict[str, Any]:
    usual = Settings()
    own = {field.name: getattr(arm.settings, field.name) for field in fields(Settings)}
    return {
        "name": arm.name,
        "settings": {name: value for name, value in own.items() if value != getattr(usual, name)},
        "figures": {
            measure: _as_json(
                interval_of([value for of_seed in found.values() if (value := of_seed.get(measure)) is not None])
            )
            for measure in MEASURES
        },
    }


def _of_prediction(prediction: Prediction, found: Mapping[str, Figures]) -> dict[str, Any]:
    treated, control = found[prediction.treated], found[prediction.control]
    differences = [
        difference
        for seed in treated
        if seed in control and (difference := _difference(prediction, treated[seed], control[seed])) is not None
    ]
    interval = interval_of(differences)
    return {
        **vars(prediction),
        "difference": _as_json(interval),
        "verdict": verdict_of(interval, prediction.expectation, prediction.margin),
    }


def _difference(
    prediction: Prediction, treated: Mapping[str, float | None], control: Mapping[str, float | None]
) -> float | None:
    one, other = treated.get(prediction.measure), control.get(prediction.measure)
    if one is None or other is None:
        return None
    if not prediction.relative:
        return one - other
    return math.log(one / other) if one > 0 and other > 0 else None


def _as_json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else vars(interval)
