"""Which consecutive parts go to which stage, so that the heaviest stage is as light as can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def shares(weights: Sequence[int], stages: int, before: int = 0, after: int = 0) -> list[range]:
    """The parts of each stage, at least one each; `before` weighs on the first stage and `after` on the last."""
    if len(weights) < stages:
        raise ValueError(f"{len(weights)} parts cannot be shared by {stages} stages; each needs one at least")
    until = [0, *accumulate(weights)]

    def weight(stage: int, first: int, last: int) -> int:
        extra = before * (stage == 0) + after * (stage == stages - 1)
        return until[last] - until[first] + extra

    # best[end], when the stages so far share the parts before `end`: the heaviest, how uneven they are, the cuts
    best: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [0])}
    for stage in range(stages):
        best = {
            end: min(
                (max(worst, own := weight(stage, start, end)), uneven + own * own, [*cuts, end])
                for start, (worst, uneven, cuts) in best.items()
                if start < end
            )
            for end in range(stage + 1, len(weights) - (stages - stage - 1) + 1)
        }
    return [range(first, last) for first, last in pairwise(best[len(weights)][2])]
