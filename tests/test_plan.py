import pytest
import torch
from conftest import rnnbench_here, write_tiny

from rnnbench_nb import plan
from rnnbench_nb.protocol import load_protocol


def test_hours_are_those_of_the_whole_budget(tmp_path):
    variants = "{a: {model: gru, steps: 35}, b: {model: gru}}"  # of 10 steps an epoch
    path = write_tiny(tmp_path / "p.yaml", models="[gru]", runs=3, epochs=4, variants=variants)
    table = plan.hours(load_protocol(path)).to_dict("records")
    for row, name, steps in zip(table, "ab", (35, 40), strict=True):
        assert [row[key] for key in ("variant", "steps", "epochs", "seeds")] == [name, steps, 4, 3]
        seconds = 3 * (steps * row["step"] + 4 * row["validation"])
        assert row["hours"] == pytest.approx(seconds / 3600) and row["step"] > 0


def test_hours_are_measured_at_the_precision_of_the_runs(tmp_path, monkeypatch):
    seen, fit = [], plan.fit

    def spy(*arguments, **options):
        seen.append(torch.get_float32_matmul_precision())
        return fit(*arguments, **options)

    monkeypatch.setattr(plan, "fit", spy)
    path = write_tiny(tmp_path / "p.yaml", models="[gru]", epochs=1, precision="medium")
    plan.hours(load_protocol(path))
    assert {*seen} == {"medium"}


def test_check_prints_the_plan_before_the_first_run(tmp_path):
    path = write_tiny(tmp_path / "p.yaml", models="[gru]", runs=2)
    output = rnnbench_here("check", path, "--hours").stdout
    assert "seeds: 2" not in output and "hours with one training at a time" in output
    assert [line.split()[0] for line in output.splitlines()[-3:-1]] == ["variant", "gru"]
