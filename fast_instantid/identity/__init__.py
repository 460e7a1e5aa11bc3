"""The adapter, and the identities that it computes from face embeddings."""

from .checkpoint import find_adapter as find_adapter, find_identity_net as find_identity_net
from .embeddings import EMBEDDING_DIM as EMBEDDING_DIM, Combine as Combine
from .identity import Adapter as Adapter, Identity as Identity
