"""Compile the A-GRU's Triton kernels without a GPU, and print what they need.

The arguments are a compute capability, such as 90 for 9.0, and numbers of hidden units. It runs in
a process of its own, because in the interpreter there is nothing to compile.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnnbench_nb.cells.kernels import agru_triton


def resources(capability: int, hidden: int, precision: str) -> Iterator[tuple]:
    """Name, bytes of shared memory and bytes of stack of each kernel, for 128 sequences."""
    cut = agru_triton.tiling(hidden, precision)._asdict()
    options = {key: cut.pop(key) for key in ("num_warps", "num_stages", "maxnreg")}
    numbers = {"T": 784, "B": 128, "H": hidden, "kept_step": 512 * cut["P"]}
    numbers |= dict.fromkeys(("step_stride", "row_stride", "unit_stride"), 0)  # of no gradient
    for kernel in (agru_triton.forward_kernel, agru_triton.backward_kernel):
        names = kernel.arg_names
        fixed = {name: value for name, value in cut.items() if name in names}
        types = {name: "i32" if name in numbers else "*fp32" for name in names}
        types |= dict.fromkeys(fixed, "constexpr")
        # As at a launch, the compiler may use that pointers and some numbers are multiples of 16.
        aligned = [name for name in names if name not in fixed and numbers.get(name, 0) % 16 == 0]
        source = ASTSource(
            kernel,
            types,
            {(names.index(name),): value for name, value in fixed.items()},
            {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        with tempfile.NamedTemporaryFile() as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            usage = subprocess.check_output(command, text=True)
        stack = int(re.search(r"STACK:(\d+)", usage)[1])
        yield hidden, precision, kernel.__name__, compiled.metadata.shared, stack


if __name__ == "__main__":
    capability, *sizes = map(int, sys.argv[1:])
    cases = [(size, precision) for size in sizes for precision in ("highest", "medium")]
    print(json.dumps([each for case in cases for each in resources(capability, *case)]))
