"""The public port: Flower fleet API over TLS and nothing else. Only here does the server import flwr."""
