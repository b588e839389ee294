"""Made reports for the tests of figures: variants with their labels and looks, and no runs."""

from types import SimpleNamespace

from rnnbench_nb.experiment import run_parameters
from rnnbench_nb.report import labels, looks
from rnnbench_nb.tasks import TASKS


def made_report(*variants: str, **models: str) -> SimpleNamespace:
    """A report of these variants, each of the cell of its name, or of the one that is given."""
    models = dict.fromkeys(variants, "") | models
    parameters = {
        name: run_parameters({"model": model or name, "variant": name}, "a test")
        for name, model in models.items()
    }
    first = next(iter(parameters.values()))
    return SimpleNamespace(
        variants=parameters, labels=labels(parameters), looks=looks(parameters),
        task=TASKS[first.task](first),
    )  # fmt: skip
