"""Networks that summarise observations: vectors, sets of trials, time series, spectra, images, tokens."""

from sbi_flows.embeddings.base import Embedding
from sbi_flows.embeddings.choose import build_embedding, choose_embedding, is_curve
from sbi_flows.embeddings.dense import VectorEmbedding
from sbi_flows.embeddings.grids import ImageEmbedding, SeriesEmbedding, SpectrumEmbedding
from sbi_flows.embeddings.objects import ObjectEmbedding
from sbi_flows.embeddings.own import OWN, ShapedEmbedding
from sbi_flows.embeddings.sets import SetEmbedding, TokenEmbedding

__all__ = [
    "OWN",
    "Embedding",
    "ImageEmbedding",
    "ObjectEmbedding",
    "SeriesEmbedding",
    "SetEmbedding",
    "ShapedEmbedding",
    "SpectrumEmbedding",
    "TokenEmbedding",
    "VectorEmbedding",
    "build_embedding",
    "choose_embedding",
    "is_curve",
]
