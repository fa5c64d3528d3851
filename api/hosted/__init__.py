"""TileLang's host code without a GPU (extra ``tilelang``)."""

from foretile.hosted.session import Kernel, Launch, Session, hosted

__all__ = ["Kernel", "Launch", "Session", "hosted"]
