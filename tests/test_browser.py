"""Reports in a real browser, Debian's chromium without a screen: nothing on its console, nothing fetched, all pictures shown."""

import json
import re
import shutil
import subprocess
from types import MappingProxyType

import matplotlib.image
import pytest

from sbi_flows import report
from tests.test_reporting import RESULTS

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1000,1400", "--enable-logging=stderr",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]


def opened(page, tmp_path):
    """What the browser's console said, the addresses it asked for, and the document it made of the page."""
    log, picture = tmp_path / "net.json", tmp_path / "screen.png"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", f"--screenshot={picture}"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    dumped = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", shown.stderr)
    requests = [event["params"] for event in json.loads(log.read_text())["events"] if "initiator" in event.get("params", {})]
    # The browser's own requests (its clock, its account) come from no page.
    asked = {request["url"] for request in requests if request["initiator"] != "not an origin"}
    return console, {url for url in asked if not url.startswith(("file:", "data:"))}, dumped.stdout, picture


@pytest.mark.parametrize("name", ["chains", "evil chains", "comparison", "sampler", "several"])
def test_a_report_in_the_browser(name, tmp_path):
    page = report(RESULTS[name](), tmp_path / "page.html")
    console, asked, document, picture = opened(page, tmp_path)
    assert console == []
    assert asked == set()
    assert len(re.findall("<h2", document)) == page.read_text().count("<h2")
    screen = matplotlib.image.imread(picture)
    assert screen.shape[:2] == (1400, 1000) and len({tuple(colour) for colour in screen[::7, ::7].reshape(-1, screen.shape[-1])}) > 10


def test_a_page_that_is_not_clean_is_seen(tmp_path):
    """The watch itself: an error on the console and a picture from elsewhere."""
    page = report(MappingProxyType(dict(chains=RESULTS["chains"]())), tmp_path / "page.html")
    spoiled = page.read_text().replace("</body>", "<img src='http://127.0.0.1:9/a.png'><script>null.x</script></body>")
    page.write_text(spoiled)
    console, asked, _, _ = opened(page, tmp_path)
    assert any("TypeError" in line for line in console)
    assert "http://127.0.0.1:9/a.png" in asked
