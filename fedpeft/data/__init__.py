"""Records of organisations: reading, partitioning and tokenising them."""

from fedpeft.data.partition import partition
from fedpeft.data.read import is_record_source, read_folder, read_records, read_written
from fedpeft.data.records import Record, label_set, split, write_records
from fedpeft.data.tokens import Batch, Example, collate, tokenise

__all__ = [
    "Batch",
    "Example",
    "Record",
    "collate",
    "is_record_source",
    "label_set",
    "partition",
    "read_folder",
    "read_records",
    "read_written",
    "split",
    "tokenise",
    "write_records",
]
