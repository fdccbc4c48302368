"""``make prove-gate``: how often the gate raises a false alarm, and how often it finds what is there."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from lepto.benchmarks import scenarios
from lepto.benchmarks.checks.pairs import Plan
from lepto.benchmarks.proof import losses
from lepto.benchmarks.proof.model import make_package
from lepto.benchmarks.proof.timing import LIMIT, Outcome, compare_live, record, replay
from lepto.benchmarks.workloads.shop_intents import workload as intents
from lepto.compiler.data import Samples, load_samples
from lepto.compiler.proportions import wilson_interval
from lepto.runtime.console import Output
from lepto.runtime.machine import package_versions, this_machine
from lepto.runtime.measure import machine_load
from lepto.runtime.package import Package
from lepto.runtime.session import Session

STORE: Final = Path(__file__).resolve().parents[1] / "baselines"
SLOW: Final = (0.0, 0.03, 0.05, 0.10, 0.25)
# Share that must be found of each injected slow-down.
BARS: Final = {0.03: 0.80, 0.05: 0.95, 0.10: 0.95, 0.25: 0.95}
PASS_WITHIN_S, OBVIOUS_WITHIN_S = 60.0, 15.0


def main(arguments: list[str] | None = None) -> int:
    """Run the proof; 0 if it keeps all bars."""
    parser = argparse.ArgumentParser(prog="python -m lepto.benchmarks.proof", description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="comparisons of each kind, live and replayed together")
    parser.add_argument("--live-aa", type=int, default=100, help="of the A/A comparisons, how many are live")
    parser.add_argument("--live-slow", type=int, default=30, help="of each slow-down, how many are live")
    parser.add_argument("--record", type=int, default=576, help="pairs of blocks recorded for the replays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORE, help="folder of the result")
    options = parser.parse_args(arguments)
    output = Output()
    with tempfile.TemporaryDirectory(prefix="lepto-proof-") as folder:
        output.print("training the model of the proof")
        package = make_package(Path(folder) / "proof")
        document = _prove(package, options, output)
    options.store.mkdir(parents=True, exist_ok=True)
    (options.store / "gate-proof.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _print(document, output)
    return 0 if all(bar["kept"] for bar in document["bars"]) else 1


def _prove(package: Package, options: argparse.Namespace, output: Output) -> dict[str, Any]:
    samples, answers = _ask(package)
    order = random.Random(options.seed)
    load = machine_load()
    todo = [0.0] * options.live_aa + [slow for slow in SLOW[1:] for _ in range(options.live_slow)]
    order.shuffle(todo)
    outcomes: list[Outcome] = []
    recorded = [record(package, samples, options.record // 2, options.seed, output)]
    quiet = Output(as_json=True)
    quiet.console.quiet = True
    with output.progress() as progress:
        task = progress.add_task("live comparisons", total=len(todo))
        for i, slow in enumerate(todo):
            outcomes.append(compare_live(package, samples, slow, options.seed + 1 + i, quiet))
            progress.advance(task)
            if not output.console.is_terminal and i % 20 == 19:
                output.print(f"{i + 1} of {len(todo)} live comparisons")
    recorded.append(record(package, samples, options.record // 2, options.seed + 10**6, output))
    for slow in SLOW:
        live = sum(one.slow == slow for one in outcomes)
        outcomes += [replay(recorded, slow, order) for _ in range(options.runs - live)]
    right = answers == samples.labels
    found = losses.prove(answers, samples.labels, options.runs, options.seed)
    after = machine_load()
    aa = np.log(np.concatenate(recorded)[:, 1, 0] / np.concatenate(recorded)[:, 0, 0])
    rows = [_summary(outcomes, slow, live) for slow in SLOW for live in (True, False)]
    machine = this_machine()
    return {
        "limit": str(LIMIT),
        "plan": asdict(Plan()),
        "model": {
            "what": "word embeddings and dense layers, trained on shop_intents",
            "p50_ms": 1e3 * float(np.median(np.concatenate(recorded)[:, 0, 0])),
            "threads": 1,
            "accuracy": float(right.mean()),
            "samples": len(samples),
        },
        "rows": rows,
        "accuracy": [asdict(one) for one in found],
        "bars": _bars(outcomes),
        "aa_spread": {
            "pairs": len(aa),
            "sd": float(aa.std()),
            "robust_sd": float(1.4826 * np.median(np.abs(aa - np.median(aa)))),
            "median": float(np.median(aa)),
        },
        "load_average": [load.average_1min, after.average_1min],
        "others_busy": _quartiles([one.busy for one in outcomes if one.busy is not None]),
        "hardware": f"{machine.cpu}, {machine.cpus} CPUs",
        "versions": package_versions(("lepto", "onnxruntime", "numpy", "scipy")),
        "seed": options.seed,
    }


def _ask(package: Package) -> tuple[Samples, np.ndarray[Any, Any]]:
    samples = load_samples(
        str(intents.data_file("test")), text_column="text", label_column="label", labels=package.labels, split="test"
    )
    session = Session(package)
    feeds = scenarios.feeds_from_samples(package, samples)
    return samples, np.array([int(session.run(feed)["logits"][0].argmax()) for feed in feeds])


def _summary(outcomes: list[Outcome], slow: float, live: bool) -> dict[str, Any]:
    own = [one for one in outcomes if one.slow == slow and one.live is live]
    counts = {verdict: sum(one.verdict == verdict for one in own) for verdict in ("pass", "regression", "inconclusive")}
    low, high = wilson_interval(counts["regression"], len(own)) if own else (0.0, 1.0)
    return {
        "slow": slow,
        "live": live,
        "n": len(own),
        **counts,
        "regression_low": low,
        "regression_high": high,
        "pairs": _quartiles([float(one.pairs) for one in own]),
        "seconds": _quartiles([one.seconds for one in own if one.seconds is not None]),
    }


def _quartiles(values: list[float]) -> list[float] | None:
    """Least, median, 90th percentile, largest."""
    return [round(float(np.quantile(values, q)), 3) for q in (0, 0.5, 0.9, 1)] if values else None


def _bars(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    def share(slow: float, verdict: str) -> tuple[int, int]:
        own = [one for one in outcomes if one.slow == slow]
        return sum(one.verdict == verdict for one in own), len(own)

    alarms, n = share(0.0, "regression")
    bars = [
        {
            "what": "no false alarm",
            "found": f"{alarms} in {n}; below {1 - 0.05 ** (1 / n):.2%} at 95 %" if not alarms else f"{alarms} in {n}",
            "kept": alarms == 0,
        }
    ]
    for slow, least in BARS.items():
        hits, n = share(slow, "regression")
        low, high = wilson_interval(hits, n)
        bars.append(
            {
                "what": f"power at {slow:+.0%} at least {least:.0%}",
                "found": f"{hits / n:.1%} of {n} ({low:.1%} to {high:.1%})",
                "kept": hits / n >= least,
            }
        )
    for what, slow, verdict, within in (
        ("typical pass", 0.0, "pass", PASS_WITHIN_S),
        ("+25 % found", 0.25, "regression", OBVIOUS_WITHIN_S),
    ):
        took = [one.seconds or 0.0 for one in outcomes if one.live and one.slow == slow and one.verdict == verdict]
        bars.append(
            {
                "what": f"{what} within {within:.0f} s",
                "found": f"median {np.median(took):.1f} s, longest {max(took):.1f} s" if took else "never",
                "kept": bool(took) and float(np.median(took)) <= within,
            }
        )
    return bars


def _print(document: dict[str, Any], output: Output) -> None:
    rows = []
    for row in document["rows"]:
        if row["n"]:
            took = row["seconds"]
            rows.append(
                [
                    f"{row['slow']:+.0%}" if row["slow"] else "A/A",
                    "live" if row["live"] else "replayed",
                    *(str(row[key]) for key in ("n", "pass", "regression", "inconclusive")),
                    f"{row['regression_low']:.1%} to {row['regression_high']:.1%}",
                    "-" if took is None else f"{took[1]:.1f} (longest {took[3]:.1f})",
                ]
            )
    output.table(
        f"latency, limit {document['limit']}",
        ["injected", "", "n", "pass", "regression", "inconclusive", "regressions, 95 %", "seconds, median"],
        rows,
    )
    output.table(
        "accuracy, limit 1%",
        ["loss", "churn", "samples", "rule", "pass", "regression", "inconclusive"],
        [
            [
                f"{one['loss_points']:g} points", f"{one['churn_points']:g} points", f"{one['samples']:,}", one["rule"],
                *(str(one["verdicts"][key]) for key in ("pass", "regression", "inconclusive")),
            ]
            for one in document["accuracy"]
        ],
    )  # fmt: skip
    for bar in document["bars"]:
        output.print(f"{'kept  ' if bar['kept'] else 'MISSED'}  {bar['what']}: {bar['found']}")


if __name__ == "__main__":
    sys.exit(main())
