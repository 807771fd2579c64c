"""The round loop: ask, collect, judge, merge, commit, and go on from wherever a crash left it."""
