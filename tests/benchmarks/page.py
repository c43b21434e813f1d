"""Does the pack hold the front end up? The time from opening a page to its graph, with it and without.

    python dev.py bench page [PAGES]

Two hosts, one without any custom node; pages are opened in turn, each in a window of its own. The first pair
warms both hosts up and is not counted. Needs a browser (INLAY_BROWSER, or Chromium on the path).
"""

import sys
import time
from contextlib import ExitStack

from inlay.evaluation.tables import Mean, paired_difference
from inlay.headless import Server
from inlay.tools import browser


class Bare(Server):
    """The host without custom nodes."""

    def command(self) -> list[str]:
        command = super().command()
        place = command.index("--whitelist-custom-nodes")
        return command[:place] + command[place + 2 :]


def opening(window, url: str) -> tuple[float, float]:
    """Seconds until the page has painted anything, and until its graph stands."""
    page = window.new_page()
    page.set_default_timeout(600_000)
    start = time.monotonic()
    page.goto(url)
    page.wait_for_function(browser.READY)
    standing = time.monotonic() - start
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
    page.close()
    return paint / 1000, standing


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else 10
    with ExitStack() as opened:
        hosts = {name: opened.enter_context(kind()) for name, kind in (("with", Server), ("without", Bare))}
        chromium = opened.enter_context(browser.chromium())
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in hosts}
        for _ in range(count + 1):
            for name, host in hosts.items():
                taken[name].append(opening(chromium, host.url))
    for place, what in enumerate(("first paint", "the graph stands")):
        times = {name: [pair[place] for pair in pairs[1:]] for name, pairs in taken.items()}
        said = ", ".join(f"{Mean.of(values).text()} s {name}" for name, values in times.items())
        change = paired_difference(times["with"], times["without"])
        print(f"{what}: {said} the pack; difference {change.text()} s (n = {count})")


if __name__ == "__main__":
    main()
