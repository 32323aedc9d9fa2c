"""From a fresh clone to the first answer, and the second start: `python -m benchmarks.first_journey`.

Clones the committed tree into an empty HOME and runs `./deploy_edge.sh --local --once` there twice. Nothing else should
run on the machine meanwhile. Needs the package registries (or pip's settings for local ones).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.table import Figure, json_option, show

ROOT = Path(__file__).parents[1]
AFTER_DOWNLOADS_S = 30.0
SECOND_START_S = 10.0


def main() -> None:
    """Run the first command twice in a clean HOME and print how long it took."""
    arguments = json_option(__doc__).parse_args()
    home = Path(tempfile.mkdtemp(prefix="muster-journey-"))
    try:
        subprocess.run(["git", "clone", "-q", f"file://{ROOT}", str(home / "muster")], check=True)
        kept = ("PIP_", "SSL_CERT", "REQUESTS_CA", "PATH", "LANG")
        environment = {name: value for name, value in os.environ.items() if name.startswith(kept)} | {"HOME": str(home)}
        environment |= {f"MUSTER_{name}_PORT": "0" for name in ("API", "GATEWAY", "CONSOLE", "MQTT")}
        for name in (".config/pip", ".pip"):
            if (Path.home() / name).is_dir():
                shutil.copytree(Path.home() / name, home / name)
        total, after_downloads = run(home, environment)
        second, second_answer = run(home, environment)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    figures = [
        Figure("fresh clone to answer, downloads included", f"{total:.1f} s"),
        Figure(
            "after downloads: start to answer",
            f"{after_downloads:.1f} s",
            f"< {AFTER_DOWNLOADS_S:.0f} s",
            after_downloads < AFTER_DOWNLOADS_S,
        ),
        Figure(
            "second start: start to answer",
            f"{second_answer:.1f} s",
            f"< {SECOND_START_S:.0f} s",
            second_answer < SECOND_START_S,
        ),
        Figure("second start, whole command until it has stopped again", f"{second:.1f} s"),
    ]
    show("The first journey", figures, arguments.json)


def run(home: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run the command once; return the seconds in all, and those it tells from its start to the answer."""
    began = time.monotonic()
    done = subprocess.run(
        ["./deploy_edge.sh", "--local", "--once"],
        cwd=home / "muster",
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the command failed:\n{done.stderr}")
    told = re.search(r"answered ([\d.]+) s after the start", done.stderr)
    assert told is not None, done.stderr
    return time.monotonic() - began, float(told[1])


if __name__ == "__main__":
    main()
