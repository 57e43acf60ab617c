"""The written report: every section, nothing external, nothing half-written, and a player that runs in a browser."""

from __future__ import annotations

import dataclasses
import html.parser
import http.server
import math
import os
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import synthetic_report as study

from reports.page import audio_players as page_audio
from reports.page import build as page
from reports.page.build import ReportInput, write_report
from reports.records import read_records
from reports.tables.rendering import to_markdown
from reports.track_scores import TrackScores

SECTIONS = ("learning", "ablation", "axes", "peers", "training", "pictures", "listen", "method")
TABLES = ("learning", "ablation", "all_metrics", "seeds", "rates", "paired", "curves", "cost", "provenance")
FIGURES = (
    "axis-fusion-point.svg",
    "axis-split-point.svg",
    "axis-front-end.svg",
    "rate_curves.svg",
    "scatter.svg",
    "training_curves.svg",
    "spectrograms.webp",
    "phase_errors.webp",
    "goniometers.webp",
)


@dataclasses.dataclass
class Written:
    report: ReportInput
    folder: Path
    html: str
    steps: list[str]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    given = study.report_input(tmp_path_factory.mktemp("audio"))
    steps: list[str] = []
    index = write_report(given, tmp_path_factory.mktemp("out") / "report", progress=steps.append)
    return Written(given, index.parent, index.read_text(encoding="utf-8"), steps)


def small(report: ReportInput, **changes: object) -> ReportInput:
    """The same study, cut down to two systems of ours and one metric: a page in a second."""
    cards = tuple(card for card in report.cards if card.name in ("base", "fusion-0"))
    records = report.records[report.records["system"].isin(["base", "fusion-0"])]
    records = records[records["metric"] == "mel_distance"]
    cut = {"cards": cards, "records": records, "peers": (), "curves": {}, "axes": {}}
    return dataclasses.replace(report, **{**cut, "decoded_audio": {}, "reference_audio": {}, **changes})  # type: ignore[arg-type]


class Elements(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._silent else f" {data} "


@pytest.mark.slow
def test_everything_is_written(written: Written) -> None:
    folder = written.folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["audio", "figures", "index.html", "records.csv", "report.md", "tables"]
    )
    assert {path.name for path in (folder / "tables").iterdir()} == {f"{t}.{s}" for t in TABLES for s in ("csv", "tex")}
    assert {path.name for path in (folder / "figures").iterdir()} == set(FIGURES)
    assert len(list((folder / "audio").iterdir())) == 8
    assert all(path.stat().st_size > 200 for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv")
    for path in (folder / "figures").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    pd.testing.assert_frame_equal(read_records(folder / "records.csv"), written.report.records)
    assert written.steps == ["tables", "figures", "audio", "page"]


def test_the_page_has_every_section_and_escapes_names(written: Written) -> None:
    elements = Elements(written.html)
    identifiers = [attributes["id"] for _, attributes in elements.tags if attributes.get("id")]
    assert set(SECTIONS) <= set(identifiers)
    assert len(identifiers) == len(set(identifiers)), "identifiers are unique in the page"
    assert not {"live", "fusion", "budget", "mono", "six"} & {tag for tag, _ in elements.tags}
    for text in (
        "Where should stereo meet? <fusion & split>",
        "demo corpus, 147 s <six excerpts>",
        "Night <live> 0-10 s",
    ):
        assert text in elements.text
    for line in (*written.report.lead, written.report.question):
        assert line in elements.text
    assert elements.text.index(written.report.lead[0]) < elements.text.index("Did it learn?")
    assert "6 tracks, 6 segments" in elements.text


def test_nothing_is_fetched_from_anywhere(written: Written) -> None:
    for tag, attributes in Elements(written.html).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            target = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", target), f"<{tag} {name}={target}>"
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", written.html)
    sources = [attributes["src"] for tag, attributes in Elements(written.html).tags if tag in ("audio", "img")]
    assert len(sources) == 8 + 3
    assert all(source and source.startswith("data:") for source in sources)


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_no_missing_value_shows_as_a_number(written: Written, name: str) -> None:
    text = (written.folder / name).read_text(encoding="utf-8")
    text = Elements(text).text if name.endswith(".html") else text
    assert not re.search(r"\b(nan|NaN|None|inf)\b", text)
    assert "n/a (silent side & " in text.replace("&amp;", "&")


@pytest.mark.slow
def test_the_page_and_the_markdown_carry_the_tables(written: Written) -> None:
    tables = page.report_tables(written.report, TrackScores(written.report.records))
    assert set(tables) == set(TABLES)
    text = Elements(written.html).text
    markdown = (written.folder / "report.md").read_text(encoding="utf-8")
    for table in tables.values():
        assert to_markdown(table) in markdown
        assert table.title in text
        for row in table.rows:
            assert all(cell.text in text for cell in row.cells)
    for figure in FIGURES:
        assert f"(figures/{figure})" in markdown


def test_rows_that_differ_in_two_things_raise_a_visible_warning(written: Written, tmp_path: Path) -> None:
    assert 'role="alert"' not in written.html
    uneven = [dataclasses.replace(c, steps=9000) if c.name == "fusion-0" else c for c in written.report.cards]
    bare = small(written.report, cards=tuple(uneven))
    text = Elements(write_report(bare, tmp_path / "report").read_text(encoding="utf-8")).text
    assert "These rows differ in more than one thing." in text
    assert "steps: 12000 in STFT <6/6>, but not in Fusion 0 (9000)" in text
    for absent in ("No ablation axis was given.", "No training curves were recorded.", "No decoded audio was given."):
        assert absent in text


def test_a_study_without_peers_or_checks_is_a_report_too(written: Written, tmp_path: Path) -> None:
    bare = small(written.report)
    text = Elements(write_report(bare, tmp_path / "report").read_text(encoding="utf-8")).text
    assert "No other codec was evaluated in this study." in text
    assert "No untrained model was evaluated, so this question stays open." in text


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (slice(0, 0), "no scores of the trained model"),
        (slice(0, 1), "Only 1 track: too few for any interval."),
        (slice(0, 2), "Only 2 tracks: too few for any interval."),
    ],
)
def test_hardly_any_scores_still_give_a_page(written: Written, tmp_path: Path, kept: slice, said: str) -> None:
    records = small(written.report).records
    few = records[records["track"].isin(study.TRACKS[kept])].reset_index(drop=True)
    text = Elements(write_report(small(written.report, records=few), tmp_path / "report").read_text("utf-8")).text
    assert said in text


