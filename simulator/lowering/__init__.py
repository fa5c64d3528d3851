"""From a program and a machine to a workload: who does what, how long it occupies which engine."""

from foretile.simulator.lowering.lower import lower

__all__ = ["lower"]
