"""From an uploaded model to judged candidates with one signed build among them.

Invariant: check, convert, measure, judge, choose, sign, in this order; what was not measured is not judged, and what
the gate did not accept is not signed. Works on local files only: fetching and handing over is `worker.py`'s business.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.builds import benchmark
from controller.builds.accept import LIMITS, Accepted, Refused, accept, choose
from controller.builds.child import Bounds, StepError, run_child
from controller.builds.figures import Measured
from controller.builds.recipe import FP32, Optimization, SourceFacts, Step, left_out, recipe
from controller.builds.sign import BuilderKey, Sealed, limits_for
from wire.manifest import Figures, File, Manifest, Target, Tensor

_CONVERT: Final = "controller.builds.convert.onnx"
RUNTIME: Final = "onnxruntime"
MIN_RUNTIME: Final = "1.18"  # the first that runs opset 21 in IR version 10
MODEL_FILE: Final = "model.onnx"
GOLDEN_FILE: Final = "golden.npz"
STEP_SECONDS: Final = 1800.0
LEAST_MEMORY: Final = 4 * 1024**3

Say = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built."""

    tenant: str
    model: str
    version: int
    profile: str
    arch: tuple[str, ...]
    optimization: Optimization


@dataclass(frozen=True, slots=True)
class Made:
    """One candidate. verdict: "published", "accepted" or "refused"; ``sealed`` for the published one alone."""

    precision: str
    verdict: str
    reasons: tuple[str, ...]
    figures: Figures
    target: Target
    model: Path
    golden: Path
    sealed: Sealed | None


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]

    def as_wire(self) -> Tensor:
        return Tensor(name=self.name, datatype=self.datatype, shape=self.shape)


class _Checked(msgspec.Struct, frozen=True):
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    batch: int
    calibration: int
    heldout: int
    labelled: bool


async def make(
    order: Order, source: Path, data: Path, directory: Path, key: BuilderKey, say: Say, *, now: float, seed: int
) -> list[Made]:
    """Return the candidates of ``order``, one of them published. Files are made in ``directory``.

    ``say`` is told what happens next. Raises StepError.
    """
    bounds = _bounds(source, data)
    await say("checking the model and its data")
    baseline = directory / f"{FP32}.onnx"
    asked = {"check": {"model": str(source), "data": str(data), "output": str(baseline)}}
    checked = _read_checked((await run_child(_CONVERT, asked, bounds))["checked"])
    facts = SourceFacts(checked.calibration, checked.heldout, checked.labelled)

    candidates, notes = [], [left_out(facts, order.optimization)]
    for step in recipe(facts, order.optimization):
        model = directory / f"{step.precision}.onnx"
        if step.calibration is not None:
            await say(f"making {step.precision}: {step.why}")
            failure = await _quantize(step, baseline, data, model, bounds)
            if failure:
                notes.append(failure)
                continue
        candidates.append(benchmark.Candidate(step.precision, model, directory / f"{step.precision}.npz"))

    names = ", ".join(candidate.precision for candidate in candidates)
    await say(f"measuring {names}")
    measured = await benchmark.measure(candidates, data, bounds, seed=seed)
    verdicts = _judge(measured, order.optimization)
    if any(isinstance(verdict, Refused) and verdict.noisy for verdict in verdicts):
        await say(f"measuring {names} again: the machine was too busy")
        measured = await benchmark.measure(candidates, data, bounds, seed=seed + 1, rounds=2 * benchmark.ROUNDS)
        verdicts = _judge(measured, order.optimization)

    await say("choosing and signing")
    if isinstance(verdicts[0], Refused):
        raise StepError(f"the model itself cannot be published: {'; '.join(verdicts[0].reasons)}", permanent=True)
    accepted = [build for build, verdict in zip(measured, verdicts, strict=True) if isinstance(verdict, Accepted)]
    best, why = choose(accepted, order.optimization)
    extra = [why, *(note for note in (*notes, _elsewhere(order.arch)) if note)]
    made = []
    for candidate, build, verdict in zip(candidates, measured, verdicts, strict=True):
        published = build is best
        reasons = (*verdict.reasons, *(extra if published else ()))
        stated = benchmark.figures(build, benchmark.this_machine())
        sealed = None
        if published:
            manifest = _manifest(order, candidate, build, stated, checked, reasons, now)
            sealed = key.seal(manifest)
        verdict_word = "published" if published else "accepted" if isinstance(verdict, Accepted) else "refused"
        made.append(
            Made(
                *(candidate.precision, verdict_word, reasons, stated, _target(order)),
                *(candidate.model, candidate.golden, sealed),
            )
        )
    return made


def _judge(measured: list[Measured], optimization: Optimization) -> list[Accepted | Refused]:
    return [accept(measured[0], build, LIMITS[optimization]) for build in measured]


async def _quantize(step: Step, baseline: Path, data: Path, model: Path, bounds: Bounds) -> str:
    """Make one INT8 candidate; return why not, when the model does not bear it: then FP32 goes alone."""
    assert step.calibration is not None
    paths = {"model": str(baseline), "data": str(data), "output": str(model)}
    try:
        await run_child(_CONVERT, {"quantize": paths | {"calibration": step.calibration.value}}, bounds)
    except StepError as error:
        if not error.permanent:
            raise
        return f"{step.precision} could not be made: {error}"[:1000]
    return ""


def _manifest(
    order: Order,
    candidate: benchmark.Candidate,
    build: Measured,
    stated: Figures,
    checked: _Checked,
    reasons: tuple[str, ...],
    now: float,
) -> Manifest:
    return Manifest(
        tenant=order.tenant,
        model=order.model,
        model_version=order.version,
        precision=candidate.precision,
        target=_target(order),
        files=[describe(candidate.model, MODEL_FILE, "model"), describe(candidate.golden, GOLDEN_FILE, "golden")],
        inputs=[tensor.as_wire() for tensor in checked.inputs],
        outputs=[tensor.as_wire() for tensor in checked.outputs],
        figures=stated,
        limits=limits_for(build),
        reasons=list(reasons),
        created=now,
    )


def describe(path: Path, name: str, role: str) -> File:
    """Return the manifest's entry for the file ``path``, which devices will know as ``name``."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path=name, size=path.stat().st_size, sha256=digest, role=role)


def _target(order: Order) -> Target:
    return Target(profile=order.profile, arch=list(order.arch), runtime=RUNTIME, min_runtime=MIN_RUNTIME)


def _elsewhere(arch: tuple[str, ...]) -> str:
    here = platform.machine()
    if not arch or here in arch:
        return ""
    return f"speed was measured on {here}, which proves nothing for {' or '.join(arch)}: the device's own trial decides"


def _bounds(source: Path, data: Path) -> Bounds:
    """What a child may use grows with what was uploaded: converting holds several copies of all weights."""
    memory = LEAST_MEMORY + 12 * source.stat().st_size + 6 * data.stat().st_size
    return Bounds(STEP_SECONDS, memory)


def _read_checked(value: Any) -> _Checked:
    try:
        return msgspec.convert(value, _Checked)
    except msgspec.ValidationError as error:
        raise StepError(f"the check's child answered something odd: {error}", permanent=False) from error
