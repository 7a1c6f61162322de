"""What kind of file system an output lies on: on some, locks and appends do not hold between machines."""

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ncpfs|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|fuse(\..+)?", re.IGNORECASE
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that `path` (absolute, without links) lies on, "" if not known.

    Args:
        path: a file or directory; it need not exist.
        mounts: the text of `/proc/self/mountinfo`.
    """
    kind, longest = "", -1
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        fields, sources = mount.split(" "), source.split(" ")
        if len(fields) < 5 or not sources[0]:
            continue
        point = Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), fields[4]))
        # Of two mounts in one place the later one is seen.
        if path.is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = sources[0], len(point.parts)
    return kind


def shared_file_system(path: Path) -> str:
    """Return the type of file system at `path` if other machines may write to it, too, else ""."""
    try:
        kind = file_system(path.resolve(), _MOUNTS.read_text(errors="surrogateescape"))
    except OSError:
        return ""  # no Linux: nothing is known
    return kind if _SHARED.fullmatch(kind) else ""
