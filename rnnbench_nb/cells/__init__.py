"""The table of cells. To add one, put a file here (README, "Add a cell"); edit nothing else."""

import sys

from rnnbench_nb.cells.agru import AGRU
from rnnbench_nb.cells.agru_heun import AGRUHeun
from rnnbench_nb.cells.antisymmetric_rnn import AntisymmetricRNN
from rnnbench_nb.cells.base import Cell, plain_loop
from rnnbench_nb.cells.cornn import CoRNN
from rnnbench_nb.cells.gated_antisymmetric_rnn import GatedAntisymmetricRNN
from rnnbench_nb.cells.gru import GRU
from rnnbench_nb.cells.gru_reset_before import GRUResetBefore
from rnnbench_nb.cells.lem import LEM
from rnnbench_nb.cells.lipschitz_rnn import LipschitzRNN
from rnnbench_nb.cells.lstm import LSTM
from rnnbench_nb.cells.mingru import MinGRU
from rnnbench_nb.plugins import discover

CELLS: dict[str, type[Cell]] = discover(sys.modules[__name__], Cell)
