"""The service: faces, persons and pictures over HTTP, under uvicorn or Ray Serve.

A request passes ``server``, ``limits`` and a route of ``app``. Its job waits in a queue of ``engine``, which has the
networks.
"""
