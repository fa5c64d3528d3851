"""Hand-written CUDA C++ versions of the operators, and how any CUDA kernel is launched and compiled.

:mod:`~foretile.kernels.cuda.recipe` says in plain data how a kernel is launched, and
:mod:`~foretile.kernels.cuda.nvcc` turns a source file into machine code without a device.
"""
