"""usfmae.core: everything that needs no network. Data flows one way: read, clean, corpus, train, update."""

__version__ = "0.2.0"
