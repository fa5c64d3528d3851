"""TileLang's host code without a GPU (extra ``tilelang``)."""

from foretile.hosted.kernel import Kernel
from foretile.hosted.launch import Launch
from foretile.hosted.session import Session, hosted

__all__ = ["Kernel", "Launch", "Session", "hosted"]
