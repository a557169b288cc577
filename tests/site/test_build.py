"""The site as files: complete, linked, safe, incremental, and not brought down by broken runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.leaderboard import aggregate
from posttrainbench.site import Options, build
from tests.conftest import Ptb
from tests.site.material import HOSTILE_NAME, QUESTION, SECRET, run, tree, write_trace

ALLOWED_TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "script",
    "body",
    "a",
    "header",
    "nav",
    "ul",
    "ol",
    "li",
    "button",
    "main",
    "footer",
    "p",
    "h1",
    "h2",
    "h3",
    "div",
    "span",
    "section",
    "article",
    "dl",
    "dt",
    "dd",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "pre",
    "code",
    "strong",
    "em",
    "b",
    "abbr",
    "bdi",
    "form",
    "label",
    "select",
    "option",
    "input",
    "figure",
    "figcaption",
    "svg",
    "g",
    "path",
    "rect",
    "text",
    "desc",
    "circle",
    "br",
    "wbr",
}


class Page(HTMLParser):
    """What a page has in it: tags, links, ids, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.scripts: list[dict[str, str | None]] = []
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(values)
        for name in ("href", "src"):
            if values.get(name) is not None:
                self.links.append(str(values[name]))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "script":
            self.scripts.append(values)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])


@pytest.fixture(scope="module")
def pages(site: SimpleNamespace) -> dict[Path, Page]:
    return {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.root.rglob("*.html"))}


def test_every_kind_of_page_is_there(pages: dict[Path, Page], site: SimpleNamespace) -> None:
    kinds = {str(file.relative_to(site.root)).split("/")[0] for file in pages}
    tops = {f"{name}.html" for name in ("index", "leaderboard-smoke", "integrity", "analyses", "methods", "protocol")}
    assert kinds >= {"agents", "models", "benchmarks", "cells", "runs", *tops}


def test_every_link_leads_to_a_file_of_the_site_and_ids_are_unique(
    pages: dict[Path, Page], site: SimpleNamespace
) -> None:
    for file, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), file
        for link in page.links:
            parts = urlsplit(link)
            if link.startswith("data:image/svg+xml,"):
                continue
            assert not parts.scheme and not parts.netloc, (file, link)
            target = (file.parent / parts.path).resolve() if parts.path else file
            assert target.is_file() and target.is_relative_to(site.root.resolve()), (file, link)
            if parts.fragment and target in pages:
                assert parts.fragment in pages[target].ids, (file, link)


def test_no_page_can_run_anything_but_our_own_script(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        assert page.tags <= ALLOWED_TAGS, (file, page.tags - ALLOWED_TAGS)
        assert not any(name.startswith("on") or name == "style" for name in page.attributes), file
        assert page.policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'"), file
        assert "unsafe" not in page.policy
        for script in page.scripts:
            assert script.get("type") == "application/json" or "assets/" in str(script.get("src")), file


def test_templates_never_switch_escaping_off() -> None:
    folder = Path(__file__).parents[2] / "src" / "posttrainbench" / "site"
    for file in [*folder.glob("templates/*"), *folder.glob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape (?:false|False)|autoescape=False", text), file
        # markup by hand is made in one place only, from an XML tree
        assert file.name == "charts.py" or not re.search(r"\bMarkup\(", text), file


def test_nothing_secret_and_no_test_item_is_in_the_site(site: SimpleNamespace, results: Path) -> None:
    for file in site.root.rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            assert SECRET.encode() not in raw, file
            assert QUESTION.encode() not in raw and b"The answer is" not in raw, file
            # where the results lie on the host is nobody's business
            assert file.name == ".ptb-site.json" or str(results).encode() not in raw, file


def test_copies_of_fetched_data_are_left_out(tmp_path: Path) -> None:
    """They have licences of their own: neither their content nor their names are published."""
    root = tree(tmp_path / "results")
    for record in sorted(root.rglob("run.json")):
        kept = record.parent / "gateway" / "hub-files"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "c0ffee-of-somebody-else.jsonl").write_text('{"text": "licensed-to-somebody-else"}')
    build(root, tmp_path / "site", options=Options(with_items=True))
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert b"somebody-else" not in path.read_bytes(), path


def test_questions_and_answers_are_there_when_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "results", "one")
    build(tmp_path / "results", tmp_path / "site", options=Options(with_items=True), jobs=1)
    page = next((tmp_path / "site" / "runs").glob("*/items-1.html")).read_text(encoding="utf-8")
    assert QUESTION in page and "&lt;b&gt;bold&lt;/b&gt;" in page


def test_broken_runs_are_named_on_the_page_and_cost_nothing_else(site: SimpleNamespace) -> None:
    told = {problem.path.rpartition("adhoc/")[2]: problem.reason for problem in site.built.problems}
    assert told.keys() == {
        "truncated/run.json",
        "missing",
        "newer/run.json",
        "too-high/result.json",
        "nan/result.json",
    }
    page = (site.root / "runs" / "index.html").read_text(encoding="utf-8")
    for name in told:
        assert f"adhoc/{name}" in page
    assert site.built.runs == 15 and site.built.live == 1


def test_a_run_with_broken_parts_keeps_its_page(tmp_path: Path) -> None:
    path = run(tmp_path / "results", "one")
    (path / "audit" / "findings.json").write_text('{"cut')
    (path / "evaluation" / "log.eval").write_bytes(b"no zip")
    (path / "collection.json").write_text("[]")
    (path / "monitor.jsonl").write_bytes(b"\x00\xff\n{}\n")
    built = build(tmp_path / "results", tmp_path / "site", jobs=1)
    assert built.problems == ()
    page = next((tmp_path / "site" / "runs").glob("*/index.html")).read_text(encoding="utf-8")
    for words in (
        "audit/findings.json cannot be read",
        "log.eval cannot be read",
        "collection.json is not a JSON object",
    ):
        assert words in page
    assert "50.0" in page


