"""Download files and check them: HTTP, Google Drive, OneDrive; interrupted downloads are resumed."""

from facedata.download.transfer.fetch import fetch_files
from facedata.download.transfer.options import Fetched, FileRequest, Link, TransferOptions

__all__ = ["Fetched", "FileRequest", "Link", "TransferOptions", "fetch_files"]
