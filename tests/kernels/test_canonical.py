"""Programs that say the same in other words have one canonical form; others have not."""

import pytest

from foretile.kernels.canonical import canonical
from foretile.kernels.load import from_script

KERNEL = """
@T.prim_func
def main(A: T.Tensor((64,), "float32")):
    with T.Kernel(8, threads=32) as bx:
        for i in T.serial({trips}):
            A[i] = 0.0
"""


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("T.min(bx * 2 + 2, 6)", "T.min(bx + 1, 3) * 2", True),
        ("T.max(bx * 6, 4 - bx * 2)", "T.max(bx * 3, 2 - bx) * 2", True),
        ("T.min(bx * 2 + 2, 6)", "T.min(bx + 1, 4) * 2", False),
        ("T.min(bx * 2 + 2, 7)", "T.min(bx + 1, 3) * 2", False),
    ],
)
def test_common_factors_of_minima(one, other, same):
    programs = [from_script(KERNEL.format(trips=trips), "main") for trips in (one, other)]
    assert (canonical(programs[0]) == canonical(programs[1])) is same
