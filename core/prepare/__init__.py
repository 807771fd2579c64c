"""Sources -> corpus: the stage a hospital runs on its own scans. See `prepare`."""

from usfmae.core.prepare.identify import Sources
from usfmae.core.prepare.progress import PrepareSummary, Progress
from usfmae.core.prepare.run import Parallel, prepare

__all__ = ["Parallel", "PrepareSummary", "Progress", "Sources", "prepare"]
