"""The agent without a backend: its life cycle and its parts."""
