"""Sources -> corpus: the stage a hospital runs on its own scans. See `prepare`."""

from usfmae.core.prepare.progress import PrepareSummary, Progress
from usfmae.core.prepare.run import prepare

__all__ = ["PrepareSummary", "Progress", "prepare"]
