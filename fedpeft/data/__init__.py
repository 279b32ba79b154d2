"""Records of organisations: reading, partitioning and tokenising them."""

from fedpeft.data.batches import Batch, collate
from fedpeft.data.partition import partition
from fedpeft.data.readers import as_written, is_record_source, read_folder, read_records, read_written
from fedpeft.data.records import Notes, Record, label_set, split, write_records
from fedpeft.data.tokens import Example, check_records, tokenise

__all__ = [
    "Batch",
    "Example",
    "Notes",
    "Record",
    "as_written",
    "check_records",
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
