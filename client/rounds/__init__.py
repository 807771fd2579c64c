"""A round at a site: what is asked, what comes in, the detached training, and the files of an update."""
