"""Runs of claims: made once, shared, gone on with; the same weights as `tutelage train`; from a claim to its verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.config.load import load_config
from tutelage.config.schema import ModelConfig
from tutelage.data.conversation import Conversation, Role
from tutelage.errors import ConfigError, RunDirError
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.lab.claims.catalogue import CLAIMS, claims_named
from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.learner import Learned, arranged, learn, losses, on_prompts, overrides, weighed, write_data
from tutelage.lab.claims.measures import MEASURES
from tutelage.lab.claims.results import results
from tutelage.lab.claims.runner import Progress, make_runs, runs_of
from tutelage.lab.claims.settings import FULL, QUICK, Arrangement, LossOn, Scale, Settings
from tutelage.lab.claims.statistics import Expectation, Verdict
from tutelage.lab.claims.store import RunStore
from tutelage.lab.world import make_world
from tutelage.model.load import load_model
from tutelage.pack.plan import Step
from tutelage.train.loop import train

WORLD = make_world(0)
TINY = Scale(part=0.016, asked=6, texts=3, seeds=3)
SMALL = TINY.of(Settings(), 0)
TRY = Claim(
    name="tiny",
    claim="A model that was trained answers otherwise than one that was not.",
    done="Three steps.",
    source="a test",
    arms=(Arm("base", replace(Settings(), passes=0)), Arm("tuned", Settings())),
    predictions=(Prediction("tuned", "base", "loss", Expectation.LOWER, 0.1),),
    plot=Plot(("right",)),
)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """The runs of the tiny claim."""
    store = RunStore(tmp_path_factory.mktemp("claims"))
    make_runs(runs_of([TRY], TINY, 3), store, num_workers=1, tell=lambda progress: None)
    return store


def test_a_claim_goes_from_its_arms_to_a_verdict(tried: RunStore) -> None:
    found = json.loads(json.dumps(results([TRY], tried, TINY, 3, {"options": "--seeds 3"})))
    (claim,) = found["claims"]
    assert claim["verdict"] == Verdict.SEEN.value
    assert claim["command"] == "tutelage claims tiny --seeds 3"
    assert claim["predictions"][0]["difference"]["seeds"] == 3
    assert claim["predictions"][0]["difference"]["high"] < -0.1
    base, tuned = claim["arms"]
    assert base["settings"] == {"passes": 0}
    assert tuned["settings"] == {}
    assert set(base["figures"]) == set(MEASURES)
    assert base["figures"]["speed"] is None
    assert base["figures"]["forgetting"]["mean"] == 0
    assert tuned["figures"]["speed"]["mean"] > 0


def test_runs_that_are_there_are_not_made_again(tried: RunStore) -> None:
    told: list[Progress] = []
    before = {path: path.stat().st_mtime_ns for path in tried.folder.iterdir()}
    make_runs(runs_of([TRY], TINY, 3), tried, num_workers=1, tell=told.append)
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in tried.folder.iterdir()} == before
    assert len(before) == 6


def test_only_the_missing_run_is_made_and_says_the_same_again(tried: RunStore) -> None:
    settings = TINY.of(Settings(), 1)
    first = tried.find(settings)
    (tried.folder / f"{settings.key}.json").unlink()
    told: list[Progress] = []
    make_runs(runs_of([TRY], TINY, 3), tried, num_workers=1, tell=told.append)
    assert [(one.done, one.count) for one in told] == [(6, 6)]
    again = tried.find(settings)
    assert first is not None
    assert again is not None
    timed = {"speed"}
    assert {k: v for k, v in again["measures"].items() if k not in timed} == {
        k: v for k, v in first["measures"].items() if k not in timed
    }


def test_equal_arms_of_all_claims_are_one_run() -> None:
    runs = runs_of(CLAIMS, FULL, 2)
    arms = sum(len(claim.arms) for claim in CLAIMS)
    assert len(runs) < 2 * arms
    assert len({settings.key for settings in runs}) == len(runs)
    seeds = [settings.seed for settings in runs]
    assert seeds == sorted(seeds)


def test_any_setting_changes_the_key() -> None:
    usual = Settings()
    others = {field: replace(usual, **{field: 7}).key for field in vars(usual)}  # type: ignore[arg-type]
    assert len({usual.key, *others.values()}) == len(others) + 1


def test_a_damaged_record_is_refused_by_name(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for content in ("{", "[]", '{"measures": 3}'):
        (tmp_path / f"{SMALL.key}.json").write_text(content)
        with pytest.raises(RunDirError, match=f"{SMALL.key}.json is not the record of a run"):
            store.find(SMALL)


def test_a_run_ends_in_the_weights_of_tutelage_train(tmp_path: Path) -> None:
    settings = replace(SMALL, replay_share=0.2, neftune_alpha=5.0, dropout=0.1)
    learned = learn(WORLD, settings)
    write_data(tmp_path / "data", WORLD, settings)
    own = ["sample.count=0", "train.threads=1", f"run.dir={tmp_path / 'run'}"]
    resolved = load_config(None, [*overrides(tmp_path / "data", settings), *own])
    threads = torch.get_num_threads()
    try:
        with RunDir.create(tmp_path / "run") as run:
            final = train(resolved, run, generate=generate).final
    finally:
        torch.set_num_threads(threads)
    assert final is not None
    product = load_model(ModelConfig(path=str(final))).model.state_dict()
    ours = learned.model.state_dict()
    assert set(product) == set(ours)
    assert all(torch.equal(product[name], ours[name]) for name in ours)


@pytest.fixture(scope="module")
def untrained() -> Learned:
    """The base with documents prepared for it."""
    return learn(WORLD, replace(SMALL, passes=0))


def test_loss_on_everything_is_on_everything(untrained: Learned) -> None:
    documents = untrained.prepared.documents
    assert weighed(documents, LossOn.ANSWERS) is documents
    everything = weighed(documents, LossOn.EVERYTHING)
    assert [list(document.ids) for document in everything] == [list(document.ids) for document in documents]
    assert all((document.weights == 1).all() for document in everything)
    assert not any((document.weights == 1).all() for document in documents)


def test_a_leaky_pack_is_one_document_with_the_same_tokens_and_weights(untrained: Learned) -> None:
    documents = untrained.prepared.documents
    planned = Step(((2, 0, 3), (1,)), num_tokens=sum(len(documents[index]) for index in range(4)), weight_sum=5.0)
    assert arranged(planned, documents, Arrangement.PACKED) == (planned, documents)
    taken, joined = arranged(planned, documents, Arrangement.LEAKY)
    assert taken == replace(planned, packs=((0,), (1,)))
    for pack, whole in zip(planned.packs, joined, strict=True):
        for name in ("ids", "weights", "part"):
            assert np.array_equal(
                getattr(whole, name), np.concatenate([getattr(documents[index], name) for index in pack])
            )
    said = [joined[0].roles[number] for number in joined[0].message[joined[0].weights > 0]]
    assert set(said) == {"assistant"}
    assert joined[0].roles == tuple(role for index in planned.packs[0] for role in documents[index].roles)


def test_documents_of_a_leaky_pack_change_one_another(untrained: Learned) -> None:
    documents = untrained.prepared.documents
    planned = Step(((0, 1),), num_tokens=len(documents[0]) + len(documents[1]), weight_sum=1.0)
    _, (together,) = arranged(planned, documents, Arrangement.LEAKY)
    second = replace(together, weights=np.where(np.arange(len(together)) < len(documents[0]), 0, together.weights))
    assert losses(untrained, [second]) != pytest.approx(losses(untrained, [documents[1]]), rel=1e-3)


def test_loss_on_prompts_is_on_what_users_say(untrained: Learned) -> None:
    document, first = untrained.prepared.documents[0], untrained.prepared.records[0]
    assert isinstance(first, Conversation)
    weighs = on_prompts(document).weights > 0
    said = untrained.prepared.tokenizer.decode([int(token) for token in document.ids[weighs]])
    assert said == "".join(message.content for message in first.messages if message.role is Role.USER)


def test_the_claims_are_whole() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.predictions
        measures = {*claim.plot.measures, *(prediction.measure for prediction in claim.predictions)}
        assert measures <= set(MEASURES)
        units = {MEASURES[measure].unit for measure in claim.plot.measures}
        assert len(claim.plot.measures) == 2 if claim.plot.is_scatter else len(units) == 1
        compared = {name for one in claim.predictions for name in (one.treated, one.control)}
        assert claim.plot.is_scatter or compared <= {arm.name for arm in claim.arms}
    for scale in (FULL, QUICK):
        assert scale.seeds >= 3


def test_a_claim_about_an_arm_that_is_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match="no arm is called"):
        replace(TRY, predictions=(Prediction("tuned", "nobody", "loss", Expectation.LOWER, 0.1),))
    with pytest.raises(ValueError, match="one name"):
        replace(TRY, arms=(*TRY.arms, TRY.arms[0]))


def test_names_choose_claims_and_a_wrong_one_is_told_its_neighbour() -> None:
    assert claims_named([]) == CLAIMS
    assert [claim.name for claim in claims_named(["replay", "packing"])] == ["packing", "replay"]
    with pytest.raises(ConfigError) as raised:
        claims_named(["neftun"])
    assert "neftune" in raised.value.mend
