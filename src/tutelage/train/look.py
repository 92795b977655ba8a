"""Looks at the model between steps: the held-out loss and the answers, where they are due, until somebody asks to stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tutelage.parallel import agree
from tutelage.parallel.shard import in_step, is_in_parts
from tutelage.train.checkpoint import RunState
from tutelage.train.evaluate import Evaluation, evaluate
from tutelage.train.gate import text_loss
from tutelage.train.journal import Journal
from tutelage.train.narrate import Narrator
from tutelage.train.plan import sample_steps
from tutelage.train.probe import Probe, Probed
from tutelage.train.sample import Generate, Prompt, Sample, of_one_pass, write_samples
from tutelage.train.saver import Saver
from tutelage.train.scene import Scene
from tutelage.train.stop import StopFlag


@dataclass
class Progress:
    """How far the run has come: its state, and what the looks at the model have seen.

    `taking` is the step that is being taken; None between two.
    """

    state: RunState
    taking: int | None = None
    before: Evaluation | None = None
    latest: Evaluation | None = None
    best: Evaluation | None = None
    samples_before: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Look:
    """Looks at the model, and leaves in the run what it saw."""

    scene: Scene
    journal: Journal
    narrator: Narrator
    generate: Generate
    stop: StopFlag
    saver: Saver
    probe: Probe | None

    def halted(self) -> bool:
        """Return whether any rank is asked to stop; every rank asks."""
        return agree.any_rank(bool(self.stop), self.scene.settings.device)

    def around(self, progress: Progress) -> bool:
        """Evaluate and sample if that is due after the step of `progress`, and return whether it came to its end.

        Where a stop is asked for meanwhile, `progress` stays as it was: whoever goes on from that step looks again.
        """
        scene, step = self.scene, progress.state.step
        num_steps = scene.plan.num_steps
        evaluation: Evaluation | None = None
        samples: tuple[Sample, ...] = ()
        if step in scene.evaluated_after:
            evaluation = self.evaluate(step)
            if evaluation is None:
                return False
        if step in {0, *sample_steps(num_steps)} - {num_steps}:  # the last answers are the result's
            answers = self.sample(step)
            if answers is None:
                return False
            samples = answers
        if step == 0:
            progress.before = progress.latest = progress.best = evaluation
            progress.samples_before = samples
            if evaluation is not None:
                gate = progress.state.gate.begun(evaluation.probed)
                progress.state = replace(progress.state, gate=gate)
        elif evaluation is not None:
            self._take_in(evaluation, progress)
        return True

    def evaluate(self, step: int) -> Evaluation | None:
        """Evaluate on the held-out documents; every rank takes part. None where a stop was asked for meanwhile."""
        scene = self.scene
        found = evaluate(scene.model, scene.prepared.held_out, scene.settings, step=step, halt=self._halt)
        if found is None:
            return None
        started = time.perf_counter()
        probed = self._probe(step)
        if probed is None:
            return None
        asking = time.perf_counter() - started
        if self.probe is not None and step == 0:
            count, times = len(self.probe.prompts), len(scene.evaluated_after)
            self.narrator.say(f"the gate asked {count} prompts in {asking:.1f} s, and does so at {times} evaluations")
        probed = replace(probed, text_loss=text_loss(found, scene.texts))
        evaluation = replace(found, probed=probed, seconds=found.seconds + asking)
        self.journal.evaluation(evaluation)
        self.narrator.evaluation(evaluation)
        return evaluation

    def _probe(self, step: int) -> Probed | None:
        """Ask what the gate asks. Every rank knows what the main one was told; None where a stop was asked for meanwhile."""
        if self.probe is None:
            return Probed()
        answers = self._answer(self.probe.prompts, step=step, max_new_tokens=self.probe.max_new_tokens)
        if answers is None:
            return None
        told = json.dumps(self.probe.judge(answers).to_json()) if agree.is_main() else ""
        return Probed.from_json(json.loads(agree.text_of_main(told)))

    def sample(self, step: int) -> tuple[Sample, ...] | None:
        """Answer the prompts of the samples; None on every rank where a stop was asked for meanwhile."""
        scene = self.scene
        if not scene.prompts:
            return ()
        samples = self._answer(scene.prompts, step=step, max_new_tokens=scene.config.sample.max_new_tokens)
        if samples is None:
            return None
        self.journal.samples(samples)
        self.narrator.samples(samples)
        return samples

    def _answer(self, prompts: Sequence[Prompt], *, step: int, max_new_tokens: int) -> tuple[Sample, ...] | None:
        """Answer prompts greedily: the main rank does, and with it all ranks that hold a part of the model; the others get none.

        Prompts and answers that are computed together are no more tokens than a pack of a step, for which there is room. None on every
        rank where a stop was asked for meanwhile.
        """
        scene, samples = self.scene, []
        if self.journal.writes or is_in_parts(scene.model):
            with scene.settings.autocast(), in_step(scene.model):
                for group in of_one_pass(prompts, max_new_tokens, scene.settings.micro_tokens):
                    samples += write_samples(
                        scene.model,
                        group,
                        self.generate,
                        scene.prepared.renderer,
                        step=step,
                        max_new_tokens=max_new_tokens,
                        halt=self._halt,
                    )
        return None if self.halted() else tuple(samples)

    def _halt(self) -> bool:
        """Return whether to leave off between two passes: replicas meet at the end, ranks of a model in parts at each of them."""
        return self.halted() if is_in_parts(self.scene.model) else bool(self.stop)

    def _take_in(self, evaluation: Evaluation, progress: Progress) -> None:
        config, state = self.scene.config.train, progress.state
        gate = state.gate.after(evaluation.step, evaluation.probed, config.gate)
        for said in gate.news(evaluation.step, evaluation.probed, config.gate):
            self.narrator.say(said)
        if gate.replay_weight != state.gate.replay_weight:
            self.narrator.say(f"replay weighs {gate.replay_weight:.3g} times as much after step {evaluation.step}")
        loss = math.inf if gate.takes_best(config.gate) else evaluation.loss  # beyond the budget nothing is the best
        improvement = state.improvement.after(loss, evaluation.step, config.early_stopping)
        is_best = improvement.evaluations_since == 0
        progress.state = replace(state, improvement=improvement, gate=gate)
        progress.latest = evaluation
        if is_best:
            progress.best = evaluation
            self.saver.save_best(self.scene.model, progress.state)
