"""Many pictures: batches (``embed``, or any work by ``units``; ``cli/batches.py``), and a service (``serve/``)."""
