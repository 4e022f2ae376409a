"""Soft Actor-Critic without a backend: its data, the gradient step, and how batches are made of the replay memory."""
