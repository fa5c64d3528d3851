"""Kernels on a device: what is asked of its driver, timing, checking, and the measurement bundle.

Everything a bundle carries to the device's machine needs only Python, NumPy and CuPy, and CuPy only
where a device is used (``BUNDLED`` in :mod:`~foretile.calibration.device.archive` lists the modules).
"""
