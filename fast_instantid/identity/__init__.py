"""The adapter, and the identities that it computes from face embeddings."""

from .bank import IdentityBank, project_bank
from .checkpoint import AdapterWeights, find_adapter, find_identity_net, read_adapter
from .embeddings import EMBEDDING_DIM, Combine, combine_embeddings, unconditional_embedding
from .identity import Adapter, Identity
from .resampler import Resampler

__all__ = [
    "EMBEDDING_DIM",
    "Adapter",
    "AdapterWeights",
    "Combine",
    "Identity",
    "IdentityBank",
    "Resampler",
    "combine_embeddings",
    "find_adapter",
    "find_identity_net",
    "project_bank",
    "read_adapter",
    "unconditional_embedding",
]
