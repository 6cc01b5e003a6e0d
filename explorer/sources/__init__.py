"""Where networks, weights and images come from, and how files are written."""

from explorer.sources.checkpoint import load_weights, read_checkpoint
from explorer.sources.collect import from_loader
from explorer.sources.data import ZOO_DATA, check_shape, load_data
from explorer.sources.dataset import DatasetData
from explorer.sources.digests import sha256_of
from explorer.sources.efficientnet import PACKAGED
from explorer.sources.facts import DataFacts, facts_of
from explorer.sources.files import atomic_write
from explorer.sources.folder import FolderData
from explorer.sources.foreign import FOREIGN_SUFFIXES, read_foreign
from explorer.sources.images import ArrayData, Batch, Data, Skipped, Subset
from explorer.sources.junit import junit
from explorer.sources.labels import fit_labels
from explorer.sources.loaded import LoadedModel
from explorer.sources.models import load_model
from explorer.sources.nodedata import NODE_SCORES, node_data
from explorer.sources.notes import Notes, load_notes
from explorer.sources.preprocess import Preprocess
from explorer.sources.project import Project
from explorer.sources.recipes import load_recipe
from explorer.sources.scores import load_metric
from explorer.sources.tables import TABLE_FORMATS, csv_bytes, parquet_bytes
from explorer.sources.zoo import ZOO

__all__ = [
    "FOREIGN_SUFFIXES",
    "NODE_SCORES",
    "PACKAGED",
    "TABLE_FORMATS",
    "ZOO",
    "ZOO_DATA",
    "ArrayData",
    "Batch",
    "Data",
    "DataFacts",
    "DatasetData",
    "FolderData",
    "LoadedModel",
    "Notes",
    "Preprocess",
    "Project",
    "Skipped",
    "Subset",
    "atomic_write",
    "check_shape",
    "csv_bytes",
    "facts_of",
    "fit_labels",
    "from_loader",
    "junit",
    "load_data",
    "load_metric",
    "load_model",
    "load_notes",
    "load_recipe",
    "load_weights",
    "node_data",
    "parquet_bytes",
    "read_checkpoint",
    "read_foreign",
    "sha256_of",
]
