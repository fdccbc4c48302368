from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from lepto.benchmarks.report import quality
from lepto.runtime import cli

_spec = importlib.util.spec_from_file_location("report_parts", Path(__file__).with_name("report_parts.py"))
assert _spec is not None
assert _spec.loader is not None
parts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parts)

MakePackage = Callable[..., Path]
LABELS = ("order", "refund", "person")


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class TestQuality:
    def test_confusion_as_scikit_learn_counts(self) -> None:
        rng = np.random.default_rng(0)
        labels, decisions = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
        np.testing.assert_array_equal(quality.confusion(labels, decisions, 4), confusion_matrix(labels, decisions))

    @pytest.mark.parametrize("classes", [2, 5])
    def test_area_as_scikit_learn_has_it_with_ties_too(self, classes: int) -> None:
        rng = np.random.default_rng(1)
        labels = rng.integers(0, classes, 3000)
        scores = np.round(np.eye(classes)[labels] + rng.normal(size=(3000, classes)), 1)
        curve = quality.roc(labels, scores)
        truth = labels if classes == 2 else np.eye(classes)[labels].ravel()
        expected = roc_auc_score(truth, scores[:, 1] if classes == 2 else scores.ravel())
        assert curve.auc == pytest.approx(expected, abs=1e-12)
        assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
        assert (np.diff(curve.fpr) >= 0).all()
        assert curve.fpr.size <= 300

    def test_flips_and_slices_count_everybody_once(self) -> None:
        own = parts.evidence()
        found = quality.flips(own.labels, own.source, own.result, own.rows)
        assert len(found) == int((own.source.decisions != own.result.decisions).sum()) > 0
        for flip in found:
            right = {"broken": flip.source[0], "repaired": flip.result[0]}.get(flip.kind)
            assert right is None or right == flip.label == own.labels[flip.row]
        assert [f.kind for f in found] == sorted((f.kind for f in found), key=["broken", "repaired", "other"].index)
        names = [LABELS[label] for label in own.labels]
        cut = quality.slices("label", names, own.labels, own.source.decisions, own.result.decisions)
        assert sum(part.n for part in cut) == 120
        assert sum(part.n * part.result[0] for part in cut) == pytest.approx((own.result.decisions == own.labels).sum())
        assert [part.result[0] for part in cut] == sorted(part.result[0] for part in cut)

    def test_quarters_of_lengths(self) -> None:
        names = quality.length_slices(np.array([3, 3, 4, 5, 5, 6, 9, 12]))
        assert names[0] == "3 tokens"
        assert names[-1] == "9 to 12 tokens"
        assert len(set(quality.length_slices(np.array([7, 7, 7])))) == 1

    def test_divergence_of_the_same_is_nothing(self) -> None:
        own = parts.evidence()
        assert quality.divergence(own.source.scores, own.source.scores) == pytest.approx(0, abs=1e-12)
        assert quality.divergence(own.source.scores, own.result.scores) > 0


def test_classes_that_nobody_has_are_left_out_of_the_confusion_matrix() -> None:
    from lepto.benchmarks.report import charts_quality
    from lepto.runtime.evidence import Answers

    scores = np.eye(5)[[0, 3, 3, 4]]  # class 4 is only answered, 1 and 2 not even that
    figure = charts_quality.confusion_figure(
        np.array([0, 3, 3, 3]), ["a", "b", "c", "d", "e"], [("result", "red", Answers.of(scores, logits=False))]
    )
    (heat,) = figure.views[0].data
    assert heat["x"] == heat["y"] == ["a", "d", "e"]
    assert np.asarray(heat["customdata"]).tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 0]]
    assert "2 classes that no sample has" in figure.caption
    assert figure.rows == [["d", "e", "1"]]