def test_a_metric_that_was_never_available_is_refused_not_zero(written: Written, tmp_path: Path) -> None:
    records = small(written.report).records.assign(value=math.nan, reason="library not installed")
    index = write_report(small(written.report, records=records), tmp_path / "report")
    assert Elements(index.read_text("utf-8")).text.count("n/a (library not installed)") >= 4


def test_large_audio_lies_beside(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_audio, "EMBEDDED_BYTES", 400_000)
    with_audio = small(written.report, reference_audio=written.report.reference_audio)
    index = write_report(with_audio, tmp_path / "report")
    sources = [a["src"] for tag, a in Elements(index.read_text(encoding="utf-8")).tags if tag == "audio"]
    assert len(sources) == 2
    assert all(source and (index.parent / source).is_file() for source in sources)


@pytest.mark.slow
def test_an_old_report_is_replaced_as_a_whole(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = small(written.report)
    folder = tmp_path / "report"
    write_report(bare, folder)
    (folder / "stale.txt").write_text("from an older version")
    before = (folder / "index.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(page, "build_players", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(bare, folder)
    assert (folder / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "nothing half-written stays"
    write_report(bare, folder)
    assert not (folder / "stale.txt").exists()


def test_a_folder_with_other_things_is_left_alone(written: Written, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weeks of work")
    with pytest.raises(ValueError, match="holds something else than a report"):
        write_report(written.report, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers": ("encodec",)}, "no card for 'encodec'"),
        ({"baseline": "bse"}, "no card for 'bse'; cards are given for base, "),
        ({"reference_audio": {}}, "decoded audio without its reference"),
    ],
)
def test_input_that_does_not_fit_together_is_refused(written: Written, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(written.report, **change)  # type: ignore[arg-type]


# ---- in a browser ---------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# --dump-dom writes the page down once it is loaded. The image holds loading back until the script says that it is done.
HOLD = (
    '<img src="{server}/hold" alt=""><script>(async () => {{ {steps} new Image().src = "{server}/done"; }})();</script>'
)
READY = """
  const root = document.documentElement, wait = (ms) => new Promise((done) => setTimeout(done, ms));
  while (!root.dataset.ready) await wait(20);
"""
PLAY_AND_SWITCH = """
  const player = document.querySelector(".player"), button = player.querySelector(".play");
  button.click();
  await wait(500);
  player.querySelectorAll("input[type=radio]")[2].click();
  await wait(300);
  root.dataset.position = player.querySelector(".seek").value;
  root.dataset.label = button.textContent;
  root.dataset.audible = [...player.querySelectorAll("audio")].map((element) => !element.muted).join();
  root.dataset.status = player.querySelector(".status").textContent;
  button.click();
  root.dataset.after = button.textContent;
"""


@pytest.fixture
def gate() -> Iterator[str]:
    """A server whose /hold answers only when /done was asked for."""
    done = threading.Event()

    class Gate(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            done.set() if self.path == "/done" else done.wait(20)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        done.set()
        server.shutdown()


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, but none of {', '.join(BROWSERS)} is on PATH")
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    return found


def loaded(browser: str, gate: str, index: Path, steps: str = "") -> dict[str, str | None]:
    """The attributes of <html> once the page is ready and `steps` (JavaScript) have run in it."""
    hold = HOLD.format(server=gate, steps=READY + steps)
    text = index.read_text(encoding="utf-8").replace("</body>", f"{hold}</body>")
    index.write_text(text, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
    command += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={index.parent.parent / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", index.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return next(attributes for tag, attributes in Elements(done.stdout).tags if tag == "html")


@pytest.mark.browser
@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "beside"])
def test_the_player_plays_and_switches(
    written: Written, tmp_path: Path, browser: str, gate: str, embedded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_audio, "EMBEDDED_BYTES", 25_000_000 if embedded else 0)
    audio = {key: path for key, path in written.report.decoded_audio.items() if key[0] == "base"}
    with_audio = small(written.report, reference_audio=written.report.reference_audio, decoded_audio=audio)
    index = write_report(with_audio, tmp_path / "report")
    seen = loaded(browser, gate, index, PLAY_AND_SWITCH)
    assert seen["data-ready"] == "true"
    assert seen["data-players"] == "2"
    assert seen["data-status"] == ""
    assert (seen["data-label"], seen["data-after"]) == ("Pause", "Play")
    assert 0.1 < float(seen["data-position"] or 0) < 1.5
    if not embedded:
        assert seen["data-audible"] == "false,false,true"


@pytest.mark.browser
def test_broken_audio_is_reported_by_the_page(written: Written, tmp_path: Path, browser: str, gate: str) -> None:
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"not audio at all")
    bare = small(written.report, reference_audio={"Brass & Co. 0-10 s": broken})
    seen = loaded(browser, gate, write_report(bare, tmp_path / "report"))
    assert (seen["data-ready"] or "").startswith("error: ")
