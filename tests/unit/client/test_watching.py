"""Changes of files are noticed, caches and editors' leftovers are not."""

from __future__ import annotations

import os
from pathlib import Path

from nanopod.client.watching import Watch


def test_new_changed_replaced_and_removed_files_are_named_once(tmp_path: Path) -> None:
    one, package = tmp_path / "one.py", tmp_path / "package"
    package.mkdir()
    one.write_text("1")
    watch = Watch([one, package])
    assert watch.changed() == []
    one.write_text("22")
    (package / "two.py").write_text("2")
    assert watch.changed() == [one, package / "two.py"]
    assert watch.changed() == []
    part = tmp_path / "one.part"
    part.write_text("33")
    os.utime(part, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    part.replace(one)
    (package / "two.py").unlink()
    assert watch.changed() == [one, package / "two.py"]


def test_caches_do_not_count_and_stop_ends_the_wait(tmp_path: Path) -> None:
    watch = Watch([tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "one.pyc").write_text("x")
    (tmp_path / "one.py~").write_text("x")
    assert watch.changed() == []
    assert watch.wait(lambda: True) == []
    assert Watch([tmp_path / "missing.py"]).changed() == []
