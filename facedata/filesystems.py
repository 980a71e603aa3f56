"""Which file system a path lies on."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["network_file_system"]

_MOUNTS = "/proc/self/mountinfo"
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|coda|drvfs|fhgfs|gfs2|glusterfs|gpfs|lizardfs|lustre|moosefs|ncpfs|nfs4?|ocfs2|orangefs"
    r"|panfs|prl_fs|pvfs2|quobyte|smb2|smb3|smbfs|vboxsf|virtiofs|wekafs"
    r"|fuse\.(beegfs|blobfuse2?|ceph(-fuse)?|curlftpfs|davfs2?|gcsfuse|geesefs|glusterfs|goofys|juicefs|lizardfs|mfs"
    r"|alluxio-fuse|dfuse|gpfs|grpcfuse|hdfs|moosefs|nfs|objectivefs|osxfs|quobyte|vmhgfs-fuse|mount-s3|mountpoint-s3|rclone|s3fs|s3ql|seaweedfs|smbnetfs|sshfs|xtreemfs)",
    re.IGNORECASE,
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def network_file_system(path: str | os.PathLike[str], mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` lies on, or would lie on.

    Parameters
    ----------
    path : path
        It need not be there yet: its nearest folder that is there counts.
    mounts : str, optional
        The text of Linux's ``mountinfo``; by default this process's own.

    Returns
    -------
    str or None
        ``"nfs4"``, ``"lustre"``, ``"fuse.sshfs"``, say; None where it lies on no network file system, and where the
        system does not tell.
    """
    folder = _nearest_folder(path)  # this may be what mounts it
    if mounts is None:
        try:
            mounts = Path(_MOUNTS).read_text(errors="surrogateescape")
        except OSError:
            return None
    kind = _kind_at(folder, mounts)
    return kind if _NETWORK.fullmatch(kind) else None


def _nearest_folder(path: str | os.PathLike[str]) -> str:
    """The real path of what is there of `path`; links are followed even where they lead nowhere."""
    real = os.path.realpath(path)
    while not os.path.exists(real) and real != os.path.dirname(real):
        real = os.path.dirname(real)
    return real


def _kind_at(folder: str, mounts: str) -> str:
    """The type of the file system that is mounted nearest above `folder`; of two at one place the later."""
    longest, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) < 5:
            continue
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])
        above = folder == point or folder.startswith(point.rstrip("/") + "/")
        if above and len(point) >= longest:
            longest, kind = len(point), types[0]
    return kind
