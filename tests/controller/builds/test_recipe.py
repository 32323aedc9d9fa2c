"""Which candidates are tried."""

from __future__ import annotations

import pytest

from controller.builds.recipe import Optimization, SourceFacts, left_out, recipe

FULL = SourceFacts(calibration=200, heldout=450, labelled=True)


@pytest.mark.parametrize(
    ("facts", "optimization", "precisions", "why"),
    [
        (FULL, Optimization.BALANCED, ["fp32", "int8"], ""),
        (FULL, Optimization.AGGRESSIVE, ["fp32", "int8", "int8-percentile"], ""),
        (FULL, Optimization.NONE, ["fp32"], "no optimisation"),
        (SourceFacts(0, 450, True), Optimization.BALANCED, ["fp32"], "16 calibration rows, the data file has 0"),
        (SourceFacts(15, 450, True), Optimization.AGGRESSIVE, ["fp32"], "has 15"),
        (SourceFacts(16, 450, True), Optimization.BALANCED, ["fp32", "int8"], ""),
        (SourceFacts(200, 450, False), Optimization.BALANCED, ["fp32"], "labels"),
    ],
)
def test_recipe(facts: SourceFacts, optimization: Optimization, precisions: list[str], why: str) -> None:
    steps = recipe(facts, optimization)
    assert [step.precision for step in steps] == precisions
    assert all(len(step.precision) <= 16 for step in steps), "a column of the table"
    said = left_out(facts, optimization)
    assert why in said
    assert bool(said) == (len(steps) == 1)
