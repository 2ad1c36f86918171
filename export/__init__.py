"""Export of a finished module: files that are proven, in a fresh process, to do what the module does."""

from .error import ExportError
from .exporter import Test, export
from .folder import check_target
from .formats import FORMATS, USUAL, known_formats, require
from .loading import load_export
from .receipt import RECEIPT, FileRecord, FormatRecord, Receipt
from .state import load_state
from .verify import FormatVerdict, Verdict, recheck

__all__ = [
    "FORMATS",
    "RECEIPT",
    "USUAL",
    "ExportError",
    "FileRecord",
    "FormatRecord",
    "FormatVerdict",
    "Receipt",
    "Test",
    "Verdict",
    "check_target",
    "export",
    "known_formats",
    "load_export",
    "load_state",
    "recheck",
    "require",
]
