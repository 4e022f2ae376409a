"""A backend: one of the libraries that compute."""


class BackendError(ImportError):
    """A backend that is not installed, that finds no device, or that there is none of; the message names the fix."""
