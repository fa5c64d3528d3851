"""Microbenchmarks: CUDA kernels that each isolate one parameter of a chip, and what their times say of it.

:mod:`~foretile.calibration.device.micro.benchmarks` says what there is, ``run`` measures it into rows,
``estimates`` makes numbers with intervals of the rows, ``chipfile`` a chip of the numbers. The kernels are
the ``.cu`` files of this folder; ``docs/microbenchmarks.md`` describes each.
"""
