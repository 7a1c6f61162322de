"""An output on a file system that other machines write to is told of, a local one is not."""

from pathlib import Path

import pytest

from batcher.results.mounts import file_system, shared_file_system

MOUNTS = r"""21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
30 21 0:40 / /data rw,relatime shared:5 master:2 - nfs4 host:/export rw,vers=4.2
31 30 0:41 / /data/local rw - xfs /dev/vdb rw
32 21 0:42 / /mnt/a\040b rw - cifs //host/share rw
33 21 0:43 / /mnt/home rw - fuse.sshfs me@host: rw
34 21 0:44 / /mnt/usb rw - fuseblk /dev/sdb1 rw
35 21 0:45 / /twice rw - nfs host:/old rw
36 21 0:46 / /twice rw - tmpfs tmpfs rw
torn
40 21 0:50 / /odd rw -
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/x.jsonl", "ext4"),
        ("/data/x.jsonl", "nfs4"),
        ("/database/x.jsonl", "ext4"),
        ("/data/local/deep/x.jsonl", "xfs"),
        ("/mnt/a b/x.jsonl", "cifs"),
        ("/mnt/home/x.jsonl", "fuse.sshfs"),
        ("/mnt/usb/x.jsonl", "fuseblk"),
        ("/twice/x.jsonl", "tmpfs"),
        ("/odd/x.jsonl", "ext4"),
    ],
)
def test_the_innermost_mount_tells_the_file_system(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("nfs", True),
        ("nfs4", True),
        ("cifs", True),
        ("smb3", True),
        ("9p", True),
        ("fuse.sshfs", True),
        ("fuse", True),
        ("ext4", False),
        ("overlay", False),
        ("fuseblk", False),
        ("nfsd", False),
    ],
)
def test_only_what_other_machines_write_to_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shared: bool
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, errors: f"21 1 254:0 / / rw - {kind} /dev/vda rw\n")
    assert shared_file_system(tmp_path / "x.jsonl") == (kind if shared else "")


def test_where_nothing_is_known_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, errors: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert shared_file_system(tmp_path / "x.jsonl") == ""


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    assert isinstance(shared_file_system(tmp_path), str)
