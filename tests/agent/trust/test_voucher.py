"""What keeps a build waiting, what refuses it for good, and what of it is told."""

from __future__ import annotations

import pytest

from agent.errors import TrustError
from agent.trust.clock import Clock
from agent.trust.protocol import Refreshed, Target
from agent.trust.voucher import NEVER, WAITS, Voucher
from wire.manifest import Figures, File, Limits, Manifest, Tensor
from wire.manifest import Target as BuildTarget

SHA = "0123456789abcdef" * 4
BUILD = "b-" + "0" * 32
PATH = f"builds/generic/digits/{BUILD}.json"
TENSOR = Tensor(name="x", datatype="FP32", shape=[-1, 64])
MANIFEST = Manifest(
    tenant="home", model="digits", model_version=1, precision="fp32",
    target=BuildTarget(profile="generic", arch=[], runtime="onnxruntime", min_runtime="1.20"),
    files=[File(path="model.onnx", size=1, sha256=SHA, role="model")], inputs=[TENSOR], outputs=[TENSOR],
    figures=Figures(accuracy=None, accuracy_low=None, accuracy_high=None, samples=0, p50_ms=1, p95_ms=2,
                    p50_ms_batch8=None, peak_memory_bytes=1, size_bytes=1, measured_on="here"),
    limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=0), reasons=[], created=1.0,
)  # fmt: skip
GOOD = Clock(suspect=False, reason="", now=2e9, floor=1.9e9)
WRONG = Clock(
    suspect=True, reason="this device's clock says 1970; set it, or let the network set it (NTP)", now=0, floor=1.9e9
)


class Answers:
    """A repository that answers what it was told."""

    def __init__(self) -> None:
        self.clocks = GOOD
        self.found: dict[str, Target | None] = {
            PATH: Target(path=PATH, length=100, sha256=SHA, custom={}, hashes={"sha256": SHA}, file=PATH)
        }
        self.error: TrustError | None = None
        self.asked: list[str] = []

    async def refresh(self, paths: list[str]) -> Refreshed:
        self.asked += paths
        if self.error is not None:
            raise self.error
        return Refreshed(
            root=1, timestamp=1, snapshot=1, targets=1, expires=3e9, issued=1.9e9, received=1, clock=self.clocks,
            found={path: self.found.get(path) for path in paths},
        )  # fmt: skip

    def clock(self) -> Clock:
        return self.clocks


@pytest.fixture
def answers() -> Answers:
    return Answers()


def make(answers: Answers) -> tuple[Voucher, list[str]]:
    told: list[str] = []
    voucher = Voucher(answers, lambda: told.append(voucher.trouble))  # type: ignore[arg-type]
    return voucher, told


async def code(voucher: Voucher, sha256: str = SHA, size: int = 100) -> str:
    with pytest.raises(TrustError) as caught:
        await voucher.vouch(MANIFEST, BUILD, sha256, size)
    return caught.value.code


async def test_the_build_is_asked_for_at_its_own_path(answers: Answers) -> None:
    voucher, told = make(answers)
    await voucher.vouch(MANIFEST, BUILD, SHA, 100)
    assert answers.asked == [PATH]
    assert told == []


async def test_other_bytes_and_unknown_builds_are_refused_for_good(answers: Answers) -> None:
    voucher, _ = make(answers)
    assert await code(voucher, sha256="f" * 64) == "disagree"
    assert await code(voucher, size=101) == "disagree"
    answers.found = {}
    assert await code(voucher) == "not_vouched"
    assert {"disagree", "not_vouched"} == NEVER


async def test_a_clock_that_cannot_be_right_makes_builds_wait_and_is_told_until_it_is_set(answers: Answers) -> None:
    voucher, told = make(answers)
    answers.clocks = WRONG
    assert await code(voucher) == "clock_suspect"
    assert "clock_suspect" in WAITS
    answers.clocks = GOOD
    await voucher.vouch(MANIFEST, BUILD, SHA, 100)
    assert len(told) == 2
    assert "1970" in told[0]
    assert told[1] == ""


async def test_a_wrong_clock_is_told_before_an_update_needs_it(answers: Answers) -> None:
    voucher, told = make(answers)
    answers.clocks = WRONG
    voucher.look_at_clock()
    voucher.look_at_clock()
    answers.clocks = GOOD
    voucher.look_at_clock()
    assert [bool(trouble) for trouble in told] == [True, False]


async def test_what_is_wrong_with_the_repository_stays_told_when_the_clock_is_right(answers: Answers) -> None:
    voucher, told = make(answers)
    answers.error = TrustError("nobody there", "unreachable")
    assert await code(voucher) == "unreachable"
    voucher.look_at_clock()
    assert voucher.trouble == "new builds wait: nobody there"
    assert len(told) == 1
