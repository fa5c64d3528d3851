"""nvcc works in the background while other tests run: it is the longest work of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from foretile.kernels.cuda.nvcc import ARCHITECTURES, FOLDER, Compiled, NvccError, compile_kernel, find_nvcc

Builds = dict[tuple[str, str], Future[Compiled]]


@pytest.fixture(scope="session", autouse=True)
def builds(request: pytest.FixtureRequest) -> Iterator[Builds]:
    """Machine code to come, by file and architecture; empty without nvcc, or where no test asks for it."""
    asked = any(item.path.name == "test_machine_code.py" for item in request.session.items)
    try:
        find_nvcc()
    except NvccError:
        asked = False
    files = sorted(path.name for path in FOLDER.glob("*.cu"))
    jobs = [(file, arch) for file in files for arch in ARCHITECTURES] if asked else []
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        yield {(file, arch): pool.submit(compile_kernel, FOLDER / file, arch) for file, arch in jobs}
        pool.shutdown(cancel_futures=True)
