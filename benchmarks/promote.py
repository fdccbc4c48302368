"""Publish only what passes a gate against the version in production; ``lepto publish --gate`` finds it by entry point.

What passes is staged beside the old version, load-tested on its probe, and put in production by the one rename of the
configuration (:mod:`lepto.runtime.repository`); a running ``lepto serve`` loads and probes the new version beside the
old one before it switches. The old version stays for ``lepto rollback``.
"""

from __future__ import annotations

from pathlib import Path

from lepto.benchmarks.gate import Verdict, print_checks, run_gate
from lepto.benchmarks.gate_config import read_config
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import open_package
from lepto.runtime.published import Published, check_name, find_model, get_model, open_root
from lepto.runtime.repository import publish


def publish_gated(
    package: Path, repository: Path, name: str | None, gate: Path, output: Output, max_queue: int | None = None
) -> Published:
    """Gate a package against production, and publish it if it passes.

    ``max_queue`` is that of :func:`lepto.runtime.repository.publish`.

    Raises:
        LeptoError: It does not pass (exit code 1 or 3), nothing is in production to compare with, or production changed
            meanwhile; nothing was published then.
    """
    config = read_config(gate)
    opened = open_package(package)
    name = check_name(name or opened.manifest.name)
    current = find_model(open_root(repository), name) if repository.is_dir() else None
    if current is None:
        raise LeptoError(
            f"{name!r} has no version in production in {repository}, so that there is nothing to gate against: publish "
            "the first version without --gate"
        )
    output.print(f"gate: {package} against version {current.version} of {name}, which is in production")
    result = run_gate(repository / name / str(current.version), package, config, output)
    print_checks(output, result)
    if result.verdict is not Verdict.PASS:
        bad = "; ".join(check.message for check in result.checks if check.verdict is result.verdict)
        raise LeptoError(
            f"not published, version {current.version} of {name!r} stays in production: {result.verdict.value}: {bad}",
            exit_code=result.verdict.exit_code,
        )
    now = get_model(repository, name)
    if now.version != current.version:
        raise LeptoError(
            f"not published: version {now.version} of {name!r} went into production while version {current.version} "
            "was compared with; run the same command again",
            exit_code=3,
        )
    return publish(package, repository, name=name, max_queue=max_queue)
