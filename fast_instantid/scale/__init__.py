"""Many pictures: batches (``embed``, or any work by ``units``; ``cli/batch.py``), and a service (``serve/``)."""
