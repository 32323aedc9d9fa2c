"""How far a client of signed repositories does what the framework wants: `python -m benchmarks.trust_conformance`.

Runs the scenarios of tests/agent/conformance against `muster-agent trust`, or against the command in MUSTER_TUF_CLIENT,
so that two clients can be compared. Ends with 1 when a scenario fails. Needs the program faketime.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.table import Figure, json_option, show

CHECKOUT = Path(__file__).parents[1]
SCENARIOS = "tests/agent/conformance"


def main() -> int:
    """Run, print, and return the exit code."""
    parser = json_option(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many scenarios run at once (2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-conformance-") as directory:
        report = Path(directory) / "report.xml"
        done = run(report, arguments.processes)
        if not report.exists():
            sys.exit(f"pytest ended with {done.returncode} and without a report:\n{done.stdout}{done.stderr}")
        suites = ElementTree.parse(report).getroot().findall("testsuite")
    cases = [case for suite in suites for case in suite.findall("testcase")]
    failed = [case for case in cases if len(case.findall("failure") + case.findall("error"))]
    passed = [case for case in cases if case.find("skipped") is None and case not in failed]
    seconds = sum(float(suite.attrib["time"]) for suite in suites)
    client = os.environ.get("MUSTER_TUF_CLIENT") or "muster-agent trust"
    figures = [
        Figure("scenarios", str(len(cases)), "> 0", len(cases) > 0),
        Figure("passed", str(len(passed)), "all", len(passed) == len(cases)),
        Figure("failed", str(len(failed)), "0", not failed),
        Figure("time", f"{seconds:.0f} s"),
        *(Figure(f"failed: {case.attrib['name']}", case.attrib["classname"]) for case in failed),
    ]
    show(f"Conformance of {client}", figures, arguments.json)
    return 0 if cases and len(passed) == len(cases) and done.returncode == 0 else 1


def run(report: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Run all scenarios; pytest writes ``report``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "hours", f"-n{processes}", f"--junitxml={report}", SCENARIOS]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
