"""Export of a finished module: files that are proven, in a fresh process, to do what the module does."""

from .error import ExportError
from .exporter import export
from .formats import FORMATS
from .receipt import FileRecord, FormatRecord, Receipt
from .state import load_state

__all__ = ["FORMATS", "ExportError", "FileRecord", "FormatRecord", "Receipt", "export", "load_state"]
