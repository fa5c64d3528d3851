"""A reviewer of tile programs: what is wrong, what is slow, and what each remedy would bring."""

from foretile.simulator.review.finding import Finding
from foretile.simulator.review.review import Review, review

__all__ = ["Finding", "Review", "review"]
