"""Fetching files whole and checked: HTTP with ranges, Google Drive, OneDrive; resumed across runs."""

from facedata.download.transfer.fetch import fetch_files
from facedata.download.transfer.files import Fetched, FileRequest, TransferOptions
from facedata.download.transfer.pages import web_page_title

__all__ = ["Fetched", "FileRequest", "TransferOptions", "fetch_files", "web_page_title"]