def test_fields_of_wrong_types_do_not_break_a_page(tmp_path: Path) -> None:
    path = run(tmp_path / "results", "one")
    (path / "audit" / "verdict.json").write_text('{"verdict": ["x"], "rules": 3}')
    (path / "audit" / "findings.json").write_text(
        '{"a": null, "b": {"findings": {"x": 1}, "numbers": [1]}, "c": {"findings": [7]}}'
    )
    (path / "evaluation" / "metrics.json").write_text('{"strict": {"accuracy": "high"}, "paper": 3, "n": {}}')
    (path / "collection.json").write_text('{"submission": {"files": {"x": 3}}, "snapshot": {"refused": ["y"]}}')
    record = json.loads((path / "run.json").read_text())
    record |= {"hardware": "big", "sandbox": [], "provenance": {"x": {"deep": [1, {"y": 2}]}}}
    record["stages"] |= {"collect": "done", "audit": {"status": ["x"], "ended": 7}}
    (path / "run.json").write_text(json.dumps(record))
    built = build(tmp_path / "results", tmp_path / "site", jobs=1)
    assert built.problems == ()


def test_only_changed_runs_are_rendered_again(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "site"
    first = run(results, "first")
    run(results, "second", agent="codex-cli:gpt")
    assert build(results, out, jobs=1).rendered == 2
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.html")}
    again = build(results, out, jobs=1)
    assert (again.rendered, again.changed) == (0, False)
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.html")}
    write_trace(first, ("a new line",))
    changed = build(results, out, jobs=1)
    assert changed.rendered == 1 and changed.changed
    touched = {file for file, time in before.items() if file.exists() and file.stat().st_mtime_ns != time}
    assert touched and all("first" in str(file) or file.parent == out for file in touched), touched


def test_pages_of_runs_that_are_gone_go_too(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "site"
    run(results, "stays")
    gone = run(results, "goes", agent="codex-cli:gpt")
    build(results, out, jobs=1)
    assert len(list((out / "runs").iterdir())) == 3
    shutil.rmtree(gone)
    build(results, out, jobs=1)
    assert [entry.name.partition("-")[0] for entry in (out / "runs").iterdir() if entry.is_dir()] == ["stays"]
    assert not list(out.glob("agents/codex*"))


def test_the_same_results_make_the_same_site_whatever_the_workers(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for number in range(14):
        run(results, f"run-{number}", benchmark="gsm8k" if number % 2 else "bfcl", lines=("x",))
    for name, jobs in (("one", 1), ("two", 2)):
        build(results, tmp_path / name, jobs=jobs)
    files = {
        name: {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("one", "two")
    }
    assert files["one"] == files["two"]


def test_a_directory_that_is_not_a_site_is_not_touched(tmp_path: Path) -> None:
    run(tmp_path / "results", "one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ConfigurationError, match="not empty and not a site"):
        build(tmp_path / "results", tmp_path / "other")
    with pytest.raises(ConfigurationError, match="results directory itself"):
        build(tmp_path / "results", tmp_path / "results")
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_the_program_names_broken_runs_and_refuses_what_cannot_be(ptb: Ptb, tmp_path: Path) -> None:
    tree(tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "adhoc" / "h")
    done = ptb("site", "results", "--out", "site", "--no-traces")
    assert done.returncode == 0, done.stderr
    assert "14 runs, 14 rendered now: site/index.html" in done.stdout
    assert "adhoc/truncated/run.json: not valid JSON" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "site").glob("runs/*/trace-*"))
    wrong = ptb("site", "nowhere", "--out", "x")
    assert wrong.returncode == 2 and wrong.stderr == "ptb: there is no results directory nowhere\n"
    assert not (tmp_path / "x").exists()


def test_an_empty_results_directory_makes_a_site_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    built = build(tmp_path / "results", tmp_path / "site", jobs=1)
    assert built.runs == 0
    assert "No results yet" in (tmp_path / "site" / "index.html").read_text()


def test_numbers_on_the_leaderboard_are_those_of_ptb_leaderboard(site: SimpleNamespace, results: Path) -> None:
    html = (site.root / "index.html").read_text(encoding="utf-8")
    data = json.loads(html.partition('id="board-data">')[2].partition("</script>")[0])
    for view in ("scored", "flags-ignored", "own"):
        board = aggregate(results, published=True, view=view)
        rows = {row.agent.removesuffix(" [published]"): row for row in board.rows}
        for entry in data["rows"]:
            shown, row = entry["views"][view], rows[entry["name"]]
            cells = {cell.pair: cell.score for cell in row.cells}
            for (m, b), value in zip(data["grid"], shown["cells"], strict=True):
                score = cells[(data["models"][m], data["benchmarks"][b])]
                assert value == (None if score is None else pytest.approx(score, abs=1e-6))
    as_scored = aggregate(results, published=True)
    for row in as_scored.rows:
        if row.score is not None:
            assert f"{100 * row.score:.1f}<span" in html
    assert sum(data["weights"]) == pytest.approx(1)


def test_a_hostile_name_is_text_everywhere(site: SimpleNamespace) -> None:
    escaped = HOSTILE_NAME.replace("<", "&lt;").replace(">", "&gt;")
    found = 0
    for file in site.root.rglob("*.html"):
        html = file.read_text(encoding="utf-8")
        assert "<img" not in html
        found += escaped.partition('"')[0] in html
    assert found >= 5
