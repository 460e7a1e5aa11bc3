"""The host's command line: always ``--cpu``."""

from types import SimpleNamespace

args = SimpleNamespace(cpu=True, base_directory=None)
