"""Sources -> corpus: the stage a hospital runs on its own scans. See `prepare`."""

from usfmae.core.prepare.run import prepare
from usfmae.core.prepare.summary import PrepareSummary, Progress

__all__ = ["PrepareSummary", "Progress", "prepare"]
