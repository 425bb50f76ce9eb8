"""An engine's or a program's answers on images, beside the float32 model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drexperts.export.proof.agreement import percentile, score_agreement
from drexperts.export.proof.parity import Outputs
from drexperts.runtime.proof import LIMITS, MIN_IMAGES, Parity, SetParity, within

Scores = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered on the images.

    scores: of the images; None for a score that is not finite
    weights_and_maps: how far these are from the float32 model's, by the names of `Parity.measured`
    """

    scores: Scores
    weights_and_maps: dict[str, float | None]

    @classmethod
    def of(cls, outputs: Outputs, parity: Parity) -> "Answers":
        """The answers of which `parity` was computed."""
        named = {n: v for n, v in parity.measured().items() if n.startswith(BEYOND_SCORES)}
        scores = (score if np.isfinite(score) else None for score in outputs.scores.tolist())
        return cls(scores=tuple(scores), weights_and_maps=named)


BEYOND_SCORES = ("weights_", "maps_", "leading_")


@dataclass(frozen=True)
class Reference:
    """The float32 model's scores.

    span: of the scores' scale
    sets: how many of the images each set has, in their order
    """

    scores: tuple[float, ...]
    span: float
    sets: dict[str, int]

    def agreement(self, answers: Answers) -> SetParity:
        """How far the scores are from the reference's."""
        return agreement(self.scores, answers.scores, self.span)

    def keeps_limits(self, answers: Answers, precision: str) -> bool:
        """Whether the answers are within the limits for a precision, on all images and each set."""
        limits, start, sets = LIMITS[precision], 0, []
        for size in self.sets.values():
            part = slice(start, start + size)
            start += size
            if size >= MIN_IMAGES:
                sets.append(agreement(self.scores[part], answers.scores[part], self.span))
        figures: Mapping[str, float | None] = self.agreement(answers).measured()
        drift = np.abs(np.array(answers.scores, float) - np.array(self.scores)) / self.span
        most = {"score_p99": percentile(drift, 99)}
        whole = within({**figures, **most, **answers.weights_and_maps}, limits)
        return whole and all(each.keeps(limits) for each in sets)


def agreement(expected: Sequence[float], got: Sequence[float | None], span: float) -> SetParity:
    """`score_agreement` of scores as a receipt has them."""
    return score_agreement(np.array(expected, float), np.array(got, float), span)
