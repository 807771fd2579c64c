"""The wire of a site: Flower fleet API calls, messages and transfers. Only here does the client import flwr."""
