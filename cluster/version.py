"""Which understudy this is: the version that was installed."""

from importlib.metadata import version

__version__ = version("understudy")
