"""Makes the miniature: draws its world, trains its networks, measures what they can do.

Nothing here is imported by the package ``fast_instantid``, which only reads the weights that come out.
"""
