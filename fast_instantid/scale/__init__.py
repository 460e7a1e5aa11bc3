"""Many pictures: batches of photo libraries (``embed``), of any work (``units``), and a service (``serve/``).

The commands are in ``cli/batches.py`` and ``cli/serve.py``.
"""
