"""The decoding process: hostile files are opened in a process of its own, with a memory limit and no pickle."""
