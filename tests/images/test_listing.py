"""Order and completeness of the input list, and the errors of specs that stand for nothing."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.listing import IMAGE_SUFFIXES, InputList

SURROGATE = os.fsdecode(b"\xff\xfe.png")


def listed(base: Path, *specs: str) -> list[str]:
    inputs = InputList(specs, base_dir=str(base))
    inputs.check()
    paths = list(inputs)
    assert list(inputs) == paths
    assert inputs.count() == len(paths)
    assert InputList(specs, base_dir=str(base)).count() == len(paths)
    return paths


def faults(base: Path, *specs: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        InputList(specs, base_dir=str(base)).check()
    return str(caught.value).splitlines()


def plant(base: Path, *names: str) -> None:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()


def by_pathlib(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if not path.is_dir() and path.suffix.lower() in IMAGE_SUFFIXES)
    return [str(path) for path in sorted(found)]


def by_pathlib_relative(base: Path, folder: str) -> list[str]:
    return [os.path.relpath(path, base) for path in by_pathlib(base / folder)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    plant(tmp_path, "d/b.png", "d/a/z.JPG", "d/a-b.png", "d/a/n.txt", "d/.h.tif", "d/x y.webp", "e/1.bmp", "note.txt")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    for name in ("a/z.png", "a-b.png", "b.jpg", "n.txt", "a/b/c.tif"):
        fs.pipe(f"/listing/{name}", b"")
    yield fs
    fs.rm("/listing", recursive=True)


class TestFolders:
    def test_order_is_by_path_parts(self, tree: Path) -> None:
        assert listed(tree, "d") == ["d/.h.tif", "d/a/z.JPG", "d/a-b.png", "d/b.png", "d/x y.webp"]

    @pytest.mark.parametrize(
        "given_dir", ["d", "./d", "d/", "d//", ".", "./", "../{name}/d", "{base}/d", "{base}/./d/"]
    )
    def test_paths_are_written_as_pathlib_does(self, tree: Path, given_dir: str) -> None:
        spec = given_dir.format(base=tree, name=tree.name)
        folder = tree / spec
        children = [Path(path).relative_to(folder) for path in by_pathlib(folder)]
        assert listed(tree, spec) == [str(Path(spec) / child) for child in children]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.lists(
                st.text(" -./0aAbéß\n\udcff", min_size=1, max_size=3).filter(lambda t: "/" not in t),
                min_size=1,
                max_size=4,
            ),
            max_size=12,
        ),
        st.lists(st.sampled_from([".png", ".JPG", ".tif", ".txt", ""]), min_size=12, max_size=12),
    )
    def test_any_tree_is_listed_as_pathlib_sorts_it(self, files: list[list[str]], suffixes: list[str]) -> None:
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            plant(base, "first.png")
            for parts, suffix in zip(files, suffixes, strict=False):
                if all(part not in (".", "..") for part in parts):
                    (base / "/".join(parts[:-1])).mkdir(parents=True, exist_ok=True)
                    (base / ("/".join(parts) + suffix + "~"[: suffix == ""])).touch()
            assert listed(Path("/nowhere"), name) == by_pathlib(base)

    def test_links_to_folders_are_not_followed_but_files_are(self, tree: Path) -> None:
        (tree / "d" / "loop.png").symlink_to(tree / "d")
        (tree / "d" / "link").symlink_to(tree / "e")
        (tree / "d" / "file.png").symlink_to(tree / "e" / "1.bmp")
        assert listed(tree, "d") == by_pathlib_relative(tree, "d")
        assert "d/file.png" in listed(tree, "d")
        assert "d/link/1.bmp" not in listed(tree, "d")
        assert listed(tree, "d/link") == ["d/link/1.bmp"]

    def test_broken_link_stays_an_input(self, tree: Path) -> None:
        (tree / "e" / "2.png").symlink_to(tree / "gone.png")
        assert listed(tree, "e") == ["e/1.bmp", "e/2.png"]

    def test_it_is_lazy(self, tree: Path) -> None:
        paths = iter(InputList(["d", "e"], base_dir=str(tree)))
        assert next(paths) == "d/.h.tif"
        plant(tree, "e/0.png")
        assert list(paths)[-2:] == ["e/0.png", "e/1.bmp"]


class TestFilesAndSpecs:
    def test_order_of_specs_and_duplicates_are_kept(self, tree: Path) -> None:
        assert listed(tree, "e/1.bmp", "d/b.png", "e", "e/1.bmp") == ["e/1.bmp", "d/b.png", "e/1.bmp", "e/1.bmp"]

    def test_a_file_comes_back_as_given(self, tree: Path) -> None:
        for spec in ("./d//b.png", "d/../d/b.png", str(tree / "d/b.png"), "d/a/z.JPG"):
            assert listed(tree, spec) == [spec]

    @pytest.mark.parametrize("name", ["a b.png", "ü.png", "a\nb.png", "a[1].png", "what?.png", "*.png", SURROGATE])
    def test_odd_names_are_literal(self, tmp_path: Path, name: str) -> None:
        plant(tmp_path, name, "a1.png")
        assert listed(tmp_path, name) == [name]

    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
    def test_suffixes_in_any_case(self, tmp_path: Path, suffix: str) -> None:
        plant(tmp_path, "a" + suffix, "b" + suffix.upper(), "c" + suffix.title(), "d.gif")
        assert len(listed(tmp_path, ".")) == 3


class TestGlobs:
    def test_matches_come_in_the_order_of_path_parts(self, tree: Path) -> None:
        assert listed(tree, "d/*.png") == ["d/a-b.png", "d/b.png"]
        assert listed(tree, "**/*.[bp]*") == ["d/a-b.png", "d/b.png", "e/1.bmp"]
        assert listed(tree, f"{tree}/d/?.png") == [f"{tree}/d/b.png"]

    def test_matched_folders_are_scanned_and_files_come_once(self, tree: Path) -> None:
        assert listed(tree, "[de]") == [*listed(tree, "d"), *listed(tree, "e")]
        assert listed(tree, "d/**") == listed(tree, "d")
        assert listed(tree, "d/*") == [path for path in listed(tree, "d") if path != "d/.h.tif"]

    def test_a_folder_named_like_a_glob_is_literal(self, tree: Path) -> None:
        plant(tree, "[de]/own.png")
        assert listed(tree, "[de]") == ["[de]/own.png"]


class TestLists:
    def test_lines_are_taken_as_they_are(self, tree: Path) -> None:
        (tree / "list.txt").write_bytes(
            b"\xef\xbb\xbfd/b.png\r\n\r\n  \n d/lead.png \ngone.png\nfolder\n*.png\n\xff\xfe.png\nmemory://a.png\n\nlast.gif"
        )
        assert listed(tree, "@list.txt") == [
            *("d/b.png", " d/lead.png ", "gone.png", "folder", "*.png", SURROGATE, "memory://a.png", "last.gif")
        ]
        assert listed(tree, f"@{tree}/list.txt", "e") == [*listed(tree, "@list.txt"), "e/1.bmp"]
        assert listed(tree, f"@file://{tree}/list.txt") == listed(tree, "@list.txt")

    def test_only_newlines_end_a_line(self, tree: Path) -> None:
        (tree / "list.txt").write_text("a\x0cb\x85c\u2028d\re.png\n", encoding="utf-8", newline="")
        assert listed(tree, "@list.txt") == ["a\x0cb\x85c\u2028d\re.png"]

    def test_remote_list(self, tree: Path, memory: fsspec.AbstractFileSystem) -> None:
        memory.pipe("/listing/list.txt", b"x.png\r\ny.png")
        assert listed(tree, "@memory://listing/list.txt") == ["x.png", "y.png"]


class TestUrls:
    def test_folder_file_and_glob(self, tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
        everything = ["a/b/c.tif", "a/z.png", "a-b.png", "b.jpg"]
        assert listed(tmp_path, "memory://listing") == [f"memory:///listing/{name}" for name in everything]
        assert listed(tmp_path, "memory://listing/") == listed(tmp_path, "memory://listing")
        assert listed(tmp_path, "memory://listing/b.jpg") == ["memory://listing/b.jpg"]
        assert listed(tmp_path, "memory://listing/*.png") == ["memory:///listing/a-b.png"]
        assert listed(tmp_path, "memory://listing/*") == listed(tmp_path, "memory://listing")
        assert listed(tmp_path, "memory://listing/**") == listed(tmp_path, "memory://listing")

    def test_local_folder_by_url(self, tree: Path) -> None:
        assert listed(tree, f"file://{tree}/d") == [f"file://{path}" for path in by_pathlib(tree / "d")]

    def test_chained_url_keeps_its_tail(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("in/b.png", b"pixels")
        (path,) = listed(tmp_path, f"zip://in::file://{tmp_path}/a.zip")
        assert fsspec.open(path, "rb").open().read() == b"pixels"


class TestErrors:
    def test_all_unusable_specs_are_named_at_once(self, tree: Path) -> None:
        (tree / "empty").mkdir()
        (tree / "empty.txt").write_text("\n\r\n")
        specs = ["gone.png", "e", "gone/", "note.txt", "empty", "d/*.gif", "@gone.txt", "@empty.txt", "@d", ""]
        lines = faults(tree, *specs)
        assert len(lines) == len(specs) - 1
        for spec, line in zip([spec for spec in specs if spec != "e"], lines, strict=True):
            assert line.startswith(f"input {spec!r}: ")
        assert "png, jpg, jpeg" in lines[2]
        assert "@note.txt" in lines[2]

    def test_remote_faults(self, tree: Path, memory: fsspec.AbstractFileSystem) -> None:
        specs = [
            "memory://gone.png",
            "memory://listing/n.txt",
            "memory://listing/*.bmp",
            "@memory://gone.txt",
            "no://x",
        ]
        lines = faults(tree, *specs)
        assert [line.split(": ")[0] for line in lines] == [f"input {spec!r}" for spec in specs]

    def test_no_spec(self, tmp_path: Path) -> None:
        assert "--input" in faults(tmp_path)[0]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_folder_and_list(self, tree: Path) -> None:
        (tree / "d" / "a").chmod(0)
        (tree / "list.txt").touch(mode=0)
        lines = faults(tree, "d", "@list.txt")
        (tree / "d" / "a").chmod(0o700)
        assert len(lines) == 2
        assert "d/a" in lines[0]

    def test_iterating_does_not_skip_a_spec_that_is_gone(self, tree: Path) -> None:
        with pytest.raises(ConfigError, match="gone"):
            list(InputList(["d", "gone"], base_dir=str(tree)))

    def test_count_after_check_is_kept(self, tree: Path) -> None:
        inputs = InputList(["e"], base_dir=str(tree))
        inputs.check()
        plant(tree, "e/2.png")
        assert inputs.count() == 1
