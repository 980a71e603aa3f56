"""Which file system a path lies on, from mounts as Linux lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from facedata.files import network_file_system

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / {0}/home rw - nfs4 server:/home rw,vers=4.2
31 22 0:27 / {0}/scratch rw master:1 propagate_from:2 - lustre 10.0.0.1@tcp:/work rw
32 31 0:28 / {0}/scratch/local rw - xfs /dev/nvme0n1 rw
33 22 0:29 / {0}/with\040space rw - cifs //server/share rw
34 22 0:30 / {0}/sshfs rw - fuse.sshfs user@host: rw
35 22 0:31 / {0}/ntfs rw - fuseblk /dev/sdb1 rw
36 22 0:32 / {0}/twice rw - autofs systemd-1 rw
37 36 0:33 / {0}/twice rw - nfs server:/twice rw
38 22 0:34 / {0}/over rw - nfs server:/over rw
39 38 0:35 / {0}/over rw - tmpfs tmpfs rw
40 22 0:36 / {0}/gpfs rw - GPFS /dev/gpfs rw
41 22 0:37 / {0}/portal rw - fuse.portal portal rw
a line of another kind
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", None),
        ("home", "nfs4"),
        ("home/me/not/there/yet", "nfs4"),
        ("homes/me", None),
        ("scratch/out.lmdb", "lustre"),
        ("scratch/local/out.lmdb", None),
        ("with space/out.lmdb", "cifs"),
        ("sshfs/out.lmdb", "fuse.sshfs"),
        ("ntfs/out.lmdb", None),
        ("twice/out.lmdb", "nfs"),
        ("over/out.lmdb", None),
        ("gpfs/out.lmdb", "GPFS"),
        ("portal/out.lmdb", None),
    ],
)
def test_the_nearest_mount_tells_the_file_system(tmp_path: Path, path: str, kind: str | None) -> None:
    for name in ("home", "homes", "scratch/local", "with space", "sshfs", "ntfs", "twice", "over", "gpfs", "portal"):
        (tmp_path / name).mkdir(parents=True)
    assert network_file_system(tmp_path / path, MOUNTS.format(tmp_path)) == kind


def test_a_link_counts_for_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert network_file_system(tmp_path / "link" / "out.lmdb", MOUNTS.format(tmp_path)) == "nfs4"


def test_the_mounts_of_this_machine_can_be_read(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) == network_file_system(tmp_path, Path("/proc/self/mountinfo").read_text())
    assert network_file_system(tmp_path, "") is None
