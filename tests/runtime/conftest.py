"""Every test runs in a folder of its own."""

from support.folders import everything, own_folder  # noqa: F401 - fixtures
