"""Explanations: whether the candidate answers for the same reasons, by rank correlation of attributions.

The yardstick is what two seeds of one model give: see :mod:`lepto.benchmarks.explanations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lepto.benchmarks.checks.check import Check, Limit, by_interval, not_checked
from lepto.benchmarks.explanations import Agreement, Floats, agreement

if TYPE_CHECKING:
    from lepto.benchmarks.checks.registry import Setting
    from lepto.benchmarks.evidence import Evidence

SAMPLES: Final = 24
# Fewer could not show anything at 5 %, whatever their signs: 2^-5 is 3 %.
FEWEST: Final = 6
SEEDS: Final = 2
PERMUTATIONS: Final = 10
# One word or patch ranks nothing against another, and the time grows with the square of their number.
LEAST, MOST = 3, 64


def judge_explanations(outer: Agreement, inner: Agreement, limit: Limit) -> Check:
    """Judge how far the rank correlation lies below what seeds give.

    Args:
        outer: With the interval whose lower end shows a regression.
        inner: With the interval whose upper end shows a pass.
        limit: The largest drop of the correlation.
    """
    story = (
        f"explanations: attributions of baseline and candidate rank alike by {outer.between:.3f}, those of one model "
        f"with two seeds by {outer.noise:.3f}: {outer.drop:+.3f} less on {outer.n} samples ({outer.low:+.3f} to "
        f"{inner.high:+.3f}), limit {limit}"
    )
    return by_interval(
        "explanations", outer.drop, outer.low, inner.high, limit, limit.value, story, baseline=outer.noise,
        candidate=outer.between, n=outer.n,
        rule="Spearman's rank correlation of Shapley values, bootstrap over samples",
    )  # fmt: skip


def make(evidence: Evidence, setting: Setting) -> list[Check]:
    """Ask both sides which words or patches the baseline's answers hang on."""
    from lepto.benchmarks.attributions import attribute, features_of, score_of

    packages = evidence.package(0), evidence.package(1)
    if evidence.samples is None:
        return [not_checked("explanations", "no samples; give them with --eval")]
    if evidence.has_words:
        why = "attributions are of one answer for a sample, and these packages label words: leave the check out"
        return [not_checked("explanations", why)]
    count, seeds = int(setting.options.get("samples", SAMPLES)), int(setting.options.get("seeds", SEEDS))
    if count < FEWEST or seeds < 2:
        why = f"insufficient data: at least {FEWEST} samples and 2 seeds are needed, got {count} and {seeds}"
        return [not_checked("explanations", why)]
    fitting = []
    for row in np.random.default_rng(evidence.seed).permutation(len(evidence.samples)):
        features = features_of(evidence.samples, int(row))
        if features is not None and LEAST <= features.count <= MOST:
            fitting.append((int(row), features))
        if len(fitting) == count:
            break
    if len(fitting) < count:
        return [
            not_checked(
                "explanations",
                f"insufficient data: {len(fitting)} samples are texts or images of {LEAST} to {MOST} words or patches, "
                f"{count} are asked for",
            )
        ]
    answers = evidence.classes(0)
    found: list[list[list[Floats]]] = []
    with evidence.bar("attributions", 2 * len(fitting)) as progress:
        for package in packages:
            score = score_of(package, evidence.threads)
            own = []
            for row, features in fitting:
                target = int(answers[row])
                own.append([
                    attribute(score, features, target, method="shapley", permutations=PERMUTATIONS, seed=seed)
                    for seed in range(seeds)
                ])  # fmt: skip
                progress(len(found) * len(fitting) + len(own), 2 * len(fitting))
            found.append(own)
    try:
        outer = agreement(found[0], found[1], confidence=1 - 2 * evidence.plan.alpha)
        inner = agreement(found[0], found[1], confidence=1 - 2 * evidence.plan.beta)
    except ValueError as error:
        return [not_checked("explanations", f"insufficient data: {error}")]
    return [judge_explanations(outer, inner, setting.limit)]
