"""A small report on digits, for notebooks that are opened before there is a report."""

from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Markdown, display

from rnnbench_nb.experiment import PROJECT, load_protocol, to_yaml
from rnnbench_nb.files import write_file
from rnnbench_nb.report import Report
from rnnbench_nb.runs import train_run

SETTINGS = {"dataset": "digits", "epochs": 5, "learning_rate": 0.003, "hidden_size": 32}


def demonstration(settings: dict = SETTINGS) -> Report:
    """Train the models of params/quick.yaml on digits, some seconds, in a temporary folder."""
    display(
        Markdown(
            "**This is a demonstration:** there is no report yet (`make report` makes one), so a "
            "small one on digits stands in. What it says holds for nothing else."
        )
    )
    folder = Path(mkdtemp())
    protocol = load_protocol(PROJECT / "params/quick.yaml", settings)
    write_file(folder / "protocol.yaml", to_yaml(protocol.dump()))
    for seed in protocol.seeds:
        for parameters in protocol.at(seed):
            train_run(parameters, folder / "runs" / parameters.run, report=lambda line: None)
    return Report(folder)
