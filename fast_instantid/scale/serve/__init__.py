"""The service: faces, persons and pictures over HTTP, under uvicorn or Ray Serve."""
