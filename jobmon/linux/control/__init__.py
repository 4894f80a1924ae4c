"""The clients of the daemon: connections, requests and replies."""
