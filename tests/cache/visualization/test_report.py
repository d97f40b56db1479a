"""The page in a real browser: no error on its console, no network, buttons that work."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cache.store.reader import TeacherCache
from cache.visualization.report import write_html
from tests.factories.stores import make_spec, make_store, open_writer

EVIL = "</script><script>alert(1)</script>"
CLICKS = """
<script>
const pressed = () => [...document.querySelectorAll("#maps [aria-pressed=true]")].map((button) => button.value);
const shown = () => [...document.querySelectorAll("#gallery img:not([hidden])")].map((image) => image.dataset.map);
const loaded = () => [...document.images].every((image) => image.complete && image.naturalWidth > 0);
const states = [[pressed(), shown()]];
for (const button of document.querySelectorAll("#maps button")) {
  button.click();
  states.push([pressed(), shown()]);
}
const frame = document.querySelector("#gallery figure");
const before = frame.offsetWidth;
frame.click();
window.onload = () => {
  const result = {states, loaded: loaded(), grew: frame.offsetWidth > before, wide: document.body.scrollWidth};
  const pre = Object.assign(document.createElement("pre"), {id: "result", textContent: JSON.stringify(result)});
  document.body.append(pre);
};
</script>
"""


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory) -> Path:
    """The page of a small store whose teacher and classes have names that would be scripts."""
    folder = tmp_path_factory.mktemp("page")
    teacher = make_spec(("a",)).teacher.model_copy(update={"name": EVIL, "tasks": ((EVIL,), ("b", "c"))})
    cache = TeacherCache(make_store(folder / "teacher.zarr", teacher=teacher))
    write_html(cache, folder / "pages" / "report.html", frames=3)
    return folder / "pages" / "report.html"


def chromium(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser of its own, without a window."""
    found = [path for name in ("chromium", "chromium-headless-shell", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium is installed")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,2400")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [found[0], *options, profile, "--virtual-time-budget=5000", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_page_has_all_sections(evil_page) -> None:
    text = evil_page.read_text()
    for section in ("Frames", "Identity and sizes", "Values and codes", "Frames with the coarsest codes"):
        assert f"<h2>{section}</h2>" in text
    assert "10 samples of v1.0-mini" in text
    assert len(text) < 300_000
    assert text.count('class="histogram"') == 5, "values of three layers, codes of the two that have some"


def test_names_in_the_data_are_escaped(evil_page) -> None:
    text = evil_page.read_text()
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_nothing_comes_from_a_network(evil_page) -> None:
    text = evil_page.read_text()
    assert "default-src 'none'" in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert "href=" not in text
    assert "url(" not in text


def test_buttons_switch_all_frames(evil_page) -> None:
    clicked = evil_page.with_name("clicked.html")
    clicked.write_text(evil_page.read_text().replace("</body>", CLICKS + "</body>"))
    run = chromium(clicked, "--dump-dom")
    assert "CONSOLE" not in run.stderr, run.stderr
    (found,) = re.findall(r'<pre id="result">(.*?)</pre>', run.stdout)
    result = json.loads(found.replace("&lt;", "<").replace("&gt;", ">"))
    names = ["head", "backbone0", "backbone1", "all classes", "canvas mask", f"class {EVIL}", "class b", "class c"]
    assert result["states"] == [[[name], [name] * 3] for name in ["head", *names]]
    assert result["loaded"]
    assert result["grew"]
    assert result["wide"] <= 1200


def test_a_screenshot_has_something_on_it(evil_page) -> None:
    picture = evil_page.with_name("page.png")
    run = chromium(evil_page, f"--screenshot={picture}")
    assert "CONSOLE" not in run.stderr, run.stderr
    assert picture.stat().st_size > 20_000


def test_a_store_without_a_sample_has_a_page(tmp_path) -> None:
    open_writer(tmp_path / "teacher.zarr").close()
    write_html(TeacherCache(tmp_path / "teacher.zarr", allow_partial=True), tmp_path / "report.html")
    assert "No sample is committed yet." in (tmp_path / "report.html").read_text()


def test_a_store_of_several_views_shows_the_first(tmp_path) -> None:
    path = make_store(tmp_path / "teacher.zarr", count=3, views=("canonical", "flip_x"))
    write_html(TeacherCache(path), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "evenly spaced through the store, in view canonical." in text
    assert "views: canonical, flip_x<" in text
