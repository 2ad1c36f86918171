"""Export of a finished module: files that are proven, in a fresh process, to do what the module does."""

from .error import ExportError
from .exporter import export
from .folder import check_target
from .formats import FORMATS, known_formats
from .receipt import FileRecord, FormatRecord, Receipt
from .state import load_state

__all__ = [
    "FORMATS",
    "ExportError",
    "FileRecord",
    "FormatRecord",
    "Receipt",
    "check_target",
    "export",
    "known_formats",
    "load_state",
]
