"""OpenUS-46: the registry of its 46 data sets, their layouts and archives, and the leak audit."""
