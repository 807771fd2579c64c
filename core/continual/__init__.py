"""Learning on without forgetting: the schedule, what an image batch is mixed of, averaging, the panel and the budget.

Pure parts only; `usfmae.server` runs them between the merge and the commit of a round.
"""
