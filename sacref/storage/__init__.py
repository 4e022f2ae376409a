"""Checkpoints, replay logs, metric files, and the encoding of what they hold."""
