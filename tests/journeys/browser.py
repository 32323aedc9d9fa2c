"""A real Chromium on a running controller: what a person sees, and whatever the browser complains of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
AXE = ROOT / "build/console/web/node_modules/axe-core/axe.min.js"
# Only pages of our own are opened. The browser's sandbox is for others, and neither root nor a user without new
# privileges can have it.
FLAGS = [
    *("--no-sandbox", "--disable-dev-shm-usage"),
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SECONDS = 15.0


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser."""
    program = os.environ.get("MUSTER_CHROMIUM") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """One page, and what the browser complained of while it was open."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    def visit(self, address: str, heading: str | re.Pattern[str] | None = None) -> Page:
        """Open an address and wait until its page stands."""
        self.page.goto(address)
        if heading is None:
            self.page.locator("main h1").first.wait_for()
        else:
            self.page.get_by_role("heading", level=1, name=heading).wait_for()
        return self.page

    def settled(self) -> Page:
        """Wait until nothing is on its way any more."""
        expect(self.page.locator(".waiting")).to_have_count(0)
        return self.page

    def violations(self) -> list[str]:
        """Return what axe finds on the page as it stands."""
        # through the debugger, as the page's own policy lets no foreign script in
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{violation['id']} ({violation['impact']}): {node['target']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]

    def too_wide(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return max(width, 0)


@contextmanager
def tab(
    browser: Browser, url: str, login: str | None = None, width: int = 1440, scheme: str = "light", height: int = 900
) -> Iterator[Tab]:
    """Open a window on ``url``; ``login``: the path of a one-time link. Fails for whatever the browser complains of."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        timezone_id="Europe/Zurich",
        locale="en-GB",
    )
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    opened = Tab(context, page)

    def complain(message: ConsoleMessage) -> None:
        # an answer that is an error is part of some tests, and so is a controller that is away
        if message.type in ("error", "warning") and not re.search("Failed to load resource|WebSocket", message.text):
            opened.complaints.append(message.text)

    page.on("console", complain)
    page.on("pageerror", lambda error: opened.complaints.append(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: (opened.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        if login is not None:
            opened.visit(login, "Overview")
        yield opened
    finally:
        context.close()
    assert opened.complaints == [], opened.complaints
