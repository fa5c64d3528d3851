"""TileLang's host code without a GPU (extra ``tilelang``)."""

from foretile.hosted.session import Launch, Session, hosted

__all__ = ["Launch", "Session", "hosted"]
