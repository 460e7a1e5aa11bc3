"""The adapter, and the identities that it computes from face embeddings."""

from .checkpoint import find_adapter, find_identity_net
from .embeddings import EMBEDDING_DIM, Combine
from .identity import Adapter, Identity

__all__ = ["EMBEDDING_DIM", "Adapter", "Combine", "Identity", "find_adapter", "find_identity_net"]