class TestCommand:
    def test_a_page_with_everything(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        package = parts.rich(make_package(tmp_path / "base"), tmp_path / "rich")
        gate = tmp_path / "gate.json"
        check = {"name": "p50_ms", "verdict": "pass", "message": "p50_ms fell <b>", "change": -0.5, "low": -0.6,
                 "high": -0.4, "limit": "5%", "allowed": 0.05}  # fmt: skip
        gate.write_text(json.dumps({"verdict": "pass", "checks": [check], "baseline": "a", "candidate": "b"}))
        code, out, err = lepto("report", package, gate, "-o", tmp_path / "r.html", "--json")
        assert code == 0, err
        document = json.loads(out)
        assert document["figures"] == [
            "Changes that the gate has seen", "Candidates of the search", "Latency after each pass",
            "Size after each pass", "Metric after each pass", "Latency of single samples", "Speed-up, block by block",
            "Confusion matrix", "ROC curves", "Reliability", "Accuracy by label", "Accuracy by length",
            "Error of each layer",
        ]  # fmt: skip
        own = parts.evidence()
        numbers = document["packages"][0]
        assert numbers["accuracy"]["result"] == pytest.approx((own.result.decisions == own.labels).mean())
        assert numbers["flips"] == int((own.source.decisions != own.result.decisions).sum())
        page = (tmp_path / "r.html").read_text()
        assert "a &lt;toy&gt;" in page
        assert "&lt;slower&gt;" in page
        assert "<toy>" not in page
        assert "p50_ms fell &lt;b&gt;" in page
        assert not re.findall(r'(?:src|href)="(?!#|data:)', page.split("<script>")[0])

    def test_an_old_package_still_reads_and_is_measured(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        package = make_package(tmp_path / "old")
        code, out, err = lepto("report", package, "-o", tmp_path / "a.html", "--json")
        assert code == 0, err
        assert json.loads(out)["figures"] == []
        assert "stores no answers" in (tmp_path / "a.html").read_text()
        code, out, err = lepto("report", package, "-o", tmp_path / "b.html", "--eval", evaluation, "--json")
        assert code == 0, err
        document = json.loads(out)
        assert document["figures"] == ["Confusion matrix", "ROC curves", "Reliability"]
        assert document["packages"][0]["accuracy"] == {"result": 1.0}

    def test_several_packages_in_one_page(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = parts.rich(make_package(tmp_path / "base"), tmp_path / "one")
        two = parts.rich(make_package(tmp_path / "base2", name="other"), tmp_path / "two", parts.evidence(seed=1))
        code, out, err = lepto("report", one, two, "-o", tmp_path / "r.html", "--json")
        assert code == 0, err
        assert [package["name"] for package in json.loads(out)["packages"]] == ["t", "other"]

    def test_what_cannot_be_shown_says_so(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        package = make_package(tmp_path / "p")
        (tmp_path / "r.html").write_text("mine")
        assert "r.html exists" in lepto("report", package, "-o", tmp_path / "r.html")[2]
        assert (tmp_path / "r.html").read_text() == "mine"
        code, _, err = lepto("report", package, "-o", tmp_path / "x.html", "--slice", "channel")
        assert code == 2
        assert "--slice names a column of the --eval data" in err
        broken = tmp_path / "result.json"
        broken.write_text("[1]")
        assert "a JSON object is expected" in lepto("report", broken, "-o", tmp_path / "x.html")[2]
        assert not (tmp_path / "x.html").exists()
        assert lepto("report", package, "-o", tmp_path / "r.html", "--force")[0] == 0
        assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
        assert sorted(path.name for path in tmp_path.glob("*.html*")) == ["r.html"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install one (Debian: apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


DRAWN = """() => [...document.querySelectorAll('.plot')].map(div => {
  const shapes = div.querySelectorAll('.trace path, .trace .point, .hm image, .trace .js-line').length;
  const box = div.querySelector('.main-svg')?.getBoundingClientRect();
  return [div.id, shapes > 0 && !!box && box.width > 200 && box.height > 80];
})"""


class TestBrowser:
    @pytest.fixture
    def page_file(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> Path:
        package = parts.rich(make_package(tmp_path / "base"), tmp_path / "rich")
        code, _, err = lepto("report", package, "-o", tmp_path / "r.html")
        assert code == 0, err
        return tmp_path / "r.html"

    def test_drawn_quiet_and_in_reach_of_the_keyboard(self, browser: Any, page_file: Path) -> None:
        said: list[str] = []
        asked: list[str] = []
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=30_000)
        drawn = page.evaluate(DRAWN)
        assert len(drawn) == 12
        assert all(fine for _, fine in drawn), drawn
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []

        reached: set[str] = set()
        for _ in range(150):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {name for name, _ in drawn} <= reached
        assert "BUTTON" in reached
        page.focus("#figure0")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "ms" in page.inner_text("#live")
        page.keyboard.press("Escape")
        assert page.inner_text("#live") == ""

        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        page.wait_for_timeout(200)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        colors = "[...document.querySelectorAll('.plot text')].map(t => getComputedStyle(t).fill)"
        assert "rgb(232, 235, 238)" in page.evaluate(colors)
        group = page.locator(".views button")
        group.nth(2).click()
        assert group.nth(2).get_attribute("aria-pressed") == "true"
        assert all(fine for _, fine in page.evaluate(DRAWN))
        page.evaluate("document.querySelector('#figure3 .main-svg').remove()")
        assert dict(page.evaluate(DRAWN))["figure3"] is False  # the check can fail
        assert said == []
        context.close()

    def test_a_phone_and_paper(self, browser: Any, page_file: Path, tmp_path: Path) -> None:
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark"
        )
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=30_000)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert all(fine for _, fine in page.evaluate(DRAWN))
        page.pdf(path=str(tmp_path / "r.pdf"), format="A4")
        assert (tmp_path / "r.pdf").read_bytes().count(b"/Type /Page\n") >= 3
        context.close()
