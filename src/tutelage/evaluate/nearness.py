"""Which training rows are near in meaning to what a model said: by the vectors that its base has for tokens, with no forward pass."""

# N texts, H hidden size

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tutelage.evaluate.subject import Subject
from tutelage.evaluate.training import Exchange


class Nearness:
    """Finds exchanges near to texts, by the cosine of the mean vectors of their tokens, less what all exchanges have in common.

    Source: of taking off the mean, Mu and Viswanath 2018, arXiv 1702.01417.
    """

    def __init__(self, base: Subject, training: Sequence[Exchange]) -> None:
        self._tokenizer = base.renderer.tokenizer
        self._embeddings: torch.Tensor = base.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        self._training = training
        means_NH = self._means([(one.prompt, one.answer) for one in training])
        self._shared_H = means_NH.mean(axis=0) if training else np.zeros(self._embeddings.shape[1])
        self._rows_NH = _unit(means_NH - self._shared_H)

    def rows(self, said: Sequence[tuple[str, str]], most: int) -> tuple[str, ...]:
        """Return the rows that are nearest to one of these (prompt, answer), those that are it to most of them first."""
        if not self._training or not said:
            return ()
        cosines = _unit(self._means(said) - self._shared_H) @ self._rows_NH.T
        score = np.zeros(len(self._training))
        np.add.at(score, cosines.argmax(axis=1), cosines.max(axis=1))
        order = np.argsort(-score, kind="stable")[:most]
        return tuple(self._training[int(row)].where for row in order if score[row] > 0)

    def _means(self, said: Sequence[tuple[str, str]]) -> npt.NDArray[np.float64]:
        """Return the mean vectors [N, H]."""
        means = np.zeros((len(said), self._embeddings.shape[1]))
        for mean, (prompt, answer) in zip(means, said, strict=True):
            ids = self._tokenizer.encode_inert(f"{prompt}\n{answer}", after_control=False).ids
            mean[:] = self._embeddings[torch.as_tensor(ids, device=self._embeddings.device)].double().mean(dim=0).cpu()
        return means


def _unit(vectors_NH: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vectors_NH / np.maximum(np.linalg.norm(vectors_NH, axis=1, keepdims=True), 1e-12))
